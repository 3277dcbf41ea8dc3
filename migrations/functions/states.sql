-- Where attributes and jobs stand: decided here, and nowhere else. Pages, the API, statuses and verdicts read this.
--
-- No search path is set on these, so that they become part of the statements that use them.

-- What is available has succeeded, whatever an older job of it says.
CREATE OR REPLACE FUNCTION job_state(p_status text, p_drv text) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_status IN ('failed', 'dep-failed', 'cancelled') AND drv_available(p_drv, true) THEN 'succeeded'
        ELSE p_status END
$$;

-- The attributes of an evaluation (of the one that has them, when another reuses its results). `state` is `cached`, `error`, or
-- a job's. An attribute without a job is only green while its outputs are available: in the cache now, or in an upstream cache
-- by an answer that held when the evaluation ended and was not found wrong since.
CREATE OR REPLACE FUNCTION attr_states(p_eval bigint)
RETURNS TABLE (attr text, drv_path text, error text, job_id bigint, state text, failure_kind text, message text, cause bigint,
    finished_at timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT a.attr, a.drv_path, a.error, j.id, s.state,
        CASE WHEN s.state = 'failed' AND j.id IS NULL THEN 'infrastructure'
            WHEN s.state IN ('failed', 'dep-failed') THEN coalesce(j.failure_kind, c.failure_kind) END,
        CASE WHEN s.state = 'failed' AND j.id IS NULL
            THEN 'its outputs were available when it was evaluated; they are in no cache any more, and no job makes them'
            WHEN s.state IN ('failed', 'dep-failed', 'cancelled') THEN j.message END,
        CASE WHEN s.state = 'dep-failed' THEN c.id END,
        j.finished_at
    FROM eval_attrs a
    JOIN evaluations e ON e.id = a.eval_id
    LEFT JOIN build_jobs j ON j.drv_path = a.drv_path
    LEFT JOIN build_jobs c ON c.id = j.root_cause
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN a.error IS NOT NULL THEN 'error'
            WHEN j.id IS NULL THEN
                CASE WHEN drv_available_since(a.drv_path, coalesce(e.finished_at, now())) THEN 'cached' ELSE 'failed' END
            -- It was there when it was evaluated; a job of before says nothing new.
            WHEN a.cached AND job_state(j.status, j.drv_path) = 'succeeded' THEN 'cached'
            ELSE job_state(j.status, j.drv_path)
        END AS state
        OFFSET 0 -- decided once a row
    ) s
    WHERE a.eval_id = p_eval
$$;

-- The same, counted. `infrastructure`: of those that failed, or whose dependency did, by no fault of their own.
CREATE OR REPLACE FUNCTION attr_counts(p_eval bigint)
RETURNS TABLE (total bigint, succeeded bigint, failed bigint, dep_failed bigint, eval_errors bigint, building bigint,
    pending bigint, cancelled bigint, infrastructure bigint, builds_finished_at timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT count(*),
        count(*) FILTER (WHERE state IN ('succeeded', 'cached')),
        count(*) FILTER (WHERE state = 'failed'),
        count(*) FILTER (WHERE state = 'dep-failed'),
        count(*) FILTER (WHERE state = 'error'),
        count(*) FILTER (WHERE state IN ('building', 'uploading')),
        count(*) FILTER (WHERE state = 'pending'),
        count(*) FILTER (WHERE state = 'cancelled'),
        count(*) FILTER (WHERE failure_kind IN ('infrastructure', 'unsupported')),
        max(finished_at)
    FROM attr_states(p_eval)
$$;
