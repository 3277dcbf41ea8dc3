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

-- Whether an evaluation of this project (with limits) reopens the job, as the table under "Wanted is derived" says. Limits that
-- were reached count only where an attribute of the evaluation names the derivation, with what it asks (see
-- `allow_dependencies`).
CREATE OR REPLACE FUNCTION job_reopens(p_job build_jobs, p_project projects, p_timeout_s bigint, p_max_silent_s bigint) RETURNS boolean
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT CASE
        WHEN p_job.status IN ('cancelled', 'dep-failed') THEN true
        WHEN p_job.status <> 'failed' THEN false
        WHEN p_job.failure_kind IN ('infrastructure', 'unsupported') THEN true
        WHEN p_job.failure_kind = 'timeout' AND (p_timeout_s > p_job.timeout_s OR p_max_silent_s > p_job.max_silent_s) THEN true
        WHEN p_job.failure_kind = 'limit' AND p_project.output_bytes_max > p_job.output_bytes_max THEN true
        ELSE p_job.finished_at < now() - p_project.failure_ttl_s * interval '1 s' IS TRUE
    END
$$;

-- What the evaluation asks for these derivations: the most generous of what the attributes ask that name it, those that are
-- there and those in `p_asked`; an attribute that asks for nothing asks for what the project has. Of what no attribute names
-- there is no row.
CREATE OR REPLACE FUNCTION asked_limits(p_eval bigint, p_project projects, p_drvs text[], p_asked jsonb)
RETURNS TABLE (drv_path text, timeout_s bigint, max_silent_s bigint)
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT n.drv_path,
        max(least(coalesce(n.timeout_s, p_project.timeout_s), greatest(p_project.timeout_max_s, p_project.timeout_s))),
        max(least(coalesce(n.max_silent_s, p_project.max_silent_s), greatest(p_project.timeout_max_s, p_project.max_silent_s)))
    FROM (
        SELECT a.drv_path, a.timeout_s, a.max_silent_s FROM unnest(p_drvs) AS w(drv)
        JOIN eval_attrs a ON a.drv_path = w.drv AND a.eval_id = p_eval
        UNION ALL
        SELECT a.drv_path, a.timeout_s, a.max_silent_s
        FROM jsonb_to_recordset(p_asked) AS a(drv_path text, timeout_s bigint, max_silent_s bigint)
        WHERE a.drv_path = ANY (p_drvs)
    ) n
    GROUP BY n.drv_path
$$;

-- Gives these jobs (pending, or failed and about to come back) the limits that the evaluation asks for them, which of what no
-- attribute names are the project's. What other evaluations asked for stays, while they are live.
CREATE OR REPLACE FUNCTION set_limits(p_eval bigint, p_project projects, p_jobs bigint[], p_asked jsonb) RETURNS void
LANGUAGE sql SET search_path = public, pg_temp AS $$
    UPDATE build_jobs j SET
        timeout_s = CASE WHEN n.is_alone THEN n.timeout_s ELSE greatest(j.timeout_s, n.timeout_s) END,
        max_silent_s = CASE WHEN n.is_alone THEN n.max_silent_s ELSE greatest(j.max_silent_s, n.max_silent_s) END,
        output_bytes_max = CASE WHEN n.is_alone THEN p_project.output_bytes_max
            ELSE greatest(j.output_bytes_max, p_project.output_bytes_max) END,
        log_bytes_max = CASE WHEN n.is_alone THEN p_project.log_bytes_max ELSE greatest(j.log_bytes_max, p_project.log_bytes_max) END,
        limits_of = CASE WHEN n.is_alone THEN p_eval END
    FROM (
        SELECT o.id, coalesce(a.timeout_s, p_project.timeout_s) AS timeout_s,
            coalesce(a.max_silent_s, p_project.max_silent_s) AS max_silent_s,
            o.limits_of IS NOT DISTINCT FROM p_eval
                OR (o.limits_of IS NOT NULL AND NOT EXISTS (SELECT FROM live_evaluations l WHERE l.id = o.limits_of)) AS is_alone
        FROM build_jobs o
        LEFT JOIN asked_limits(p_eval, p_project, ARRAY(SELECT k.drv_path FROM build_jobs k WHERE k.id = ANY (p_jobs)), p_asked) a
            ON a.drv_path = o.drv_path
        WHERE o.id = ANY (p_jobs)
    ) n
    WHERE j.id = n.id
$$;

-- When all attributes of an evaluation are known: what none of them names, and they lean on, may use what the project allows.
-- What reached a smaller limit, for somebody who named it, is tried again with that.
CREATE OR REPLACE FUNCTION allow_dependencies(p_eval bigint) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_project projects;
    v_named text[] := ARRAY(SELECT a.drv_path FROM eval_attrs a WHERE a.eval_id = p_eval AND a.drv_path IS NOT NULL);
    v_jobs bigint[];
    v_stopped bigint[];
    v_reset bigint[];
BEGIN
    SELECT p.* INTO v_project FROM evaluations e CROSS JOIN LATERAL project_with_limits(e.project_id) p WHERE e.id = p_eval;
    SELECT array_agg(j.id), array_agg(j.id) FILTER (WHERE j.failure_kind = 'timeout'
        AND (v_project.timeout_s > j.timeout_s OR v_project.max_silent_s > j.max_silent_s))
    INTO v_jobs, v_stopped
    FROM jobs_below(v_named, open_states()) r
    CROSS JOIN LATERAL (SELECT * FROM build_jobs b WHERE b.id = r.id OFFSET 0) j
    WHERE (j.timeout_s < v_project.timeout_s OR j.max_silent_s < v_project.max_silent_s
            OR j.output_bytes_max < v_project.output_bytes_max OR j.log_bytes_max < v_project.log_bytes_max)
        AND j.drv_path NOT IN (SELECT unnest(v_named));
    IF v_jobs IS NULL THEN
        RETURN;
    END IF;
    PERFORM lock_jobs_with_inputs(v_jobs);
    UPDATE build_jobs SET timeout_s = greatest(timeout_s, v_project.timeout_s),
        max_silent_s = greatest(max_silent_s, v_project.max_silent_s),
        output_bytes_max = greatest(output_bytes_max, v_project.output_bytes_max),
        log_bytes_max = greatest(log_bytes_max, v_project.log_bytes_max), limits_of = NULL
    WHERE id = ANY (v_jobs);
    IF v_stopped IS NOT NULL THEN
        v_reset := reset_jobs(v_stopped, 0);
        PERFORM withdraw(p_eval, array_agg(drv_path)) FROM build_jobs WHERE id = ANY (v_reset) AND id <> ALL (v_stopped);
    END IF;
END
$$;

-- For each derivation: whether the walk goes on below it. `p_asked`: what attributes ask that are not inserted yet.
CREATE OR REPLACE FUNCTION classify_derivations(p_eval bigint, p_token_hash bytea, p_drvs text[], p_asked jsonb)
RETURNS TABLE (drv_path text, descend boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_hashjoin = on AS $$
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
        ELSE job_reopens(j, v_project, a.timeout_s, a.max_silent_s)
    END
    FROM unnest(p_drvs) AS w(drv_path)
    LEFT JOIN derivations d ON d.drv_path = w.drv_path
    LEFT JOIN build_jobs j ON j.drv_path = w.drv_path
    LEFT JOIN asked_limits(p_eval, v_project, p_drvs, p_asked) a ON a.drv_path = w.drv_path;
END
$$;

-- Derivations as a signer read them from files that it checked. What is known stays: the same bytes say the same. What is known
-- as something else is refused, named in the answer, and recorded.
CREATE OR REPLACE FUNCTION register_derivations(p_derivations jsonb, p_outputs jsonb, p_inputs jsonb, p_sources jsonb)
RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_hashjoin = on AS $$
DECLARE
    v_new text[];
    v_known text[];
    v_wrong text[];
BEGIN
    -- In one order for everybody, so that two signers do not wait for each other crosswise.
    WITH fresh AS (
        INSERT INTO derivations AS d (drv_path, name, system, required_features, modulo_hash)
        SELECT t.drv_path, t.name, t.system, t.required_features, t.modulo_hash
        FROM jsonb_to_recordset(p_derivations)
            AS t(drv_path text, name text, system text, required_features text[], modulo_hash text)
        ORDER BY t.drv_path
        ON CONFLICT DO NOTHING RETURNING d.drv_path
    ) SELECT coalesce(array_agg(drv_path), '{}') INTO v_new FROM fresh;
    INSERT INTO derivation_outputs (drv_path, output_name, output_path, fixed_hash)
    SELECT t.* FROM jsonb_to_recordset(p_outputs) AS t(drv_path text, output_name text, output_path text, fixed_hash text)
    WHERE t.drv_path IN (SELECT unnest(v_new)) ORDER BY 1, 2;
    INSERT INTO derivation_inputs (referrer, input_drv, outputs)
    SELECT t.* FROM jsonb_to_recordset(p_inputs) AS t(referrer text, input_drv text, outputs text[])
    WHERE t.referrer IN (SELECT unnest(v_new)) ORDER BY 1, 2;
    INSERT INTO derivation_sources (referrer, path)
    SELECT t.* FROM jsonb_to_recordset(p_sources) AS t(referrer text, path text)
    WHERE t.referrer IN (SELECT unnest(v_new)) ORDER BY 1, 2;

    SELECT array_agg(t.drv_path) INTO v_known FROM jsonb_to_recordset(p_derivations) AS t(drv_path text)
    WHERE t.drv_path NOT IN (SELECT unnest(v_new));
    IF v_known IS NULL THEN
        RETURN;
    END IF;
    WITH said AS (
        SELECT t.drv_path AS drv, to_jsonb(t) AS what FROM jsonb_to_recordset(p_derivations)
            AS t(drv_path text, name text, system text, required_features text[], modulo_hash text)
        UNION ALL SELECT t.drv_path, to_jsonb(t)
        FROM jsonb_to_recordset(p_outputs) AS t(drv_path text, output_name text, output_path text, fixed_hash text)
        UNION ALL SELECT t.referrer, to_jsonb(t) FROM jsonb_to_recordset(p_inputs) AS t(referrer text, input_drv text, outputs text[])
        UNION ALL SELECT t.referrer, to_jsonb(t) FROM jsonb_to_recordset(p_sources) AS t(referrer text, path text)
    ), known AS (
        SELECT d.drv_path AS drv, jsonb_build_object('drv_path', d.drv_path, 'name', d.name, 'system', d.system,
            'required_features', d.required_features, 'modulo_hash', d.modulo_hash) AS what
        FROM derivations d WHERE d.drv_path = ANY (v_known)
        UNION ALL SELECT o.drv_path, to_jsonb(o) FROM derivation_outputs o WHERE o.drv_path = ANY (v_known)
        UNION ALL SELECT i.referrer, to_jsonb(i) FROM derivation_inputs i WHERE i.referrer = ANY (v_known)
        UNION ALL SELECT s.referrer, to_jsonb(s) FROM derivation_sources s WHERE s.referrer = ANY (v_known)
    ), differing AS (
        SELECT drv FROM ((SELECT drv, what FROM said WHERE drv = ANY (v_known)) EXCEPT SELECT drv, what FROM known) a
        UNION
        SELECT drv FROM ((SELECT drv, what FROM known) EXCEPT SELECT drv, what FROM said) b
    ), findings AS (
        INSERT INTO derivation_findings (drv_path, said)
        SELECT s.drv, jsonb_agg(s.what) FROM said s JOIN differing USING (drv) GROUP BY s.drv
        RETURNING drv_path
    ) SELECT array_agg(drv_path) INTO v_wrong FROM findings;
    RETURN QUERY SELECT unnest(v_wrong);
END
$$;

-- One batch of a graph, dependencies first. What a derivation is, its signer registered: the batch only says that it is wanted.
-- Nor does anybody say what is available: that is looked up. `p_asked`: what attributes ask, those of the batch and of later ones.
-- Returns `missing` when an input has neither a job that will come to an end nor available outputs; then no job and no attribute
-- was inserted.
CREATE OR REPLACE FUNCTION insert_batch(
    p_eval bigint, p_token_hash bytea, p_derivations jsonb, p_attrs jsonb, p_asked jsonb, p_holds text[],
    OUT new_jobs bigint, OUT revived bigint, OUT missing text[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_hashjoin = on AS $$
#variable_conflict use_column
DECLARE
    v_eval evaluations := graph_evaluation(p_eval, p_token_hash);
    v_project projects;
    v_drvs text[];       -- the batch, in its order
    v_lengths integer[]; -- and how long the chains above are
    v_attr_drvs text[];
    v_unknown text;
    v_wanted text[];     -- derivations that need a job: neither available upstream nor here
    v_new bigint[];      -- jobs inserted now
    v_reopen bigint[];   -- jobs made pending again
    v_named bigint[];    -- jobs that were there and attributes name
    v_reset bigint[] := '{}';
    v_others text[];     -- what the batch leans on and does not hold: inputs, attributes, holds
    v_above bigint[];
    v_walked bigint[];   -- jobs that waited for this walk
BEGIN
    PERFORM lock_visibility(false);
    SELECT * INTO v_project FROM project_with_limits(v_eval.project_id);
    new_jobs := 0;
    revived := 0;
    SELECT coalesce(array_agg(t.drv_path ORDER BY t.place), '{}'), coalesce(array_agg(t.path_length ORDER BY t.place), '{}')
    INTO v_drvs, v_lengths
    FROM ROWS FROM (jsonb_to_recordset(p_derivations) AS (drv_path text, path_length integer))
        WITH ORDINALITY AS t(drv_path, path_length, place);
    SELECT coalesce(array_agg(DISTINCT t.drv_path), '{}') INTO v_attr_drvs
    FROM jsonb_to_recordset(p_attrs) AS t(drv_path text) WHERE t.drv_path IS NOT NULL;
    SELECT w INTO v_unknown FROM unnest(v_drvs || v_attr_drvs || p_holds) AS w
    WHERE NOT EXISTS (SELECT FROM derivations d WHERE d.drv_path = w) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'no signer has registered the derivation %: upload its file first', v_unknown USING ERRCODE = 'HC003';
    END IF;
    IF v_project.is_public THEN
        PERFORM FROM derivations WHERE drv_path = ANY (v_drvs) AND NOT public ORDER BY drv_path FOR NO KEY UPDATE;
        UPDATE derivations SET public = true WHERE drv_path = ANY (v_drvs) AND NOT public;
        UPDATE store_paths s SET public = true
        WHERE NOT s.public AND s.path = ANY (ARRAY(
            SELECT o.output_path FROM derivation_outputs o WHERE o.drv_path = ANY (v_drvs)
            UNION SELECT r.path FROM derivation_sources r WHERE r.referrer = ANY (v_drvs)));
        PERFORM open_below(v_drvs, v_attr_drvs);
    END IF;
    -- What the evaluator took for available, and is not (any more), is to be walked again.
    SELECT array_agg(t.drv_path) INTO missing FROM jsonb_to_recordset(p_derivations) AS t(drv_path text, available boolean)
    WHERE t.available AND NOT drv_available(t.drv_path, true);
    IF missing IS NOT NULL THEN
        RETURN;
    END IF;

    -- Jobs, in the order of the batch, so that ids follow dependencies.
    SELECT coalesce(array_agg(t.drv ORDER BY t.place), '{}') INTO v_wanted
    FROM unnest(v_drvs) WITH ORDINALITY AS t(drv, place)
    -- Of most, nothing is known to be anywhere: that is cheaper to see.
    WHERE NOT (EXISTS (SELECT FROM derivation_outputs o WHERE o.drv_path = t.drv
            AND (EXISTS (SELECT FROM store_paths s WHERE s.path = o.output_path)
                OR EXISTS (SELECT FROM upstream_paths u WHERE u.path = o.output_path)))
        AND drv_available(t.drv, true));
    IF cardinality(v_wanted) > 0 THEN
        INSERT INTO job_classes (system, features)
        SELECT DISTINCT d.system, d.required_features FROM derivations d
        WHERE d.drv_path = ANY (v_wanted)
            AND NOT EXISTS (SELECT FROM job_classes c WHERE c.system = d.system AND c.features = d.required_features)
        ORDER BY 1, 2
        ON CONFLICT DO NOTHING;
        -- Whether they are public stays so until these jobs are there to turn with them.
        PERFORM FROM derivations d WHERE d.drv_path = ANY (v_wanted)
            AND NOT EXISTS (SELECT FROM build_jobs j WHERE j.drv_path = d.drv_path)
        ORDER BY d.drv_path FOR SHARE;
        -- The counts are a first guess from before the locks; settle_jobs corrects the few that moved.
        WITH fresh AS (
            INSERT INTO build_jobs (drv_path, project_id, class_id, public, unmet_deps, timeout_s, max_silent_s, output_bytes_max,
                log_bytes_max, limits_of, path_length)
            SELECT d.drv_path, v_project.id, c.id, d.public,
                (SELECT count(*) FROM derivation_inputs i LEFT JOIN build_jobs j ON j.drv_path = i.input_drv
                    WHERE i.referrer = d.drv_path AND (i.input_drv IN (SELECT unnest(v_wanted)) OR j.status <> 'succeeded')),
                coalesce(a.timeout_s, v_project.timeout_s), coalesce(a.max_silent_s, v_project.max_silent_s),
                v_project.output_bytes_max, v_project.log_bytes_max, p_eval, t.path_length
            FROM unnest(v_drvs, v_lengths) WITH ORDINALITY AS t(drv, path_length, place)
            JOIN derivations d ON d.drv_path = t.drv
            JOIN job_classes c ON c.system = d.system AND c.features = d.required_features
            LEFT JOIN asked_limits(p_eval, v_project, v_wanted, p_asked) a ON a.drv_path = d.drv_path
            WHERE t.drv IN (SELECT unnest(v_wanted))
                AND NOT EXISTS (SELECT FROM build_jobs j WHERE j.drv_path = t.drv)
            ORDER BY t.place
            ON CONFLICT DO NOTHING RETURNING id
        ) SELECT array_agg(id) INTO v_new FROM fresh;
    END IF;
    v_new := coalesce(v_new, '{}');

    -- Lock what the batch leans on, then what it holds; only then look.
    SELECT coalesce(array_agg(DISTINCT o.drv), '{}') INTO v_others FROM (
        SELECT i.input_drv AS drv FROM derivation_inputs i WHERE i.referrer = ANY (v_wanted)
        UNION ALL SELECT unnest(v_attr_drvs) UNION ALL SELECT unnest(p_holds)
    ) o
    WHERE o.drv NOT IN (SELECT unnest(v_drvs));
    PERFORM FROM build_jobs WHERE drv_path = ANY (v_others) ORDER BY id FOR SHARE;
    PERFORM FROM build_jobs WHERE drv_path = ANY (v_drvs) ORDER BY id FOR NO KEY UPDATE;
    SELECT array_agg(o.drv) INTO missing
    FROM unnest(v_others) AS o(drv)
    LEFT JOIN build_jobs j ON j.drv_path = o.drv
    LEFT JOIN asked_limits(p_eval, v_project, v_others, p_asked) a ON a.drv_path = o.drv
    WHERE CASE
        WHEN j.id IS NULL THEN true
        -- A dep-failed job is looked at again unless its cause is a failure that stays.
        WHEN j.status = 'dep-failed' THEN coalesce(
            (SELECT job_reopens(c, v_project, b.timeout_s, b.max_silent_s) FROM build_jobs c
                LEFT JOIN asked_limits(p_eval, v_project, ARRAY[c.drv_path], p_asked) b ON true
                WHERE c.id = j.root_cause), true)
        ELSE job_reopens(j, v_project, a.timeout_s, a.max_silent_s)
    END AND NOT drv_available(o.drv, true);
    IF missing IS NOT NULL THEN
        DELETE FROM build_jobs WHERE id = ANY (v_new); -- made a moment ago, seen by nobody
        RETURN;
    END IF;
    missing := '{}';
    -- Of jobs that were there, the longest chain above counts.
    IF cardinality(v_new) < cardinality(v_wanted) THEN
        UPDATE build_jobs j SET path_length = t.path_length
        FROM unnest(v_drvs, v_lengths) AS t(drv, path_length)
        WHERE j.drv_path = t.drv AND j.drv_path = ANY (v_wanted) AND j.id <> ALL (v_new) AND j.path_length < t.path_length;
    END IF;

    -- What is asked of jobs that were there: of those that come back, and of those that attributes name.
    SELECT array_agg(j.id) INTO v_reopen FROM build_jobs j
    LEFT JOIN asked_limits(p_eval, v_project, v_wanted, p_asked) a ON a.drv_path = j.drv_path
    WHERE j.drv_path = ANY (v_wanted) AND j.id <> ALL (v_new) AND job_reopens(j, v_project, a.timeout_s, a.max_silent_s);
    SELECT array_agg(j.id) INTO v_named FROM build_jobs j
    WHERE j.drv_path = ANY (v_attr_drvs) AND j.status IN ('pending', 'building', 'uploading') AND j.id <> ALL (v_new);
    PERFORM FROM build_jobs WHERE id = ANY (v_named) ORDER BY id FOR NO KEY UPDATE;
    PERFORM set_limits(p_eval, v_project, v_reopen || v_named, p_asked);
    IF v_reopen IS NOT NULL THEN
        PERFORM count_unmet(v_new); -- some that come back may succeed at once and count down
        v_reset := reset_jobs(v_reopen, 0);
        revived := cardinality(v_reset);
    END IF;
    -- After that, or new jobs would be blocked by what just came back. And jobs whose outputs turned up another way have what is
    -- asked of them, whatever became of them: neither do they block.
    PERFORM outputs_turned_up(array_agg(o.output_path)) FROM derivation_outputs o
    JOIN build_jobs j USING (drv_path)
    WHERE o.drv_path = ANY (ARRAY(SELECT unnest(v_drvs || v_others) EXCEPT SELECT unnest(v_wanted)))
        AND j.status IN ('pending', 'failed', 'dep-failed', 'cancelled') AND drv_available(o.drv_path, true);
    WITH walked AS (
        DELETE FROM job_walks w USING build_jobs j WHERE j.id = w.job_id AND j.drv_path = ANY (v_wanted) RETURNING j.id
    ) SELECT coalesce(array_agg(id), '{}') INTO v_walked FROM walked;
    PERFORM settle_jobs(v_new || v_walked, false);
    PERFORM notify_ready(array_agg(DISTINCT class_id)) FROM build_jobs
    WHERE id = ANY (v_new || v_walked) AND status = 'pending' AND unmet_deps = 0;
    new_jobs := cardinality(v_new);

    -- A derivation that was available and no longer is gets a job below jobs that already wait: they wait for it too.
    SELECT array_agg(DISTINCT j.id) INTO v_above
    FROM build_jobs n CROSS JOIN LATERAL jobs_on(n.drv_path, '{pending}') j
    WHERE n.id = ANY (v_new) AND j.drv_path NOT IN (SELECT unnest(v_wanted));
    IF v_above IS NOT NULL THEN
        PERFORM lock_jobs_with_inputs(v_above);
        PERFORM settle_jobs(v_above, false);
    END IF;

    -- Who wants it: the attributes, and until they come the tops of what was inserted.
    INSERT INTO eval_attrs (eval_id, attr, drv_path, error, cached, timeout_s, max_silent_s)
    SELECT p_eval, t.attr, t.drv_path, t.error,
        t.drv_path IS NOT NULL AND NOT EXISTS (SELECT FROM build_jobs j WHERE j.drv_path = t.drv_path AND j.status <> 'succeeded')
            AND drv_available(t.drv_path, true),
        t.timeout_s, t.max_silent_s
    FROM jsonb_to_recordset(p_attrs) AS t(attr text, drv_path text, error text, timeout_s bigint, max_silent_s bigint)
    ON CONFLICT (eval_id, attr) DO UPDATE
        SET drv_path = excluded.drv_path, error = excluded.error, cached = excluded.cached,
            timeout_s = excluded.timeout_s, max_silent_s = excluded.max_silent_s;
    INSERT INTO eval_holds (eval_id, drv_path)
    SELECT p_eval, h.drv FROM (
        SELECT unnest(p_holds) AS drv
        UNION
        (SELECT unnest(v_drvs) EXCEPT SELECT i.input_drv FROM derivation_inputs i WHERE i.referrer = ANY (v_wanted)
            EXCEPT SELECT unnest(v_attr_drvs))
    ) h
    ON CONFLICT DO NOTHING;
    -- What was dep-failed above a revived job came back with it; what of that nobody wants goes.
    IF cardinality(v_reset) > coalesce(cardinality(v_reopen), 0) THEN
        PERFORM withdraw(p_eval, array_agg(drv_path)) FROM build_jobs WHERE id = ANY (v_reset) AND id <> ALL (v_reopen);
    END IF;
    PERFORM pg_notify('evaluations', p_eval::text);
END
$$;
