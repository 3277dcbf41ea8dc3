-- Fills an empty, migrated database with a queue: :jobs pending jobs of :projects projects (sizes by Zipf's law), 3.5
-- inputs a job on average, all within its project and most of them close, 15 % of the jobs without any (they are ready).
-- Written past the functions that evaluators use, since it is the claims that are measured.
SET session_replication_role = replica;
SELECT setseed(0.5);
INSERT INTO projects (name, kind) SELECT 'bench-' || p, 'local' FROM generate_series(1, :projects) AS p;
INSERT INTO job_classes (system, features) VALUES ('x86_64-linux', '{}');
-- Which project each of a thousand consecutive jobs belongs to: project p gets 1/p of what the first gets.
CREATE TEMP TABLE places AS
WITH share AS (SELECT p, (1.0 / p) / sum(1.0 / p) OVER () AS part FROM generate_series(1, :projects) AS p),
    bounds AS (SELECT p, sum(part) OVER (ORDER BY p) AS upto FROM share)
SELECT place, (SELECT min(p) FROM bounds WHERE upto >= least((place + 0.5) / 1000, (SELECT max(upto) FROM bounds))) AS project_id
FROM generate_series(0, 999) AS place;
CREATE TEMP TABLE jobs AS
SELECT n, format('/nix/store/%s-package-%s.drv', substr(translate(md5(n::text) || md5('salt' || n), 'e', 'x'), 1, 32), n) AS drv,
    CASE WHEN n <= 1000 OR random() < 0.15 THEN 0 ELSE 1 + floor(random() * 6.2)::integer END AS inputs
FROM generate_series(1, :jobs) AS n;
CREATE INDEX ON jobs (n);
INSERT INTO derivations (drv_path, name, system, modulo_hash, public)
SELECT drv, 'package-' || n, 'x86_64-linux', '', true FROM jobs ORDER BY n;
INSERT INTO derivation_outputs (drv_path, output_name, output_path)
SELECT drv, 'out', replace(replace(drv, '.drv', ''), 'package', 'output') FROM jobs ORDER BY n;
INSERT INTO derivation_inputs (referrer, input_drv, outputs)
SELECT j.drv, i.drv, '{out}' FROM (
    SELECT DISTINCT n, drv, n - 1000 * least(1 + floor(random() ^ 3 * 60)::integer, (n - 1) / 1000) AS input
    FROM jobs CROSS JOIN LATERAL generate_series(1, inputs)
) j JOIN jobs i ON i.n = j.input
ORDER BY j.n;
CREATE TEMP TABLE waits AS SELECT referrer AS drv, count(*) AS unmet FROM derivation_inputs GROUP BY referrer;
INSERT INTO build_jobs (drv_path, project_id, class_id, public, unmet_deps, timeout_s, max_silent_s, output_bytes_max, log_bytes_max)
SELECT j.drv, p.project_id, 1, true, coalesce(w.unmet, 0), 14400, 1800, 4294967296, 67108864
FROM jobs j JOIN places p ON p.place = j.n % 1000 LEFT JOIN waits w ON w.drv = j.drv
ORDER BY j.n;
SET session_replication_role = origin;
VACUUM (ANALYZE);
