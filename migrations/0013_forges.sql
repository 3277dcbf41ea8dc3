-- What the host knows of forges: repositories it discovered, deliveries it took, pull requests and who approved them, and
-- whose permission was asked. Statuses and notifications follow in later files.

-- Repositories keep their row through a rename: the forge's stable id is the key.
ALTER TABLE repositories DROP CONSTRAINT repositories_forge_full_name_key;
ALTER TABLE repositories
    ADD COLUMN external_id text NOT NULL,
    ADD COLUMN html_url text NOT NULL DEFAULT '',
    ADD COLUMN is_archived boolean NOT NULL DEFAULT false,
    ADD COLUMN topics text[] NOT NULL DEFAULT '{}',
    ADD COLUMN removed_at timestamptz, -- gone, or not ours to see any more
    ADD CONSTRAINT repositories_forge_external_id_key UNIQUE (forge, external_id);
-- Names may be swapped; only what exists has its name for itself.
CREATE UNIQUE INDEX repositories_full_name ON repositories (forge, full_name) WHERE removed_at IS NULL;
CREATE INDEX repositories_search ON repositories (forge, lower(full_name)) WHERE removed_at IS NULL;

-- Where discovery of a forge is.
CREATE TABLE forge_syncs (
    forge text PRIMARY KEY,
    wanted_at timestamptz NOT NULL DEFAULT now(), -- not before then
    started_at timestamptz, -- of the sync under way
    cursor text, -- of its next page
    finished_at timestamptz, -- of the last complete one
    repositories integer NOT NULL DEFAULT 0, -- that it saw
    last_error text,
    leased_by text,
    leased_until timestamptz
);

ALTER TABLE projects
    ADD COLUMN default_branch text, -- of a git project; null: the remote's HEAD
    ADD COLUMN branch_patterns text[] NOT NULL DEFAULT '{release/*}', -- built besides the default branch
    ADD COLUMN tree_branch_patterns text[] NOT NULL DEFAULT '{}', -- what the default branch's own file adds
    ADD COLUMN build_tags boolean NOT NULL DEFAULT false,
    ADD COLUMN build_drafts boolean NOT NULL DEFAULT false,
    ADD COLUMN reuse_trees boolean NOT NULL DEFAULT true,
    ADD COLUMN poll_pull_requests boolean NOT NULL DEFAULT false,
    ADD COLUMN next_poll_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN last_poll_error text,
    ADD COLUMN leased_by text, -- who polls it or sets its hook
    ADD COLUMN leased_until timestamptz,
    -- The webhook at the forge: what should be, what is.
    ADD COLUMN hook_wanted boolean NOT NULL DEFAULT false,
    ADD COLUMN hook_installed boolean NOT NULL DEFAULT false,
    ADD COLUMN hook_url text,
    ADD COLUMN hook_error text,
    ADD COLUMN hook_next_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX projects_due_poll ON projects (next_poll_at) WHERE enabled AND poll_interval_s > 0;
CREATE INDEX projects_due_hook ON projects (hook_next_at) WHERE hook_wanted <> hook_installed;

-- A delivery is taken in one statement and worked off later; it is its own queue.
ALTER TABLE webhook_deliveries
    ADD COLUMN state text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'done', 'dead')),
    ADD COLUMN attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN next_attempt_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN last_error text,
    ADD COLUMN finished_at timestamptz,
    ADD COLUMN leased_by text,
    ADD COLUMN leased_until timestamptz,
    ADD COLUMN repositories text[] NOT NULL DEFAULT '{}', -- full names, for the list of recent deliveries
    ADD CONSTRAINT finished_iff_not_queued CHECK ((state = 'queued') = (finished_at IS NULL));
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_attempt_at, id) WHERE state = 'queued';
CREATE INDEX webhook_deliveries_recent ON webhook_deliveries (forge, id DESC);

-- Pull requests of enabled projects as last heard of.
CREATE TABLE pull_requests (
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    number bigint NOT NULL CHECK (number > 0),
    title text NOT NULL,
    author text NOT NULL,
    head_commit text NOT NULL,
    head_branch text NOT NULL,
    head_ref text NOT NULL,
    base_branch text NOT NULL,
    base_commit text NOT NULL,
    is_open boolean NOT NULL,
    is_draft boolean NOT NULL,
    labels text[] NOT NULL DEFAULT '{}',
    -- Why it is not evaluated; null: it is, or was.
    waiting text,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, number)
);

-- Heads in the order in which deliveries told of them: an approval counts for what was known before the comment arrived.
CREATE TABLE pull_request_heads (
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    number bigint NOT NULL,
    head_commit text NOT NULL,
    delivery_id bigint NOT NULL, -- the first that told of it; its place in the order
    PRIMARY KEY (project_id, number, delivery_id)
);

-- Exactly one head each.
CREATE TABLE pull_request_approvals (
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    number bigint NOT NULL,
    head_commit text NOT NULL,
    approved_by text NOT NULL,
    comment_id text NOT NULL,
    approved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, number, head_commit)
);

-- What a forge said of a user's permission; asked again after five minutes, forgotten when the forge says it changed.
CREATE TABLE forge_permissions (
    repository_id bigint NOT NULL REFERENCES repositories ON DELETE CASCADE,
    user_login text NOT NULL,
    permission text NOT NULL CHECK (permission IN ('none', 'read', 'write', 'admin')),
    asked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository_id, user_login)
);

-- Comments that we owe a pull request.
CREATE TABLE forge_comments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint NOT NULL REFERENCES repositories ON DELETE CASCADE,
    number bigint NOT NULL,
    key text NOT NULL, -- unique for what it says
    body text NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_error text,
    delivered_at timestamptz,
    dead_at timestamptz,
    leased_by text,
    leased_until timestamptz,
    UNIQUE (repository_id, number, key)
);
CREATE INDEX forge_comments_due ON forge_comments (next_attempt_at) WHERE delivered_at IS NULL AND dead_at IS NULL;

ALTER TABLE evaluations
    ADD COLUMN pr_base_branch text,
    ADD COLUMN pr_head_ref text, -- from which git fetches the head out of the base repository
    ADD COLUMN is_tag boolean NOT NULL DEFAULT false,
    ADD COLUMN delivery_id bigint, -- which asked for it
    -- What decides, with the tree, what an evaluation yields; null: not known.
    ADD COLUMN reuse_key text,
    -- Whether a derivation or file contains the commit's hash or date, so that another commit with the same tree differs.
    -- Null: not examined, which counts as yes.
    ADD COLUMN embeds_commit boolean,
    ADD CONSTRAINT pull_request_whole CHECK ((pr_number IS NULL) = (pr_head_sha IS NULL)
        AND (pr_number IS NULL) = (pr_base_branch IS NULL));
CREATE INDEX evaluations_tree ON evaluations (project_id, tree_hash, id DESC)
    WHERE tree_hash IS NOT NULL AND status = 'succeeded' AND complete AND embeds_commit = false;
CREATE INDEX evaluations_commit ON evaluations (project_id, commit_sha);

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['forge_syncs', 'pull_requests', 'pull_request_heads', 'pull_request_approvals',
        'forge_permissions', 'forge_comments']
    LOOP
        PERFORM grant_to('SELECT, INSERT, UPDATE, DELETE ON ' || v_table, '{frontend}');
    END LOOP;
    -- Columns added above are as open as the rest of their tables.
    PERFORM grant_to('SELECT (pr_base_branch, pr_head_ref, is_tag, delivery_id, reuse_key, embeds_commit) ON evaluations',
        '{evaluator,builder,signer,frontend}');
END
$$;
