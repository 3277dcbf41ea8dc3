-- Deliveries as they arrive, discovery of repositories, projects made of them, their hooks and their polling. What needs
-- several statements at once is a function here; the rest is in the frontend's own statements.

ALTER TABLE forge_syncs
    ADD COLUMN requested_at timestamptz, -- something changed: a sync that began before is followed by another
    ADD COLUMN not_before timestamptz, -- the forge asked to wait, or the last try failed
    ADD COLUMN previous_started_at timestamptz, -- of the last complete sync
    ADD COLUMN seen integer NOT NULL DEFAULT 0, -- repositories of the sync under way
    ADD COLUMN attempts integer NOT NULL DEFAULT 0; -- failures in a row

ALTER TABLE projects
    ADD COLUMN hook_attempts integer NOT NULL DEFAULT 0; -- failures in a row
-- `hook_url` is where we may have installed a hook, `hook_installed` that we know we did: a lost answer leaves the first.
DROP INDEX projects_due_hook;
CREATE INDEX projects_due_hook ON projects (hook_next_at)
    WHERE (hook_wanted AND NOT hook_installed) OR (NOT hook_wanted AND hook_url IS NOT NULL);

ALTER TABLE webhook_deliveries
    ADD COLUMN concerned boolean NOT NULL DEFAULT true; -- false: about no enabled project, so nothing was to be done
CREATE INDEX webhook_deliveries_received ON webhook_deliveries (received_at);
CREATE INDEX webhook_deliveries_dead ON webhook_deliveries (id DESC) WHERE state = 'dead';

-- What polling saw last. `changes` makes the id of a synthetic delivery: going back to an older head is a change too.
CREATE TABLE poll_heads (
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    reference text NOT NULL, -- branch/NAME or pull/NUMBER
    state text NOT NULL, -- commit; of a pull request also what else matters
    changes bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (project_id, reference)
);

-- Takes a delivery, once for each id. In the same transaction: the heads it tells of take their place in the order of
-- arrival, and what it says of permissions makes us forget them. `recorded`: new, duplicate, or nothing (it concerns no
-- enabled project, and says nothing of repositories or permissions).
CREATE FUNCTION record_delivery(
    p_forge text, p_delivery text, p_events jsonb, p_duration_ms integer, p_names text[], p_always boolean,
    p_repositories text[], p_pull_repositories text[], p_pull_numbers bigint[], p_pull_heads text[],
    p_permissions text[], p_all_permissions boolean, OUT id bigint, OUT recorded text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_concerned boolean := p_always OR EXISTS (
        SELECT FROM repositories r JOIN projects p ON p.repository_id = r.id
        WHERE r.forge = p_forge AND r.external_id = ANY (p_repositories) AND p.enabled);
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
    JOIN repositories r ON r.forge = p_forge AND r.external_id = t.repository
    JOIN projects p ON p.repository_id = r.id AND p.enabled
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
CREATE FUNCTION delete_old_deliveries(p_keep interval) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_deleted bigint;
BEGIN
    DELETE FROM webhook_deliveries WHERE id IN (
        SELECT d.id FROM webhook_deliveries d WHERE d.received_at < now() - p_keep AND d.state <> 'queued'
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

-- What a forge says of its repositories: new ones, new names, new properties. A name belongs to whom the forge gives it
-- now; a row that had it before and is not named here is gone, until it turns up under another name. Projects are as
-- visible as their repositories.
CREATE FUNCTION upsert_repositories(p_forge text, p_repositories jsonb) RETURNS void
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
-- written. Without a next page the sync is over. A list that changes while it is read page by page can miss an entry, so
-- what was not seen is gone only when the sync before did not see it either; the one that makes sure follows at once.
CREATE FUNCTION save_sync_page(
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
    UPDATE forge_syncs s SET cursor = NULL, started_at = NULL, finished_at = now(), attempts = 0, last_error = NULL,
        repositories = s.seen + jsonb_array_length(p_repositories), seen = 0, leased_by = NULL, leased_until = NULL,
        not_before = NULL, previous_started_at = s.started_at,
        wanted_at = CASE WHEN s.requested_at > s.started_at OR EXISTS (
            SELECT FROM repositories r WHERE r.forge = p_forge AND r.removed_at IS NULL
                AND coalesce(r.last_synced, '-infinity') < v_sync.started_at) THEN now() ELSE now() + p_every END
    WHERE s.forge = p_forge;
END
$$;

-- Makes a project of a repository, or enables the one that it has. `p_names`: the first that is free becomes the project's.
CREATE FUNCTION enable_repository(p_repository bigint, p_names text[], p_by text, OUT project bigint, OUT project_name text)
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
CREATE FUNCTION add_git_project(p_name text, p_url text, p_branch text, p_poll_s integer, p_by text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_project bigint;
BEGIN
    INSERT INTO projects (name, kind, url, default_branch, poll_interval_s) VALUES (p_name, 'git', p_url, p_branch, p_poll_s)
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
CREATE FUNCTION set_project(p_name text, p_changes jsonb, p_by text) RETURNS void
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

SELECT grant_to('SELECT, INSERT, UPDATE, DELETE ON poll_heads', '{frontend}');
SELECT grant_to('EXECUTE ON FUNCTION ' || f, '{frontend}') FROM (VALUES
    ('record_delivery'), ('delete_old_deliveries'), ('upsert_repositories'), ('save_sync_page'), ('enable_repository'),
    ('add_git_project'), ('set_project'),
    -- Whether an evaluator that asks for a clone credential holds the evaluation.
    ('evaluation_held')
) AS g(f);
