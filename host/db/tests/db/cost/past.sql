-- What a server has behind it: 40 projects, each with 50 evaluations of 40 attributes, 20 of which were built for it; all on one
-- `stdenv`. Written past the triggers. Nobody but the test says when statistics are made.
INSERT INTO job_classes (system, features, ever_seen) VALUES ('x86_64-linux', '{}', true);
SET session_replication_role = replica;
DO $$
DECLARE
    v_table regclass;
BEGIN
    FOR v_table IN SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', v_table);
    END LOOP;
END
$$;
CREATE FUNCTION pg_temp.store_path(p_key text, p_name text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT '/nix/store/' || translate(md5(p_key), 'e', 'z') || '-' || p_name
$$;
INSERT INTO projects (name, kind, is_public) SELECT 'local/old-' || g, 'local', true FROM generate_series(1, 40) g;
INSERT INTO repositories (forge, external_id, owner, name, full_name, clone_url, default_branch, is_private)
SELECT 'forge', 'r' || g, 'o', 'r' || g, 'o/r' || g, 'https://forge.invalid/o/r' || g, 'main', false FROM generate_series(1, 40) g;
UPDATE projects p SET kind = 'forge', repository_id = r.id FROM repositories r WHERE p.name = 'local/old-' || substr(r.external_id, 2);
INSERT INTO nodes (id, incarnation, secret_hash, capabilities, version, systems, max_jobs, max_evals)
VALUES ('old', 1, sha256('old'), '{builder,evaluator}', '0', '{x86_64-linux}', 100, 100);

CREATE TEMP TABLE old_evals AS
SELECT 1000 + g AS id, p.id AS project_id, (g - 1) / 40 AS step, now() - (2001 - g) * interval '1 hour' AS at
FROM generate_series(1, 2000) g JOIN projects p ON p.name = 'local/old-' || 1 + (g - 1) % 40;
INSERT INTO evaluations (id, project_id, source_kind, flake_url, commit_sha, branch, status, created_at, started_at, finished_at,
    claimed_at, complete, superseded_by)
OVERRIDING SYSTEM VALUE
SELECT id, project_id, 'git', 'https://git.invalid/old', md5(id::text) || '00000000', 'main', 'succeeded', at, at, at, at, true,
    lead(id) OVER (PARTITION BY project_id ORDER BY id)
FROM old_evals ORDER BY id;
INSERT INTO commit_reports (project_id, commit_sha, settled)
SELECT project_id, commit_sha, true FROM evaluations WHERE id > 1000;
INSERT INTO evaluation_log_chunks (eval_id, seq, text) SELECT id, 1, repeat('evaluating', 20) FROM old_evals;

CREATE TEMP TABLE old_jobs AS
SELECT 1000 + (e.id - 1001) * 20 + i AS id, e.project_id, e.id AS eval_id, e.step, i,
    CASE WHEN e.id % 20 = 0 AND i = 1 THEN 'failed' WHEN e.id % 20 = 0 AND i = 0 THEN 'dep-failed' ELSE 'succeeded' END AS status,
    pg_temp.store_path(format('old %s %s', e.id, i), format('old-%s.drv', i)) AS drv_path,
    pg_temp.store_path(format('old output %s %s', e.id, i), format('old-%s', i)) AS output_path
FROM old_evals e CROSS JOIN generate_series(0, 19) i;
INSERT INTO old_jobs SELECT 999, p.id, 0, 0, 0, 'succeeded', pg_temp.store_path('stdenv', 'stdenv.drv'),
    pg_temp.store_path('stdenv output', 'stdenv') FROM projects p WHERE p.name = 'local/old-1';
CREATE INDEX ON old_jobs (eval_id, i);
ANALYZE old_jobs;
INSERT INTO derivations (drv_path, name, system, modulo_hash, public)
SELECT drv_path, 'old', 'x86_64-linux', 'old', true FROM old_jobs ORDER BY id;
INSERT INTO derivation_outputs (drv_path, output_name, output_path) SELECT drv_path, 'out', output_path FROM old_jobs ORDER BY id;
INSERT INTO derivation_inputs (referrer, input_drv, outputs)
SELECT j.drv_path, k.drv_path, ARRAY['out'] FROM old_jobs j CROSS JOIN generate_series(1, 3) d
JOIN old_jobs k ON k.eval_id = j.eval_id AND k.i = j.i + d WHERE j.eval_id > 0
UNION ALL
SELECT j.drv_path, pg_temp.store_path('stdenv', 'stdenv.drv'), ARRAY['out'] FROM old_jobs j WHERE j.eval_id > 0;
INSERT INTO derivation_sources (referrer, path)
SELECT drv_path, pg_temp.store_path('builder', 'builder.sh') FROM old_jobs
UNION ALL SELECT drv_path, pg_temp.store_path('source ' || eval_id, 'source') FROM old_jobs;
INSERT INTO build_jobs (id, drv_path, project_id, class_id, public, status, failure_kind, root_cause, timeout_s, max_silent_s,
    output_bytes_max, log_bytes_max, finished_at)
OVERRIDING SYSTEM VALUE
SELECT j.id, j.drv_path, j.project_id, c.id, true, j.status, CASE j.status WHEN 'failed' THEN 'build' END,
    CASE j.status WHEN 'dep-failed' THEN j.id + 1 END, 14400, 1800, 4294967296, 67108864, now() - interval '1 day'
FROM old_jobs j CROSS JOIN job_classes c ORDER BY j.id;
INSERT INTO build_attempts (id, job_id, token_hash, node, incarnation, started_at, finished_at, outcome, timeout_s,
    max_silent_s, output_bytes_max, charged_up)
OVERRIDING SYSTEM VALUE
SELECT id, id, sha256(id::text::bytea), 'old', 1, now() - interval '1 day', now() - interval '1 day', status, 14400, 1800,
    4294967296, true
FROM build_jobs WHERE status IN ('succeeded', 'failed') ORDER BY id;
INSERT INTO store_paths (path, nar_hash, nar_size, file_hash, file_size, refs, producing_attempt, state, public, published_at)
SELECT output_path, 'sha256:' || md5(output_path), 100, 'sha256:' || md5(drv_path), 50, '{}', id, 'published', true, now()
FROM old_jobs WHERE status = 'succeeded' ORDER BY id;
-- Half of an evaluation's attributes were there already.
INSERT INTO eval_attrs (eval_id, attr, drv_path, cached)
SELECT e.id, format('a%s-%s', j.step % 2, j.i), j.drv_path, j.eval_id <> e.id
FROM old_evals e JOIN old_jobs j ON j.eval_id IN (e.id, e.id - 40) ORDER BY e.id;
INSERT INTO upstream_paths (path, cache, present, expires_at)
SELECT pg_temp.store_path('upstream ' || g, 'upstream'), 'https://up.example/', true, now() + interval '1 day'
FROM generate_series(1, 20000) g;
INSERT INTO audit_log (actor, action, subject) SELECT 'somebody', 'cancel', 'job ' || g FROM generate_series(1, 20000) g;
-- A month of deliveries, a hundredth of them dead letters, and what they told of: a hundred pull requests of each repository.
INSERT INTO webhook_deliveries (forge, delivery_id, received_at, events, repositories, state, outcome, finished_at)
SELECT 'forge', 'old ' || g, at, jsonb_build_array(jsonb_build_object('push', jsonb_build_object('repository',
        jsonb_build_object('id', 'r' || 1 + g % 40, 'full_name', 'o/r' || 1 + g % 40), 'reference', jsonb_build_object('branch', 'main'),
        'commit', md5(g::text) || '00000000', 'deleted', false, 'author', 'a', 'message', 'm'))),
    ARRAY['o/r' || 1 + g % 40], CASE WHEN g % 100 = 0 THEN 'dead' ELSE 'done' END, 'evaluation', at
FROM generate_series(1, 30000) g CROSS JOIN LATERAL (SELECT now() - (30001 - g) * interval '80 seconds' AS at) t;
INSERT INTO pull_requests (project_id, number, title, author, head_commit, head_branch, head_ref, base_branch, base_commit, is_open, is_draft)
SELECT p.id, g, 't', 'a', md5(g::text) || '00000000', 'b' || g, format('refs/pull/%s/head', g), 'main', md5('base') || '00000000', g % 10 = 0, false
FROM projects p CROSS JOIN generate_series(1, 100) g WHERE p.repository_id IS NOT NULL;
INSERT INTO pull_request_heads (project_id, number, head_commit, delivery_id)
SELECT r.project_id, r.number, md5(g::text) || '00000000', g * 10000 - r.number FROM pull_requests r CROSS JOIN generate_series(1, 3) g;
INSERT INTO pull_request_approvals (project_id, number, head_commit, approved_by, comment_id)
SELECT project_id, number, head_commit, 'a', 'c' || number FROM pull_requests;
INSERT INTO pull_request_commands (project_id, comment_id, delivery_id) SELECT project_id, 'c' || number, number FROM pull_requests;
INSERT INTO forge_permissions (repository_id, user_login, permission, asked_at)
SELECT r.id, 'u' || g, 'write', now() - interval '1 minute' FROM repositories r CROSS JOIN generate_series(1, 100) g;
INSERT INTO forge_comments (repository_id, number, key, body, delivered_at)
SELECT r.id, g, 'k', 'b', now() FROM repositories r CROSS JOIN generate_series(1, 100) g;
