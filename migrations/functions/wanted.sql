-- Wanted is derived, never remembered: who wants a job. What becomes of jobs that nobody wants any more is in withdrawals.sql.

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
