-- What users do to jobs and evaluations, and what signers do to store paths.

CREATE FUNCTION rebuild_jobs(p_jobs bigint[], p_by text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_below bigint[];
BEGIN
    -- A job is not rebuilt without what it failed or was cancelled for.
    WITH RECURSIVE below(id, drv_path) AS (
        SELECT id, drv_path FROM build_jobs WHERE id = ANY (p_jobs) AND status IN ('failed', 'dep-failed', 'cancelled')
        UNION
        SELECT i.id, i.drv_path FROM below b
        JOIN derivation_inputs d ON d.referrer = b.drv_path
        JOIN build_jobs i ON i.drv_path = d.input_drv
        WHERE i.status IN ('failed', 'dep-failed', 'cancelled')
    ) SELECT array_agg(id) INTO v_below FROM below;
    IF v_below IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO audit_log (actor, action, subject) SELECT p_by, 'rebuild', 'job ' || id FROM unnest(p_jobs) AS id;
    RETURN cardinality(reset_jobs(v_below, 100));
END
$$;

CREATE FUNCTION rebuild_failed(p_eval bigint, p_by text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_jobs bigint[];
BEGIN
    IF NOT EXISTS (SELECT FROM evaluations WHERE id = p_eval) THEN
        RAISE EXCEPTION 'evaluation %', p_eval USING ERRCODE = 'HC002';
    END IF;
    SELECT array_agg(j.id) INTO v_jobs FROM eval_attrs a JOIN build_jobs j USING (drv_path)
    WHERE a.eval_id = (SELECT coalesce(reuses_eval_id, id) FROM evaluations WHERE id = p_eval)
        AND j.status IN ('failed', 'dep-failed', 'cancelled');
    RETURN coalesce(rebuild_jobs(v_jobs, p_by), 0);
END
$$;

-- Cancels a job and what waits for it, unless evaluations of several branches or projects want it.
CREATE FUNCTION cancel_job(p_job bigint, p_by text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs;
    v_wanting text[];
    v_inputs text[];
    v_count bigint;
BEGIN
    PERFORM lock_withdrawals();
    SELECT * INTO v_job FROM build_jobs WHERE id = p_job FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job %', p_job USING ERRCODE = 'HC002';
    END IF;
    IF v_job.status NOT IN ('pending', 'building', 'uploading') THEN
        RETURN 0;
    END IF;
    WITH RECURSIVE above(drv_path) AS (
        SELECT v_job.drv_path
        UNION
        SELECT j.drv_path FROM above a
        JOIN derivation_inputs d ON d.input_drv = a.drv_path
        JOIN build_jobs j ON j.drv_path = d.referrer
        WHERE j.status NOT IN ('succeeded', 'cancelled')
    )
    SELECT array_agg(DISTINCT p.name || ' ' || e.branch) INTO v_wanting
    FROM above
    JOIN (SELECT eval_id, drv_path FROM eval_attrs UNION SELECT eval_id, drv_path FROM eval_holds) r USING (drv_path)
    JOIN live_evaluations e ON e.attrs_of = r.eval_id
    JOIN projects p ON p.id = e.project_id;
    IF cardinality(v_wanting) > 1 THEN
        RAISE EXCEPTION 'job % is also wanted elsewhere (%): cancel those evaluations instead', p_job,
            array_to_string(v_wanting[1:5], ', ') USING ERRCODE = 'HC003';
    END IF;
    v_count := cancel_jobs(ARRAY[p_job], true, 'cancelled by ' || p_by);
    IF v_count > 0 THEN
        INSERT INTO audit_log (actor, action, subject) VALUES (p_by, 'cancel', 'job ' || p_job);
        SELECT array_agg(input_drv) INTO v_inputs FROM derivation_inputs WHERE referrer = v_job.drv_path;
        v_count := v_count + cancel_unwanted(v_inputs, false, 'no evaluation wants it any more');
    END IF;
    RETURN v_count;
END
$$;

CREATE FUNCTION cancel_evaluation(p_eval bigint, p_by text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_status text;
BEGIN
    PERFORM lock_withdrawals();
    SELECT status INTO v_status FROM evaluations WHERE id = p_eval FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'evaluation %', p_eval USING ERRCODE = 'HC002';
    END IF;
    IF v_status NOT IN ('queued', 'running', 'succeeded', 'skipped') THEN
        RETURN 0;
    END IF;
    INSERT INTO audit_log (actor, action, subject) VALUES (p_by, 'cancel', 'evaluation ' || p_eval);
    RETURN 1 + cancel_unwanted(end_evaluations(ARRAY[p_eval], NULL, 'cancelled by ' || p_by), true, 'cancelled by ' || p_by);
END
$$;

-- All outputs of an attempt in one transaction; the first writer of a path wins.
CREATE FUNCTION claim_outputs(
    p_attempt bigint, p_token_hash bytea, p_paths text[], p_nar_hashes text[], p_nar_sizes bigint[], p_file_hashes text[],
    p_file_sizes bigint[], p_refs text[], p_cas text[], p_derivers text[]
) RETURNS SETOF text -- paths whose content differs from what is there
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
    v_wrong text[];
BEGIN
    SELECT array_agg(coalesce(o.output_path, g.path)) INTO v_wrong
    FROM (SELECT output_path FROM derivation_outputs WHERE drv_path = v_job.drv_path) o
    FULL JOIN unnest(p_paths) AS g(path) ON g.path = o.output_path
    WHERE o.output_path IS NULL OR g.path IS NULL;
    IF v_wrong IS NOT NULL THEN
        RAISE EXCEPTION 'a completion must name exactly the outputs of %; missing or foreign: %', v_job.drv_path,
            array_to_string(v_wrong[1:5], ', ') USING ERRCODE = 'HC003';
    END IF;
    UPDATE build_jobs SET status = 'uploading' WHERE id = v_job.id AND status = 'building';
    UPDATE build_attempts SET uploading_at = now() WHERE id = p_attempt AND uploading_at IS NULL;
    PERFORM claim_store_paths(p_attempt, p_paths, p_nar_hashes, p_nar_sizes, p_file_hashes, p_file_sizes, p_refs, p_cas,
        p_derivers, (SELECT d.public FROM derivations d WHERE d.drv_path = v_job.drv_path));
    RETURN QUERY
    WITH differing AS (
        SELECT s.path, s.nar_hash AS there, g.nar_hash AS here
        FROM unnest(p_paths, p_nar_hashes) AS g(path, nar_hash) JOIN store_paths s ON s.path = g.path
        WHERE s.nar_hash <> g.nar_hash
    ), findings AS (
        INSERT INTO reproducibility_findings (path, published_nar_hash, found_nar_hash, attempt_id)
        SELECT path, there, here, p_attempt FROM differing
        WHERE NOT EXISTS (SELECT FROM reproducibility_findings f
            WHERE f.path = differing.path AND f.attempt_id = p_attempt AND f.found_nar_hash = differing.here)
    )
    SELECT path FROM differing ORDER BY path;
END
$$;

-- Inserts or revives rows as claimed; leaves those that are claimed or published. `p_refs`: joined by spaces.
CREATE FUNCTION claim_store_paths(
    p_attempt bigint, p_paths text[], p_nar_hashes text[], p_nar_sizes bigint[], p_file_hashes text[],
    p_file_sizes bigint[], p_refs text[], p_cas text[], p_derivers text[], p_public boolean
) RETURNS void
LANGUAGE sql SET search_path = public, pg_temp AS $$
    INSERT INTO store_paths AS s (path, nar_hash, nar_size, file_hash, file_size, refs, ca, deriver, producing_attempt, state, public)
    SELECT t.path, t.nar_hash, t.nar_size, t.file_hash, t.file_size, string_to_array(t.refs, ' '), t.ca, t.deriver,
        p_attempt, 'claimed', coalesce(p_public, false)
    FROM unnest(p_paths, p_nar_hashes, p_nar_sizes, p_file_hashes, p_file_sizes, p_refs, p_cas, p_derivers)
        AS t(path, nar_hash, nar_size, file_hash, file_size, refs, ca, deriver)
    ORDER BY t.path
    ON CONFLICT (path) DO UPDATE SET nar_hash = excluded.nar_hash, nar_size = excluded.nar_size,
        file_hash = excluded.file_hash, file_size = excluded.file_size, refs = excluded.refs, ca = excluded.ca,
        deriver = excluded.deriver, producing_attempt = excluded.producing_attempt, generation = s.generation + 1,
        state = 'claimed', public = s.public OR excluded.public, claimed_at = now(), published_at = NULL, lost_at = NULL
    WHERE s.state = 'lost'
$$;

-- Sources of an evaluation, or paths found on the side of an attempt (`p_eval` or `p_attempt`, with its token).
CREATE FUNCTION claim_side_paths(
    p_eval bigint, p_attempt bigint, p_token_hash bytea, p_paths text[], p_nar_hashes text[], p_nar_sizes bigint[],
    p_file_hashes text[], p_file_sizes bigint[], p_refs text[], p_cas text[], p_derivers text[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_public boolean;
BEGIN
    IF p_eval IS NOT NULL THEN
        SELECT p.is_public INTO v_public FROM projects p WHERE p.id = (held_evaluation(p_eval, p_token_hash)).project_id;
    ELSE
        SELECT d.public INTO v_public FROM derivations d WHERE d.drv_path = (held_job(p_attempt, p_token_hash)).drv_path;
    END IF;
    PERFORM claim_store_paths(NULL, p_paths, p_nar_hashes, p_nar_sizes, p_file_hashes, p_file_sizes, p_refs, p_cas,
        p_derivers, v_public);
    IF v_public THEN
        UPDATE store_paths SET public = true WHERE path = ANY (p_paths) AND NOT public;
    END IF;
END
$$;

-- Claimed rows become published; what waited for them goes on. The closure gate is the signer's, before.
CREATE FUNCTION publish_paths(p_paths text[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_published text[];
BEGIN
    PERFORM FROM store_paths WHERE path = ANY (p_paths) ORDER BY path FOR NO KEY UPDATE;
    WITH published AS (
        UPDATE store_paths SET state = 'published', published_at = now() WHERE path = ANY (p_paths) AND state = 'claimed'
        RETURNING path
    ) SELECT array_agg(path) INTO v_published FROM published;
    DELETE FROM missing_path_reports WHERE path = ANY (v_published);
    RETURN outputs_turned_up(v_published);
END
$$;

-- Ends a job whose outputs are claimed: published, attempt and job succeeded, dependents readied. Idempotent; needs no
-- token, so that any signer finishes what another one began.
CREATE FUNCTION publish_outputs(
    p_job bigint, p_paths text[], p_log_key text,
    p_build_seconds double precision, p_cpu_seconds double precision, p_peak_memory_bytes bigint, p_output_bytes bigint
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs;
    v_readied bigint := 0;
BEGIN
    SELECT * INTO v_job FROM build_jobs WHERE id = p_job FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job %', p_job USING ERRCODE = 'HC002';
    END IF;
    IF EXISTS (
        SELECT FROM derivation_outputs o LEFT JOIN store_paths s ON s.path = o.output_path
        WHERE o.drv_path = v_job.drv_path
            AND NOT coalesce(s.state = 'published' OR (s.state = 'claimed' AND s.path = ANY (p_paths)), false)
    ) THEN
        RAISE EXCEPTION 'job %: not all of its outputs are claimed or published', p_job USING ERRCODE = 'HC003';
    END IF;
    IF v_job.status = 'uploading' THEN
        UPDATE build_attempts SET outcome = 'succeeded', finished_at = now(), exit_code = 0, log_key = p_log_key,
            build_seconds = p_build_seconds, cpu_seconds = p_cpu_seconds, peak_memory_bytes = p_peak_memory_bytes,
            output_bytes = p_output_bytes
        WHERE id = v_job.attempt_id;
        v_readied := jobs_succeeded(ARRAY[p_job]);
    END IF;
    RETURN v_readied + publish_paths(p_paths);
END
$$;

-- Jobs whose outputs are all claimed or published and that nobody has ended: a signer died in between.
CREATE FUNCTION unfinished_publications(p_limit integer) RETURNS TABLE (job_id bigint, attempt_id bigint, drv_path text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT id, attempt_id, drv_path FROM build_jobs
    WHERE status = 'uploading' AND outputs_claimed(drv_path)
    ORDER BY id LIMIT p_limit
$$;

-- A signer saw that a path's object is gone. The path is lost; the job that makes it is pending again under a new
-- generation, and what is pending above waits for it again. Says what happened:
-- 'healed', 'limit' (too often within the hour: failed), 'no-producer' (nothing here makes it), 'not-published'.
CREATE FUNCTION confirm_lost_path(p_path text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_path store_paths;
    v_known boolean;
    v_upstream boolean;
    v_producer bigint;
    v_waiting bigint[];
    v_job bigint;
BEGIN
    SELECT * INTO v_path FROM store_paths WHERE path = p_path FOR NO KEY UPDATE;
    v_known := FOUND;
    UPDATE upstream_paths SET present = false, checked_at = now(), expires_at = now() + interval '10 minutes'
    WHERE path = p_path AND present;
    v_upstream := FOUND;
    DELETE FROM missing_path_reports WHERE path = p_path;
    IF v_known AND v_path.state = 'published' THEN
        UPDATE store_paths SET state = 'lost', lost_at = now(),
            losses = ARRAY(SELECT t FROM unnest(losses) AS t WHERE t > now() - interval '1 hour') || now()
        WHERE path = p_path RETURNING * INTO v_path;
    ELSIF NOT v_upstream THEN
        RETURN 'not-published';
    END IF;
    -- Prefer the job that made it; any other derivation with this output serves as well.
    SELECT j.id INTO v_producer FROM derivation_outputs o JOIN build_jobs j USING (drv_path)
    WHERE o.output_path = p_path AND j.status = 'succeeded'
    ORDER BY j.id = (SELECT a.job_id FROM build_attempts a WHERE a.id = v_path.producing_attempt) DESC NULLS LAST, j.id
    LIMIT 1;
    -- Where a derivation has this output and no job, nothing can be waited for: what is pending above it fails, and the next
    -- evaluation finds the way. The same for what has the path as a source.
    FOR v_job IN
        SELECT DISTINCT j.id FROM build_jobs j
        WHERE j.status = 'pending' AND j.drv_path IN (
            SELECT d.referrer FROM derivation_inputs d JOIN derivation_outputs o ON o.drv_path = d.input_drv
            WHERE o.output_path = p_path AND NOT EXISTS (SELECT FROM build_jobs m WHERE m.drv_path = o.drv_path)
            UNION SELECT s.referrer FROM derivation_sources s WHERE s.path = p_path)
        ORDER BY j.id
    LOOP
        PERFORM FROM build_jobs WHERE id = v_job AND status = 'pending' FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        PERFORM fail_job(v_job, 'infrastructure',
            format('its input %s is in no cache any more, and no job makes it: evaluate again', p_path), NULL);
    END LOOP;
    IF v_producer IS NULL THEN
        RETURN CASE WHEN EXISTS (SELECT FROM derivation_outputs o JOIN build_jobs j USING (drv_path)
            WHERE o.output_path = p_path AND j.status IN ('pending', 'building', 'uploading')) THEN 'healed' -- on its way
            ELSE 'no-producer' END;
    END IF;
    -- All jobs that succeeded for this path go back: their dependents count them.
    FOR v_job IN
        SELECT j.id FROM derivation_outputs o JOIN build_jobs j USING (drv_path)
        WHERE o.output_path = p_path AND j.status = 'succeeded' ORDER BY j.id
    LOOP
        PERFORM lock_jobs_with_inputs(ARRAY[v_job]);
        UPDATE build_jobs SET status = 'pending', queued_at = now(), started_at = NULL, not_before = NULL,
            message = format('its output %s was lost from the cache and is built again', p_path)
        WHERE id = v_job AND status = 'succeeded';
        CONTINUE WHEN NOT FOUND;
        PERFORM settle_jobs(ARRAY[v_job], true);
        PERFORM recheck_jobs(ARRAY[v_job]);
        SELECT array_agg(DISTINCT j.id) INTO v_waiting
        FROM build_jobs p
        JOIN derivation_inputs d ON d.input_drv = p.drv_path
        JOIN build_jobs j ON j.drv_path = d.referrer
        WHERE p.id = v_job AND j.status = 'pending';
        IF v_waiting IS NOT NULL THEN
            PERFORM lock_jobs_with_inputs(v_waiting);
            PERFORM settle_jobs(v_waiting, false);
        END IF;
        IF cardinality(v_path.losses) > 2 THEN
            PERFORM fail_job(v_job, 'infrastructure',
                format('its output %s was lost from the cache %s times within an hour', p_path, cardinality(v_path.losses)), NULL);
        END IF;
    END LOOP;
    RETURN CASE WHEN cardinality(v_path.losses) > 2 THEN 'limit' ELSE 'healed' END;
END
$$;

-- The object is there after all.
CREATE FUNCTION dismiss_missing_path(p_path text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    DELETE FROM missing_path_reports WHERE path = p_path
$$;

-- The job behind an attempt's token; HC001 when it is no longer held.
CREATE FUNCTION attempt_job(p_attempt bigint, p_token_hash bytea) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job bigint;
BEGIN
    SELECT j.id INTO v_job FROM build_attempts a JOIN build_jobs j ON j.id = a.job_id
    WHERE a.id = p_attempt AND j.attempt_id = a.id AND j.claim_token_hash = p_token_hash;
    IF NOT FOUND THEN
        PERFORM raise_stale_claim();
    END IF;
    RETURN v_job;
END
$$;

-- Objects that somebody relies on now are safe from the sweep for the grace period.
CREATE FUNCTION renew_leases(p_paths text[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE store_paths SET leased_until = now() + interval '24 hours'
    WHERE path IN (SELECT s.path FROM store_paths s WHERE s.path = ANY (p_paths)
        AND (s.leased_until IS NULL OR s.leased_until < now() + interval '23 hours') ORDER BY s.path FOR NO KEY UPDATE)
$$;
