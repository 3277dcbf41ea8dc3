-- What builders do (and signers for them when an attempt failed): claim, log, fail, release.

-- Claimed jobs go back to pending and are settled. `p_jobs` are locked and claimed.
CREATE FUNCTION return_jobs(p_jobs bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM lock_jobs_with_inputs(p_jobs);
    UPDATE build_jobs SET status = 'pending', started_at = NULL
    WHERE id = ANY (p_jobs) AND status IN ('building', 'uploading');
    PERFORM settle_jobs(p_jobs, true);
    PERFORM recheck_jobs(p_jobs);
END
$$;

-- A claimed (or pending) job failed for good, and with it what depends on it. Returns how many dependents.
CREATE FUNCTION fail_job(p_job bigint, p_kind text, p_message text, p_exit_code integer) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE build_jobs SET status = 'failed', failure_kind = p_kind, message = left(p_message, 65536),
        exit_code = p_exit_code, not_before = NULL
    WHERE id = p_job AND status IN ('pending', 'building', 'uploading');
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    PERFORM notify_done(ARRAY[p_job]);
    RETURN block_dependents(ARRAY[p_job]);
END
$$;

-- (PL/pgSQL although it is one statement: its plan is kept from call to call, and planning costs more than running it.)
-- Heads of the ready queues of these classes: for each project that has anything ready, its first `p_per_project` jobs.
-- A loose index scan: it hops from project to project through `build_jobs_ready` and never probes one that is dry.
CREATE FUNCTION queue_heads(p_classes integer[], p_per_project integer)
RETURNS TABLE (job_id bigint, project_id bigint, class_id integer, priority integer, queued_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH RECURSIVE ready(class_id, project_id) AS (
        SELECT c.id, p.project_id FROM unnest(p_classes) AS c(id)
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = c.id AND j.status = 'pending' AND j.unmet_deps = 0
            ORDER BY j.project_id LIMIT 1
        ) p
        UNION ALL
        SELECT r.class_id, p.project_id FROM ready r
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = r.class_id AND j.project_id > r.project_id AND j.status = 'pending' AND j.unmet_deps = 0
            ORDER BY j.project_id LIMIT 1
        ) p
    )
    SELECT h.id, h.project_id, h.class_id, h.priority, h.queued_at FROM ready r
    CROSS JOIN LATERAL (
        SELECT j.id, j.project_id, j.class_id, j.priority, j.queued_at FROM build_jobs j
        WHERE j.class_id = r.class_id AND j.project_id = r.project_id AND j.status = 'pending' AND j.unmet_deps = 0
            AND (j.not_before IS NULL OR j.not_before <= now())
        ORDER BY j.priority DESC, j.id LIMIT p_per_project
    ) h;
END
$$;

-- What a policy may know of the projects among the candidates.
CREATE FUNCTION project_loads(p_projects bigint[])
RETURNS TABLE (project_id bigint, shares integer, consumed_seconds double precision, running bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT p.id, p.scheduling_shares, p.consumed_seconds,
        (SELECT count(*) FROM build_jobs j WHERE j.project_id = p.id AND j.status = 'building')
    FROM projects p WHERE p.id = ANY (p_projects);
END
$$;

-- The first jobs of `p_ordered` that can still be locked, at most one a token, become building.
CREATE FUNCTION claim_jobs(p_node text, p_incarnation bigint, p_ordered bigint[], p_token_hashes bytea[])
RETURNS TABLE (job_id bigint, attempt_id bigint, token_index integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_node nodes;
    v_jobs bigint[];
BEGIN
    v_node := current_node(p_node, p_incarnation, 'builder');
    IF v_node.draining OR is_disowned(p_token_hashes) THEN
        RETURN;
    END IF;
    SELECT array_agg(id ORDER BY place) INTO v_jobs FROM (
        SELECT j.id, o.place
        FROM unnest(p_ordered) WITH ORDINALITY AS o(id, place)
        JOIN build_jobs j ON j.id = o.id
        JOIN job_classes c ON c.id = j.class_id
        WHERE j.status = 'pending' AND j.unmet_deps = 0 AND (j.not_before IS NULL OR j.not_before <= now())
            AND can_run(v_node.systems, v_node.features, c)
            -- For a minute, leave it to another node if one could.
            AND (j.avoid_node IS DISTINCT FROM p_node OR j.not_before < now() - interval '1 minute' OR j.not_before IS NULL)
        ORDER BY o.place
        LIMIT cardinality(p_token_hashes)
        FOR NO KEY UPDATE OF j SKIP LOCKED
    ) picked;
    IF v_jobs IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH picked AS (
        SELECT u.id, u.place, p_token_hashes[u.place] AS token_hash
        FROM unnest(v_jobs) WITH ORDINALITY AS u(id, place)
    ), attempts AS (
        INSERT INTO build_attempts (job_id, token_hash, node, incarnation, timeout_s, max_silent_s, output_bytes_max)
        SELECT j.id, p.token_hash, p_node, p_incarnation, j.timeout_s, j.max_silent_s, j.output_bytes_max
        FROM picked p JOIN build_jobs j ON j.id = p.id
        ORDER BY p.place
        RETURNING id, job_id
    )
    SELECT a.job_id, a.id, p.place::integer FROM attempts a JOIN picked p ON p.id = a.job_id;
    UPDATE build_jobs j SET status = 'building', claimed_by = p_node, claim_incarnation = p_incarnation,
        claim_token_hash = a.token_hash, attempt_id = a.id, started_at = now(), not_before = NULL, avoid_node = NULL
    FROM build_attempts a
    WHERE j.id = ANY (v_jobs) AND a.job_id = j.id AND a.outcome = 'running';
END
$$;

-- What a builder needs to know of the jobs it just claimed.
CREATE FUNCTION claimed_jobs(p_attempts bigint[])
RETURNS TABLE (attempt_id bigint, job_id bigint, drv_path text, name text, system text, project text,
    output_names text[], output_paths text[], timeout_s bigint, max_silent_s bigint, output_bytes_max bigint,
    log_bytes_max bigint, retry_count integer)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT a.id, j.id, j.drv_path, d.name, d.system, p.name,
        ARRAY(SELECT o.output_name FROM derivation_outputs o WHERE o.drv_path = j.drv_path ORDER BY o.output_name),
        ARRAY(SELECT o.output_path FROM derivation_outputs o WHERE o.drv_path = j.drv_path ORDER BY o.output_name),
        j.timeout_s, j.max_silent_s, j.output_bytes_max, j.log_bytes_max, j.retry_count
    FROM build_attempts a
    JOIN build_jobs j ON j.id = a.job_id
    JOIN derivations d ON d.drv_path = j.drv_path
    JOIN projects p ON p.id = j.project_id
    WHERE a.id = ANY (p_attempts);
END
$$;

CREATE FUNCTION attempt_uploading(p_attempt bigint, p_token_hash bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
BEGIN
    UPDATE build_jobs SET status = 'uploading' WHERE id = v_job.id AND status = 'building';
    UPDATE build_attempts SET uploading_at = now() WHERE id = p_attempt AND uploading_at IS NULL;
END
$$;

-- `p_kind` null: transient. `p_delays_ms[n]` is the delay after the n-th transient failure; none left: infrastructure failure.
CREATE FUNCTION fail_attempt(
    p_attempt bigint, p_token_hash bytea, p_kind text, p_message text, p_exit_code integer, p_log_key text,
    p_build_seconds double precision, p_cpu_seconds double precision, p_peak_memory_bytes bigint, p_output_bytes bigint,
    p_delays_ms bigint[],
    OUT retry_at timestamptz, OUT dependents bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
    v_delay_ms bigint := p_delays_ms[v_job.retry_count + 1];
BEGIN
    IF v_job.status = 'uploading' AND outputs_claimed(v_job.drv_path) THEN
        RAISE EXCEPTION 'the outputs of this attempt were accepted already: a signer finishes it' USING ERRCODE = 'HC003';
    END IF;
    UPDATE build_attempts SET outcome = CASE WHEN p_kind IS NULL THEN 'transient' ELSE 'failed' END,
        failure_kind = p_kind, message = left(p_message, 65536), exit_code = p_exit_code, log_key = p_log_key,
        build_seconds = p_build_seconds, cpu_seconds = p_cpu_seconds, peak_memory_bytes = p_peak_memory_bytes,
        output_bytes = p_output_bytes, finished_at = now()
    WHERE id = p_attempt;
    IF p_kind IS NOT NULL THEN
        dependents := fail_job(v_job.id, p_kind, p_message, p_exit_code);
    ELSIF v_delay_ms IS NULL THEN
        dependents := fail_job(v_job.id, 'infrastructure',
            format('gave up after %s tries; the last one: %s', v_job.retry_count + 1, p_message), p_exit_code);
    ELSE
        retry_at := now() + v_delay_ms * interval '1 ms';
        dependents := 0;
        UPDATE build_jobs SET retry_count = retry_count + 1, message = left(p_message, 65536), not_before = retry_at,
            avoid_node = CASE WHEN EXISTS (
                SELECT FROM nodes n, job_classes c
                WHERE c.id = v_job.class_id AND n.id <> v_job.claimed_by AND 'builder' = ANY (n.capabilities)
                    AND NOT n.stopped AND NOT n.draining AND n.last_seen > now() - interval '2 minutes'
                    AND can_run(n.systems, n.features, c)
            ) THEN v_job.claimed_by END
        WHERE id = v_job.id;
        PERFORM return_jobs(ARRAY[v_job.id]);
    END IF;
END
$$;

-- Aborted: pending again, nothing counted.
CREATE FUNCTION release_attempt(p_attempt bigint, p_token_hash bytea, p_reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
BEGIN
    IF v_job.status = 'uploading' AND outputs_claimed(v_job.drv_path) THEN
        RETURN; -- finished by a signer; the claim stays until then
    END IF;
    PERFORM end_attempt(p_attempt, 'aborted', left(p_reason, 65536));
    PERFORM return_jobs(ARRAY[v_job.id]);
END
$$;

-- What the node took under tokens that it does not hold, because the answer to its claim was lost: pending again, nothing
-- counted. Returns how many jobs.
CREATE FUNCTION disown_claims(p_node text, p_incarnation bigint, p_token_hashes bytea[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_jobs bigint[];
BEGIN
    PERFORM disown_tokens(p_node, p_incarnation, 'builder', p_token_hashes);
    SELECT array_agg(job_id) INTO v_jobs FROM build_attempts
    WHERE token_hash = ANY (p_token_hashes) AND node = p_node AND incarnation = p_incarnation AND outcome = 'running';
    IF v_jobs IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM lock_jobs_with_inputs(v_jobs);
    -- Under the locks, since somebody may have cancelled it.
    SELECT array_agg(id) INTO v_jobs FROM build_jobs
    WHERE id = ANY (v_jobs) AND claimed_by = p_node AND claim_token_hash = ANY (p_token_hashes)
        AND (status = 'building' OR (status = 'uploading' AND NOT outputs_claimed(drv_path)));
    IF v_jobs IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM end_attempt(attempt_id, 'aborted', 'the answer to its claim was lost') FROM build_jobs WHERE id = ANY (v_jobs);
    PERFORM return_jobs(v_jobs);
    RETURN cardinality(v_jobs);
END
$$;

-- Which of these claims are void: their work must stop.
CREATE FUNCTION void_claims(p_attempts bigint[], p_token_hashes bytea[]) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT a.id FROM unnest(p_attempts, p_token_hashes) AS a(id, token_hash)
    WHERE NOT EXISTS (SELECT FROM build_jobs j WHERE j.id = (SELECT b.job_id FROM build_attempts b WHERE b.id = a.id)
        AND j.attempt_id = a.id AND j.claim_token_hash = a.token_hash);
END
$$;

-- The last bytes of the logs of all builds of a node: one statement and one notification a tick.
CREATE FUNCTION write_log_tails(p_node text, p_attempts bigint[], p_token_hashes bytea[], p_offsets bigint[], p_bytes bytea[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO build_log_tails (attempt_id, job_id, start_offset, bytes)
    SELECT t.attempt, j.id, t.start_offset, t.bytes
    FROM unnest(p_attempts, p_token_hashes, p_offsets, p_bytes) AS t(attempt, token_hash, start_offset, bytes)
    JOIN build_attempts a ON a.id = t.attempt
    JOIN build_jobs j ON j.id = a.job_id AND j.attempt_id = a.id AND j.claim_token_hash = t.token_hash
    WHERE j.claimed_by = p_node
    ORDER BY t.attempt
    ON CONFLICT (attempt_id) DO UPDATE
        SET start_offset = excluded.start_offset, bytes = excluded.bytes, updated_at = now();
    IF FOUND THEN
        PERFORM pg_notify('build_log', left(p_node, 200));
    END IF;
END
$$;

-- A builder found an input in no cache: it gives the job back as a transient failure, and a signer looks whether the
-- object is really gone (confirm_lost_path).
CREATE FUNCTION report_missing_path(p_attempt bigint, p_token_hash bytea, p_path text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
BEGIN
    IF NOT EXISTS (
        SELECT FROM derivation_sources WHERE referrer = v_job.drv_path AND path = p_path
        UNION ALL
        SELECT FROM derivation_inputs d JOIN derivation_outputs o ON o.drv_path = d.input_drv
        WHERE d.referrer = v_job.drv_path AND o.output_path = p_path
        UNION ALL -- or anything that the cache says it has: the closure of an input
        SELECT FROM store_paths WHERE path = p_path
    ) THEN
        RAISE EXCEPTION '% is no input of this job', p_path USING ERRCODE = 'HC003';
    END IF;
    INSERT INTO missing_path_reports (path, attempt_id) VALUES (p_path, p_attempt)
    ON CONFLICT (path) DO UPDATE SET attempt_id = excluded.attempt_id, reported_at = now();
    PERFORM pg_notify('missing_paths', p_path);
END
$$;

-- Gives back what a node's older incarnations hold (all, when `p_incarnation` is null). A job whose outputs are accepted
-- stays uploading for a signer. `p_lost_max` > 0: the node is lost, which counts.
CREATE FUNCTION release_holdings(
    p_node text, p_incarnation bigint, p_outcome text, p_message text, p_lost_max integer,
    OUT jobs bigint, OUT evaluations bigint
) LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_jobs bigint[];
    v_back bigint[];
    v_job record;
BEGIN
    SELECT array_agg(j.id) INTO v_jobs FROM build_jobs j
    WHERE j.claimed_by = p_node AND j.status IN ('building', 'uploading')
        AND (p_incarnation IS NULL OR j.claim_incarnation <> p_incarnation);
    jobs := 0;
    IF v_jobs IS NOT NULL THEN
        PERFORM lock_jobs_with_inputs(v_jobs);
        FOR v_job IN
            SELECT j.id, j.attempt_id, j.lost_count FROM build_jobs j
            WHERE j.id = ANY (v_jobs) AND j.claimed_by = p_node
                AND (p_incarnation IS NULL OR j.claim_incarnation <> p_incarnation)
                AND (j.status = 'building' OR (j.status = 'uploading' AND NOT outputs_claimed(j.drv_path)))
            ORDER BY j.id
        LOOP
            jobs := jobs + 1;
            PERFORM end_attempt(v_job.attempt_id, p_outcome, p_message);
            IF p_lost_max > 0 AND v_job.lost_count + 1 >= p_lost_max THEN
                UPDATE build_jobs SET lost_count = lost_count + 1 WHERE id = v_job.id;
                PERFORM fail_job(v_job.id, 'infrastructure',
                    format('%s nodes vanished while they built this; the last one: %s', v_job.lost_count + 1, p_node), NULL);
            ELSE
                UPDATE build_jobs SET lost_count = lost_count + CASE WHEN p_lost_max > 0 THEN 1 ELSE 0 END WHERE id = v_job.id;
                v_back := v_back || v_job.id;
            END IF;
        END LOOP;
        IF v_back IS NOT NULL THEN
            PERFORM return_jobs(v_back);
        END IF;
        PERFORM pg_notify('claims', left(p_node, 200));
    END IF;
    WITH holding AS (
        SELECT e.id FROM evaluations e WHERE e.claimed_by = p_node AND e.status = 'running'
            AND (p_incarnation IS NULL OR e.claim_incarnation <> p_incarnation)
        ORDER BY e.id
    ) SELECT count(requeue_evaluation(id, p_lost_max > 0)) INTO evaluations FROM holding;
END
$$;

-- An evaluation goes back to the queue. What it inserted stays wanted: its attributes become holds.
CREATE FUNCTION requeue_evaluation(p_eval bigint, p_lost boolean) RETURNS boolean
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE evaluations SET status = 'queued', claimed_by = NULL, claim_incarnation = NULL, claim_token_hash = NULL,
        started_at = NULL, lost_count = lost_count + CASE WHEN p_lost THEN 1 ELSE 0 END
    WHERE id = p_eval AND status = 'running';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO eval_holds (eval_id, drv_path)
    SELECT DISTINCT eval_id, drv_path FROM eval_attrs WHERE eval_id = p_eval AND drv_path IS NOT NULL
    ON CONFLICT DO NOTHING;
    DELETE FROM eval_attrs WHERE eval_id = p_eval;
    DELETE FROM eval_expected_attrs WHERE eval_id = p_eval;
    PERFORM pg_notify('evaluations', p_eval::text);
    RETURN true;
END
$$;
