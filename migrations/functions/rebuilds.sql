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

-- Cancels a job and what waits for it, unless evaluations of several branches, tags, pull requests or projects want it. Returns
-- the withdrawal in which that is done batch by batch (`withdraw_some`); null: there is nothing to cancel. What was asked is
-- looked at without a lock, since as much may lean on the job as there is.
CREATE OR REPLACE FUNCTION cancel_job(p_job bigint, p_by text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs;
    v_wanting text[];
    v_withdrawal bigint;
BEGIN
    SELECT * INTO v_job FROM build_jobs WHERE id = p_job;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job %', p_job USING ERRCODE = 'HC002';
    END IF;
    IF v_job.status NOT IN ('pending', 'building', 'uploading') THEN
        RETURN NULL;
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
    -- It is as good as done.
    IF v_job.status = 'uploading' AND outputs_claimed(v_job.drv_path) THEN
        RETURN NULL;
    END IF;
    PERFORM FROM build_jobs WHERE id = p_job AND status IN ('pending', 'building', 'uploading') FOR NO KEY UPDATE;
    IF NOT FOUND OR let_succeed(ARRAY[p_job], 'cancelled by ' || p_by) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    INSERT INTO audit_log (actor, action, subject) VALUES (p_by, 'cancel', 'job ' || p_job);
    INSERT INTO withdrawals (job_id, running, message) VALUES (p_job, true, 'cancelled by ' || p_by) RETURNING id INTO v_withdrawal;
    RETURN v_withdrawal;
END
$$;
