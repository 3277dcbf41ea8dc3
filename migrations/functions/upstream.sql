-- Upstream caches: what they are known to have, what they turn out not to have after all, and what becomes of those who relied
-- on it: the derivation becomes a job in the evaluations that run, below which an evaluator walks.

-- The caches that an evaluator asks from now on. Answers of caches that nobody asks any more, or in which other keys count now,
-- do not count.
CREATE OR REPLACE FUNCTION register_upstreams(p_node text, p_incarnation bigint, p_caches text[], p_keys_digests text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_changed text[];
    v_gone text[];
BEGIN
    PERFORM current_node(p_node, p_incarnation, 'evaluator');
    SELECT array_agg(c.cache) INTO v_changed FROM upstream_caches c
    JOIN unnest(p_caches, p_keys_digests) AS t(cache, keys) ON t.cache = c.cache AND t.keys <> c.keys_digest
    WHERE c.node = p_node;
    DELETE FROM upstream_caches WHERE node = p_node;
    INSERT INTO upstream_caches (node, cache, keys_digest)
    SELECT DISTINCT ON (t.cache) p_node, t.cache, t.keys FROM unnest(p_caches, p_keys_digests) AS t(cache, keys)
    ORDER BY t.cache;
    UPDATE upstream_paths SET expires_at = now() WHERE cache = ANY (v_changed) AND expires_at > now();
    WITH gone AS (
        UPDATE upstream_paths u SET present = false, expires_at = now() WHERE u.present AND NOT EXISTS (
            SELECT FROM upstream_caches c JOIN nodes n ON n.id = c.node
            WHERE c.cache = u.cache AND (NOT n.stopped OR n.last_seen > now() - interval '1 day'))
        RETURNING u.path
    ) SELECT array_agg(path) INTO v_gone FROM gone;
    PERFORM outputs_gone(v_gone);
END
$$;

-- Why a cache gives this evaluator nothing; null: it does.
CREATE OR REPLACE FUNCTION note_upstream(p_node text, p_incarnation bigint, p_cache text, p_trouble text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM current_node(p_node, p_incarnation, 'evaluator');
    UPDATE upstream_caches SET trouble = left(p_trouble, 500) WHERE node = p_node AND cache = p_cache;
END
$$;

-- What caches answered: presence is kept for a day, absence for ten minutes. What was there and is not any more becomes a job.
CREATE OR REPLACE FUNCTION remember_upstream(
    p_eval bigint, p_token_hash bytea, p_paths text[], p_caches text[], p_present boolean[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_gone text[];
BEGIN
    PERFORM graph_evaluation(p_eval, p_token_hash);
    SELECT array_agg(u.path) INTO v_gone FROM unnest(p_paths, p_caches, p_present) AS t(path, cache, present)
    JOIN upstream_paths u ON u.path = t.path AND u.cache = t.cache WHERE u.present AND NOT t.present;
    INSERT INTO upstream_paths AS u (path, cache, present, expires_at)
    SELECT DISTINCT ON (t.path, t.cache) t.path, t.cache, t.present,
        now() + CASE WHEN t.present THEN interval '1 day' ELSE interval '10 minutes' END
    FROM unnest(p_paths, p_caches, p_present) AS t(path, cache, present) ORDER BY t.path, t.cache
    ON CONFLICT (path, cache) DO UPDATE
        SET present = excluded.present, fault = NULL, checked_at = now(), expires_at = excluded.expires_at
        WHERE u.fault IS NULL OR u.expires_at <= now();
    PERFORM outputs_gone(v_gone);
END
$$;

-- A builder could not get from a cache what that was said to have (`p_path` is an input or in the closure of the inputs
-- `p_roots`). Nobody else hears of it before an evaluator asked that cache itself.
CREATE OR REPLACE FUNCTION report_upstream_fault(
    p_attempt bigint, p_token_hash bytea, p_path text, p_cache text, p_roots text[], p_reason text
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
    v_roots text[];
BEGIN
    SELECT array_agg(DISTINCT o.output_path) INTO v_roots
    FROM derivation_inputs d JOIN derivation_outputs o ON o.drv_path = d.input_drv
    WHERE d.referrer = v_job.drv_path AND (o.output_path = ANY (p_roots) OR o.output_path = p_path);
    IF v_roots IS NULL THEN
        RAISE EXCEPTION '% is in the closure of no input of this job', p_path USING ERRCODE = 'HC003';
    END IF;
    INSERT INTO upstream_reports AS r (path, cache, roots, reason, attempt_id)
    VALUES (p_path, left(p_cache, 2000), v_roots, left(p_reason, 500), p_attempt)
    ON CONFLICT (path, cache) DO UPDATE SET roots = ARRAY(SELECT DISTINCT unnest(r.roots || excluded.roots)),
        reason = excluded.reason, attempt_id = excluded.attempt_id, reported_at = now();
    PERFORM pg_notify('missing_paths', p_path);
END
$$;

-- An evaluator saw it, too: until that expires the cache has neither the path nor what needs it. Only what a builder reported can be
-- confirmed; of another report somebody else was faster.
CREATE OR REPLACE FUNCTION confirm_upstream_fault(
    p_node text, p_incarnation bigint, p_path text, p_cache text, p_fault text
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_paths text[];
BEGIN
    PERFORM current_node(p_node, p_incarnation, 'evaluator');
    DELETE FROM upstream_reports WHERE path = p_path AND cache = p_cache RETURNING array_append(roots, path) INTO v_paths;
    IF v_paths IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO upstream_paths AS u (path, cache, present, fault, expires_at)
    SELECT DISTINCT t, p_cache, false, left(p_fault, 500), now() + interval '1 hour'
    FROM unnest(v_paths) AS t ORDER BY t
    ON CONFLICT (path, cache) DO UPDATE
        SET present = false, fault = excluded.fault, checked_at = now(), expires_at = excluded.expires_at;
    PERFORM outputs_gone(v_paths);
END
$$;

-- It got the path without trouble.
CREATE OR REPLACE FUNCTION dismiss_upstream_report(p_node text, p_incarnation bigint, p_path text, p_cache text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM current_node(p_node, p_incarnation, 'evaluator');
    DELETE FROM upstream_reports WHERE path = p_path AND cache = p_cache;
END
$$;

-- These paths are not there any more (or not in one of the places where they were). Derivations that make them, are wanted, have
-- no job and are available nowhere else become jobs; what is pending above waits for them.
CREATE OR REPLACE FUNCTION outputs_gone(p_paths text[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_drv text;
    v_eval bigint;
    v_project projects;
    v_job bigint;
    v_above bigint[];
BEGIN
    IF cardinality(p_paths) > 0 THEN
        PERFORM pg_advisory_xact_lock_shared(hashtext('harmonia counts'), 0);
        PERFORM forget_counts(ARRAY(SELECT o.drv_path FROM unnest(p_paths) AS p(path)
            CROSS JOIN LATERAL (SELECT drv_path FROM derivation_outputs WHERE output_path = p.path OFFSET 0) o));
    END IF;
    FOR v_drv IN
        SELECT DISTINCT o.drv_path FROM unnest(p_paths) AS p(path)
        CROSS JOIN LATERAL (SELECT drv_path FROM derivation_outputs WHERE output_path = p.path OFFSET 0) o
        WHERE NOT EXISTS (SELECT FROM build_jobs j WHERE j.drv_path = o.drv_path OFFSET 0)
            AND NOT drv_available(o.drv_path, false)
            AND (is_live_root(o.drv_path) OR EXISTS (SELECT FROM jobs_on(o.drv_path, '{pending,building,uploading}') OFFSET 0))
        ORDER BY o.drv_path
    LOOP
        v_eval := evaluation_above(v_drv);
        IF v_eval IS NULL THEN
            -- Nobody wants what is pending above it, which could not be built.
            PERFORM await_walk(array_agg(j.id)) FROM jobs_on(v_drv, '{pending}') j HAVING count(*) > 0;
            CONTINUE;
        END IF;
        SELECT p.* INTO v_project FROM evaluations e CROSS JOIN LATERAL project_with_limits(e.project_id) p WHERE e.id = v_eval;
        INSERT INTO job_classes (system, features)
        SELECT d.system, d.required_features FROM derivations d WHERE d.drv_path = v_drv
        ON CONFLICT DO NOTHING;
        PERFORM FROM derivations WHERE drv_path = v_drv FOR SHARE; -- public or not, it stays until the job is there
        INSERT INTO build_jobs (drv_path, project_id, class_id, public, unmet_deps, timeout_s, max_silent_s, output_bytes_max,
            log_bytes_max)
        SELECT d.drv_path, v_project.id, c.id, d.public, 1, v_project.timeout_s, v_project.max_silent_s, v_project.output_bytes_max,
            v_project.log_bytes_max
        FROM derivations d
        JOIN job_classes c ON c.system = d.system AND c.features = d.required_features
        WHERE d.drv_path = v_drv
        ON CONFLICT DO NOTHING RETURNING id INTO v_job;
        CONTINUE WHEN v_job IS NULL;
        PERFORM await_walk(ARRAY[v_job]);
        -- One that comes back at this moment either is seen, or sees the new job.
        PERFORM FROM build_jobs WHERE id = ANY (ARRAY(SELECT j.id FROM jobs_on(v_drv, '{pending,building,uploading}') j))
        ORDER BY id FOR NO KEY UPDATE;
        SELECT array_agg(DISTINCT j.id) INTO v_above FROM jobs_on(v_drv, '{pending}') j;
        IF v_above IS NOT NULL THEN
            PERFORM lock_jobs_with_inputs(v_above);
            PERFORM settle_jobs(v_above, false);
        END IF;
    END LOOP;
END
$$;

-- The live evaluation that wants a derivation (one for everybody first: what it reaches is public), through jobs that have not
-- ended.
CREATE OR REPLACE FUNCTION evaluation_above(p_drv text) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
BEGIN
    RETURN (
        WITH RECURSIVE above(drv_path) AS (
            SELECT p_drv
            UNION
            SELECT j.drv_path FROM above a CROSS JOIN LATERAL jobs_on(a.drv_path, '{pending,building,uploading}') j
        ) SELECT l.id FROM above CROSS JOIN LATERAL live_naming(above.drv_path) l JOIN projects p ON p.id = l.project_id
        ORDER BY p.is_public DESC, l.id DESC LIMIT 1);
END
$$;

-- Pending jobs cannot be built before an evaluator walked below them. What no evaluation wants fails: nobody would walk.
CREATE OR REPLACE FUNCTION await_walk(p_jobs bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_job bigint;
BEGIN
    PERFORM lock_jobs_with_inputs(p_jobs);
    INSERT INTO job_walks (job_id, eval_id)
    SELECT j.id, e.id FROM build_jobs j CROSS JOIN LATERAL (SELECT evaluation_above(j.drv_path) AS id) e
    WHERE j.id = ANY (p_jobs) AND j.status = 'pending' AND e.id IS NOT NULL ORDER BY j.id
    ON CONFLICT DO NOTHING;
    PERFORM settle_jobs(p_jobs, false);
    FOR v_job IN
        SELECT j.id FROM build_jobs j WHERE j.id = ANY (p_jobs) AND j.status = 'pending'
            AND NOT EXISTS (SELECT FROM job_walks w WHERE w.job_id = j.id) ORDER BY j.id
    LOOP
        PERFORM fail_job(v_job, 'infrastructure',
            'what it needs was in an upstream cache and is gone, and no evaluation wants it that could queue that', NULL);
    END LOOP;
    PERFORM pg_notify('evaluations', e::text) FROM (SELECT DISTINCT eval_id AS e FROM job_walks WHERE job_id = ANY (p_jobs)) w;
END
$$;

-- The node that evaluated has the .drv files: while it may come back, the walk is its own.
CREATE OR REPLACE FUNCTION walks_itself(p_node nodes, p_evaluated_by text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT p_node.id = p_evaluated_by AND 'evaluator' = ANY (p_node.capabilities) AND p_node.last_seen > now() - interval '1 hour'
$$;

-- An evaluator takes the jobs of one evaluation that are to be walked, under a lease: it may vanish.
CREATE OR REPLACE FUNCTION claim_walk(
    p_node text, p_incarnation bigint, p_token_hash bytea, OUT eval_id bigint, OUT drvs text[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_node nodes := current_node(p_node, p_incarnation, 'evaluator');
    v_evals bigint[]; -- that have walks
    v_ended bigint[];
    v_eval bigint;
BEGIN
    IF v_node.draining THEN
        RETURN;
    END IF;
    -- From one to the next, however many walks each has.
    v_evals := ARRAY(
        WITH RECURSIVE evals (id) AS (
            SELECT min(w.eval_id) FROM job_walks w
            UNION ALL
            SELECT (SELECT min(w.eval_id) FROM job_walks w WHERE w.eval_id > e.id) FROM evals e WHERE e.id IS NOT NULL
        ) SELECT id FROM evals WHERE id IS NOT NULL);
    -- Those that ended leave their walks to others that want the same.
    v_ended := ARRAY(SELECT e FROM unnest(v_evals) AS e WHERE NOT EXISTS (SELECT FROM live_evaluations l WHERE l.id = e OFFSET 0));
    IF cardinality(v_ended) > 0 THEN
        WITH moved AS (
            UPDATE job_walks w SET eval_id = n.id
            FROM (SELECT k.job_id, evaluation_above(j.drv_path) AS id FROM job_walks k
                CROSS JOIN LATERAL (SELECT drv_path FROM build_jobs WHERE id = k.job_id AND status = 'pending' OFFSET 0) j
                WHERE k.eval_id = ANY (v_ended) OFFSET 0) n
            WHERE w.job_id = n.job_id AND n.id IS NOT NULL RETURNING w.eval_id
        ) SELECT v_evals || array_agg(DISTINCT eval_id) INTO v_evals FROM moved;
    END IF;
    SELECT t.eval_id INTO v_eval FROM (SELECT DISTINCT e AS eval_id FROM unnest(v_evals) AS e) t
    CROSS JOIN LATERAL (SELECT e.evaluated_by FROM live_evaluations l JOIN evaluations e ON e.id = l.attrs_of
        WHERE l.id = t.eval_id OFFSET 0) e
    CROSS JOIN LATERAL (SELECT w.not_before, w.job_id FROM job_walks w
        WHERE w.eval_id = t.eval_id AND w.not_before <= now()
            AND EXISTS (SELECT FROM build_jobs j WHERE j.id = w.job_id AND j.status = 'pending' OFFSET 0)
        ORDER BY w.not_before, w.job_id LIMIT 1) w
    WHERE NOT EXISTS (SELECT FROM nodes n WHERE n.id = e.evaluated_by AND n.id <> p_node AND walks_itself(n, e.evaluated_by))
        AND NOT EXISTS (SELECT FROM walk_claims c WHERE c.eval_id = t.eval_id AND c.lease_until > now())
    ORDER BY w.not_before, w.job_id LIMIT 1;
    IF v_eval IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO walk_claims AS c (eval_id, node, token_hash, lease_until)
    VALUES (v_eval, p_node, p_token_hash, now() + interval '10 minutes')
    ON CONFLICT (eval_id) DO UPDATE SET node = excluded.node, token_hash = excluded.token_hash, lease_until = excluded.lease_until
        WHERE c.lease_until <= now();
    IF NOT FOUND THEN
        RETURN; -- somebody else was faster
    END IF;
    eval_id := v_eval;
    SELECT array_agg(t.drv_path) INTO drvs FROM (
        SELECT j.drv_path FROM job_walks w
        CROSS JOIN LATERAL (SELECT drv_path FROM build_jobs WHERE id = w.job_id AND status = 'pending' OFFSET 0) j
        WHERE w.eval_id = v_eval AND w.not_before <= now() ORDER BY w.job_id LIMIT 1000) t;
END
$$;

-- The walk is over. What insert_batch did not take is available after all, or (`p_error`) could not be walked: tried again, at
-- most three times.
CREATE OR REPLACE FUNCTION finish_walk(p_eval bigint, p_token_hash bytea, p_drvs text[], p_error text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_eval evaluations := graph_evaluation(p_eval, p_token_hash);
    v_left record;
BEGIN
    FOR v_left IN
        SELECT j.id, j.drv_path, w.tries FROM job_walks w JOIN build_jobs j ON j.id = w.job_id
        WHERE j.drv_path = ANY (p_drvs) AND w.eval_id = p_eval AND j.status = 'pending' ORDER BY j.id
    LOOP
        PERFORM lock_jobs_with_inputs(ARRAY[v_left.id]);
        IF drv_available(v_left.drv_path, true) THEN
            DELETE FROM job_walks WHERE job_id = v_left.id;
            PERFORM jobs_succeeded(ARRAY[v_left.id]);
        ELSIF v_left.tries >= 2 THEN
            DELETE FROM job_walks WHERE job_id = v_left.id;
            PERFORM fail_job(v_left.id, 'infrastructure', format(
                'what it needs was in an upstream cache and is gone, and it could not be queued to be built here: %s',
                coalesce(p_error, 'the evaluator found nothing to insert')), NULL);
        ELSE
            UPDATE job_walks SET tries = tries + 1, not_before = now() + (tries + 1) * interval '20 s' WHERE job_id = v_left.id;
        END IF;
    END LOOP;
    DELETE FROM walk_claims WHERE eval_id = p_eval AND token_hash = p_token_hash;
    -- The attributes of an evaluation that ended hold everything.
    DELETE FROM eval_holds WHERE eval_id = p_eval AND v_eval.status <> 'running';
END
$$;
