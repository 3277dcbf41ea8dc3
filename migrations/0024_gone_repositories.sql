-- A repository that is gone, or not ours to see any more (an installation was removed, access was revoked, it was deleted),
-- wants nothing: what of its project's evaluations has not come to an end is closed, and nothing more is asked of its forge.
-- What has ended stays as it is, so that a repository that comes back shows what it showed.

-- Who sets a project's hook: apart from who polls it, so that neither waits for the other.
ALTER TABLE projects
    ADD COLUMN hook_leased_by text,
    ADD COLUMN hook_leased_until timestamptz;

-- Which delivery brought a comment's command first. A forge that delivers a comment again may give it another delivery id,
-- and later a place behind heads that its author never saw.
CREATE TABLE pull_request_commands (
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    comment_id text NOT NULL,
    delivery_id bigint NOT NULL,
    PRIMARY KEY (project_id, comment_id)
);

-- Closes these: what has not ended is cancelled, results stay to be seen, none of them wants jobs any more. Call under
-- lock_withdrawals. `p_message` is for the jobs that nobody else wants.
CREATE FUNCTION close_these(p_evals bigint[], p_reason text, p_message text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM pg_notify('claims', left(claimed_by, 200)) FROM evaluations WHERE id = ANY (p_evals) AND status = 'running';
    UPDATE evaluations SET closed_at = now(),
        error = CASE WHEN status IN ('queued', 'running') THEN p_reason ELSE error END,
        status = CASE WHEN status IN ('queued', 'running') THEN 'cancelled' ELSE status END,
        claimed_by = NULL, claim_incarnation = NULL, claim_token_hash = NULL, finished_at = coalesce(finished_at, now())
    WHERE id = ANY (p_evals);
    PERFORM cancel_unwanted(release_roots(p_evals), false, p_message);
    PERFORM pg_notify('evaluations', e::text) FROM unnest(p_evals) AS e;
END
$$;

-- As before.
CREATE OR REPLACE FUNCTION close_evaluations(
    p_project bigint, p_branch text, p_is_tag boolean, p_pr_number bigint, p_seen bigint, p_reason text
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_evals bigint[];
BEGIN
    PERFORM FROM projects p WHERE p.id = p_project FOR NO KEY UPDATE;
    PERFORM lock_withdrawals();
    SELECT array_agg(e.id) INTO v_evals FROM (
        SELECT id FROM evaluations
        WHERE project_id = p_project AND branch = p_branch AND is_tag = p_is_tag AND pr_number IS NOT DISTINCT FROM p_pr_number
            AND superseded_by IS NULL AND closed_at IS NULL AND coalesce(delivery_id, 0) <= p_seen
        ORDER BY id FOR NO KEY UPDATE) e;
    IF v_evals IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM close_these(v_evals, p_reason, 'no evaluation wants it any more');
    RETURN cardinality(v_evals);
END
$$;

-- Closes what is open of repositories of this forge that are gone: evaluations that are queued or running, or whose builds
-- have not all ended. Returns how many. Done again at the end of each sync, so that an evaluation that was asked for in the
-- moment of the removal does not stay.
CREATE FUNCTION close_gone(p_forge text) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_projects bigint[];
    v_evals bigint[];
    v_reason constant text := 'its repository is gone at the forge, or not ours to see any more';
BEGIN
    SELECT array_agg(p.id) INTO v_projects FROM (
        SELECT p.id FROM projects p JOIN repositories r ON r.id = p.repository_id
        WHERE r.forge = p_forge AND r.removed_at IS NOT NULL
        ORDER BY p.id FOR NO KEY UPDATE OF p) p;
    IF v_projects IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM lock_withdrawals();
    SELECT array_agg(e.id) INTO v_evals FROM (
        SELECT id FROM evaluations e
        WHERE project_id = ANY (v_projects) AND superseded_by IS NULL AND closed_at IS NULL
            AND source_kind = 'git' -- a commit that somebody sent needs no forge
            AND (status IN ('queued', 'running') OR (status IN ('succeeded', 'skipped') AND EXISTS (
                SELECT FROM eval_attrs a JOIN build_jobs j USING (drv_path)
                WHERE a.eval_id = coalesce(e.reuses_eval_id, e.id)
                    -- What waits for nothing any more may still have inputs that are built.
                    AND j.status IN ('pending', 'building', 'uploading', 'dep-failed'))))
        ORDER BY id FOR NO KEY UPDATE) e;
    -- A hook that may be there is out of our reach.
    UPDATE projects SET hook_wanted = false, hook_installed = false, hook_url = NULL, hook_error = NULL, hook_attempts = 0
    WHERE id = ANY (v_projects) AND (hook_wanted OR hook_installed OR hook_url IS NOT NULL);
    IF v_evals IS NULL THEN
        RETURN 0;
    END IF;
    -- Should it come back, polling finds its heads anew.
    DELETE FROM poll_heads WHERE project_id = ANY (v_projects);
    PERFORM close_these(v_evals, v_reason, v_reason);
    RETURN cardinality(v_evals);
END
$$;

-- A forge says that these are gone. Returns how many were there.
CREATE FUNCTION remove_repositories(p_forge text, p_ids text[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_removed bigint;
BEGIN
    UPDATE repositories SET removed_at = now() WHERE forge = p_forge AND external_id = ANY (p_ids) AND removed_at IS NULL;
    GET DIAGNOSTICS v_removed = ROW_COUNT;
    PERFORM close_gone(p_forge);
    RETURN v_removed;
END
$$;

-- As before; a complete sync closes what is open of all that is gone. A name that another repository took may turn up again
-- on a later page, so nothing is closed before the end.
CREATE OR REPLACE FUNCTION save_sync_page(
    p_forge text, p_node text, p_leased_until timestamptz, p_repositories jsonb, p_next text, p_lease interval,
    p_every interval, OUT held boolean, OUT leased_until timestamptz, OUT removed bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_sync forge_syncs;
BEGIN
    removed := 0;
    SELECT * INTO v_sync FROM forge_syncs s
    WHERE s.forge = p_forge AND s.leased_by = p_node AND s.leased_until = p_leased_until FOR UPDATE;
    held := FOUND;
    IF NOT held THEN
        RETURN;
    END IF;
    PERFORM upsert_repositories(p_forge, p_repositories);
    IF p_next IS NOT NULL THEN
        UPDATE forge_syncs s SET cursor = p_next, seen = s.seen + jsonb_array_length(p_repositories), attempts = 0,
            last_error = NULL, leased_until = now() + p_lease
        WHERE s.forge = p_forge RETURNING s.leased_until INTO leased_until;
        RETURN;
    END IF;
    UPDATE repositories r SET removed_at = now()
    WHERE r.forge = p_forge AND r.removed_at IS NULL
        AND coalesce(r.last_synced, '-infinity') < least(v_sync.started_at, v_sync.previous_started_at)
        AND v_sync.previous_started_at IS NOT NULL;
    GET DIAGNOSTICS removed = ROW_COUNT;
    PERFORM close_gone(p_forge);
    UPDATE forge_syncs s SET cursor = NULL, started_at = NULL, finished_at = now(), attempts = 0, last_error = NULL,
        repositories = s.seen + jsonb_array_length(p_repositories), seen = 0, leased_by = NULL, leased_until = NULL,
        not_before = NULL, previous_started_at = s.started_at,
        wanted_at = CASE WHEN s.requested_at > s.started_at OR EXISTS (
            SELECT FROM repositories r WHERE r.forge = p_forge AND r.removed_at IS NULL
                AND coalesce(r.last_synced, '-infinity') < v_sync.started_at) THEN now() ELSE now() + p_every END
    WHERE s.forge = p_forge;
END
$$;

DO $$
BEGIN
    PERFORM grant_to('SELECT, INSERT, UPDATE, DELETE ON pull_request_commands', '{frontend}');
    PERFORM grant_to('EXECUTE ON FUNCTION remove_repositories', '{frontend}');
END
$$;
