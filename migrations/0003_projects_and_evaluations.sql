-- Layer 2, the CI layer, first part: who wants something built. Knows nothing of NAR hashes.

CREATE TABLE repositories (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    forge text NOT NULL,
    owner text NOT NULL,
    name text NOT NULL,
    full_name text NOT NULL,
    clone_url text NOT NULL,
    is_private boolean NOT NULL,
    default_branch text NOT NULL,
    last_synced timestamptz,
    UNIQUE (forge, full_name)
);

CREATE TABLE projects (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint UNIQUE REFERENCES repositories ON DELETE SET NULL,
    name text NOT NULL UNIQUE CHECK (name <> '' AND length(name) <= 200),
    kind text NOT NULL CHECK (kind IN ('forge', 'git', 'local')),
    url text CHECK ((kind = 'git') <= (url IS NOT NULL)), -- of a plain git project
    enabled boolean NOT NULL DEFAULT true,
    is_public boolean NOT NULL DEFAULT true,
    scheduling_shares integer NOT NULL DEFAULT 100 CHECK (scheduling_shares > 0),
    consumed_seconds double precision NOT NULL DEFAULT 0,
    pr_enabled boolean NOT NULL DEFAULT true,
    pr_trust text NOT NULL DEFAULT 'collaborators' CHECK (pr_trust IN ('collaborators', 'all', 'none')),
    poll_interval_s integer NOT NULL DEFAULT 0 CHECK (poll_interval_s >= 0), -- 0: off
    -- A build failure older than this is tried again by the next evaluation; null: never.
    failure_ttl_s bigint CHECK (failure_ttl_s > 0),
    -- Limits of its builds; null: those of default_limits.
    timeout_s bigint CHECK (timeout_s > 0),
    timeout_max_s bigint NOT NULL DEFAULT 86400 CHECK (timeout_max_s > 0), -- bounds meta.timeout
    max_silent_s bigint CHECK (max_silent_s > 0),
    output_bytes_max bigint CHECK (output_bytes_max > 0),
    log_bytes_max bigint CHECK (log_bytes_max > 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Limits of the builds of projects that have none of their own. A frontend writes what is configured when it starts.
CREATE TABLE default_limits (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    timeout_s bigint NOT NULL CHECK (timeout_s > 0),
    max_silent_s bigint NOT NULL CHECK (max_silent_s > 0),
    output_bytes_max bigint NOT NULL CHECK (output_bytes_max > 0),
    log_bytes_max bigint NOT NULL CHECK (log_bytes_max > 0)
);
INSERT INTO default_limits (timeout_s, max_silent_s, output_bytes_max, log_bytes_max)
VALUES (14400, 1800, 4294967296, 67108864);

-- Git bundles that `eval PATH` sends, in chunks so that nobody holds one in memory.
CREATE TABLE bundles (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    size_bytes bigint, -- null: still being sent
    sha256 bytea CHECK (length(sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((size_bytes IS NULL) = (sha256 IS NULL))
);
CREATE TABLE bundle_chunks (
    bundle_id bigint NOT NULL REFERENCES bundles ON DELETE CASCADE,
    seq integer NOT NULL CHECK (seq >= 0),
    bytes bytea NOT NULL CHECK (length(bytes) BETWEEN 1 AND 1048576),
    PRIMARY KEY (bundle_id, seq)
);
ALTER TABLE bundle_chunks ALTER COLUMN bytes SET STORAGE EXTERNAL; -- bundles are compressed already

CREATE TABLE evaluations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id bigint NOT NULL REFERENCES projects,
    source_kind text NOT NULL CHECK (source_kind IN ('bundle', 'git')),
    bundle_id bigint REFERENCES bundles ON DELETE SET NULL,
    flake_url text CHECK ((source_kind = 'git') <= (flake_url IS NOT NULL)),
    commit_sha text, -- null: the evaluator finds the branch's head
    branch text NOT NULL,
    tree_hash text,
    dirty boolean NOT NULL DEFAULT false,
    attrs_requested text[], -- null: what the tree says
    pr_number bigint,
    pr_author text,
    pr_head_sha text,
    pr_base_sha text,
    pr_merge_sha text,
    commit_title text,
    commit_author text,
    status text NOT NULL DEFAULT 'queued'
        CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'skipped')),
    skipped_reason text CHECK (skipped_reason IS NULL OR status = 'skipped'),
    reuses_eval_id bigint REFERENCES evaluations ON DELETE SET NULL,
    superseded_by bigint REFERENCES evaluations ON DELETE SET NULL,
    closed_at timestamptz, -- its branch or pull request is gone
    pinned boolean NOT NULL DEFAULT false,
    claimed_by text,
    claim_incarnation bigint,
    claim_token_hash bytea CHECK (length(claim_token_hash) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    error text,
    warnings text[] NOT NULL DEFAULT '{}',
    engine_log_key text,
    complete boolean NOT NULL DEFAULT false,
    allow_empty boolean NOT NULL DEFAULT false,
    attempt integer NOT NULL DEFAULT 1,
    lost_count integer NOT NULL DEFAULT 0,
    UNIQUE (project_id, commit_sha, branch, attempt),
    CHECK ((status = 'running') = (claim_token_hash IS NOT NULL)),
    CHECK ((status = 'running') = (claimed_by IS NOT NULL AND claim_incarnation IS NOT NULL)),
    CHECK ((status IN ('queued', 'running')) = (finished_at IS NULL)),
    CHECK (status <> 'failed' OR error IS NOT NULL),
    CHECK (NOT complete OR status IN ('succeeded', 'cancelled', 'skipped'))
);
CREATE INDEX evaluations_queued ON evaluations (id) WHERE status = 'queued';
CREATE INDEX evaluations_running ON evaluations (claimed_by) WHERE status = 'running';
CREATE INDEX evaluations_project ON evaluations (project_id, id DESC);
CREATE INDEX evaluations_unsuperseded ON evaluations (project_id, branch)
    WHERE superseded_by IS NULL AND closed_at IS NULL AND status IN ('queued', 'running', 'succeeded', 'skipped');

CREATE TABLE eval_attrs (
    eval_id bigint NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    attr text NOT NULL,
    drv_path text REFERENCES derivations,
    error text,
    cached boolean NOT NULL DEFAULT false, -- was available when it was evaluated: no job
    PRIMARY KEY (eval_id, attr),
    CHECK ((drv_path IS NULL) <> (error IS NULL))
);
CREATE INDEX eval_attrs_drv ON eval_attrs (drv_path) WHERE drv_path IS NOT NULL;

-- The names an evaluation is going to answer for.
CREATE TABLE eval_expected_attrs (
    eval_id bigint NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    attr text NOT NULL,
    PRIMARY KEY (eval_id, attr)
);

-- Roots of closures that are inserted in part, so that their jobs are wanted before the attribute's own row exists.
CREATE TABLE eval_holds (
    eval_id bigint NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    drv_path text NOT NULL,
    PRIMARY KEY (eval_id, drv_path)
);
CREATE INDEX eval_holds_drv ON eval_holds (drv_path);

-- What the engine printed, bounded by append_evaluation_log.
CREATE TABLE evaluation_log_chunks (
    eval_id bigint NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    seq integer NOT NULL,
    text text NOT NULL,
    PRIMARY KEY (eval_id, seq)
);

-- An evaluation is live while it wants its jobs (database.md, "Wanted is derived").
CREATE VIEW live_evaluations AS
    SELECT id, project_id, branch, coalesce(reuses_eval_id, id) AS attrs_of
    FROM evaluations
    WHERE superseded_by IS NULL AND closed_at IS NULL AND status IN ('queued', 'running', 'succeeded', 'skipped');
