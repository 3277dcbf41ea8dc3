-- Layer 2, second part: what was evaluated, and what it wants.

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
    -- What.
    source_kind text NOT NULL CHECK (source_kind IN ('bundle', 'git')),
    bundle_id bigint REFERENCES bundles ON DELETE SET NULL,
    flake_url text CHECK ((source_kind = 'git') <= (flake_url IS NOT NULL)),
    commit_sha text, -- null: the evaluator finds the branch's head
    branch text NOT NULL,
    is_tag boolean NOT NULL DEFAULT false,
    dirty boolean NOT NULL DEFAULT false,
    attrs_requested text[], -- null: what the tree says
    -- Of some attributes, or of a tree that is no commit's: it says nothing about the branch, and takes no full one's place.
    is_part boolean NOT NULL GENERATED ALWAYS AS (dirty OR attrs_requested IS NOT NULL) STORED,
    commit_title text,
    commit_author text,
    pr_number bigint,
    pr_author text,
    pr_head_sha text,
    pr_head_ref text, -- from which git fetches the head out of the base repository
    pr_base_branch text,
    pr_base_sha text,
    pr_merge_sha text,
    delivery_id bigint, -- which asked for it
    attempt integer NOT NULL DEFAULT 1,
    -- What became of it.
    status text NOT NULL DEFAULT 'queued'
        CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'skipped')),
    skipped_reason text CHECK (skipped_reason IS NULL OR status = 'skipped'),
    error text,
    warnings text[] NOT NULL DEFAULT '{}',
    engine_log_key text,
    complete boolean NOT NULL DEFAULT false,
    attr_count integer, -- how many attributes it had when it was finished
    allow_empty boolean NOT NULL DEFAULT false,
    superseded_by bigint REFERENCES evaluations ON DELETE SET NULL,
    closed_at timestamptz, -- its branch or pull request is gone
    pinned boolean NOT NULL DEFAULT false,
    -- Its tree, and whether another evaluation of the same tree may show its results.
    tree_hash text,
    source_path text, -- store path of its tree, to find its files in errors
    reuses_eval_id bigint REFERENCES evaluations ON DELETE SET NULL,
    -- What decides, with the tree, what an evaluation yields; null: not known.
    reuse_key text,
    -- Whether a derivation or file contains the commit's hash or date, so that another commit with the same tree differs.
    -- Null: not examined, which counts as yes.
    embeds_commit boolean,
    claimed_by text,
    claim_incarnation bigint,
    claim_token_hash bytea CHECK (length(claim_token_hash) = 32),
    claimed_at timestamptz, -- when an evaluator last took it
    evaluated_by text, -- the node that did; its store has the .drv files
    lost_count integer NOT NULL DEFAULT 0, -- how often its evaluator ended without stopping
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    -- What cannot be fetched now (a forge is down or asks to be left alone, or no frontend can be asked for a credential) goes
    -- back to the queue with a time before which nobody takes it: that says nothing about the commit. How long, and when it has
    -- been too long, is decided by a pure function (host/core/src/retry.rs).
    not_before timestamptz, -- nobody claims it before; null: at any time
    wait_reason text, -- why it was put off the last time
    waiting_since timestamptz, -- when it was put off for the first time
    wait_count integer NOT NULL DEFAULT 0,
    CHECK ((status = 'running') = (claim_token_hash IS NOT NULL)),
    CHECK ((status = 'running') = (claimed_by IS NOT NULL AND claim_incarnation IS NOT NULL)),
    CHECK ((status IN ('queued', 'running')) = (finished_at IS NULL)),
    CHECK (status <> 'failed' OR error IS NOT NULL),
    CHECK (NOT complete OR status IN ('succeeded', 'cancelled', 'skipped')),
    CONSTRAINT pull_request_whole CHECK ((pr_number IS NULL) = (pr_head_sha IS NULL)
        AND (pr_number IS NULL) = (pr_base_branch IS NULL)),
    CONSTRAINT waiting_whole CHECK (wait_count >= 0
        AND (wait_count = 0) = (waiting_since IS NULL)
        AND (wait_count = 0) = (not_before IS NULL)
        AND (wait_count = 0) = (wait_reason IS NULL))
);
-- Attempts are counted for each branch, tag and pull request, also where they have one name.
CREATE UNIQUE INDEX evaluations_attempt
    ON evaluations (project_id, commit_sha, branch, is_tag, coalesce(pr_number, 0), attempt);
-- Indexes of a part are asked for by their own words (decision 0016).
CREATE INDEX evaluations_queued ON evaluations (id) WHERE status || '' = 'queued';
CREATE INDEX evaluations_running ON evaluations (claimed_by) WHERE status || '' = 'running';
CREATE INDEX evaluations_project ON evaluations (project_id, id DESC);
CREATE INDEX evaluations_served ON evaluations (project_id, claimed_at) WHERE claimed_at IS NOT NULL;
CREATE INDEX evaluations_branch ON evaluations (project_id, branch, id DESC);
CREATE INDEX evaluations_newest ON evaluations (project_id, branch, is_tag, id DESC);
CREATE INDEX evaluations_commit ON evaluations (project_id, commit_sha);
CREATE INDEX evaluations_head ON evaluations (project_id, pr_head_sha) WHERE pr_head_sha IS NOT NULL;
CREATE INDEX evaluations_unsuperseded ON evaluations (project_id, branch)
    WHERE superseded_by IS NULL AND closed_at IS NULL AND status || '' IN ('queued', 'running', 'succeeded', 'skipped');
CREATE INDEX evaluations_tree ON evaluations (project_id, tree_hash, id DESC)
    WHERE tree_hash IS NOT NULL AND status = 'succeeded' AND complete AND embeds_commit = false;
CREATE INDEX evaluations_reusing ON evaluations (reuses_eval_id) WHERE reuses_eval_id IS NOT NULL;

-- How many attributes of an evaluation stand where that ended with everything it shows (decision 0021): total, succeeded, failed,
-- dep-failed, not evaluated, cancelled. Null: somebody is counting. Gone as soon as one of them may change (functions/counts.sql).
CREATE TABLE settled_counts (
    eval_id bigint PRIMARY KEY REFERENCES evaluations ON DELETE CASCADE,
    counts bigint[] CHECK (cardinality(counts) = 6)
);

-- Numbers of changes that somebody saw while looking at an evaluation (decision 0021): the same on every node.
CREATE SEQUENCE evaluation_revisions;

CREATE TABLE eval_attrs (
    eval_id bigint NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    attr text NOT NULL,
    drv_path text REFERENCES derivations,
    error text,
    cached boolean NOT NULL DEFAULT false, -- was available when it was evaluated: no job
    -- What its `meta` asks for its derivation; null: what the project has.
    timeout_s bigint CHECK (timeout_s > 0),
    max_silent_s bigint CHECK (max_silent_s > 0),
    PRIMARY KEY (eval_id, attr),
    CHECK ((drv_path IS NULL) <> (error IS NULL))
);
CREATE INDEX eval_attrs_drv ON eval_attrs (drv_path, eval_id) WHERE drv_path IS NOT NULL;

-- The names that an evaluation which runs is going to answer for.
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

-- An evaluation is live while it wants its jobs. Whether a job is wanted is derived from that, never remembered.
CREATE VIEW live_evaluations AS
    SELECT id, project_id, branch, is_tag, pr_number, coalesce(reuses_eval_id, id) AS attrs_of
    FROM evaluations
    WHERE superseded_by IS NULL AND closed_at IS NULL AND status IN ('queued', 'running', 'succeeded', 'skipped');
