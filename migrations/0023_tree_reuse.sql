-- What a frontend needs to know to reuse the results of an earlier evaluation of the same tree: whether those depend on the
-- commit, and whether evaluators would still come to them.

ALTER TABLE nodes
    -- Everything of an evaluator that decides what a tree evaluates to: programs, versions, settings.
    ADD COLUMN engine text CHECK (length(engine) <= 1000),
    -- The run that said so: another one may be of another version.
    ADD COLUMN engine_incarnation bigint;

CREATE FUNCTION set_evaluator_engine(p_node text, p_incarnation bigint, p_engine text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM current_node(p_node, p_incarnation, 'evaluator');
    UPDATE nodes SET engine = p_engine, engine_incarnation = p_incarnation WHERE id = p_node AND incarnation = p_incarnation;
END
$$;

-- Said before an evaluation is finished: by which rules it was made, and whether something in it contains the commit's hash
-- or date. Null: not known, so it is never reused.
CREATE FUNCTION set_evaluation_reuse(p_eval bigint, p_token_hash bytea, p_reuse_key text, p_embeds_commit boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    UPDATE evaluations SET reuse_key = p_reuse_key, embeds_commit = p_embeds_commit WHERE id = p_eval;
END
$$;

CREATE FUNCTION release_holds(p_eval bigint) RETURNS text[]
LANGUAGE sql SET search_path = public, pg_temp AS $$
    WITH gone AS (DELETE FROM eval_holds WHERE eval_id = p_eval RETURNING drv_path)
    SELECT coalesce(array_agg(drv_path), '{}') FROM gone
$$;

-- A commit that touches nothing of what its tree calls relevant (`paths`) shows what an ancestor's evaluation shows. False:
-- that has no results any more, so the commit is evaluated after all.
CREATE FUNCTION skip_evaluation(p_eval bigint, p_token_hash bytea, p_reuses bigint, p_reason text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_eval evaluations;
    v_reused evaluations;
BEGIN
    PERFORM lock_withdrawals(); -- what it wants must not be withdrawn meanwhile
    v_eval := held_evaluation(p_eval, p_token_hash);
    SELECT e.* INTO v_reused FROM evaluations e
    WHERE e.id = p_reuses AND e.project_id = v_eval.project_id AND e.pr_number IS NULL AND e.status = 'succeeded' AND e.complete;
    IF NOT FOUND OR EXISTS (
        SELECT FROM eval_attrs a LEFT JOIN build_jobs j USING (drv_path)
        WHERE a.eval_id = p_reuses AND a.error IS NULL
            AND NOT coalesce(j.status <> 'cancelled', drv_available(a.drv_path, false)))
    THEN
        RETURN false;
    END IF;
    UPDATE evaluations SET status = 'skipped', skipped_reason = left(p_reason, 4096), reuses_eval_id = p_reuses,
        complete = true, allow_empty = v_reused.allow_empty, finished_at = now(),
        claimed_by = NULL, claim_incarnation = NULL, claim_token_hash = NULL
    WHERE id = p_eval;
    -- What an earlier try inserted.
    PERFORM cancel_unwanted(release_holds(p_eval), false, 'no evaluation wants it any more');
    PERFORM pg_notify('evaluations', p_eval::text);
    RETURN true;
END
$$;

DO $$
BEGIN
    PERFORM grant_to('EXECUTE ON FUNCTION skip_evaluation', '{evaluator}');
    PERFORM grant_to('EXECUTE ON FUNCTION set_evaluator_engine', '{evaluator}');
    PERFORM grant_to('EXECUTE ON FUNCTION set_evaluation_reuse', '{evaluator}');
END
$$;
