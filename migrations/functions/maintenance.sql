-- Chores of frontends, and the sweep that looks whether the invariants hold.

-- When a node was last heard of that can run jobs of this class; null: none ever was. Of a class that is younger than that, the
-- node's own row tells, and of one without features, that somebody offered the system.
CREATE OR REPLACE FUNCTION last_offered(c job_classes) RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT greatest(CASE WHEN c.ever_seen THEN c.last_seen END,
        (SELECT max(n.last_seen) FROM nodes n WHERE 'builder' = ANY (n.capabilities) AND can_run(n.systems, n.features, c)),
        (SELECT b.last_seen FROM builder_systems b WHERE b.system = c.system AND c.features = '{}'))
$$;

-- Pending jobs of a class that nobody offered within `p_within`, and that is known for longer than `p_after`, fail: at most
-- `p_limit` of them, with what waits for them. `looked` is how many were found; of these, some may have changed meanwhile.
CREATE OR REPLACE FUNCTION mark_unsupported(p_after interval, p_within interval, p_limit integer, OUT looked bigint, OUT failed bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job record;
BEGIN
    looked := 0;
    failed := 0;
    FOR v_job IN
        SELECT j.id, format('no node offers %s%s', c.system,
            CASE WHEN c.features <> '{}' THEN ' with ' || array_to_string(c.features, ', ') ELSE '' END) AS message
        FROM job_classes c JOIN build_jobs j ON j.class_id = c.id
        WHERE '' || j.status = 'pending' AND c.last_seen < now() - p_after AND (last_offered(c) >= now() - p_within) IS NOT TRUE
        ORDER BY j.id LIMIT p_limit
    LOOP
        looked := looked + 1;
        PERFORM FROM build_jobs WHERE id = v_job.id AND status = 'pending' FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        PERFORM fail_job(v_job.id, 'unsupported', v_job.message, NULL);
        failed := failed + 1;
    END LOOP;
END
$$;

-- A capable node was seen since: at most `p_limit` of them are pending again, with what is dep-failed above, unless nobody wants
-- them any more.
CREATE OR REPLACE FUNCTION revive_unsupported(p_limit integer, OUT looked bigint, OUT revived bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_jobs bigint[];
    v_reset bigint[];
BEGIN
    SELECT array_agg(f.id) INTO v_jobs FROM (
        SELECT j.id FROM build_jobs j JOIN job_classes c ON c.id = j.class_id
        WHERE j.status = 'failed' AND j.failure_kind = 'unsupported' AND j.root_cause IS NULL AND c.last_seen > j.finished_at
        LIMIT p_limit) f;
    looked := coalesce(cardinality(v_jobs), 0);
    revived := 0;
    IF v_jobs IS NULL THEN
        RETURN;
    END IF;
    v_reset := reset_jobs(v_jobs, NULL);
    PERFORM withdraw(NULL, array_agg(drv_path)) FROM build_jobs WHERE id = ANY (v_reset);
    revived := cardinality(v_reset);
END
$$;

-- Invariants 1 to 3 and what of 5 the database can say, with the evidence. At most 100 findings of each kind.
CREATE OR REPLACE FUNCTION sweep_invariants() RETURNS TABLE (invariant integer, detail text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = on SET enable_hashjoin = on SET enable_mergejoin = on AS $$
    (SELECT 1, format('job %s is %s, but its attempt %s is %s', j.id, j.status, j.attempt_id, coalesce(a.outcome, 'unknown'))
    FROM build_jobs j LEFT JOIN build_attempts a ON a.id = j.attempt_id
    WHERE j.status || '' IN ('building', 'uploading')
        AND (a.outcome = 'running' AND a.token_hash = j.claim_token_hash AND a.job_id = j.id) IS NOT TRUE LIMIT 100)
    UNION ALL
    (SELECT 1, format('attempt %s runs, but job %s is %s', a.id, a.job_id, j.status)
    FROM build_attempts a JOIN build_jobs j ON j.id = a.job_id
    WHERE a.outcome || '' = 'running' AND j.attempt_id IS DISTINCT FROM a.id LIMIT 100)
    UNION ALL
    (SELECT 2, format('job %s (%s) says it waits for %s inputs, %s are not succeeded', w.id, w.drv_path, w.unmet_deps, w.counted)
    FROM (
        SELECT j.id, j.drv_path, j.unmet_deps, count(i.id) FILTER (WHERE i.status <> 'succeeded')
            + (SELECT count(*) FROM job_walks k WHERE k.job_id = j.id) AS counted
        FROM build_jobs j
        LEFT JOIN derivation_inputs d ON d.referrer = j.drv_path
        LEFT JOIN build_jobs i ON i.drv_path = d.input_drv
        WHERE '' || j.status = 'pending' GROUP BY j.id
    ) w WHERE w.unmet_deps <> w.counted LIMIT 100)
    UNION ALL
    -- (What is available is asked of the few that are left. OFFSET keeps the planner from asking earlier.)
    (SELECT 2, format('job %s: its input %s has neither a job nor available outputs', s.id, s.input_drv)
    FROM (
        SELECT j.id, d.input_drv FROM build_jobs j JOIN derivation_inputs d ON d.referrer = j.drv_path
        WHERE '' || j.status = 'pending' AND NOT EXISTS (SELECT FROM build_jobs i WHERE i.drv_path = d.input_drv)
            AND NOT EXISTS (SELECT FROM job_walks k WHERE k.job_id = j.id)
        OFFSET 0
    ) s WHERE NOT drv_available(s.input_drv, false) LIMIT 100)
    UNION ALL
    (SELECT 3, format('job %s is pending above job %s, which is %s', j.id, i.id, i.status)
    FROM build_jobs j
    JOIN derivation_inputs d ON d.referrer = j.drv_path
    JOIN build_jobs i ON i.drv_path = d.input_drv
    WHERE '' || j.status = 'pending' AND i.status IN ('failed', 'dep-failed', 'cancelled') LIMIT 100)
    UNION ALL
    (SELECT 3, format('job %s is dep-failed, but none of its inputs is', j.id)
    FROM build_jobs j
    WHERE j.status || '' = 'dep-failed' AND NOT EXISTS (
        SELECT FROM derivation_inputs d JOIN build_jobs i ON i.drv_path = d.input_drv
        WHERE d.referrer = j.drv_path AND i.status IN ('failed', 'dep-failed')) LIMIT 100)
    UNION ALL
    (SELECT 5, format('evaluation %s is complete, but has no attribute and no allow-empty', e.id)
    FROM evaluations e WHERE e.complete AND NOT e.allow_empty AND e.status = 'succeeded'
        AND NOT EXISTS (SELECT FROM eval_attrs a WHERE a.eval_id = e.id) LIMIT 100)
    UNION ALL
    (SELECT 5, format('evaluation %s is complete with %s attributes, but has %s', e.id, e.attr_count, coalesce(f.attrs, 0))
    FROM evaluations e LEFT JOIN (SELECT a.eval_id, count(*) AS attrs FROM eval_attrs a GROUP BY a.eval_id) f ON f.eval_id = e.id
    WHERE e.complete AND e.status = 'succeeded' AND e.attr_count <> coalesce(f.attrs, 0) LIMIT 100)
    UNION ALL
    (SELECT 5, format('evaluation %s is %s, but attribute %s is still expected of it', e.id, e.status, x.attr)
    FROM eval_expected_attrs x JOIN evaluations e ON e.id = x.eval_id WHERE e.status <> 'running' LIMIT 100)
    UNION ALL
    (SELECT 5, format('evaluation %s: attribute %s has neither a job nor available outputs', s.eval_id, s.attr)
    FROM (
        SELECT a.eval_id, a.attr, a.drv_path
        FROM live_evaluations l JOIN evaluations e ON e.id = l.id JOIN eval_attrs a ON a.eval_id = l.attrs_of
        WHERE e.complete AND a.drv_path IS NOT NULL AND NOT a.cached
            AND NOT EXISTS (SELECT FROM build_jobs j WHERE j.drv_path = a.drv_path)
        OFFSET 0
    ) s WHERE NOT drv_available(s.drv_path, false) LIMIT 100)
$$;

-- Jobs that a repair is to correct: those that are dep-failed without a failure below (`revives`), and pending ones that wait for
-- more or less than they say, or for what will not come. Looked for without a lock, since it reads all that waits.
CREATE OR REPLACE FUNCTION jobs_to_repair() RETURNS TABLE (job_id bigint, revives boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = on SET enable_hashjoin = on SET enable_mergejoin = on AS $$
    SELECT j.id, true FROM build_jobs j
    WHERE j.status || '' = 'dep-failed' AND NOT EXISTS (
        SELECT FROM derivation_inputs d JOIN build_jobs i ON i.drv_path = d.input_drv
        WHERE d.referrer = j.drv_path AND i.status IN ('failed', 'dep-failed'))
    UNION ALL
    SELECT w.id, false FROM (
        SELECT j.id FROM build_jobs j
        LEFT JOIN derivation_inputs d ON d.referrer = j.drv_path
        LEFT JOIN build_jobs i ON i.drv_path = d.input_drv
        WHERE '' || j.status = 'pending' GROUP BY j.id
        HAVING j.unmet_deps <> count(i.id) FILTER (WHERE i.status <> 'succeeded')
                + (SELECT count(*) FROM job_walks k WHERE k.job_id = j.id)
            OR count(i.id) FILTER (WHERE i.status IN ('failed', 'dep-failed', 'cancelled')) > 0
    ) w
$$;

-- Corrects a batch of them, as they are by now. Returns how many it settled.
CREATE OR REPLACE FUNCTION repair_jobs(p_jobs bigint[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_orphans bigint[];
    v_waiting bigint[];
    v_settled bigint;
BEGIN
    SELECT array_agg(j.id) INTO v_orphans FROM build_jobs j
    WHERE j.id = ANY (p_jobs) AND j.status = 'dep-failed' AND NOT EXISTS (
        SELECT FROM derivation_inputs d JOIN build_jobs i ON i.drv_path = d.input_drv
        WHERE d.referrer = j.drv_path AND i.status IN ('failed', 'dep-failed'));
    v_settled := coalesce(cardinality(reset_jobs(v_orphans, NULL)), 0);
    SELECT array_agg(id) INTO v_waiting FROM build_jobs
    WHERE id = ANY (p_jobs) AND status = 'pending' AND id <> ALL (coalesce(v_orphans, '{}'));
    IF v_waiting IS NOT NULL THEN
        PERFORM lock_jobs_with_inputs(v_waiting);
        -- Only those still pending; settle_jobs looks again under the locks.
        PERFORM settle_jobs(v_waiting, true);
        v_settled := v_settled + cardinality(v_waiting);
    END IF;
    RETURN v_settled;
END
$$;

-- Says that pending jobs are to be looked at that nobody wants (an evaluation that ended while they were building leaves some).
-- Returns the withdrawal; null: there are none. Looked for without a lock, since it reads all that waits.
CREATE OR REPLACE FUNCTION withdraw_unwanted() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = on SET enable_hashjoin = on SET enable_mergejoin = on AS $$
DECLARE
    v_drvs text[];
    v_withdrawal bigint;
BEGIN
    SELECT array_agg(j.drv_path) INTO v_drvs FROM build_jobs j
    WHERE '' || j.status = 'pending' AND j.id NOT IN (SELECT wanted_jobs());
    IF v_drvs IS NOT NULL THEN
        INSERT INTO withdrawals (roots, running, spares_boosted, message)
        VALUES (v_drvs, false, true, 'no evaluation wants it any more') RETURNING id INTO v_withdrawal;
    END IF;
    RETURN v_withdrawal;
END
$$;

-- Rows that only take room: bundles a day after they came (or with their evaluation), log tails of ended attempts,
-- memo rows long expired that nothing waiting leans on.
CREATE OR REPLACE FUNCTION delete_stale(p_bundle_age interval, OUT bundles bigint, OUT log_tails bigint, OUT upstream bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = on SET enable_hashjoin = on SET enable_mergejoin = on AS $$
BEGIN
    DELETE FROM public.bundles b
    WHERE NOT EXISTS (SELECT FROM evaluations e WHERE e.bundle_id = b.id AND e.status IN ('queued', 'running'))
        AND (b.created_at < now() - p_bundle_age OR EXISTS (SELECT FROM evaluations e WHERE e.bundle_id = b.id));
    GET DIAGNOSTICS bundles = ROW_COUNT;
    DELETE FROM build_log_tails t WHERE NOT EXISTS (SELECT FROM build_attempts a WHERE a.id = t.attempt_id
        AND (a.outcome = 'running' OR a.finished_at > now() - interval '10 minutes'));
    GET DIAGNOSTICS log_tails = ROW_COUNT;
    -- A live evaluation may have an attribute that only such a row makes green.
    DELETE FROM upstream_paths u WHERE u.expires_at < now() - CASE WHEN u.present THEN interval '7 days' ELSE interval '0' END
        AND NOT (u.present AND EXISTS (
            SELECT FROM derivation_outputs o WHERE o.output_path = u.path AND is_live_root(o.drv_path)))
        AND NOT EXISTS (
            SELECT FROM derivation_outputs o
            JOIN derivation_inputs d ON d.input_drv = o.drv_path
            JOIN build_jobs j ON j.drv_path = d.referrer
            WHERE o.output_path = u.path AND j.status IN ('pending', 'building', 'uploading'))
        -- What is shown as available without a job rests on it.
        AND NOT EXISTS (
            SELECT FROM derivation_outputs o
            JOIN eval_attrs a ON a.drv_path = o.drv_path
            WHERE o.output_path = u.path AND NOT EXISTS (SELECT FROM build_jobs j WHERE j.drv_path = a.drv_path));
    GET DIAGNOSTICS upstream = ROW_COUNT;
    DELETE FROM upstream_reports WHERE reported_at < now() - interval '1 hour';
    DELETE FROM walk_claims WHERE lease_until < now();
    DELETE FROM upstream_caches c WHERE NOT EXISTS (SELECT FROM nodes n WHERE n.id = c.node
        AND (NOT n.stopped OR n.last_seen > now() - interval '1 day'));
    DELETE FROM revoked_claims WHERE revoked_at < now() - interval '1 day';
END
$$;
