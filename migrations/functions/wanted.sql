-- Wanted is derived, never remembered: who wants a job, and what becomes of jobs that nobody wants any more.

-- Live evaluations that name this derivation, the newest first: those with such an attribute or hold, and those that show what
-- such a one has. Looked for by their keys. (No settings, so that callers' plans take it in.)
CREATE OR REPLACE FUNCTION live_naming(p_drv text) RETURNS TABLE (id bigint, project_id bigint, branch text)
LANGUAGE sql STABLE AS $$
    SELECT l.id, l.project_id, l.branch FROM (
        (SELECT a.eval_id FROM eval_attrs a WHERE a.drv_path = p_drv ORDER BY a.eval_id DESC OFFSET 0)
        UNION ALL
        (SELECT h.eval_id FROM eval_holds h WHERE h.drv_path = p_drv OFFSET 0)
    ) n
    CROSS JOIN LATERAL (
        (SELECT e.id, e.project_id, e.branch FROM live_evaluations e WHERE e.id = n.eval_id AND e.attrs_of = n.eval_id OFFSET 0)
        UNION ALL
        (SELECT e.id, e.project_id, e.branch FROM evaluations r JOIN live_evaluations e ON e.id = r.id
            WHERE r.reuses_eval_id = n.eval_id OFFSET 0)
    ) l
$$;

-- Whether a live evaluation names this derivation.
CREATE OR REPLACE FUNCTION is_live_root(p_drv text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM live_naming(p_drv));
END
$$;

-- Unfinished jobs that a live evaluation reaches, or that somebody asked to rebuild.
CREATE OR REPLACE FUNCTION wanted_jobs() RETURNS SETOF bigint
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT id FROM jobs_below(ARRAY(SELECT j.drv_path FROM build_jobs j
        WHERE j.status NOT IN ('succeeded', 'cancelled') AND (j.priority > 0 OR is_live_root(j.drv_path))), open_states())
$$;

-- Serialises everything that takes interest away: two that leave at once must not each count on the other.
CREATE OR REPLACE FUNCTION lock_withdrawals() RETURNS void
LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtext('harmonia-ci withdrawals'))
$$;

-- Takes from ended evaluations what they held, and returns the roots they wanted: their own, or those they reused.
CREATE OR REPLACE FUNCTION release_roots(p_evals bigint[]) RETURNS text[]
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_roots text[];
BEGIN
    SELECT array_agg(DISTINCT drv_path) INTO v_roots FROM (
        SELECT a.drv_path FROM evaluations e JOIN eval_attrs a ON a.eval_id = coalesce(e.reuses_eval_id, e.id)
        WHERE e.id = ANY (p_evals) AND a.drv_path IS NOT NULL
        UNION ALL SELECT drv_path FROM eval_holds WHERE eval_id = ANY (p_evals)) r;
    DELETE FROM eval_holds WHERE eval_id = ANY (p_evals);
    RETURN coalesce(v_roots, '{}');
END
$$;

CREATE OR REPLACE FUNCTION release_holds(p_eval bigint) RETURNS text[]
LANGUAGE sql SET search_path = public, pg_temp AS $$
    WITH gone AS (DELETE FROM eval_holds WHERE eval_id = p_eval RETURNING drv_path)
    SELECT coalesce(array_agg(drv_path), '{}') FROM gone
$$;

-- Cancels jobs below `p_roots` that no live evaluation reaches any more. Call under lock_withdrawals, with the evaluation
-- no longer live. `p_running`: also those that build or upload, unless their outputs are accepted already.
CREATE OR REPLACE FUNCTION cancel_unwanted(p_roots text[], p_running boolean, p_message text) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_candidates bigint[];
    v_wanting text[]; -- derivations at or above these that live evaluations name
    v_unwanted bigint[];
BEGIN
    SELECT array_agg(j.id) INTO v_candidates FROM jobs_below(p_roots, open_states()) b
    CROSS JOIN LATERAL (SELECT c.id, c.status FROM build_jobs c WHERE c.id = b.id OFFSET 0) j
    WHERE j.status = 'pending' OR (p_running AND j.status IN ('building', 'uploading'));
    IF v_candidates IS NULL THEN
        RETURN 0;
    END IF;
    -- An evaluation that is just inserting above one of these holds it; after its commit the next statement sees its roots.
    PERFORM FROM build_jobs WHERE id = ANY (v_candidates) ORDER BY id FOR NO KEY UPDATE;
    v_wanting := ARRAY(
        SELECT a.drv_path FROM (
            SELECT drv_path FROM build_jobs WHERE id = ANY (v_candidates) AND status = ANY (open_states())
            UNION SELECT drv_path FROM jobs_above(v_candidates, open_states())
        ) a WHERE is_live_root(a.drv_path));
    SELECT array_agg(c.id) INTO v_unwanted FROM (
        SELECT unnest(v_candidates) AS id EXCEPT SELECT id FROM jobs_below(v_wanting, open_states())) c;
    RETURN cancel_jobs(v_unwanted, p_running, p_message);
END
$$;

-- Cancels these jobs (locked) and every pending one above them. What is built although another made its outputs meanwhile has
-- succeeded; nobody goes on with it.
CREATE OR REPLACE FUNCTION cancel_jobs(p_jobs bigint[], p_running boolean, p_message text) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_jobs bigint[];
    v_there bigint[];
    v_held record;
BEGIN
    -- Looked at once: outputs may be claimed any moment, by another job that makes them, too.
    SELECT array_agg(id), array_agg(id) FILTER (WHERE drv_available(drv_path, true)) INTO v_jobs, v_there FROM build_jobs
    WHERE id = ANY (p_jobs) AND (status = 'pending'
        OR (p_running AND (status = 'building' OR (status = 'uploading' AND NOT outputs_claimed(drv_path)))));
    IF v_jobs IS NULL THEN
        RETURN 0;
    END IF;
    FOR v_held IN SELECT attempt_id, claimed_by FROM build_jobs WHERE id = ANY (v_jobs) AND attempt_id IS NOT NULL LOOP
        PERFORM end_attempt(v_held.attempt_id, 'aborted', p_message);
        PERFORM pg_notify('claims', v_held.claimed_by);
    END LOOP;
    IF v_there IS NOT NULL THEN
        UPDATE build_jobs SET status = 'pending' WHERE id = ANY (v_there) AND status <> 'pending';
        PERFORM jobs_succeeded(v_there);
        v_jobs := ARRAY(SELECT unnest(v_jobs) EXCEPT SELECT unnest(v_there));
    END IF;
    UPDATE build_jobs SET status = 'cancelled', message = p_message, not_before = NULL WHERE id = ANY (v_jobs);
    PERFORM notify_done(v_jobs);
    RETURN cardinality(v_jobs) + block_dependents(v_jobs);
END
$$;
