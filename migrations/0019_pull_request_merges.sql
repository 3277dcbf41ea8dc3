-- What the evaluator learns of a pull request's merge, and of the default branch's own wishes.

-- Records what was merged onto what. `p_head` must be the head that was asked for.
CREATE FUNCTION set_evaluation_merge(p_eval bigint, p_token_hash bytea, p_head text, p_base text, p_merge text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_eval evaluations;
BEGIN
    v_eval := held_evaluation(p_eval, p_token_hash);
    IF v_eval.pr_number IS NULL OR v_eval.pr_head_sha <> p_head THEN
        RAISE EXCEPTION 'evaluation % is not of the pull request head %', p_eval, p_head USING ERRCODE = 'HC003';
    END IF;
    UPDATE evaluations SET pr_base_sha = p_base, pr_merge_sha = p_merge WHERE id = p_eval;
END
$$;

-- Branches that the default branch's own file wants built. Only an evaluation of the default branch itself may say so: a
-- stranger's pull request must not widen what is built.
CREATE FUNCTION set_tree_branches(p_eval bigint, p_token_hash bytea, p_patterns text[]) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_eval evaluations;
BEGIN
    v_eval := held_evaluation(p_eval, p_token_hash);
    UPDATE projects p SET tree_branch_patterns = p_patterns[1:256]
    WHERE p.id = v_eval.project_id AND v_eval.pr_number IS NULL AND NOT v_eval.is_tag
        AND v_eval.branch = coalesce((SELECT r.default_branch FROM repositories r WHERE r.id = p.repository_id), p.default_branch)
        AND p.tree_branch_patterns IS DISTINCT FROM p_patterns[1:256];
    RETURN FOUND;
END
$$;

SELECT grant_to('EXECUTE ON FUNCTION ' || f, '{evaluator}')
FROM unnest(ARRAY['set_evaluation_merge', 'set_tree_branches']) AS f;
