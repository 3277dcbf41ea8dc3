-- What waits now: 20 live evaluations, each of 500 jobs in 50 chains of ten, of which the lowest are ready; three of each
-- evaluation are being built. Five evaluations are queued.
CREATE TEMP TABLE new_evals AS
SELECT 100000 + g AS id, p.id AS project_id, g % 2 = 0 AS is_running
FROM generate_series(1, 20) g JOIN projects p ON p.name = 'local/old-' || g;
INSERT INTO evaluations (id, project_id, source_kind, flake_url, commit_sha, branch, status, started_at, finished_at, claimed_at,
    complete, claimed_by, claim_incarnation, claim_token_hash)
OVERRIDING SYSTEM VALUE
SELECT id, project_id, 'git', 'https://git.invalid/old', md5(id::text) || '00000000', 'busy',
    CASE WHEN is_running THEN 'running' ELSE 'succeeded' END, now(), CASE WHEN NOT is_running THEN now() END, now(), NOT is_running,
    CASE WHEN is_running THEN 'old' END, CASE WHEN is_running THEN 1 END, CASE WHEN is_running THEN sha256(id::text::bytea) END
FROM new_evals;
INSERT INTO evaluations (id, project_id, source_kind, flake_url, commit_sha, branch)
OVERRIDING SYSTEM VALUE
SELECT 101000 + g, p.id, 'git', 'https://git.invalid/old', md5(g::text) || '00000000', 'queued'
FROM generate_series(31, 35) g JOIN projects p ON p.name = 'local/old-' || g;

CREATE TEMP TABLE new_jobs AS
SELECT 100000 + (e.id - 100001) * 500 + i AS id, e.project_id, e.id AS eval_id, i, i % 10 AS place,
    pg_temp.store_path(format('new %s %s', e.id, i), format('new-%s.drv', i)) AS drv_path,
    pg_temp.store_path(format('new output %s %s', e.id, i), format('new-%s', i)) AS output_path
FROM new_evals e CROSS JOIN generate_series(0, 499) i;
CREATE INDEX ON new_jobs (eval_id, i);
ANALYZE new_jobs;
INSERT INTO derivations (drv_path, name, system, modulo_hash, public)
SELECT drv_path, 'new', 'x86_64-linux', 'new', true FROM new_jobs ORDER BY id;
INSERT INTO derivation_outputs (drv_path, output_name, output_path) SELECT drv_path, 'out', output_path FROM new_jobs ORDER BY id;
INSERT INTO derivation_inputs (referrer, input_drv, outputs)
SELECT j.drv_path, k.drv_path, ARRAY['out'] FROM new_jobs j CROSS JOIN generate_series(1, 3) d
JOIN new_jobs k ON k.eval_id = j.eval_id AND k.i = j.i + d WHERE j.place + d < 10
UNION ALL
SELECT j.drv_path, pg_temp.store_path('stdenv', 'stdenv.drv'), ARRAY['out'] FROM new_jobs j;
INSERT INTO derivation_sources (referrer, path) SELECT drv_path, pg_temp.store_path('builder', 'builder.sh') FROM new_jobs;
INSERT INTO build_jobs (id, drv_path, project_id, class_id, public, status, unmet_deps, timeout_s, max_silent_s, output_bytes_max,
    log_bytes_max, claimed_by, claim_incarnation, claim_token_hash, attempt_id, started_at)
OVERRIDING SYSTEM VALUE
SELECT j.id, j.drv_path, j.project_id, c.id, true, CASE WHEN is_held THEN 'building' ELSE 'pending' END, least(9 - j.place, 3), 14400, 1800,
    4294967296, 67108864, CASE WHEN is_held THEN 'old' END, CASE WHEN is_held THEN 1 END,
    CASE WHEN is_held THEN sha256(j.id::text::bytea) END, CASE WHEN is_held THEN j.id END, CASE WHEN is_held THEN now() END
FROM new_jobs j CROSS JOIN job_classes c CROSS JOIN LATERAL (SELECT j.place = 9 AND j.i < 30 AS is_held) h ORDER BY j.id;
INSERT INTO build_attempts (id, job_id, token_hash, node, incarnation, timeout_s, max_silent_s, output_bytes_max)
OVERRIDING SYSTEM VALUE
SELECT id, id, sha256(id::text::bytea), 'old', 1, 14400, 1800, 4294967296 FROM build_jobs WHERE status = 'building';
INSERT INTO eval_attrs (eval_id, attr, drv_path) SELECT eval_id, 'n' || i, drv_path FROM new_jobs WHERE place = 0;
INSERT INTO eval_expected_attrs SELECT a.eval_id, a.attr FROM eval_attrs a JOIN new_evals e ON e.id = a.eval_id WHERE e.is_running;
-- Deliveries that others process, that are put off, and that are due: a hundred each.
INSERT INTO webhook_deliveries (forge, delivery_id, events, next_attempt_at, leased_by, leased_until)
SELECT 'forge', 'new ' || g, '["ping"]', now() + CASE WHEN g BETWEEN 101 AND 200 THEN interval '1 hour' ELSE '0' END,
    CASE WHEN g <= 100 THEN 'other' END, CASE WHEN g <= 100 THEN now() + interval '1 hour' END
FROM generate_series(1, 300) g;
-- Paths that builders missed, here and upstream, and walks that were tried and are put off: what others look at.
INSERT INTO missing_path_reports (path) SELECT output_path FROM old_jobs WHERE status = 'succeeded' AND i = 3 AND eval_id > 2700;
INSERT INTO upstream_caches (node, cache, keys_digest) VALUES ('old', 'https://up.example/', 'k'), ('n', 'https://near.example/', 'k');
INSERT INTO upstream_reports (path, cache, roots, reason, attempt_id)
SELECT path, cache, ARRAY[path], 'gone', 1 FROM upstream_paths ORDER BY path LIMIT 300;
INSERT INTO job_walks (job_id, eval_id, tries, not_before)
SELECT id, eval_id, 1, now() + interval '1 hour' FROM new_jobs WHERE place = 0 AND eval_id BETWEEN 100011 AND 100016;
SELECT setval(pg_get_serial_sequence(t, 'id'), 1000000) FROM unnest('{evaluations,build_jobs,build_attempts}'::text[]) AS t;
INSERT INTO job_totals SELECT counted_as(status), public, count(*) FROM build_jobs GROUP BY 1, 2;
SET session_replication_role = origin;
