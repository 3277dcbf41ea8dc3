-- From what a delivery says to an evaluation: asking for one, superseding, closing. Requests of one project go one after
-- the other (its row is locked), so that deliveries on several frontends lead to one evaluation.

-- The enabled projects of these repositories of a forge (as the forge calls them).
CREATE OR REPLACE FUNCTION projects_of(p_forge text, p_repositories text[]) RETURNS SETOF bigint
LANGUAGE sql STABLE AS $$
    SELECT p.id FROM unnest(p_repositories) AS t(repository)
    CROSS JOIN LATERAL (SELECT r.id FROM repositories r WHERE r.forge = p_forge AND r.external_id = t.repository OFFSET 0) r
    CROSS JOIN LATERAL (SELECT p.id FROM projects p WHERE p.repository_id = r.id AND p.enabled OFFSET 0) p
$$;

-- Takes a delivery, once for each id. In the same transaction: the heads it tells of take their place in the order of
-- arrival, and what it says of permissions makes us forget them. `recorded`: new, duplicate, or nothing (it concerns no
-- enabled project, and says nothing of repositories or permissions).
CREATE OR REPLACE FUNCTION record_delivery(
    p_forge text, p_delivery text, p_events jsonb, p_duration_ms integer, p_names text[], p_always boolean,
    p_repositories text[], p_pull_repositories text[], p_pull_numbers bigint[], p_pull_heads text[],
    p_permissions text[], p_all_permissions boolean, OUT id bigint, OUT recorded text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_concerned boolean := p_always OR EXISTS (
        SELECT FROM projects_of(p_forge, p_repositories));
BEGIN
    INSERT INTO webhook_deliveries AS d (forge, delivery_id, events, duration_ms, repositories, concerned, state, outcome, finished_at)
    VALUES (p_forge, p_delivery, p_events, p_duration_ms, p_names, v_concerned,
        CASE WHEN v_concerned THEN 'queued' ELSE 'done' END,
        CASE WHEN NOT v_concerned THEN 'concerns no enabled project' END,
        CASE WHEN NOT v_concerned THEN now() END)
    ON CONFLICT (forge, delivery_id) DO NOTHING RETURNING d.id INTO id;
    IF NOT FOUND THEN
        SELECT d.id, CASE WHEN d.concerned THEN 'duplicate' ELSE 'nothing' END INTO id, recorded
        FROM webhook_deliveries d WHERE d.forge = p_forge AND d.delivery_id = p_delivery;
        RETURN;
    END IF;
    IF NOT v_concerned THEN
        recorded := 'nothing';
        RETURN;
    END IF;
    INSERT INTO pull_request_heads (project_id, number, head_commit, delivery_id)
    SELECT DISTINCT ON (p.id, t.number) p.id, t.number, t.head, record_delivery.id
    FROM unnest(p_pull_repositories, p_pull_numbers, p_pull_heads) WITH ORDINALITY AS t(repository, number, head, place)
    CROSS JOIN LATERAL projects_of(p_forge, ARRAY[t.repository]) AS p(id)
    WHERE (SELECT h.head_commit FROM pull_request_heads h WHERE h.project_id = p.id AND h.number = t.number
        ORDER BY h.delivery_id DESC LIMIT 1) IS DISTINCT FROM t.head
    ORDER BY p.id, t.number, t.place DESC;
    DELETE FROM forge_permissions f USING repositories r
    WHERE r.id = f.repository_id AND r.forge = p_forge AND (p_all_permissions OR r.external_id = ANY (p_permissions));
    PERFORM pg_notify('deliveries', record_delivery.id::text);
    recorded := 'new';
END
$$;

-- Deliveries that ended so long ago, and heads whose place in the order nobody can ask for any more.
CREATE OR REPLACE FUNCTION delete_old_deliveries(p_keep interval) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_deleted bigint;
BEGIN
    DELETE FROM webhook_deliveries WHERE id IN (
        SELECT d.id FROM webhook_deliveries d WHERE d.received_at < now() - p_keep AND d.state || '' <> 'queued'
        ORDER BY d.received_at LIMIT 10000);
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    IF v_deleted > 0 THEN
        DELETE FROM pull_request_heads h
        WHERE h.delivery_id < (SELECT min(d.id) FROM webhook_deliveries d)
            AND EXISTS (SELECT FROM pull_request_heads n WHERE n.project_id = h.project_id AND n.number = h.number
                AND n.delivery_id > h.delivery_id);
    END IF;
    RETURN v_deleted;
END
$$;

-- Whether a delivery that arrived after `p_seen` told that the branch, tag or pull request is gone or closed.
CREATE OR REPLACE FUNCTION told_of_end(p_project bigint, p_branch text, p_is_tag boolean, p_pr_number bigint, p_seen bigint)
RETURNS boolean
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM projects p
        JOIN repositories r ON r.id = p.repository_id
        JOIN webhook_deliveries d ON d.forge = r.forge AND d.id > p_seen
        CROSS JOIN LATERAL (SELECT jsonb_build_object('id', r.external_id) AS repository) i
        WHERE p.id = p_project AND CASE
            WHEN p_pr_number IS NOT NULL THEN d.events @> jsonb_build_array(jsonb_build_object('pull-request', jsonb_build_object(
                'repository', i.repository, 'action', 'closed', 'pull_request', jsonb_build_object('number', p_pr_number))))
            ELSE d.events @> jsonb_build_array(jsonb_build_object('push', jsonb_build_object('repository', i.repository,
                    'reference', jsonb_build_object(CASE WHEN p_is_tag THEN 'tag' ELSE 'branch' END, p_branch), 'deleted', true)))
                OR d.events @> jsonb_build_array(jsonb_build_object('merge-group', jsonb_build_object(
                    'repository', i.repository, 'branch', p_branch, 'destroyed', true)))
        END)
$$;

-- Makes sure that there is an evaluation. `outcome`:
-- existing   there is one of this commit, and nothing newer of its branch
-- reused     its tree was evaluated before: a skipped evaluation shows those results
-- queued     a new one
-- moved      the branch is not as it was when the forge was asked (`p_newest`, `p_seen`): ask again
-- late       nothing was asked, and a later delivery was evaluated
-- inactive   the project is disabled, or its repository is gone
-- `superseded`: those of the branch that it replaced; `unfinished`: those of them that had not come to an end, they or their builds.
CREATE OR REPLACE FUNCTION request_evaluation(
    p_project bigint, p_url text, p_commit text, p_branch text, p_is_tag boolean,
    p_pr_number bigint, p_pr_author text, p_pr_head_ref text, p_pr_base_branch text, p_pr_base text,
    p_title text, p_author text, p_tree_hash text, p_reuse_key text, p_delivery bigint,
    p_supersede boolean, p_new_attempt boolean, p_was_asked boolean, p_newest bigint, p_seen bigint,
    OUT outcome text, OUT id bigint, OUT superseded bigint[], OUT unfinished bigint[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_enabled boolean;
    v_existing evaluations;
    v_newest bigint;
    v_reused bigint;
BEGIN
    superseded := '{}';
    unfinished := '{}';
    SELECT p.enabled AND NOT EXISTS (SELECT FROM repositories r WHERE r.id = p.repository_id AND r.removed_at IS NOT NULL)
    INTO v_enabled FROM projects p WHERE p.id = p_project FOR NO KEY UPDATE OF p;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'project %', p_project USING ERRCODE = 'HC002';
    END IF;
    IF NOT v_enabled THEN
        outcome := 'inactive';
        RETURN;
    END IF;

    -- Whatever became of it: a delivery that comes again changes nothing. What was asked for by hand is another thing.
    SELECT e.* INTO v_existing FROM evaluations e
    WHERE e.project_id = p_project AND e.commit_sha = p_commit AND e.branch = p_branch AND e.is_tag = p_is_tag
        AND e.pr_number IS NOT DISTINCT FROM p_pr_number AND e.pr_base_branch IS NOT DISTINCT FROM p_pr_base_branch
        AND e.superseded_by IS NULL AND e.closed_at IS NULL AND NOT e.is_part
        AND NOT (p_supersede AND EXISTS (
            SELECT FROM evaluations n
            WHERE n.project_id = p_project AND n.branch = p_branch AND n.is_tag = p_is_tag AND n.id > e.id AND NOT n.is_part
                AND n.pr_number IS NOT DISTINCT FROM p_pr_number
                AND (n.commit_sha IS DISTINCT FROM p_commit OR n.pr_base_branch IS DISTINCT FROM p_pr_base_branch)))
    ORDER BY e.id DESC LIMIT 1;
    IF FOUND AND (NOT p_new_attempt OR v_existing.status IN ('queued', 'running') OR v_existing.delivery_id = p_delivery) THEN
        outcome := 'existing';
        id := v_existing.id;
        UPDATE pull_requests r SET waiting = NULL
        WHERE r.project_id = p_project AND r.number = p_pr_number AND r.head_commit = p_commit AND r.waiting IS NOT NULL;
        RETURN;
    END IF;

    SELECT max(e.id) INTO v_newest FROM evaluations e
    WHERE e.project_id = p_project AND e.branch = p_branch AND e.is_tag = p_is_tag
        AND e.pr_number IS NOT DISTINCT FROM p_pr_number;
    IF p_was_asked THEN
        IF (p_supersede AND v_newest IS DISTINCT FROM p_newest)
            OR told_of_end(p_project, p_branch, p_is_tag, p_pr_number, p_seen)
        THEN
            outcome := 'moved';
            RETURN;
        END IF;
    ELSIF p_supersede AND EXISTS (
        SELECT FROM evaluations e
        WHERE e.project_id = p_project AND e.branch = p_branch AND e.is_tag = p_is_tag
            AND e.pr_number IS NOT DISTINCT FROM p_pr_number AND e.delivery_id > p_delivery)
        OR told_of_end(p_project, p_branch, p_is_tag, p_pr_number, p_delivery)
    THEN
        outcome := 'late';
        RETURN;
    END IF;

    IF p_tree_hash IS NOT NULL AND p_reuse_key IS NOT NULL AND p_pr_number IS NULL AND NOT p_new_attempt THEN
        SELECT e.id INTO v_reused FROM evaluations e
        WHERE e.project_id = p_project AND e.tree_hash = p_tree_hash AND e.status = 'succeeded' AND e.complete
            AND e.embeds_commit = false AND e.reuse_key = p_reuse_key
            AND e.pr_number IS NULL AND NOT e.is_part
            AND NOT EXISTS (
                SELECT FROM eval_attrs a LEFT JOIN build_jobs j USING (drv_path)
                WHERE a.eval_id = e.id AND (a.error IS NOT NULL OR NOT coalesce(
                    j.status IN ('pending', 'building', 'uploading', 'succeeded'), drv_available(a.drv_path, false))))
        ORDER BY e.id DESC LIMIT 1;
        IF v_reused IS NOT NULL AND NOT stays_wanted(v_reused) THEN
            v_reused := NULL;
        END IF;
    END IF;

    INSERT INTO evaluations (project_id, source_kind, flake_url, commit_sha, branch, is_tag, tree_hash,
        pr_number, pr_author, pr_head_sha, pr_head_ref, pr_base_branch, pr_base_sha,
        commit_title, commit_author, delivery_id, status, skipped_reason, reuses_eval_id, complete, finished_at, attempt)
    VALUES (p_project, 'git', p_url, p_commit, p_branch, p_is_tag, p_tree_hash,
        p_pr_number, p_pr_author, CASE WHEN p_pr_number IS NOT NULL THEN p_commit END, p_pr_head_ref, p_pr_base_branch, p_pr_base,
        p_title, p_author, p_delivery, CASE WHEN v_reused IS NULL THEN 'queued' ELSE 'skipped' END,
        'the same tree as evaluation ' || v_reused, v_reused, v_reused IS NOT NULL,
        CASE WHEN v_reused IS NOT NULL THEN now() END,
        next_eval_attempt(p_project, p_commit, p_branch, p_is_tag, p_pr_number))
    RETURNING evaluations.id INTO id;
    outcome := CASE WHEN v_reused IS NULL THEN 'queued' ELSE 'reused' END;

    SELECT array_agg(e.id), array_agg(e.id ORDER BY e.id) FILTER (WHERE e.status IN ('queued', 'running') OR EXISTS (
            SELECT FROM eval_attrs a JOIN build_jobs j ON j.drv_path = a.drv_path
            WHERE a.eval_id = coalesce(e.reuses_eval_id, e.id) AND j.status IN ('pending', 'building', 'uploading')))
    INTO superseded, unfinished FROM evaluations e
    WHERE e.project_id = p_project AND e.branch = p_branch AND e.is_tag = p_is_tag AND e.id <> request_evaluation.id
        AND e.pr_number IS NOT DISTINCT FROM p_pr_number
        AND (p_supersede OR e.commit_sha = p_commit)
        AND e.superseded_by IS NULL AND e.closed_at IS NULL AND e.status || '' IN ('queued', 'running', 'succeeded', 'skipped');
    unfinished := coalesce(unfinished, '{}');
    superseded := coalesce(superseded, '{}');
    IF cardinality(superseded) > 0 THEN
        PERFORM end_evaluations(superseded, id, 'superseded by a newer evaluation of its branch');
    END IF;
    UPDATE pull_requests r SET waiting = NULL
    WHERE r.project_id = p_project AND r.number = p_pr_number AND r.head_commit = p_commit AND r.waiting IS NOT NULL;
    PERFORM pg_notify('evaluations', id::text);
END
$$;

-- A branch, tag or pull request is gone: what of its evaluations has not ended is cancelled, and none of them wants jobs any
-- more. Those that a delivery after `p_seen` asked for know better and stay. Returns which were closed.
CREATE OR REPLACE FUNCTION close_evaluations(
    p_project bigint, p_branch text, p_is_tag boolean, p_pr_number bigint, p_seen bigint, p_reason text
) RETURNS bigint[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_evals bigint[];
BEGIN
    PERFORM FROM projects p WHERE p.id = p_project FOR NO KEY UPDATE;
    SELECT array_agg(e.id) INTO v_evals FROM (
        SELECT id FROM evaluations
        WHERE id = ANY (ARRAY(SELECT b.id FROM evaluations b WHERE b.project_id = p_project AND b.branch = p_branch
                AND b.is_tag = p_is_tag AND b.pr_number IS NOT DISTINCT FROM p_pr_number AND b.superseded_by IS NULL AND b.closed_at IS NULL))
            AND superseded_by IS NULL AND closed_at IS NULL AND coalesce(delivery_id, 0) <= p_seen
        ORDER BY id FOR NO KEY UPDATE) e;
    IF v_evals IS NULL THEN
        RETURN '{}';
    END IF;
    PERFORM close_these(v_evals, p_reason, 'no evaluation wants it any more');
    RETURN v_evals;
END
$$;
