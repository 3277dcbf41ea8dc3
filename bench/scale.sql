-- Fills an empty, migrated database with a past and a present, written past the functions that make them:
--   :jobs       jobs that ended, 20 for each evaluation (of 40 attributes: half of them were there already), all on one `stdenv`
--   :ready      jobs that wait for nobody but a builder
--   :attributes of one evaluation that ended, the newest of its project
SET session_replication_role = replica;
CREATE FUNCTION pg_temp.store_path(p_key text, p_name text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT '/nix/store/' || translate(md5(p_key), 'e', 'z') || '-' || p_name
$$;
INSERT INTO job_classes (system, features, ever_seen) VALUES ('x86_64-linux', '{}', true) ON CONFLICT DO NOTHING;
INSERT INTO projects (name, kind, is_public) SELECT 'bench/' || g, 'local', true FROM generate_series(1, greatest(10, :jobs / 5000)) g;

CREATE TEMP TABLE past AS
SELECT 1000000 + g AS id, p.id AS project_id, now() - ((:jobs / 20 - g) * interval '8 minutes') - interval '1 hour' AS at,
    (SELECT count(*) FROM projects WHERE name LIKE 'bench/%') AS projects
FROM generate_series(1, :jobs / 20) g
JOIN projects p ON p.name = 'bench/' || 1 + (g - 1) % (SELECT count(*) FROM projects WHERE name LIKE 'bench/%');
INSERT INTO past SELECT 900000, id, now() - interval '30 minutes', 0 FROM projects WHERE name = 'bench/1';
INSERT INTO past SELECT 900001, id, now() - interval '10 minutes', 0 FROM projects WHERE name = 'bench/2';
INSERT INTO evaluations (id, project_id, source_kind, flake_url, commit_sha, branch, status, created_at, started_at, finished_at,
    claimed_at, complete)
OVERRIDING SYSTEM VALUE
SELECT id, project_id, 'git', 'https://git.invalid/bench', md5(id::text) || '00000000', 'main', 'succeeded', at, at, at, at, true
FROM past ORDER BY id;
INSERT INTO commit_reports (project_id, commit_sha, settled) SELECT project_id, commit_sha, true FROM evaluations;
INSERT INTO evaluation_log_chunks (eval_id, seq, text) SELECT id, 1, repeat('evaluating', 20) FROM past;

CREATE TEMP TABLE jobs AS
SELECT 1000000 + (e.id - 1000001) * 20 + i AS id, e.project_id, e.id AS eval_id, i,
    CASE WHEN e.id % 20 = 0 AND i = 1 THEN 'failed' WHEN e.id % 20 = 0 AND i = 0 THEN 'dep-failed' ELSE 'succeeded' END AS status,
    pg_temp.store_path(format('old %s %s', e.id, i), format('package-%s.drv', i)) AS drv_path,
    pg_temp.store_path(format('output %s %s', e.id, i), format('package-%s', i)) AS output_path
FROM past e CROSS JOIN generate_series(0, 19) i WHERE e.id > 1000000;
INSERT INTO jobs SELECT 900000, project_id, 0, 0, 'succeeded', pg_temp.store_path('stdenv', 'stdenv.drv'),
    pg_temp.store_path('stdenv output', 'stdenv') FROM past WHERE id = 900000;
INSERT INTO jobs SELECT 500000 + g, e.project_id, 900001, g, 'pending', pg_temp.store_path('ready ' || g, format('ready-%s.drv', g)),
    pg_temp.store_path('ready output ' || g, format('ready-%s', g)) FROM past e CROSS JOIN generate_series(1, :ready) g WHERE e.id = 900001;
CREATE INDEX ON jobs (eval_id, i);
ANALYZE jobs;
INSERT INTO derivations (drv_path, name, system, modulo_hash, public)
SELECT drv_path, 'package', 'x86_64-linux', 'old', true FROM jobs ORDER BY id;
INSERT INTO derivation_outputs (drv_path, output_name, output_path) SELECT drv_path, 'out', output_path FROM jobs ORDER BY id;
INSERT INTO derivation_inputs (referrer, input_drv, outputs)
SELECT j.drv_path, k.drv_path, ARRAY['out'] FROM jobs j CROSS JOIN generate_series(1, 3) d
JOIN jobs k ON k.eval_id = j.eval_id AND k.i = j.i + d WHERE j.eval_id > 1000000
UNION ALL
SELECT j.drv_path, pg_temp.store_path('stdenv', 'stdenv.drv'), ARRAY['out'] FROM jobs j WHERE j.eval_id > 0;
INSERT INTO build_jobs (id, drv_path, project_id, class_id, public, status, failure_kind, root_cause, timeout_s, max_silent_s,
    output_bytes_max, log_bytes_max, finished_at)
OVERRIDING SYSTEM VALUE
SELECT j.id, j.drv_path, j.project_id, c.id, true, j.status, CASE j.status WHEN 'failed' THEN 'build' END,
    CASE j.status WHEN 'dep-failed' THEN j.id + 1 END, 14400, 1800, 4294967296, 67108864,
    CASE WHEN j.status <> 'pending' THEN now() - interval '1 day' END
FROM jobs j JOIN job_classes c ON c.system = 'x86_64-linux' AND c.features = '{}' ORDER BY j.id;
INSERT INTO job_totals (status, public, jobs) SELECT status, public, count(*) FROM build_jobs GROUP BY 1, 2
ON CONFLICT (status, public) DO UPDATE SET jobs = excluded.jobs;
INSERT INTO build_attempts (id, job_id, token_hash, node, incarnation, started_at, finished_at, outcome, timeout_s,
    max_silent_s, output_bytes_max, charged_up)
OVERRIDING SYSTEM VALUE
SELECT j.id, j.id, sha256(j.id::text::bytea), n.id, n.incarnation, now() - interval '1 day', now() - interval '1 day', j.status, 14400,
    1800, 4294967296, true
FROM build_jobs j CROSS JOIN (SELECT id, incarnation FROM nodes ORDER BY id LIMIT 1) n
WHERE j.status IN ('succeeded', 'failed') ORDER BY j.id;
INSERT INTO store_paths (path, nar_hash, nar_size, file_hash, file_size, refs, producing_attempt, state, public, published_at)
SELECT output_path, 'sha256:' || md5(output_path), 100, 'sha256:' || md5(drv_path), 50, '{}', id, 'published', true, now()
FROM jobs WHERE status = 'succeeded' ORDER BY id;
INSERT INTO eval_attrs (eval_id, attr, drv_path, cached)
SELECT e.id, format('checks.x86_64-linux.package-%s-%s', j.eval_id = e.id, j.i), j.drv_path, j.eval_id <> e.id
FROM past e JOIN jobs j ON j.eval_id IN (e.id, e.id - e.projects) WHERE e.id > 1000000 ORDER BY e.id;
INSERT INTO eval_attrs (eval_id, attr, drv_path, cached)
SELECT 900000, 'checks.x86_64-linux.big-' || g, j.drv_path, true
FROM generate_series(0, :attributes - 1) g JOIN jobs j ON j.id = 1000000 + g % :jobs ORDER BY 2;
INSERT INTO eval_attrs (eval_id, attr, drv_path, cached)
SELECT 900001, 'checks.x86_64-linux.ready-' || i, drv_path, false FROM jobs WHERE eval_id = 900001 ORDER BY 2;
INSERT INTO audit_log (actor, action, subject) SELECT 'somebody', 'cancel', 'job ' || g FROM generate_series(1, :jobs / 50) g;
SELECT setval(pg_get_serial_sequence(t, 'id'), 1000001 + :jobs) FROM unnest(ARRAY['evaluations', 'build_jobs', 'build_attempts']) t;
SET session_replication_role = origin;
VACUUM (ANALYZE);
