-- Layer 2, the CI layer, first part: repositories as forges tell of them, the projects that are made of them, and what
-- comes in about them. Knows nothing of NAR hashes.

-- Discovered at forges. A row is kept through a rename: the forge's stable id is the key.
CREATE TABLE repositories (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    forge text NOT NULL,
    external_id text NOT NULL,
    owner text NOT NULL,
    name text NOT NULL,
    full_name text NOT NULL,
    clone_url text NOT NULL,
    html_url text NOT NULL DEFAULT '',
    default_branch text NOT NULL,
    is_private boolean NOT NULL,
    is_archived boolean NOT NULL DEFAULT false,
    topics text[] NOT NULL DEFAULT '{}',
    last_synced timestamptz,
    removed_at timestamptz, -- gone, or not ours to see any more
    UNIQUE (forge, external_id)
);
-- Names may be swapped; only what exists has its name for itself.
CREATE UNIQUE INDEX repositories_full_name ON repositories (forge, full_name) WHERE removed_at IS NULL;
CREATE INDEX repositories_search ON repositories (forge, lower(full_name)) WHERE removed_at IS NULL;

-- Where discovery of a forge is.
CREATE TABLE forge_syncs (
    forge text PRIMARY KEY,
    wanted_at timestamptz NOT NULL DEFAULT now(), -- not before then
    requested_at timestamptz, -- something changed: a sync that began before is followed by another
    not_before timestamptz, -- the forge asked to wait, or the last try failed
    started_at timestamptz, -- of the sync in flight
    cursor text, -- of its next page
    seen integer NOT NULL DEFAULT 0, -- repositories of the sync in flight
    attempts integer NOT NULL DEFAULT 0, -- failures in a row
    finished_at timestamptz, -- of the last complete one
    previous_started_at timestamptz, -- of the last complete one
    repositories integer NOT NULL DEFAULT 0, -- that it saw
    last_error text,
    leased_by text,
    leased_until timestamptz
);

CREATE TABLE projects (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint UNIQUE REFERENCES repositories ON DELETE SET NULL,
    name text NOT NULL UNIQUE CHECK (name <> '' AND length(name) <= 200),
    kind text NOT NULL CHECK (kind IN ('forge', 'git', 'local')),
    url text CHECK ((kind = 'git') <= (url IS NOT NULL)), -- of a plain git project
    default_branch text, -- of a git project; null: the remote's HEAD
    enabled boolean NOT NULL DEFAULT true,
    is_public boolean NOT NULL DEFAULT false,
    visibility_chosen boolean NOT NULL DEFAULT false, -- somebody said so; else it follows forge or configuration
    scheduling_shares integer NOT NULL DEFAULT 100 CHECK (scheduling_shares > 0),
    consumed_seconds double precision NOT NULL DEFAULT 0,
    status_prefix text CHECK (length(status_prefix) BETWEEN 1 AND 64), -- null: the node's
    -- What is evaluated.
    branch_patterns text[] NOT NULL DEFAULT '{release/*}', -- built besides the default branch
    tree_branch_patterns text[] NOT NULL DEFAULT '{}', -- what the default branch's own file adds
    build_tags boolean NOT NULL DEFAULT false,
    build_drafts boolean NOT NULL DEFAULT false,
    reuse_trees boolean NOT NULL DEFAULT true,
    pr_enabled boolean NOT NULL DEFAULT true,
    pr_trust text NOT NULL DEFAULT 'collaborators' CHECK (pr_trust IN ('collaborators', 'all', 'none')),
    -- A build failure older than this is tried again by the next evaluation; null: never.
    failure_ttl_s bigint CHECK (failure_ttl_s > 0),
    -- Limits of its builds; null: those of default_limits.
    timeout_s bigint CHECK (timeout_s > 0),
    timeout_max_s bigint NOT NULL DEFAULT 86400 CHECK (timeout_max_s > 0), -- bounds meta.timeout
    max_silent_s bigint CHECK (max_silent_s > 0),
    output_bytes_max bigint CHECK (output_bytes_max > 0),
    log_bytes_max bigint CHECK (log_bytes_max > 0),
    -- Polling.
    poll_interval_s integer NOT NULL DEFAULT 0 CHECK (poll_interval_s >= 0), -- 0: off
    poll_pull_requests boolean NOT NULL DEFAULT false,
    next_poll_at timestamptz NOT NULL DEFAULT now(),
    last_poll_error text,
    leased_by text, -- who polls it
    leased_until timestamptz,
    -- The webhook at the forge: what should be, what is. `hook_url` is where we may have installed it, `hook_installed` that
    -- we know we did: a lost answer leaves the first.
    hook_wanted boolean NOT NULL DEFAULT false,
    hook_installed boolean NOT NULL DEFAULT false,
    hook_url text,
    hook_error text,
    hook_attempts integer NOT NULL DEFAULT 0, -- failures in a row
    hook_next_at timestamptz NOT NULL DEFAULT now(),
    -- Who sets it: apart from who polls, so that neither waits for the other.
    hook_leased_by text,
    hook_leased_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX projects_due_poll ON projects (next_poll_at) WHERE enabled AND poll_interval_s > 0;
CREATE INDEX projects_due_hook ON projects (hook_next_at)
    WHERE (hook_wanted AND NOT hook_installed) OR (NOT hook_wanted AND hook_url IS NOT NULL);

-- Limits of the builds of projects that have none of their own. A frontend writes what is configured when it starts.
CREATE TABLE default_limits (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    timeout_s bigint NOT NULL CHECK (timeout_s > 0),
    max_silent_s bigint NOT NULL CHECK (max_silent_s > 0),
    output_bytes_max bigint NOT NULL CHECK (output_bytes_max > 0),
    log_bytes_max bigint NOT NULL CHECK (log_bytes_max > 0),
    local_public boolean NOT NULL DEFAULT false -- whether projects without a forge are public
);
INSERT INTO default_limits (timeout_s, max_silent_s, output_bytes_max, log_bytes_max)
VALUES (14400, 1800, 4294967296, 67108864);

-- What polling saw last. `changes` makes the id of a synthetic delivery: going back to an older head is a change too.
CREATE TABLE poll_heads (
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    reference text NOT NULL, -- branch/NAME or pull/NUMBER
    state text NOT NULL, -- commit; of a pull request also what else matters
    changes bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (project_id, reference)
);

-- A delivery is taken in one statement and processed later; it is its own queue.
CREATE TABLE webhook_deliveries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    forge text NOT NULL,
    delivery_id text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    events jsonb NOT NULL DEFAULT '[]',
    repositories text[] NOT NULL DEFAULT '{}', -- full names, for the list of recent deliveries
    concerned boolean NOT NULL DEFAULT true, -- false: about no enabled project, so nothing was to be done
    state text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'done', 'dead')),
    outcome text,
    duration_ms integer,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_error text,
    finished_at timestamptz,
    leased_by text,
    leased_until timestamptz,
    UNIQUE (forge, delivery_id),
    CONSTRAINT finished_iff_not_queued CHECK ((state = 'queued') = (finished_at IS NULL))
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_attempt_at, id) WHERE state = 'queued';
-- The order in which deliveries are processed: a forge's before what polling found, then the oldest. Without this index each
-- claim sorted all that waited, which cost most of a processor while deliveries came faster than they were processed.
CREATE INDEX webhook_deliveries_queued ON webhook_deliveries (starts_with(delivery_id, 'poll:'), id)
    WHERE state = 'queued';
CREATE INDEX webhook_deliveries_recent ON webhook_deliveries (forge, id DESC);
CREATE INDEX webhook_deliveries_received ON webhook_deliveries (received_at) WHERE state || '' <> 'queued';
CREATE INDEX webhook_deliveries_dead ON webhook_deliveries (id DESC) WHERE state || '' = 'dead';
-- What was asked before such a delivery arrived is not to be relied on.
CREATE INDEX webhook_deliveries_permissions ON webhook_deliveries (forge, received_at)
    WHERE jsonb_path_exists(events, '$[*]."permissions-changed"');

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
    -- The newest delivery that had arrived before the forge was asked: what it said later outweighs what it said earlier.
    as_of bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, number)
);
CREATE INDEX pull_requests_waiting ON pull_requests (project_id, head_commit) WHERE waiting IS NOT NULL;

-- Heads in the order in which deliveries told of them: an approval counts for what was known before the comment arrived.
CREATE TABLE pull_request_heads (
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    number bigint NOT NULL,
    head_commit text NOT NULL,
    delivery_id bigint NOT NULL, -- the first that told of it; its place in the order
    arrived_at timestamptz NOT NULL DEFAULT now(),
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

-- Which delivery brought a comment's command first. A forge that delivers a comment again may give it another delivery id,
-- and later a place behind heads that its author never saw.
CREATE TABLE pull_request_commands (
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    comment_id text NOT NULL,
    delivery_id bigint NOT NULL,
    PRIMARY KEY (project_id, comment_id)
);

-- What a forge said of a user's permission; asked again after five minutes, forgotten when the forge says it changed.
CREATE TABLE forge_permissions (
    repository_id bigint NOT NULL REFERENCES repositories ON DELETE CASCADE,
    user_login text NOT NULL,
    permission text NOT NULL CHECK (permission IN ('none', 'read', 'write', 'admin')),
    asked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (repository_id, user_login)
);
