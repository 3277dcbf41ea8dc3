-- Evaluations of many jobs, all pending, in chains of ten: `a` with 10,000, `b` with 2,000, `c` with 1,000, of which nobody wants
-- any (its evaluation ended, and nobody was told), and `d` with 1,000 that say they wait for one more than they do. Written past
-- the triggers.
INSERT INTO job_classes (system, features, ever_seen) VALUES ('x86_64-linux', '{}', true) ON CONFLICT DO NOTHING;
UPDATE nodes SET last_seen = now();
SET session_replication_role = replica;
CREATE TEMP TABLE many_evals AS
SELECT 1000 + g AS id, substr('abcd', g, 1) AS branch, (ARRAY[10000, 2000, 1000, 1000])[g] AS jobs, g = 3 AS is_over, g = 4 AS is_wrong
FROM generate_series(1, 4) g;
INSERT INTO evaluations (id, project_id, source_kind, flake_url, commit_sha, branch, status, started_at, finished_at, claimed_at, complete)
OVERRIDING SYSTEM VALUE
SELECT e.id, p.id, 'git', 'https://git.invalid/x', md5(e.id::text) || '00000000', e.branch,
    CASE WHEN e.is_over THEN 'cancelled' ELSE 'succeeded' END, now(), now(), now(), true
FROM many_evals e CROSS JOIN projects p;
CREATE TEMP TABLE many_jobs AS
SELECT e.id * 100000 + i AS id, e.id AS eval_id, i, i % 10 AS place, e.is_wrong,
    '/nix/store/' || translate(md5(format('%s %s', e.id, i)), 'e', 'z') || '-many.drv' AS drv_path,
    '/nix/store/' || translate(md5(format('output %s %s', e.id, i)), 'e', 'z') || '-many' AS output_path
FROM many_evals e CROSS JOIN LATERAL generate_series(0, e.jobs - 1) i;
CREATE INDEX ON many_jobs (eval_id, i);
ANALYZE many_jobs;
INSERT INTO derivations (drv_path, name, system, modulo_hash, public) SELECT drv_path, 'many', 'x86_64-linux', 'many', true FROM many_jobs;
INSERT INTO derivation_outputs (drv_path, output_name, output_path) SELECT drv_path, 'out', output_path FROM many_jobs;
INSERT INTO derivation_inputs (referrer, input_drv, outputs)
SELECT j.drv_path, k.drv_path, ARRAY['out'] FROM many_jobs j CROSS JOIN generate_series(1, 3) d
JOIN many_jobs k ON k.eval_id = j.eval_id AND k.i = j.i - d WHERE j.place >= d;
INSERT INTO build_jobs (id, drv_path, project_id, class_id, public, unmet_deps, timeout_s, max_silent_s, output_bytes_max, log_bytes_max)
OVERRIDING SYSTEM VALUE
SELECT j.id, j.drv_path, p.id, c.id, true, least(j.place, 3) + CASE WHEN j.is_wrong THEN 1 ELSE 0 END, 14400, 1800, 4294967296, 67108864
FROM many_jobs j CROSS JOIN projects p JOIN job_classes c ON c.system = 'x86_64-linux' AND c.features = '{}' ORDER BY j.id;
INSERT INTO eval_attrs (eval_id, attr, drv_path) SELECT eval_id, 'n' || i, drv_path FROM many_jobs WHERE place = 9;
SELECT setval(pg_get_serial_sequence(t, 'id'), 1000000000) FROM unnest('{evaluations,build_jobs}'::text[]) AS t;
INSERT INTO job_totals SELECT counted_as(status), public, count(*) FROM build_jobs GROUP BY 1, 2;
SET session_replication_role = origin;
