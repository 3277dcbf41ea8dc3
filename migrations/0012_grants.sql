-- Who may do what. Evaluators and builders read what is not secret and act through functions that check their claim; token
-- hashes are readable by nobody but the owner.

-- Columns of a table but its secrets.
CREATE FUNCTION open_columns(p_table text, p_secret text) RETURNS text
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT string_agg(format('%I', attname), ', ' ORDER BY attnum) FROM pg_attribute
    WHERE attrelid = p_table::regclass AND attnum > 0 AND NOT attisdropped AND attname <> p_secret
$$;

DO $$
DECLARE
    v_table text;
    v_secret record;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['schema_info', 'derivations', 'derivation_outputs', 'derivation_inputs', 'derivation_sources',
        'store_paths', 'upstream_paths', 'projects', 'eval_attrs', 'eval_expected_attrs', 'eval_holds', 'job_classes', 'nodes',
        'live_evaluations', 'missing_path_reports',
        'default_limits']
    LOOP
        PERFORM grant_to('SELECT ON ' || v_table, '{evaluator,builder,signer,frontend}');
    END LOOP;
    FOR v_secret IN SELECT * FROM (VALUES ('evaluations', 'claim_token_hash'), ('build_jobs', 'claim_token_hash'),
        ('build_attempts', 'token_hash')) AS s(in_table, name)
    LOOP
        PERFORM grant_to(format('SELECT (%s) ON %I', open_columns(v_secret.in_table, v_secret.name), v_secret.in_table),
            '{evaluator,builder,signer,frontend}');
    END LOOP;
    FOREACH v_table IN ARRAY ARRAY['bundles', 'bundle_chunks'] LOOP
        PERFORM grant_to('SELECT ON ' || v_table, '{evaluator}');
    END LOOP;
    -- Signers keep what they computed themselves.
    PERFORM grant_to('SELECT, INSERT ON drv_modulo', '{signer}');
    PERFORM grant_to('SELECT ON reproducibility_findings', '{signer}');
    -- Frontends: everything that has no claim to check.
    FOREACH v_table IN ARRAY ARRAY['repositories', 'projects', 'bundles', 'bundle_chunks', 'commit_statuses', 'outbox',
        'webhook_deliveries', 'plugin_kv', 'api_tokens', 'audit_log', 'settings', 'realisations']
    LOOP
        PERFORM grant_to('SELECT, INSERT, UPDATE, DELETE ON ' || v_table, '{frontend}');
    END LOOP;
    PERFORM grant_to('UPDATE ON default_limits', '{frontend}');
    FOREACH v_table IN ARRAY ARRAY['evaluation_log_chunks', 'build_log_tails', 'reproducibility_findings', 'drv_modulo'] LOOP
        PERFORM grant_to('SELECT ON ' || v_table, '{frontend}');
    END LOOP;
    -- The migrator's own table, for check_schema.
    IF to_regclass('_sqlx_migrations') IS NOT NULL THEN
        PERFORM grant_to('SELECT ON _sqlx_migrations', '{evaluator,builder,signer,frontend}');
    END IF;
END
$$;

SELECT grant_to('EXECUTE ON FUNCTION ' || f, r) FROM (VALUES
    ('register_node', '{evaluator,builder,signer,frontend}'::text[]),
    ('heartbeat', '{evaluator,builder,signer,frontend}'),
    ('deregister_node', '{evaluator,builder,signer,frontend}'),
    ('resolve_classes', '{builder}'),
    ('queue_heads', '{builder}'),
    ('project_loads', '{builder}'),
    ('claim_jobs', '{builder}'),
    ('claimed_jobs', '{builder}'),
    ('attempt_uploading', '{builder,signer}'),
    ('fail_attempt', '{builder,signer}'),
    ('release_attempt', '{builder}'),
    ('disown_claims', '{builder}'),
    ('void_claims', '{builder}'),
    ('write_log_tails', '{builder}'),
    ('report_missing_path', '{builder}'),
    ('claim_evaluation', '{evaluator}'),
    ('set_evaluation_commit', '{evaluator}'),
    ('evaluation_held', '{evaluator,signer}'),
    ('classify_derivations', '{evaluator}'),
    ('insert_batch', '{evaluator}'),
    ('expect_attrs', '{evaluator}'),
    ('allow_empty_evaluation', '{evaluator}'),
    ('append_evaluation_log', '{evaluator}'),
    ('add_warnings', '{evaluator}'),
    ('finish_evaluation', '{evaluator}'),
    ('fail_evaluation', '{evaluator}'),
    ('release_evaluation', '{evaluator}'),
    ('disown_evaluation', '{evaluator}'),
    ('remember_upstream', '{evaluator}'),
    ('attempt_job', '{signer}'),
    ('renew_leases', '{signer}'),
    ('claim_outputs', '{signer}'),
    ('claim_side_paths', '{signer}'),
    ('publish_outputs', '{signer}'),
    ('publish_paths', '{signer}'),
    ('unfinished_publications', '{signer}'),
    ('confirm_lost_path', '{signer}'),
    ('dismiss_missing_path', '{signer}'),
    ('create_evaluation', '{frontend}'),
    ('rebuild_jobs', '{frontend}'),
    ('rebuild_failed', '{frontend}'),
    ('cancel_job', '{frontend}'),
    ('cancel_evaluation', '{frontend}'),
    ('set_draining', '{frontend}'),
    ('reap_silent_nodes', '{frontend}'),
    ('mark_unsupported', '{frontend}'),
    ('revive_unsupported', '{frontend}'),
    ('sweep_invariants', '{frontend}'),
    ('repair_jobs', '{frontend}'),
    ('delete_stale', '{frontend}'),
    -- Pure reads that statements of every role use.
    ('drv_available', '{evaluator,builder,signer,frontend}'),
    ('outputs_claimed', '{evaluator,builder,signer,frontend}'),
    ('can_run', '{evaluator,builder,signer,frontend}'),
    ('job_may_become', '{evaluator,builder,signer,frontend}')
) AS g(f, r);
