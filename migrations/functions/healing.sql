-- Paths that turn out to be gone.

-- A builder found an input in no cache, or (`p_damaged`) what ours gave was not what its narinfo says: it gives the job back as
-- a transient failure, and a signer looks itself (confirm_lost_path). Of what was never ours, see upstream.sql.
CREATE OR REPLACE FUNCTION report_missing_path(p_attempt bigint, p_token_hash bytea, p_path text, p_damaged boolean) RETURNS void
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
    INSERT INTO missing_path_reports AS r (path, attempt_id, damaged) VALUES (p_path, p_attempt, p_damaged)
    ON CONFLICT (path) DO UPDATE
        SET attempt_id = excluded.attempt_id, damaged = r.damaged OR excluded.damaged, reported_at = now();
    PERFORM pg_notify('missing_paths', p_path);
END
$$;

-- A reader found a narinfo that is none: a signer looks at the path as if a builder had reported it.
CREATE OR REPLACE FUNCTION report_damaged_narinfo(p_hash_part text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_path text;
BEGIN
    INSERT INTO missing_path_reports (path) SELECT s.path FROM store_paths s
    WHERE s.hash_part = p_hash_part AND s.state = 'published'
    ON CONFLICT (path) DO NOTHING RETURNING path INTO v_path;
    PERFORM pg_notify('missing_paths', v_path) WHERE v_path IS NOT NULL;
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
    v_producer bigint;
    v_waiting bigint[];
    v_makers bigint[];
    v_job bigint;
BEGIN
    SELECT * INTO v_path FROM store_paths WHERE path = p_path FOR NO KEY UPDATE;
    v_known := FOUND;
    DELETE FROM missing_path_reports WHERE path = p_path;
    IF v_known AND v_path.state = 'published' THEN
        UPDATE store_paths SET state = 'lost', lost_at = now(),
            losses = ARRAY(SELECT t FROM unnest(losses) AS t WHERE t > now() - interval '1 hour') || now()
        WHERE path = p_path RETURNING * INTO v_path;
    ELSE
        RETURN 'not-published';
    END IF;
    -- Prefer the job that made it; any other derivation with this output serves as well.
    SELECT j.id INTO v_producer FROM derivation_outputs o JOIN build_jobs j USING (drv_path)
    WHERE o.output_path = p_path AND j.status = 'succeeded'
    ORDER BY j.id = (SELECT a.job_id FROM build_attempts a WHERE a.id = v_path.producing_attempt) DESC NULLS LAST, j.id
    LIMIT 1;
    -- Where a derivation has this output and no job, it gets one; what has the path as a source waits until an evaluator has
    -- uploaded that again.
    PERFORM outputs_gone(ARRAY[p_path]);
    SELECT array_agg(j.id) INTO v_waiting FROM build_jobs j JOIN derivation_sources s ON s.referrer = j.drv_path
    WHERE s.path = p_path AND j.status = 'pending';
    IF v_waiting IS NOT NULL THEN
        PERFORM await_walk(v_waiting);
    END IF;
    IF v_producer IS NULL THEN
        RETURN CASE WHEN EXISTS (SELECT FROM derivation_outputs o JOIN build_jobs j USING (drv_path)
            WHERE o.output_path = p_path AND j.status IN ('pending', 'building', 'uploading')) THEN 'healed' -- on its way
            ELSE 'no-producer' END;
    END IF;
    -- All jobs that succeeded for this path go back: their dependents count them.
    SELECT array_agg(j.id) INTO v_makers FROM derivation_outputs o JOIN build_jobs j USING (drv_path)
    WHERE o.output_path = p_path AND j.status = 'succeeded';
    PERFORM lock_jobs_with_inputs(v_makers);
    WITH back AS (
        UPDATE build_jobs SET status = 'pending', queued_at = now(), started_at = NULL, not_before = NULL,
            message = format('its output %s was lost from the cache and is built again', p_path)
        WHERE id = ANY (v_makers) AND status = 'succeeded' RETURNING id
    ) SELECT array_agg(id ORDER BY id) INTO v_makers FROM back;
    PERFORM settle_jobs(v_makers, true);
    PERFORM recheck_jobs(v_makers);
    v_waiting := dependents_of(v_makers, 'pending');
    IF v_waiting IS NOT NULL THEN
        PERFORM lock_jobs_with_inputs(v_waiting);
        PERFORM settle_jobs(v_waiting, false);
    END IF;
    IF cardinality(v_path.losses) > 2 THEN
        FOREACH v_job IN ARRAY coalesce(v_makers, '{}') LOOP
            PERFORM fail_job(v_job, 'infrastructure',
                format('its output %s was lost from the cache %s times within an hour', p_path, cardinality(v_path.losses)), NULL);
        END LOOP;
    END IF;
    RETURN CASE WHEN cardinality(v_path.losses) > 2 THEN 'limit' ELSE 'healed' END;
END
$$;
