-- What all changes of jobs are made of. Nobody is granted these: the functions for each role call them.
--
-- Locks. Whoever makes a job pending, or inserts one, first locks the jobs it depends on FOR SHARE, so that their
-- completion or failure either was seen or waits; then its own rows. Both in id order; what still meets crosswise is a
-- deadlock, which PostgreSQL ends and host/db tries again. Each statement of a function sees what was committed before
-- that statement, which the loops below rely on.
--
-- Hash joins are off also for those who have them for their lists (`insert_batch`): what is joined here is tables (decision 0016).

-- Walks. Each job is looked for by its key, one by one (LATERAL … OFFSET 0): what a walk costs is what it passes, however little
-- the planner knows of how many that will be. (No settings, so that callers' plans take them in.)

-- Jobs in these states above `p_jobs`, through jobs in these states.
CREATE OR REPLACE FUNCTION jobs_above(p_jobs bigint[], p_states text[]) RETURNS TABLE (id bigint, drv_path text)
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE above(id, drv_path) AS (
        SELECT u.id, u.drv_path FROM (SELECT j.drv_path FROM build_jobs j WHERE j.id = ANY (p_jobs) OFFSET 0) s
        CROSS JOIN LATERAL jobs_on(s.drv_path, p_states) u
        UNION
        SELECT u.id, u.drv_path FROM above a CROSS JOIN LATERAL jobs_on(a.drv_path, p_states) u
    ) SELECT above.id, above.drv_path FROM above
$$;

-- Jobs in these states of `p_drvs`, and below them through jobs in these states.
CREATE OR REPLACE FUNCTION jobs_below(p_drvs text[], p_states text[]) RETURNS TABLE (id bigint, drv_path text)
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE below(id, drv_path) AS (
        SELECT j.id, j.drv_path FROM unnest(p_drvs) AS u(drv)
        CROSS JOIN LATERAL (SELECT j.id, j.drv_path FROM build_jobs j
            WHERE j.drv_path = u.drv AND j.status = ANY (p_states) OFFSET 0) j
        UNION
        SELECT i.id, i.drv_path FROM below b
        CROSS JOIN LATERAL (SELECT d.input_drv FROM derivation_inputs d WHERE d.referrer = b.drv_path OFFSET 0) d
        CROSS JOIN LATERAL (SELECT j.id, j.drv_path FROM build_jobs j
            WHERE j.drv_path = d.input_drv AND j.status = ANY (p_states) OFFSET 0) i
    ) SELECT below.id, below.drv_path FROM below
$$;

-- Jobs in these states that have `p_drv` as an input.
CREATE OR REPLACE FUNCTION jobs_on(p_drv text, p_states text[]) RETURNS TABLE (id bigint, drv_path text)
LANGUAGE sql STABLE AS $$
    SELECT j.id, j.drv_path FROM (SELECT d.referrer FROM derivation_inputs d WHERE d.input_drv = p_drv OFFSET 0) d
    CROSS JOIN LATERAL (SELECT j.id, j.drv_path FROM build_jobs j
        WHERE j.drv_path = d.referrer AND j.status = ANY (p_states) OFFSET 0) j
$$;

-- Jobs in this state that have one of `p_jobs` as an input; null: none.
CREATE OR REPLACE FUNCTION dependents_of(p_jobs bigint[], p_state text) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
BEGIN
    RETURN (
        SELECT array_agg(DISTINCT u.id) FROM (SELECT j.drv_path FROM build_jobs j WHERE j.id = ANY (p_jobs) OFFSET 0) s
        CROSS JOIN LATERAL jobs_on(s.drv_path, ARRAY[p_state]) u);
END
$$;

-- States of jobs that evaluations wait for, or would again: neither has it what is asked of it nor did all lose interest.
CREATE OR REPLACE FUNCTION open_states() RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT '{pending,building,uploading,failed,dep-failed}'::text[]
$$;

CREATE OR REPLACE FUNCTION lock_jobs_with_inputs(p_jobs bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
BEGIN
    PERFORM FROM build_jobs WHERE id IN (
        SELECT i.id FROM build_jobs j
        JOIN derivation_inputs d ON d.referrer = j.drv_path
        JOIN build_jobs i ON i.drv_path = d.input_drv
        WHERE j.id = ANY (p_jobs) AND i.id <> ALL (p_jobs))
    ORDER BY id FOR SHARE;
    PERFORM FROM build_jobs WHERE id = ANY (p_jobs) ORDER BY id FOR NO KEY UPDATE;
END
$$;

-- Marks every pending job above `p_sources` (failed, dep-failed or cancelled ones, locked): dep-failed with the root cause
-- where a failure is below, else cancelled. Returns how many.
CREATE OR REPLACE FUNCTION block_dependents(p_sources bigint[]) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_group record;
    v_frontier bigint[];
    v_found bigint[];
    v_marked bigint[];
    v_count bigint := 0;
BEGIN
    FOR v_group IN
        SELECT CASE WHEN status = 'cancelled' THEN 'cancelled' ELSE 'dep-failed' END AS becomes,
            CASE status WHEN 'failed' THEN id WHEN 'dep-failed' THEN coalesce(root_cause, id) END AS cause,
            array_agg(id) AS ids
        FROM build_jobs WHERE id = ANY (p_sources) AND status IN ('failed', 'dep-failed', 'cancelled')
        GROUP BY 1, 2
        ORDER BY 1 DESC, 2 -- failures first: a job above both is dep-failed
    LOOP
        v_frontier := v_group.ids;
        -- Again until nothing is found: a job inserted above one of ours while we waited for its lock shows in the next round.
        LOOP
            SELECT array_agg(id) INTO v_found FROM jobs_above(v_frontier, '{pending}');
            EXIT WHEN v_found IS NULL;
            PERFORM FROM build_jobs WHERE id = ANY (v_found) ORDER BY id FOR NO KEY UPDATE;
            WITH marked AS (
                UPDATE build_jobs SET status = v_group.becomes,
                    root_cause = CASE WHEN v_group.becomes = 'dep-failed' THEN v_group.cause END,
                    message = NULL, not_before = NULL
                WHERE id = ANY (v_found) AND status = 'pending' RETURNING id
            ) SELECT array_agg(id) INTO v_marked FROM marked;
            EXIT WHEN v_marked IS NULL;
            v_count := v_count + cardinality(v_marked);
            v_frontier := v_marked;
        END LOOP;
    END LOOP;
    RETURN v_count;
END
$$;

-- For pending jobs, locked with their inputs: counts what they wait for.
CREATE OR REPLACE FUNCTION count_unmet(p_jobs bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
BEGIN
    UPDATE build_jobs j SET unmet_deps = c.unmet
    FROM (
        SELECT own.id, count(i.id) FILTER (WHERE i.status <> 'succeeded')
            + (SELECT count(*) FROM job_walks w WHERE w.job_id = own.id) AS unmet
        FROM build_jobs own
        LEFT JOIN derivation_inputs d ON d.referrer = own.drv_path
        LEFT JOIN build_jobs i ON i.drv_path = d.input_drv
        WHERE own.id = ANY (p_jobs) GROUP BY own.id
    ) c
    WHERE j.id = c.id AND j.status = 'pending' AND j.unmet_deps <> c.unmet;
END
$$;

-- The same, and marks those that wait for what will not come. `p_notify`: tell builders about those that are ready.
CREATE OR REPLACE FUNCTION settle_jobs(p_jobs bigint[], p_notify boolean) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_blockers bigint[];
BEGIN
    PERFORM count_unmet(p_jobs);
    SELECT array_agg(DISTINCT i.id) INTO v_blockers
    FROM build_jobs own
    JOIN derivation_inputs d ON d.referrer = own.drv_path
    JOIN build_jobs i ON i.drv_path = d.input_drv
    WHERE own.id = ANY (p_jobs) AND own.status = 'pending' AND i.status IN ('failed', 'dep-failed', 'cancelled');
    IF v_blockers IS NOT NULL THEN
        PERFORM block_dependents(v_blockers);
    END IF;
    IF p_notify THEN
        PERFORM notify_ready(array_agg(DISTINCT class_id)) FROM build_jobs
        WHERE id = ANY (p_jobs) AND status = 'pending' AND unmet_deps = 0;
    END IF;
END
$$;

-- Jobs that have what was asked of them (uploading, or pending whose outputs turned up; locked): succeeded, and their
-- dependents wait for one less. Returns how many became ready.
CREATE OR REPLACE FUNCTION jobs_succeeded(p_jobs bigint[]) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_done bigint[];
    v_drvs text[];
    v_dependents bigint[];
    v_classes integer[];
BEGIN
    WITH done AS (
        UPDATE build_jobs SET status = 'succeeded', message = NULL, exit_code = NULL, not_before = NULL, priority = 0,
            retry_count = 0, lost_count = 0
        WHERE id = ANY (p_jobs) AND status IN ('uploading', 'pending') RETURNING id, drv_path
    ) SELECT array_agg(id), array_agg(drv_path) INTO v_done, v_drvs FROM done;
    IF v_done IS NULL THEN
        RETURN 0;
    END IF;
    -- A statement of its own: a job inserted above ours while we waited for the row must be seen.
    v_dependents := dependents_of(v_done, 'pending');
    IF v_dependents IS NOT NULL THEN
        PERFORM FROM build_jobs WHERE id = ANY (v_dependents) ORDER BY id FOR NO KEY UPDATE;
        WITH less AS (
            UPDATE build_jobs j SET unmet_deps = j.unmet_deps - (
                SELECT count(*) FROM derivation_inputs d WHERE d.referrer = j.drv_path AND d.input_drv = ANY (v_drvs))
            WHERE j.id = ANY (v_dependents) AND j.status = 'pending'
            RETURNING j.class_id, j.unmet_deps
        ) SELECT array_agg(class_id) INTO v_classes FROM less WHERE unmet_deps = 0;
    END IF;
    PERFORM notify_done(v_done);
    PERFORM notify_ready(v_classes);
    RETURN coalesce(cardinality(v_classes), 0);
END
$$;

-- Makes failed, dep-failed and cancelled jobs pending again, with all dep-failed jobs above them, and settles the lot.
-- Returns the jobs that were reset.
CREATE OR REPLACE FUNCTION reset_jobs(p_jobs bigint[], p_priority integer) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_found bigint[];
    v_now bigint[];
    v_reset bigint[] := '{}';
    v_frontier bigint[] := p_jobs;
BEGIN
    LOOP
        SELECT array_agg(id) INTO v_found FROM (
            SELECT id FROM build_jobs WHERE id = ANY (v_frontier) AND status IN ('failed', 'dep-failed', 'cancelled')
            UNION SELECT id FROM jobs_above(v_frontier, '{dep-failed}')
        ) f;
        EXIT WHEN v_found IS NULL;
        PERFORM lock_jobs_with_inputs(v_found);
        WITH reset AS (
            UPDATE build_jobs SET status = 'pending', priority = coalesce(p_priority, priority), message = NULL,
                exit_code = NULL, retry_count = 0, lost_count = 0, not_before = NULL, avoid_node = NULL,
                queued_at = now(), started_at = NULL
            WHERE id = ANY (v_found) AND status IN ('failed', 'dep-failed', 'cancelled') RETURNING id
        ) SELECT array_agg(id) INTO v_now FROM reset;
        EXIT WHEN v_now IS NULL;
        v_reset := v_reset || v_now;
        -- Once more from there: something may have been inserted above, dep-failed, while we waited.
        v_frontier := v_now;
    END LOOP;
    IF cardinality(v_reset) > 0 THEN
        -- Inputs of those found in later rounds were locked then; all are settled together, statuses being final now.
        PERFORM settle_jobs(v_reset, true);
        PERFORM recheck_jobs(v_reset);
    END IF;
    RETURN v_reset;
END
$$;

-- Jobs that became pending again, settled: those whose outputs came by another way meanwhile have what they wait for; those
-- that lean on a derivation without job whose outputs were available once, and are gone, wait until an evaluator walked there.
CREATE OR REPLACE FUNCTION recheck_jobs(p_jobs bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_there bigint[];
    v_stranded bigint[];
BEGIN
    SELECT array_agg(id) INTO v_there FROM build_jobs
    WHERE id = ANY (p_jobs) AND status = 'pending' AND drv_available(drv_path, true);
    IF v_there IS NOT NULL THEN
        PERFORM jobs_succeeded(v_there);
    END IF;
    SELECT array_agg(DISTINCT j.id) INTO v_stranded FROM build_jobs j JOIN derivation_inputs d ON d.referrer = j.drv_path
    WHERE j.id = ANY (p_jobs) AND j.status = 'pending'
        AND NOT EXISTS (SELECT FROM build_jobs i WHERE i.drv_path = d.input_drv) AND NOT drv_available(d.input_drv, false);
    IF v_stranded IS NOT NULL THEN
        PERFORM await_walk(v_stranded);
    END IF;
END
$$;

-- Store paths were published (or found upstream): jobs of any derivation with these outputs have what is asked of them, whatever
-- became of them before, but for those that are being built. What is dep-failed above comes back with them.
CREATE OR REPLACE FUNCTION outputs_turned_up(p_paths text[]) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_jobs bigint[];
    v_over bigint[];
    v_above bigint[];
    v_readied bigint;
BEGIN
    -- Candidates first: asked in one go, the planner may ask drv_available of every job.
    WITH candidates AS MATERIALIZED (
        SELECT DISTINCT j.id, j.drv_path FROM derivation_outputs o JOIN build_jobs j USING (drv_path)
        WHERE o.output_path = ANY (p_paths) AND j.status IN ('pending', 'failed', 'dep-failed', 'cancelled')
    ) SELECT array_agg(id) INTO v_jobs FROM candidates WHERE drv_available(drv_path, true);
    IF v_jobs IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM FROM build_jobs WHERE id = ANY (v_jobs) ORDER BY id FOR NO KEY UPDATE;
    WITH over AS (
        UPDATE build_jobs SET status = 'pending', queued_at = now(), started_at = NULL
        WHERE id = ANY (v_jobs) AND status IN ('failed', 'dep-failed', 'cancelled') RETURNING id
    ) SELECT array_agg(id) INTO v_over FROM over;
    SELECT array_agg(id) INTO v_jobs FROM build_jobs WHERE id = ANY (v_jobs) AND status = 'pending';
    v_readied := coalesce(jobs_succeeded(v_jobs), 0);
    IF v_over IS NOT NULL THEN
        v_above := dependents_of(v_over, 'dep-failed');
    END IF;
    IF v_above IS NOT NULL THEN
        v_above := reset_jobs(v_above, NULL);
        PERFORM withdraw(NULL, array_agg(drv_path)) FROM build_jobs WHERE id = ANY (v_above);
    END IF;
    RETURN v_readied;
END
$$;

-- Ends the attempt that holds a claimed job.
CREATE OR REPLACE FUNCTION end_attempt(p_attempt bigint, p_outcome text, p_message text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE build_attempts SET outcome = p_outcome, message = p_message, finished_at = now()
    WHERE id = p_attempt AND outcome = 'running';
END
$$;

-- Claimed jobs go back to pending and are settled. `p_jobs` are locked and claimed. (Found by id: asked for those that are held,
-- the planner may walk over everything that is held, since its statistics may be of a time when nothing was.)
CREATE OR REPLACE FUNCTION return_jobs(p_jobs bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM lock_jobs_with_inputs(p_jobs);
    UPDATE build_jobs SET status = 'pending', started_at = NULL
    WHERE id = ANY (p_jobs) AND status NOT IN ('pending', 'succeeded', 'failed', 'cancelled', 'dep-failed');
    PERFORM settle_jobs(p_jobs, true);
    PERFORM recheck_jobs(p_jobs);
END
$$;

-- A claimed (or pending) job failed for good, and with it what depends on it. Returns how many dependents. Unless somebody else
-- made its outputs meanwhile: then it has what was asked of it.
CREATE OR REPLACE FUNCTION fail_job(p_job bigint, p_kind text, p_message text, p_exit_code integer) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF drv_available((SELECT drv_path FROM build_jobs WHERE id = p_job), true) THEN
        UPDATE build_jobs SET status = 'pending' WHERE id = p_job AND status IN ('building', 'uploading');
        PERFORM jobs_succeeded(ARRAY[p_job]);
        RETURN 0;
    END IF;
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

-- Notifications are hints, coalesced: one a class, one for all that ended.
CREATE OR REPLACE FUNCTION notify_ready(p_classes integer[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM pg_notify('build_jobs', 'class:' || class) FROM (SELECT DISTINCT unnest(p_classes) AS class) c
    WHERE class IS NOT NULL;
END
$$;

CREATE OR REPLACE FUNCTION notify_done(p_jobs bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM pg_notify('build_jobs', CASE cardinality(p_jobs) WHEN 1 THEN 'done:' || p_jobs[1] ELSE 'done' END)
    WHERE cardinality(p_jobs) > 0;
END
$$;
