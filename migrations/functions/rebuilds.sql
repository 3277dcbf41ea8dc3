-- What users do to jobs.

CREATE OR REPLACE FUNCTION rebuild_jobs(p_jobs bigint[], p_by text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_below bigint[];
BEGIN
    -- A job is not rebuilt without what it failed or was cancelled for.
    SELECT array_agg(id) INTO v_below
    FROM jobs_below(ARRAY(SELECT drv_path FROM build_jobs WHERE id = ANY (p_jobs)), '{failed,dep-failed,cancelled}');
    IF v_below IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO audit_log (actor, action, subject) SELECT p_by, 'rebuild', 'job ' || id FROM unnest(p_jobs) AS id;
    RETURN cardinality(reset_jobs(v_below, 100));
END
$$;

CREATE OR REPLACE FUNCTION rebuild_failed(p_eval bigint, p_by text) RETURNS bigint
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

-- Cancels a job and what waits for it, unless evaluations of several branches, tags, pull requests or projects want it.
CREATE OR REPLACE FUNCTION cancel_job(p_job bigint, p_by text) RETURNS bigint
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
    SELECT array_agg(DISTINCT p.name || CASE WHEN e.pr_number IS NOT NULL THEN ' pull request ' || e.pr_number
        WHEN e.is_tag THEN ' tag ' || e.branch ELSE ' ' || e.branch END) INTO v_wanting
    FROM (SELECT v_job.drv_path UNION SELECT drv_path FROM jobs_above(ARRAY[p_job], open_states())) above
    CROSS JOIN LATERAL live_naming(above.drv_path) l
    JOIN evaluations e ON e.id = l.id
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
