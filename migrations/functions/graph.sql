-- Graphs as evaluators insert them, batch by batch.

-- A project with the limits that hold for it: its own, else the configured ones.
CREATE OR REPLACE FUNCTION project_with_limits(p_project bigint) RETURNS projects
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
DECLARE
    v_project projects;
    v_default default_limits;
BEGIN
    SELECT * INTO v_project FROM projects WHERE id = p_project;
    SELECT * INTO STRICT v_default FROM default_limits;
    v_project.timeout_s := coalesce(v_project.timeout_s, v_default.timeout_s);
    v_project.max_silent_s := coalesce(v_project.max_silent_s, v_default.max_silent_s);
    v_project.output_bytes_max := coalesce(v_project.output_bytes_max, v_default.output_bytes_max);
    v_project.log_bytes_max := coalesce(v_project.log_bytes_max, v_default.log_bytes_max);
    RETURN v_project;
END
$$;

-- Whether an evaluation of this project (with limits) reopens the job, as the table under "Wanted is derived" says.
CREATE OR REPLACE FUNCTION job_reopens(p_job build_jobs, p_project projects) RETURNS boolean
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT CASE
        WHEN p_job.status IN ('cancelled', 'dep-failed') THEN true
        WHEN p_job.status <> 'failed' THEN false
        WHEN p_job.failure_kind IN ('infrastructure', 'unsupported') THEN true
        WHEN p_job.failure_kind = 'timeout' AND
            (p_project.timeout_s > p_job.timeout_s OR p_project.max_silent_s > p_job.max_silent_s) THEN true
        WHEN p_job.failure_kind = 'limit' AND p_project.output_bytes_max > p_job.output_bytes_max THEN true
        ELSE p_job.finished_at < now() - p_project.failure_ttl_s * interval '1 s' IS TRUE
    END
$$;

-- For each derivation: whether the walk goes on below it.
CREATE OR REPLACE FUNCTION classify_derivations(p_eval bigint, p_token_hash bytea, p_drvs text[])
RETURNS TABLE (drv_path text, descend boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_project projects;
BEGIN
    SELECT p.* INTO v_project FROM evaluations e CROSS JOIN LATERAL project_with_limits(e.project_id) p
    WHERE e.id = p_eval AND evaluation_held(p_eval, p_token_hash);
    IF NOT FOUND THEN
        PERFORM raise_stale_claim();
    END IF;
    RETURN QUERY
    SELECT w.drv_path, CASE
        WHEN d.drv_path IS NULL THEN true
        -- A public project's reach makes a closure public, so it walks on through what only private ones reached.
        WHEN v_project.is_public AND NOT d.public THEN true
        WHEN drv_available(w.drv_path, true) THEN false
        WHEN j.id IS NULL THEN true
        WHEN EXISTS (SELECT FROM job_walks k WHERE k.job_id = j.id) THEN true
        ELSE job_reopens(j, v_project)
    END
    FROM unnest(p_drvs) AS w(drv_path)
    LEFT JOIN derivations d ON d.drv_path = w.drv_path
    LEFT JOIN build_jobs j ON j.drv_path = w.drv_path;
END
$$;

CREATE OR REPLACE FUNCTION sorted_features(p_features text) RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(array_agg(f ORDER BY f), '{}') FROM (SELECT DISTINCT unnest(string_to_array(p_features, ' ')) AS f) d
$$;

-- One batch of a graph, dependencies first. Returns `missing` when an input has neither a job that will come to an end nor
-- available outputs; then no job and no attribute was inserted.
CREATE OR REPLACE FUNCTION insert_batch(
    p_eval bigint, p_token_hash bytea,
    p_drvs text[], p_names text[], p_systems text[], p_features text[], p_available boolean[], p_modulo text[],
    p_timeouts bigint[], p_silents bigint[], p_path_lengths integer[],
    p_output_drvs integer[], p_output_names text[], p_output_paths text[], p_output_hashes text[],
    p_input_drvs integer[], p_input_paths text[], p_input_outputs text[],
    p_source_drvs integer[], p_source_paths text[],
    p_attrs text[], p_attr_drvs text[], p_attr_errors text[],
    p_holds text[],
    OUT new_jobs bigint, OUT revived bigint, OUT missing text[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_eval evaluations := graph_evaluation(p_eval, p_token_hash);
    v_project projects;
    v_new_drvs text[];   -- derivations that nobody knew
    v_wanted text[];     -- derivations that need a job: neither available upstream nor here
    v_new bigint[];      -- jobs inserted now
    v_reopen bigint[];   -- jobs made pending again
    v_reset bigint[] := '{}';
    v_others text[];     -- what the batch leans on and does not hold: inputs, attributes, holds
    v_above bigint[];
    v_walked bigint[];   -- jobs that waited for this walk
BEGIN
    SELECT * INTO v_project FROM project_with_limits(v_eval.project_id);
    new_jobs := 0;
    revived := 0;

    -- Layer 1: facts, in one order for everybody, so that two evaluators do not wait for each other crosswise.
    WITH fresh AS (
        INSERT INTO derivations (drv_path, name, system, required_features, modulo_hash, public)
        SELECT t.drv, t.name, t.system, string_to_array(t.features, ' '), t.modulo, v_project.is_public
        FROM unnest(p_drvs, p_names, p_systems, p_features, p_modulo) AS t(drv, name, system, features, modulo)
        ORDER BY t.drv
        ON CONFLICT DO NOTHING RETURNING drv_path
    ) SELECT array_agg(drv_path) INTO v_new_drvs FROM fresh;
    INSERT INTO derivation_outputs (drv_path, output_name, output_path, fixed_hash)
    SELECT p_drvs[t.drv], t.name, t.path, t.fixed
    FROM unnest(p_output_drvs, p_output_names, p_output_paths, p_output_hashes) AS t(drv, name, path, fixed)
    ORDER BY p_drvs[t.drv], t.name
    ON CONFLICT DO NOTHING;
    INSERT INTO derivation_inputs (referrer, input_drv, outputs)
    SELECT p_drvs[t.drv], t.input, string_to_array(t.outputs, ' ')
    FROM unnest(p_input_drvs, p_input_paths, p_input_outputs) AS t(drv, input, outputs)
    ORDER BY p_drvs[t.drv], t.input
    ON CONFLICT DO NOTHING;
    INSERT INTO derivation_sources (referrer, path)
    SELECT p_drvs[t.drv], t.path FROM unnest(p_source_drvs, p_source_paths) AS t(drv, path)
    ORDER BY p_drvs[t.drv], t.path
    ON CONFLICT DO NOTHING;
    IF v_project.is_public THEN
        UPDATE derivations SET public = true WHERE drv_path = ANY (p_drvs) AND NOT public;
        UPDATE store_paths s SET public = true
        WHERE NOT s.public AND (
            s.path IN (SELECT o.output_path FROM derivation_outputs o WHERE o.drv_path = ANY (p_drvs))
            OR s.path = ANY (p_source_paths));
    END IF;
    -- What the evaluator took for available, and is not (any more), is to be walked again.
    SELECT array_agg(t.drv) INTO missing FROM unnest(p_drvs, p_available) AS t(drv, available)
    WHERE t.available AND NOT drv_available(t.drv, true);
    IF missing IS NOT NULL THEN
        RETURN;
    END IF;

    -- Jobs, in the order of the batch, so that ids follow dependencies.
    SELECT array_agg(t.drv ORDER BY t.place) INTO v_wanted
    FROM unnest(p_drvs, p_available) WITH ORDINALITY AS t(drv, available, place)
    WHERE NOT ((t.available OR EXISTS (SELECT FROM store_paths s JOIN derivation_outputs o ON o.output_path = s.path
        WHERE o.drv_path = t.drv)) AND drv_available(t.drv, true));
    v_wanted := coalesce(v_wanted, '{}');
    IF cardinality(v_wanted) > 0 THEN
        INSERT INTO job_classes (system, features)
        SELECT DISTINCT t.system, sorted_features(t.features)
        FROM unnest(p_drvs, p_systems, p_features) AS t(drv, system, features)
        WHERE NOT EXISTS (SELECT FROM job_classes c WHERE c.system = t.system AND c.features = sorted_features(t.features))
        ORDER BY 1, 2
        ON CONFLICT DO NOTHING;
        -- The counts are a first guess from before the locks; settle_jobs corrects the few that moved.
        WITH unfinished AS (
            SELECT unnest(v_wanted) AS drv
            UNION
            SELECT drv_path FROM build_jobs WHERE drv_path = ANY (p_input_paths) AND status <> 'succeeded'
        ), guessed AS (
            SELECT i.drv, count(*) AS unmet FROM unnest(p_input_drvs, p_input_paths) AS i(drv, input)
            JOIN unfinished u ON u.drv = i.input GROUP BY i.drv
        ), fresh AS (
            INSERT INTO build_jobs (drv_path, project_id, class_id, unmet_deps, timeout_s, max_silent_s, output_bytes_max, log_bytes_max,
                path_length)
            SELECT t.drv, v_project.id, c.id, coalesce(g.unmet, 0),
                least(coalesce(t.timeout, v_project.timeout_s), greatest(v_project.timeout_max_s, v_project.timeout_s)),
                least(coalesce(t.silent, v_project.max_silent_s), greatest(v_project.timeout_max_s, v_project.max_silent_s)),
                v_project.output_bytes_max, v_project.log_bytes_max, t.path_length
            FROM unnest(p_drvs, p_systems, p_features, p_timeouts, p_silents, p_path_lengths) WITH ORDINALITY
                AS t(drv, system, features, timeout, silent, path_length, place)
            JOIN job_classes c ON c.system = t.system AND c.features = sorted_features(t.features)
            LEFT JOIN guessed g ON g.drv = t.place
            WHERE t.drv = ANY (v_wanted)
                AND NOT EXISTS (SELECT FROM build_jobs j WHERE j.drv_path = t.drv)
            ORDER BY t.place
            ON CONFLICT DO NOTHING RETURNING id
        ) SELECT array_agg(id) INTO v_new FROM fresh;
    END IF;
    v_new := coalesce(v_new, '{}');

    -- Lock what the batch leans on, then what it holds; only then look.
    SELECT array_agg(DISTINCT o.drv) INTO v_others FROM (
        SELECT p_input_paths[i] AS drv FROM generate_subscripts(p_input_drvs, 1) AS i WHERE p_drvs[p_input_drvs[i]] = ANY (v_wanted)
        UNION ALL SELECT unnest(p_attr_drvs) UNION ALL SELECT unnest(p_holds)
    ) o
    WHERE o.drv IS NOT NULL AND o.drv <> ALL (p_drvs);
    v_others := coalesce(v_others, '{}');
    PERFORM FROM build_jobs WHERE drv_path = ANY (v_others) ORDER BY id FOR SHARE;
    PERFORM FROM build_jobs WHERE drv_path = ANY (p_drvs) ORDER BY id FOR NO KEY UPDATE;
    SELECT array_agg(o.drv) INTO missing
    FROM unnest(v_others) AS o(drv) LEFT JOIN build_jobs j ON j.drv_path = o.drv
    WHERE CASE
        WHEN j.id IS NULL THEN NOT drv_available(o.drv, true)
        -- A dep-failed job is looked at again unless its cause is a failure that stays.
        WHEN j.status = 'dep-failed' THEN coalesce(
            (SELECT job_reopens(c, v_project) FROM build_jobs c WHERE c.id = j.root_cause), true)
        ELSE job_reopens(j, v_project)
    END AND NOT drv_available(o.drv, true);
    IF missing IS NOT NULL THEN
        DELETE FROM build_jobs WHERE id = ANY (v_new); -- made a moment ago, seen by nobody
        RETURN;
    END IF;
    missing := '{}';
    -- Of jobs that were there, the longest chain above counts.
    IF cardinality(v_new) < cardinality(v_wanted) THEN
        UPDATE build_jobs j SET path_length = t.path_length
        FROM unnest(p_drvs, p_path_lengths) AS t(drv, path_length)
        WHERE j.drv_path = t.drv AND j.drv_path = ANY (v_wanted) AND j.id <> ALL (v_new) AND j.path_length < t.path_length;
    END IF;

    -- Who is wanted again, with the limits of the most generous project that wants it.
    SELECT array_agg(j.id) INTO v_reopen FROM build_jobs j
    WHERE j.drv_path = ANY (v_wanted) AND j.id <> ALL (v_new) AND job_reopens(j, v_project);
    UPDATE build_jobs SET
        timeout_s = greatest(timeout_s, v_project.timeout_s), max_silent_s = greatest(max_silent_s, v_project.max_silent_s),
        output_bytes_max = greatest(output_bytes_max, v_project.output_bytes_max),
        log_bytes_max = greatest(log_bytes_max, v_project.log_bytes_max)
    WHERE id = ANY (v_reopen);
    IF v_reopen IS NOT NULL THEN
        PERFORM count_unmet(v_new); -- some that come back may succeed at once and count down
        v_reset := reset_jobs(v_reopen, 0);
        revived := cardinality(v_reset);
    END IF;
    WITH walked AS (
        DELETE FROM job_walks w USING build_jobs j WHERE j.id = w.job_id AND j.drv_path = ANY (v_wanted) RETURNING j.id
    ) SELECT coalesce(array_agg(id), '{}') INTO v_walked FROM walked;
    -- After that, or new jobs would be blocked by what just came back.
    PERFORM settle_jobs(v_new || v_walked, false);
    PERFORM notify_ready(array_agg(DISTINCT class_id)) FROM build_jobs
    WHERE id = ANY (v_new || v_walked) AND status = 'pending' AND unmet_deps = 0;
    new_jobs := cardinality(v_new);

    -- A derivation that was available and no longer is gets a job below jobs that already wait: they wait for it too.
    SELECT array_agg(DISTINCT j.id) INTO v_above
    FROM build_jobs n
    JOIN derivation_inputs d ON d.input_drv = n.drv_path
    JOIN build_jobs j ON j.drv_path = d.referrer
    WHERE n.id = ANY (v_new) AND n.drv_path <> ALL (coalesce(v_new_drvs, '{}')) AND j.id <> ALL (v_new) AND j.status = 'pending';
    IF v_above IS NOT NULL THEN
        PERFORM lock_jobs_with_inputs(v_above);
        PERFORM settle_jobs(v_above, false);
    END IF;
    -- And one that had a job and turned out to be available needs it no more.
    PERFORM outputs_turned_up(array_agg(o.output_path)) FROM derivation_outputs o
    JOIN build_jobs j USING (drv_path)
    WHERE o.drv_path = ANY (p_drvs) AND o.drv_path <> ALL (v_wanted) AND j.status = 'pending';

    -- Who wants it: the attributes, and until they come the tops of what was inserted.
    INSERT INTO eval_attrs (eval_id, attr, drv_path, error, cached)
    SELECT p_eval, t.attr, t.drv, t.error,
        t.drv IS NOT NULL AND NOT EXISTS (SELECT FROM build_jobs j WHERE j.drv_path = t.drv AND j.status <> 'succeeded')
            AND drv_available(t.drv, false)
    FROM unnest(p_attrs, p_attr_drvs, p_attr_errors) AS t(attr, drv, error)
    ON CONFLICT (eval_id, attr) DO UPDATE
        SET drv_path = excluded.drv_path, error = excluded.error, cached = excluded.cached;
    INSERT INTO eval_holds (eval_id, drv_path)
    SELECT p_eval, h.drv FROM (
        SELECT unnest(p_holds) AS drv
        UNION
        (SELECT unnest(p_drvs) EXCEPT SELECT unnest(p_input_paths) EXCEPT SELECT unnest(p_attr_drvs))
    ) h
    ON CONFLICT DO NOTHING;
    -- What was dep-failed above a revived job came back with it; what of that nobody wants goes.
    IF cardinality(v_reset) > coalesce(cardinality(v_reopen), 0) THEN
        PERFORM lock_withdrawals();
        PERFORM cancel_unwanted(array_agg(drv_path), false, 'no evaluation wants it any more')
        FROM build_jobs WHERE id = ANY (v_reset) AND id <> ALL (v_reopen);
    END IF;
    PERFORM pg_notify('evaluations', p_eval::text);
END
$$;
