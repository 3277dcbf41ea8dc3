-- Counts of evaluations that ended with everything they show are stored by whoever counts them first, and forgotten when that may
-- change: when a job that had ended is to be built again (its mark says so), and when outputs are gone that were available.
-- Lists read them; what decides something counts.

-- Says that this is going to be counted. In a transaction of its own: whoever changes something after it finds the row and removes
-- it; what was committed before it is counted.
CREATE OR REPLACE FUNCTION begin_counts(p_eval bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO settled_counts (eval_id) SELECT e.id FROM evaluations e WHERE e.id = p_eval AND e.finished_at IS NOT NULL
    ON CONFLICT DO NOTHING;
END
$$;

-- Counts it, and stores that if nothing of it is to come. (What is in no cache any more and has no job yet may get one.)
CREATE OR REPLACE FUNCTION settle_counts(p_eval bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    -- Who says that outputs are gone has this until that is committed.
    PERFORM pg_advisory_xact_lock(hashtext('harmonia counts'), 0);
    UPDATE settled_counts s SET counts = ARRAY[c.total, c.succeeded, c.failed, c.dep_failed, c.eval_errors, c.cancelled]
    FROM attr_counts(p_eval) c
    WHERE s.eval_id = p_eval AND s.counts IS NULL AND c.building = 0 AND c.pending = 0 AND c.infrastructure = 0;
    RETURN FOUND;
END
$$;

-- These derivations may stand elsewhere from now on.
CREATE OR REPLACE FUNCTION forget_counts(p_drvs text[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM settled_counts WHERE eval_id IN (
        SELECT a.eval_id FROM unnest(p_drvs) AS u(drv)
        CROSS JOIN LATERAL (SELECT eval_id FROM eval_attrs WHERE drv_path = u.drv OFFSET 0) a);
END
$$;
