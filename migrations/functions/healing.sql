-- Paths that turn out to be gone.

-- A builder found an input in no cache: it gives the job back as a transient failure, and a signer looks whether the
-- object is really gone (confirm_lost_path).
CREATE OR REPLACE FUNCTION report_missing_path(p_attempt bigint, p_token_hash bytea, p_path text) RETURNS void
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

-- The object is there after all.
CREATE OR REPLACE FUNCTION dismiss_missing_path(p_path text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    DELETE FROM missing_path_reports WHERE path = p_path
$$;

-- A signer saw that a path's object is gone. The path is lost; the job that makes it is pending again under a new
-- generation, and what is pending above waits for it again. Says what happened:
-- 'healed', 'limit' (too often within the hour: failed), 'no-producer' (nothing here makes it), 'not-published'.
CREATE OR REPLACE FUNCTION confirm_lost_path(p_path text) RETURNS text
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
