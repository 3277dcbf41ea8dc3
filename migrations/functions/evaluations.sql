-- Evaluations from the queue to their end: asked for, claimed, told of, finished, withdrawn.

CREATE OR REPLACE FUNCTION create_evaluation(
    p_project bigint, p_source_kind text, p_bundle bigint, p_flake_url text, p_commit text, p_branch text,
    p_attrs text[], p_dirty boolean, p_title text, p_author text,
    OUT id bigint, OUT superseded bigint[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM projects p WHERE p.id = p_project FOR NO KEY UPDATE; -- attempts of one commit are counted under this lock
    IF NOT FOUND THEN
        RAISE EXCEPTION 'project %', p_project USING ERRCODE = 'HC002';
    END IF;
    IF p_bundle IS NOT NULL AND NOT EXISTS (SELECT FROM bundles b WHERE b.id = p_bundle AND b.size_bytes IS NOT NULL) THEN
        RAISE EXCEPTION 'bundle % (sent completely)', p_bundle USING ERRCODE = 'HC002';
    END IF;
    INSERT INTO evaluations (project_id, source_kind, bundle_id, flake_url, commit_sha, branch, attrs_requested, dirty,
        commit_title, commit_author, attempt)
    VALUES (p_project, p_source_kind, p_bundle, p_flake_url, p_commit, p_branch, p_attrs, p_dirty, p_title, p_author,
        next_eval_attempt(p_project, p_commit, p_branch, false, NULL))
    RETURNING evaluations.id INTO id;
    SELECT array_agg(e.id ORDER BY e.id) INTO superseded FROM evaluations e
    WHERE e.project_id = p_project AND e.branch = p_branch AND NOT e.is_tag AND e.pr_number IS NULL
        AND e.id <> create_evaluation.id
        -- A part takes no full one's place.
        AND (e.is_part OR NOT (p_dirty OR p_attrs IS NOT NULL))
        AND e.superseded_by IS NULL AND e.closed_at IS NULL AND e.status || '' IN ('queued', 'running', 'succeeded', 'skipped');
    superseded := coalesce(superseded, '{}');
    IF cardinality(superseded) > 0 THEN
        PERFORM end_evaluations(superseded, id, 'superseded by a newer evaluation of its branch');
    END IF;
    PERFORM pg_notify('evaluations', id::text);
END
$$;

CREATE OR REPLACE FUNCTION next_eval_attempt(
    p_project bigint, p_commit text, p_branch text, p_is_tag boolean, p_pr_number bigint
) RETURNS integer
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT coalesce(max(attempt), 0) + 1 FROM evaluations
    WHERE project_id = p_project AND commit_sha = p_commit AND branch = p_branch AND is_tag = p_is_tag
        AND coalesce(pr_number, 0) = coalesce(p_pr_number, 0)
$$;

-- The next of the queue: of the project of which the fewest run, of those the one that was served the longest ago, of that the
-- first. What was put off is left until its time has come, and then has the place that belongs to that time, so that a forge
-- that is away holds up nobody else.
CREATE OR REPLACE FUNCTION claim_evaluation(p_node text, p_incarnation bigint, p_token_hash bytea) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_node nodes := current_node(p_node, p_incarnation, 'evaluator');
    v_id bigint;
BEGIN
    IF v_node.draining OR is_revoked(ARRAY[p_token_hash]) THEN
        RETURN NULL;
    END IF;
    FOR v_id IN
        WITH queued AS (
            SELECT id, project_id, coalesce(not_before, created_at) AS since,
                row_number() OVER (PARTITION BY project_id ORDER BY coalesce(not_before, created_at), id) AS place
            FROM evaluations WHERE status || '' = 'queued' AND (not_before IS NULL OR not_before <= now())
        ), projects AS (
            SELECT q.project_id,
                (SELECT count(*) FROM evaluations r WHERE r.status || '' = 'running' AND r.project_id = q.project_id) AS running,
                (SELECT max(s.claimed_at) FROM evaluations s WHERE s.project_id = q.project_id) AS served
            FROM (SELECT DISTINCT project_id FROM queued) q
        )
        SELECT q.id FROM queued q JOIN projects p USING (project_id)
        -- The second of a project comes where it would if the first ran.
        ORDER BY p.running + q.place, p.served NULLS FIRST, q.since, q.id
    LOOP
        -- Others claim at the same time.
        PERFORM FROM evaluations WHERE id = v_id AND status = 'queued' FOR NO KEY UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        UPDATE evaluations SET status = 'running', claimed_by = p_node, claim_incarnation = p_incarnation,
            claim_token_hash = p_token_hash, claimed_at = now(), evaluated_by = p_node, started_at = now(),
            warnings = '{}',
            -- Of an earlier try, perhaps by another engine.
            reuse_key = NULL, embeds_commit = NULL
        WHERE id = v_id;
        DELETE FROM evaluation_log_chunks WHERE eval_id = v_id;
        PERFORM pg_notify('evaluations', v_id::text);
        RETURN v_id;
    END LOOP;
    RETURN NULL;
END
$$;

-- The evaluation that the node took under a token that it does not hold, because the answer to its claim was lost, goes back
-- to the queue.
CREATE OR REPLACE FUNCTION revoke_evaluation(p_node text, p_incarnation bigint, p_token_hash bytea) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_id bigint;
BEGIN
    PERFORM revoke_tokens(p_node, p_incarnation, 'evaluator', ARRAY[p_token_hash]);
    SELECT id INTO v_id FROM evaluations
    WHERE status || '' = 'running' AND claimed_by = p_node AND claim_incarnation = p_incarnation AND claim_token_hash = p_token_hash
    FOR NO KEY UPDATE;
    RETURN coalesce(requeue_evaluation(v_id, false), false);
END
$$;

CREATE OR REPLACE FUNCTION set_evaluation_commit(
    p_eval bigint, p_token_hash bytea, p_commit text, p_tree_hash text, p_title text, p_author text
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_eval evaluations;
BEGIN
    -- The project first, as create_evaluation does.
    PERFORM FROM projects p WHERE p.id = (SELECT project_id FROM evaluations WHERE id = p_eval) FOR NO KEY UPDATE;
    v_eval := held_evaluation(p_eval, p_token_hash);
    UPDATE evaluations SET commit_sha = p_commit, tree_hash = coalesce(p_tree_hash, tree_hash),
        commit_title = coalesce(p_title, commit_title), commit_author = coalesce(p_author, commit_author),
        attempt = CASE WHEN v_eval.commit_sha IS NOT DISTINCT FROM p_commit THEN attempt
            ELSE next_eval_attempt(v_eval.project_id, p_commit, v_eval.branch, v_eval.is_tag, v_eval.pr_number) END
    WHERE id = p_eval;
    PERFORM pg_notify('evaluations', p_eval::text);
END
$$;

-- The store path of the tree under evaluation.
CREATE OR REPLACE FUNCTION set_evaluation_source(p_eval bigint, p_token_hash bytea, p_path text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    UPDATE evaluations SET source_path = p_path WHERE id = p_eval;
END
$$;

-- Records what was merged onto what. `p_head` must be the head that was asked for.
CREATE OR REPLACE FUNCTION set_evaluation_merge(p_eval bigint, p_token_hash bytea, p_head text, p_base text, p_merge text)
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

-- Said before an evaluation is finished: by which rules it was made, and whether something in it contains the commit's hash
-- or date. Null: not known, so it is never reused.
CREATE OR REPLACE FUNCTION set_evaluation_reuse(p_eval bigint, p_token_hash bytea, p_reuse_key text, p_embeds_commit boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    UPDATE evaluations SET reuse_key = p_reuse_key, embeds_commit = p_embeds_commit WHERE id = p_eval;
END
$$;

-- Branches that the default branch's own file wants built. Only an evaluation of the default branch itself may say so: a
-- stranger's pull request must not widen what is built.
CREATE OR REPLACE FUNCTION set_tree_branches(p_eval bigint, p_token_hash bytea, p_patterns text[]) RETURNS boolean
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

-- The names that the evaluation will answer for.
CREATE OR REPLACE FUNCTION expect_attrs(p_eval bigint, p_token_hash bytea, p_attrs text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    INSERT INTO eval_expected_attrs (eval_id, attr) SELECT DISTINCT p_eval, a FROM unnest(p_attrs) AS a
    ON CONFLICT DO NOTHING;
END
$$;

CREATE OR REPLACE FUNCTION allow_empty_evaluation(p_eval bigint, p_token_hash bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    UPDATE evaluations SET allow_empty = true WHERE id = p_eval;
END
$$;

-- Keeps the first MiB of what the engine prints.
CREATE OR REPLACE FUNCTION append_evaluation_log(p_eval bigint, p_token_hash bytea, p_text text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_size bigint;
    v_seq integer;
    v_text text := p_text;
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    SELECT coalesce(sum(length(text)), 0), coalesce(max(seq), -1) + 1 INTO v_size, v_seq
    FROM evaluation_log_chunks WHERE eval_id = p_eval;
    IF v_size >= 1048576 THEN
        RETURN;
    END IF;
    IF v_size + length(v_text) >= 1048576 THEN
        v_text := left(v_text, (1048576 - v_size)::integer) || E'\n(the log is longer; the rest was not kept)\n';
    END IF;
    INSERT INTO evaluation_log_chunks (eval_id, seq, text) VALUES (p_eval, v_seq, v_text);
    PERFORM pg_notify('evaluations', p_eval::text);
END
$$;

-- Keeps the first 1,000 different warnings, each up to 4 KiB.
CREATE OR REPLACE FUNCTION add_warnings(p_eval bigint, p_token_hash bytea, p_warnings text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_eval evaluations := held_evaluation(p_eval, p_token_hash);
BEGIN
    UPDATE evaluations SET warnings = (v_eval.warnings || ARRAY(
        SELECT w.text FROM (
            SELECT left(t, 4096) AS text, min(place) AS place FROM unnest(p_warnings) WITH ORDINALITY AS u(t, place) GROUP BY 1
        ) w
        WHERE w.text <> ALL (v_eval.warnings) ORDER BY w.place))[1:1000]
    WHERE id = p_eval;
END
$$;

-- Succeeds when every expected name has a result or an error; else names what is missing and changes nothing.
CREATE OR REPLACE FUNCTION finish_evaluation(p_eval bigint, p_token_hash bytea, OUT missing text[], OUT attrs bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_eval evaluations;
    v_holds text[];
BEGIN
    v_eval := held_evaluation(p_eval, p_token_hash);
    SELECT coalesce(array_agg(x.attr ORDER BY x.attr), '{}') INTO missing FROM (
        SELECT e.attr FROM eval_expected_attrs e WHERE e.eval_id = p_eval
        EXCEPT SELECT a.attr FROM eval_attrs a WHERE a.eval_id = p_eval) x;
    SELECT count(*) INTO attrs FROM eval_attrs a WHERE a.eval_id = p_eval;
    IF cardinality(missing) > 0 THEN
        RETURN;
    END IF;
    IF attrs = 0 AND NOT v_eval.allow_empty THEN
        RAISE EXCEPTION 'the evaluation has no attributes, and allow-empty is not set' USING ERRCODE = 'HC003';
    END IF;
    PERFORM allow_dependencies(p_eval);
    UPDATE evaluations SET status = 'succeeded', complete = true, attr_count = attrs, finished_at = now(),
        claimed_by = NULL, claim_incarnation = NULL, claim_token_hash = NULL
    WHERE id = p_eval;
    -- The attributes hold everything from now on.
    WITH gone AS (DELETE FROM eval_holds h WHERE h.eval_id = p_eval RETURNING h.drv_path)
    SELECT array_agg(drv_path) INTO v_holds FROM gone
    WHERE drv_path NOT IN (SELECT a.drv_path FROM eval_attrs a WHERE a.eval_id = p_eval AND a.drv_path IS NOT NULL);
    PERFORM withdraw(p_eval, v_holds);
    PERFORM pg_notify('evaluations', p_eval::text);
END
$$;

-- A commit that touches nothing of what its tree calls relevant (`paths`) shows what an ancestor's evaluation shows. False:
-- that has no results any more, so the commit is evaluated after all.
CREATE OR REPLACE FUNCTION skip_evaluation(p_eval bigint, p_token_hash bytea, p_reuses bigint, p_reason text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_eval evaluations;
    v_reused evaluations;
    v_holds text[];
BEGIN
    v_eval := held_evaluation(p_eval, p_token_hash);
    SELECT e.* INTO v_reused FROM evaluations e
    WHERE e.id = p_reuses AND e.project_id = v_eval.project_id AND e.pr_number IS NULL AND e.status = 'succeeded' AND e.complete;
    IF NOT FOUND OR EXISTS (
        SELECT FROM eval_attrs a LEFT JOIN build_jobs j USING (drv_path)
        WHERE a.eval_id = p_reuses AND a.error IS NULL
            AND NOT coalesce(j.status <> 'cancelled', drv_available(a.drv_path, false)))
        OR NOT stays_wanted(p_reuses)
    THEN
        RETURN false;
    END IF;
    UPDATE evaluations SET status = 'skipped', skipped_reason = left(p_reason, 4096), reuses_eval_id = p_reuses,
        complete = true, allow_empty = v_reused.allow_empty, finished_at = now(),
        claimed_by = NULL, claim_incarnation = NULL, claim_token_hash = NULL
    WHERE id = p_eval;
    -- What an earlier try inserted.
    WITH gone AS (DELETE FROM eval_holds WHERE eval_id = p_eval RETURNING drv_path)
    SELECT array_agg(drv_path) INTO v_holds FROM gone;
    PERFORM withdraw(p_eval, v_holds);
    PERFORM pg_notify('evaluations', p_eval::text);
    RETURN true;
END
$$;

-- No partial results: the attributes go, and with them the interest in jobs.
CREATE OR REPLACE FUNCTION fail_evaluation(p_eval bigint, p_token_hash bytea, p_error text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    PERFORM evaluation_failed(p_eval, p_error);
END
$$;

-- Call with the evaluation locked.
CREATE OR REPLACE FUNCTION evaluation_failed(p_eval bigint, p_error text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE evaluations SET status = 'failed', error = left(p_error, 65536), finished_at = now(),
        claimed_by = NULL, claim_incarnation = NULL, claim_token_hash = NULL
    WHERE id = p_eval;
    PERFORM hold_attrs(p_eval); -- until they were looked at
    PERFORM withdraw_all(ARRAY[p_eval], false, 'no evaluation wants it any more');
    PERFORM pg_notify('evaluations', p_eval::text);
END
$$;

CREATE OR REPLACE FUNCTION release_evaluation(p_eval bigint, p_token_hash bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    PERFORM requeue_evaluation(p_eval, false);
END
$$;

-- Back to the queue, for later.
CREATE OR REPLACE FUNCTION defer_evaluation(p_eval bigint, p_token_hash bytea, p_delay interval, p_reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    PERFORM requeue_evaluation(p_eval, false);
    UPDATE evaluations SET not_before = now() + p_delay, wait_reason = left(p_reason, 4096),
        waiting_since = coalesce(waiting_since, now()), wait_count = wait_count + 1
    WHERE id = p_eval;
END
$$;

-- An evaluation goes back to the queue. What it inserted stays wanted: its attributes become holds.
CREATE OR REPLACE FUNCTION requeue_evaluation(p_eval bigint, p_lost boolean) RETURNS boolean
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE evaluations SET status = 'queued', claimed_by = NULL, claim_incarnation = NULL, claim_token_hash = NULL,
        started_at = NULL, lost_count = lost_count + CASE WHEN p_lost THEN 1 ELSE 0 END
    WHERE id = p_eval AND status = 'running';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM hold_attrs(p_eval);
    PERFORM pg_notify('evaluations', p_eval::text);
    RETURN true;
END
$$;

-- An evaluation's attributes become holds.
CREATE OR REPLACE FUNCTION hold_attrs(p_eval bigint) RETURNS void
LANGUAGE sql SET search_path = public, pg_temp AS $$
    INSERT INTO eval_holds (eval_id, drv_path)
    SELECT DISTINCT eval_id, drv_path FROM eval_attrs WHERE eval_id = p_eval AND drv_path IS NOT NULL
    ON CONFLICT DO NOTHING;
    DELETE FROM eval_attrs WHERE eval_id = p_eval
$$;

-- Takes liveness from evaluations, and says which jobs are to be looked at. `p_by` null: they were cancelled, and what is built
-- for them stops.
CREATE OR REPLACE FUNCTION end_evaluations(p_evals bigint[], p_by bigint, p_error text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM evaluations WHERE id = ANY (p_evals) ORDER BY id FOR NO KEY UPDATE;
    PERFORM pg_notify('claims', left(claimed_by, 200)) FROM evaluations WHERE id = ANY (p_evals) AND status = 'running';
    UPDATE evaluations SET superseded_by = p_by,
        status = CASE WHEN p_by IS NULL OR status IN ('queued', 'running') THEN 'cancelled' ELSE status END,
        skipped_reason = CASE WHEN p_by IS NULL THEN NULL ELSE skipped_reason END,
        error = CASE WHEN p_by IS NULL OR status IN ('queued', 'running') THEN p_error ELSE error END,
        claimed_by = NULL, claim_incarnation = NULL, claim_token_hash = NULL, finished_at = coalesce(finished_at, now())
    WHERE id = ANY (p_evals);
    PERFORM pg_notify('evaluations', e::text) FROM unnest(p_evals) AS e;
    PERFORM withdraw_all(p_evals, p_by IS NULL, CASE WHEN p_by IS NULL THEN p_error ELSE 'no evaluation wants it any more' END);
END
$$;

-- False: it was over. Its jobs go batch by batch afterwards (`withdraw_some`).
CREATE OR REPLACE FUNCTION cancel_evaluation(p_eval bigint, p_by text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_status text;
BEGIN
    SELECT status INTO v_status FROM evaluations WHERE id = p_eval FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'evaluation %', p_eval USING ERRCODE = 'HC002';
    END IF;
    IF v_status NOT IN ('queued', 'running', 'succeeded', 'skipped') THEN
        RETURN false;
    END IF;
    INSERT INTO audit_log (actor, action, subject) VALUES (p_by, 'cancel', 'evaluation ' || p_eval);
    PERFORM end_evaluations(ARRAY[p_eval], NULL, 'cancelled by ' || p_by);
    RETURN true;
END
$$;
