-- Repositories as forges tell of them, and the projects that are made of them.
--
-- A repository that is gone, or not ours to see any more (an installation was removed, access was revoked, it was deleted),
-- wants nothing: what of its project's evaluations has not come to an end is closed, and nothing more is asked of its forge.
-- What has ended stays as it is, so that a repository that comes back shows what it showed.

-- What a forge says of its repositories: new ones, new names, new properties. A name belongs to whom the forge gives it
-- now; a row that had it before and is not named here is gone, until it turns up under another name. Projects are as
-- visible as their repositories.
CREATE OR REPLACE FUNCTION upsert_repositories(p_forge text, p_repositories jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    -- Two at once would trip over names that they swap.
    PERFORM pg_advisory_xact_lock(hashtext('harmonia-ci repositories'), hashtext(p_forge));
    UPDATE repositories r SET removed_at = now()
    FROM jsonb_to_recordset(p_repositories) AS t(id text, full_name text)
    WHERE r.forge = p_forge AND r.removed_at IS NULL AND r.full_name = t.full_name AND r.external_id <> t.id;
    INSERT INTO repositories (forge, external_id, owner, name, full_name, clone_url, html_url, default_branch, is_private,
        is_archived, topics, last_synced)
    SELECT p_forge, t.id, t.owner, t.name, t.full_name, t.clone_url, t.html_url, t.default_branch, t.is_private,
        t.is_archived, t.topics, now()
    FROM jsonb_to_recordset(p_repositories) AS t(id text, owner text, name text, full_name text, clone_url text,
        html_url text, default_branch text, is_private boolean, is_archived boolean, topics text[])
    ON CONFLICT (forge, external_id) DO UPDATE SET owner = excluded.owner, name = excluded.name,
        full_name = excluded.full_name, clone_url = excluded.clone_url, html_url = excluded.html_url,
        default_branch = excluded.default_branch, is_private = excluded.is_private, is_archived = excluded.is_archived,
        topics = excluded.topics, last_synced = excluded.last_synced, removed_at = NULL;
    UPDATE projects p SET is_public = NOT r.is_private
    FROM jsonb_to_recordset(p_repositories) AS t(id text), repositories r
    WHERE r.forge = p_forge AND r.external_id = t.id AND p.repository_id = r.id AND p.is_public = r.is_private;
END
$$;

-- One page of a sync: its repositories and where it goes on, at once. `held` false: another node has the sync, nothing was
-- written. Without a next page the sync is over (`removed` is null before that). A list that changes while it is read page by page can miss an entry, so
-- what was not seen is gone only when the sync before did not see it either; the one that makes sure follows at once.
-- A complete sync closes what is open of all that is gone. A name that another repository took may turn up again on a later
-- page, so nothing is closed before the end.
CREATE OR REPLACE FUNCTION save_sync_page(
    p_forge text, p_lease_name text, p_repositories jsonb, p_next text, p_lease interval, p_every interval,
    OUT held boolean, OUT removed bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_sync forge_syncs;
BEGIN
    SELECT * INTO v_sync FROM forge_syncs s WHERE s.forge = p_forge AND s.leased_by = p_lease_name FOR UPDATE;
    held := FOUND;
    IF NOT held THEN
        RETURN;
    END IF;
    PERFORM upsert_repositories(p_forge, p_repositories);
    IF p_next IS NOT NULL THEN
        UPDATE forge_syncs s SET cursor = p_next, seen = s.seen + jsonb_array_length(p_repositories), attempts = 0,
            last_error = NULL, leased_until = now() + p_lease
        WHERE s.forge = p_forge;
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

-- A forge says that these are gone. Returns how many were there.
CREATE OR REPLACE FUNCTION remove_repositories(p_forge text, p_ids text[]) RETURNS bigint
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

-- Closes these: what has not ended is cancelled, results stay to be seen, none of them wants jobs any more. `p_message` is for the
-- jobs that nobody else wants.
CREATE OR REPLACE FUNCTION close_these(p_evals bigint[], p_reason text, p_message text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM pg_notify('claims', left(claimed_by, 200)) FROM evaluations WHERE id = ANY (p_evals) AND status = 'running';
    UPDATE evaluations SET closed_at = now(),
        error = CASE WHEN status IN ('queued', 'running') THEN p_reason ELSE error END,
        status = CASE WHEN status IN ('queued', 'running') THEN 'cancelled' ELSE status END,
        claimed_by = NULL, claim_incarnation = NULL, claim_token_hash = NULL, finished_at = coalesce(finished_at, now())
    WHERE id = ANY (p_evals);
    PERFORM withdraw_all(p_evals, false, p_message);
    PERFORM pg_notify('evaluations', e::text) FROM unnest(p_evals) AS e;
END
$$;

-- Closes what is open of repositories of this forge that are gone: evaluations that are queued or running, or whose builds
-- have not all ended. Returns how many. Done again at the end of each sync, so that an evaluation that was asked for in the
-- moment of the removal does not stay.
CREATE OR REPLACE FUNCTION close_gone(p_forge text) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_projects bigint[];
    v_evals bigint[];
    v_reason constant text := 'its repository is gone at the forge, or not ours to see any more';
BEGIN
    SELECT array_agg(p.id) INTO v_projects FROM projects p JOIN repositories r ON r.id = p.repository_id
    WHERE r.forge = p_forge AND r.removed_at IS NOT NULL;
    IF v_projects IS NULL THEN
        RETURN 0;
    END IF;
    -- Looked for before anything is locked: that takes as long as there are attributes.
    SELECT array_agg(id) INTO v_evals FROM evaluations e
    WHERE project_id = ANY (v_projects) AND superseded_by IS NULL AND closed_at IS NULL
        AND source_kind = 'git' -- a commit that somebody sent needs no forge
        AND (status IN ('queued', 'running') OR (status IN ('succeeded', 'skipped') AND EXISTS (
            SELECT FROM eval_attrs a JOIN build_jobs j USING (drv_path)
            WHERE a.eval_id = coalesce(e.reuses_eval_id, e.id)
                -- What waits for nothing any more may still have inputs that are built.
                AND j.status IN ('pending', 'building', 'uploading', 'dep-failed'))));
    PERFORM FROM projects WHERE id = ANY (v_projects) ORDER BY id FOR NO KEY UPDATE;
    SELECT array_agg(e.id) INTO v_evals FROM (
        SELECT id FROM evaluations
        WHERE id = ANY (v_evals) AND superseded_by IS NULL AND closed_at IS NULL
            AND status IN ('queued', 'running', 'succeeded', 'skipped')
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

-- Makes a project of a repository, or enables the one that it has. `p_names`: the first that is free becomes the project's.
CREATE OR REPLACE FUNCTION enable_repository(p_repository bigint, p_names text[], p_by text, OUT project bigint, OUT project_name text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_repository repositories;
    v_enabled boolean;
BEGIN
    SELECT * INTO v_repository FROM repositories WHERE id = p_repository AND removed_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the repository' USING ERRCODE = 'HC002';
    END IF;
    SELECT id, name, enabled INTO project, project_name, v_enabled FROM projects WHERE repository_id = p_repository FOR UPDATE;
    IF FOUND THEN
        IF v_enabled THEN
            RETURN;
        END IF;
        UPDATE projects SET enabled = true, is_public = NOT v_repository.is_private, next_poll_at = now() WHERE id = project;
    ELSE
        FOREACH project_name IN ARRAY p_names LOOP
            INSERT INTO projects (repository_id, name, kind, is_public)
            VALUES (p_repository, project_name, 'forge', NOT v_repository.is_private)
            ON CONFLICT (name) DO NOTHING RETURNING id INTO project;
            EXIT WHEN project IS NOT NULL;
        END LOOP;
        IF project IS NULL THEN
            RAISE EXCEPTION 'other projects have all names that % could get: %', v_repository.full_name,
                array_to_string(p_names, ', ') USING ERRCODE = 'HC003';
        END IF;
    END IF;
    INSERT INTO audit_log (actor, action, subject, detail) VALUES (p_by, 'enable', 'project ' || project_name,
        jsonb_build_object('forge', v_repository.forge, 'repository', v_repository.full_name));
    PERFORM pg_notify('projects', '');
END
$$;

-- A project of a plain git repository. Null: the name is taken.
CREATE OR REPLACE FUNCTION add_git_project(p_name text, p_url text, p_branch text, p_poll_s integer, p_by text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_project bigint;
BEGIN
    INSERT INTO projects (name, kind, url, default_branch, poll_interval_s, is_public)
    SELECT p_name, 'git', p_url, p_branch, p_poll_s, local_public FROM default_limits
    ON CONFLICT (name) DO NOTHING RETURNING id INTO v_project;
    IF v_project IS NOT NULL THEN
        INSERT INTO audit_log (actor, action, subject, detail)
        VALUES (p_by, 'add', 'project ' || p_name, jsonb_build_object('url', p_url, 'poll_interval_s', p_poll_s));
        PERFORM pg_notify('projects', '');
    END IF;
    RETURN v_project;
END
$$;

-- Changes settings; what `p_changes` does not name stays. An empty default branch means the remote's own.
CREATE OR REPLACE FUNCTION set_project(p_name text, p_changes jsonb, p_by text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_project projects;
    c jsonb := p_changes;
BEGIN
    SELECT * INTO v_project FROM projects WHERE name = p_name FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'project %', p_name USING ERRCODE = 'HC002';
    END IF;
    IF v_project.kind <> 'git' AND c ? 'default_branch' THEN
        RAISE EXCEPTION 'the default branch of % is what its forge says: only a plain git project has one of its own', p_name
            USING ERRCODE = 'HC003';
    END IF;
    IF v_project.kind = 'forge' AND c ? 'is_public' THEN
        RAISE EXCEPTION '% is as visible as its repository: change that at the forge', p_name USING ERRCODE = 'HC003';
    END IF;
    IF v_project.kind = 'local' AND (c->>'poll_interval_s')::integer > 0 THEN
        RAISE EXCEPTION 'the project % has no repository to poll: its commits are sent', p_name USING ERRCODE = 'HC003';
    END IF;
    UPDATE projects SET
        enabled = coalesce((c->>'enabled')::boolean, enabled),
        is_public = coalesce((c->>'is_public')::boolean, is_public),
        visibility_chosen = visibility_chosen OR c ? 'is_public',
        scheduling_shares = coalesce((c->>'scheduling_shares')::integer, scheduling_shares),
        pr_enabled = coalesce((c->>'pr_enabled')::boolean, pr_enabled),
        pr_trust = coalesce(c->>'pr_trust', pr_trust),
        poll_interval_s = coalesce((c->>'poll_interval_s')::integer, poll_interval_s),
        poll_pull_requests = coalesce((c->>'poll_pull_requests')::boolean, poll_pull_requests),
        next_poll_at = CASE WHEN c ?| '{enabled,poll_interval_s,poll_pull_requests,default_branch}' THEN now() ELSE next_poll_at END,
        default_branch = CASE WHEN c ? 'default_branch' THEN nullif(c->>'default_branch', '') ELSE default_branch END,
        branch_patterns = CASE WHEN c ? 'branch_patterns'
            THEN ARRAY(SELECT jsonb_array_elements_text(c->'branch_patterns')) ELSE branch_patterns END,
        build_tags = coalesce((c->>'build_tags')::boolean, build_tags),
        build_drafts = coalesce((c->>'build_drafts')::boolean, build_drafts),
        reuse_trees = coalesce((c->>'reuse_trees')::boolean, reuse_trees)
    WHERE id = v_project.id;
    INSERT INTO audit_log (actor, action, subject, detail) VALUES (p_by, 'set', 'project ' || p_name, p_changes);
    PERFORM pg_notify('projects', '');
END
$$;
