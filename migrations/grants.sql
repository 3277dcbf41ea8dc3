-- Who may do what, and nothing else: applied after the functions, and whole each time. Evaluators and builders read what is not
-- secret and act through functions that check their claim; token hashes are readable by nobody but the owner.

-- What was granted before is taken back first, of all that is ours.
DO $$
DECLARE
    v_capability text;
    v_object record;
BEGIN
    FOREACH v_capability IN ARRAY ARRAY['frontend', 'evaluator', 'builder', 'signer'] LOOP
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'harmonia_' || v_capability);
        FOR v_object IN
            SELECT CASE WHEN relkind = 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, oid::regclass::text AS name FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'S')
                AND relowner = current_user::regrole AND (relacl::text LIKE '%harmonia!_%' ESCAPE '!'
                    OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = pg_class.oid AND attacl IS NOT NULL))
            UNION ALL
            SELECT 'FUNCTION', oid::regprocedure::text FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND proowner = current_user::regrole
                AND proacl::text LIKE '%harmonia!_%' ESCAPE '!'
        LOOP
            EXECUTE format('REVOKE ALL ON %s %s FROM %I', v_object.kind, v_object.name, 'harmonia_' || v_capability);
        END LOOP;
    END LOOP;
END
$$;

DO $$
DECLARE
    v_table text;
    v_secret record;
BEGIN
    -- What every capability may read.
    FOREACH v_table IN ARRAY ARRAY['schema_info', 'derivations', 'derivation_outputs', 'derivation_inputs', 'derivation_sources',
        'store_paths', 'upstream_paths', 'upstream_caches', 'upstream_reports', 'job_walks', 'signer_keys', 'projects', 'eval_attrs',
        'eval_expected_attrs', 'eval_holds', 'job_classes', 'live_evaluations', 'missing_path_reports', 'default_limits',
        'builder_systems', 'derivation_findings', 'withdrawals']
    LOOP
        PERFORM grant_to('SELECT ON ' || v_table, '{evaluator,builder,signer,frontend}');
    END LOOP;
    -- Who knows a node's incarnation speaks for it.
    FOR v_secret IN SELECT * FROM (VALUES ('evaluations', '{claim_token_hash,claim_incarnation}'::text[]),
        ('build_jobs', '{claim_token_hash,claim_incarnation}'), ('build_attempts', '{token_hash,incarnation}'),
        ('nodes', '{incarnation,secret_hash}')) AS s(in_table, names)
    LOOP
        PERFORM grant_to(format('SELECT (%s) ON %I', open_columns(v_secret.in_table, v_secret.names), v_secret.in_table),
            '{evaluator,builder,signer,frontend}');
    END LOOP;
    FOREACH v_table IN ARRAY ARRAY['bundles', 'bundle_chunks'] LOOP
        PERFORM grant_to('SELECT ON ' || v_table, '{evaluator}');
    END LOOP;
    PERFORM grant_to('SELECT ON reproducibility_findings', '{signer}');
    PERFORM grant_to('SELECT ON small_objects', '{signer,frontend}');
    -- Frontends: everything that has no claim to check.
    FOREACH v_table IN ARRAY ARRAY['repositories', 'projects', 'forge_syncs', 'poll_heads', 'webhook_deliveries', 'pull_requests',
        'pull_request_heads', 'pull_request_approvals', 'pull_request_commands', 'forge_permissions', 'bundles', 'bundle_chunks',
        'report_marks', 'job_marks', 'job_totals', 'commit_reports', 'evaluation_notifications', 'commit_statuses', 'forge_comments', 'outbox',
        'delivery_pauses', 'plugin_kv', 'api_tokens', 'audit_log', 'settings', 'realisations']
    LOOP
        PERFORM grant_to('SELECT, INSERT, UPDATE, DELETE ON ' || v_table, '{frontend}');
    END LOOP;
    PERFORM grant_to('USAGE ON SEQUENCE plugin_kv_version', '{frontend}');
    PERFORM grant_to('USAGE ON SEQUENCE evaluation_revisions', '{frontend}');
    PERFORM grant_to('UPDATE ON default_limits', '{frontend}');
    FOREACH v_table IN ARRAY ARRAY['evaluation_log_chunks', 'build_log_tails', 'reproducibility_findings', 'settled_counts'] LOOP
        PERFORM grant_to('SELECT ON ' || v_table, '{frontend}');
    END LOOP;
    -- The migrator's own table, for check_schema.
    IF to_regclass('_sqlx_migrations') IS NOT NULL THEN
        PERFORM grant_to('SELECT ON _sqlx_migrations', '{evaluator,builder,signer,frontend}');
    END IF;
END
$$;

-- Functions that are not here are called by others only.
SELECT grant_to('EXECUTE ON FUNCTION ' || f, r) FROM (VALUES
    ('register_node', '{evaluator,builder,signer,frontend}'::text[]),
    ('heartbeat', '{evaluator,builder,signer,frontend}'),
    ('deregister_node', '{evaluator,builder,signer,frontend}'),
    ('set_draining', '{evaluator,builder,signer,frontend}'),
    ('report_policy_error', '{builder,frontend}'),
    -- Pure reads that statements of every role use.
    ('attr_states', '{evaluator,builder,signer,frontend}'),
    ('attr_counts', '{evaluator,builder,signer,frontend}'),
    ('job_state', '{evaluator,builder,signer,frontend}'),
    ('drv_available_since', '{evaluator,builder,signer,frontend}'),
    ('drv_available', '{evaluator,builder,signer,frontend}'),
    ('outputs_claimed', '{evaluator,builder,signer,frontend}'),
    ('can_run', '{evaluator,builder,signer,frontend}'),
    ('last_offered', '{evaluator,builder,signer,frontend}'),
    ('walks_itself', '{evaluator,builder,signer,frontend}'),
    ('job_may_become', '{evaluator,builder,signer,frontend}'),
    ('claim_is_held', '{signer,frontend}'),
    ('shown_project', '{frontend}'),
    ('ready_queues', '{frontend}'),
    -- Builders.
    ('resolve_classes', '{builder}'),
    ('queue_heads', '{builder}'),
    ('claim_jobs', '{builder}'),
    ('revoke_claims', '{builder}'),
    ('void_claims', '{builder}'),
    ('write_log_tails', '{builder}'),
    ('attempt_uploading', '{builder,signer}'),
    ('upload_job', '{signer}'),
    ('keep_log', '{signer}'),
    ('fail_attempt', '{builder,signer}'),
    ('release_attempt', '{builder}'),
    ('report_missing_path', '{builder}'),
    ('report_upstream_fault', '{builder}'),
    -- Evaluators.
    ('set_evaluator_engine', '{evaluator}'),
    ('claim_evaluation', '{evaluator}'),
    ('revoke_evaluation', '{evaluator}'),
    ('set_evaluation_commit', '{evaluator}'),
    ('set_evaluation_source', '{evaluator}'),
    ('set_evaluation_merge', '{evaluator}'),
    ('set_evaluation_reuse', '{evaluator}'),
    ('set_tree_branches', '{evaluator}'),
    ('classify_derivations', '{evaluator}'),
    ('insert_batch', '{evaluator}'),
    ('register_upstreams', '{evaluator}'),
    ('note_upstream', '{evaluator}'),
    ('remember_upstream', '{evaluator}'),
    ('confirm_upstream_fault', '{evaluator}'),
    ('dismiss_upstream_report', '{evaluator}'),
    ('claim_walk', '{evaluator}'),
    ('finish_walk', '{evaluator}'),
    ('expect_attrs', '{evaluator}'),
    ('allow_empty_evaluation', '{evaluator}'),
    ('append_evaluation_log', '{evaluator}'),
    ('add_warnings', '{evaluator}'),
    ('finish_evaluation', '{evaluator}'),
    ('skip_evaluation', '{evaluator}'),
    ('fail_evaluation', '{evaluator}'),
    ('release_evaluation', '{evaluator}'),
    ('defer_evaluation', '{evaluator}'),
    -- What an evaluation wanted and nobody does any more; it is told of nothing but that, so whoever may end one may go on.
    ('withdraw_some', '{evaluator,frontend}'),
    -- Signers. A frontend asks whether an evaluator that wants a clone credential holds the evaluation.
    ('evaluation_held', '{evaluator,signer,frontend}'),
    ('attempt_job', '{signer}'),
    ('renew_leases', '{signer}'),
    ('claim_outputs', '{signer}'),
    ('claim_side_paths', '{signer}'),
    ('publish_outputs', '{signer}'),
    ('publish_paths', '{signer}'),
    ('register_derivations', '{signer}'),
    ('give_up_claimed_path', '{signer}'),
    ('unfinished_publications', '{signer}'),
    ('confirm_lost_path', '{signer}'),
    ('dismiss_missing_path', '{signer}'),
    ('report_damaged_narinfo', '{signer}'),
    ('set_signer_keys', '{signer}'),
    -- Frontends.
    ('create_evaluation', '{frontend}'),
    ('cancel_evaluation', '{frontend}'),
    ('request_evaluation', '{frontend}'),
    ('close_evaluations', '{frontend}'),
    ('record_delivery', '{frontend}'),
    ('delete_old_deliveries', '{frontend}'),
    ('upsert_repositories', '{frontend}'),
    ('save_sync_page', '{frontend}'),
    ('remove_repositories', '{frontend}'),
    ('enable_repository', '{frontend}'),
    ('add_git_project', '{frontend}'),
    ('set_project', '{frontend}'),
    ('set_local_visibility', '{frontend}'),
    ('rebuild_jobs', '{frontend}'),
    ('rebuild_failed', '{frontend}'),
    ('cancel_job', '{frontend}'),
    ('take_job_marks', '{frontend}'),
    ('begin_counts', '{frontend}'),
    ('settle_counts', '{frontend}'),
    ('sweep_reports', '{frontend}'),
    ('is_paused', '{frontend}'),
    ('project_loads', '{frontend}'),
    ('uncharged_attempts', '{frontend}'),
    ('charge_attempts', '{frontend}'),
    ('decay_due', '{frontend}'),
    ('decay_projects', '{frontend}'),
    ('reap_silent_nodes', '{frontend}'),
    ('mark_unsupported', '{frontend}'),
    ('revive_unsupported', '{frontend}'),
    ('sweep_invariants', '{frontend}'),
    ('jobs_to_repair', '{frontend}'),
    ('repair_jobs', '{frontend}'),
    ('withdraw_unwanted', '{frontend}'),
    ('recount_jobs', '{frontend}'),
    ('delete_stale', '{frontend}'),
    ('set_plugin_kv', '{frontend}')
) AS g(f, r);
