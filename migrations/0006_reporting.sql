-- What goes out. Statuses are a desired state, notifications a durable outbox. What changes a commit's state leaves a mark in
-- the same transaction; a frontend takes the marks, reads the rows as they are then, and writes what forges should show. Marks
-- are only ever added and removed, never changed, so that nobody who completes a job waits for anybody else's mark.
--
-- The last word is never lost: whoever computes removes the marks first and reads afterwards, in statements of their own. A
-- mark that was removed was committed before, and with it the change that it tells of, so the reading sees that change; a
-- mark that comes later stays for the next time.

-- Commits whose statuses may have changed. No key: a burst leaves many, one computation takes them all.
CREATE TABLE report_marks (
    project_id bigint NOT NULL,
    commit_sha text NOT NULL, -- of a pull request its head; empty: not known
    urgent boolean NOT NULL DEFAULT false, -- the first sign of life, which does not wait for a burst to end
    marked_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX report_marks_commit ON report_marks (project_id, commit_sha);

-- Jobs that came to an end or back from it. Whose commits that concerns is found when the marks are taken, so that ending a
-- job costs one insertion, whatever hangs on it. They also say how the totals of jobs change.
CREATE TABLE job_marks (
    job_id bigint, -- null: jobs that came or went, which concern no commit
    marked_at timestamptz NOT NULL DEFAULT now(),
    was text, -- as `counted_as` says it; null: not there
    became text,
    public boolean NOT NULL,
    jobs integer NOT NULL DEFAULT 1
);

-- How many jobs there are of each state, those that are held among the pending ones, but for the marks that were not taken yet:
-- nobody waits for anybody else's count. Apart, what strangers may see.
CREATE TABLE job_totals (
    status text,
    public boolean,
    jobs bigint NOT NULL,
    PRIMARY KEY (status, public)
);

-- Commits that were computed, for the slow sweep that looks after those that are not settled.
CREATE TABLE commit_reports (
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    commit_sha text NOT NULL,
    computed_at timestamptz NOT NULL DEFAULT now(),
    cost_ms integer NOT NULL DEFAULT 0, -- what is expensive is computed less often
    settled boolean NOT NULL,
    PRIMARY KEY (project_id, commit_sha)
);
CREATE INDEX commit_reports_unsettled ON commit_reports (computed_at) WHERE NOT settled;

-- What reporters were told of an evaluation, or would have been, had there been any.
CREATE TABLE evaluation_notifications (
    eval_id bigint PRIMARY KEY REFERENCES evaluations ON DELETE CASCADE,
    evaluation boolean, -- null: nothing yet; else whether it ended well
    builds boolean,
    rounds integer NOT NULL DEFAULT 0
);

-- Desired and delivered state of one commit's status. One leased row, so that two frontends cannot reorder.
CREATE TABLE commit_statuses (
    id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    repository_id bigint NOT NULL REFERENCES repositories ON DELETE CASCADE,
    commit_sha text NOT NULL,
    context text NOT NULL,
    attr text, -- of a status of one attribute
    desired_state text NOT NULL,
    desired_description text NOT NULL DEFAULT '',
    desired_summary text NOT NULL DEFAULT '',
    desired_annotations jsonb NOT NULL DEFAULT '[]',
    desired_url text,
    desired_started_at timestamptz,
    desired_finished_at timestamptz,
    desired_digest bytea NOT NULL DEFAULT '',
    desired_at timestamptz NOT NULL DEFAULT now(),
    delivered_state text,
    delivered_description text,
    delivered_url text,
    delivered_digest bytea,
    delivered_at timestamptz,
    dead_at timestamptz, -- the forge will never take it; another desired state is tried again
    ambiguous boolean NOT NULL DEFAULT false, -- the last answer was lost: assert again
    asserts integer NOT NULL DEFAULT 0, -- how often it is asserted again although the last answer was good
    attempts integer NOT NULL DEFAULT 0,
    denied boolean NOT NULL DEFAULT false, -- the last answer: refused until somebody changes a grant, credential or permission
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_error text,
    leased_by text,
    leased_until timestamptz,
    PRIMARY KEY (repository_id, commit_sha, context),
    CONSTRAINT leased_whole CHECK ((leased_by IS NULL) = (leased_until IS NULL))
);
CREATE INDEX commit_statuses_due ON commit_statuses (next_attempt_at)
    WHERE dead_at IS NULL AND (ambiguous OR delivered_digest IS DISTINCT FROM desired_digest);
CREATE INDEX commit_statuses_dead ON commit_statuses (id) WHERE dead_at IS NOT NULL;

-- Comments that we owe a pull request.
CREATE TABLE forge_comments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository_id bigint NOT NULL REFERENCES repositories ON DELETE CASCADE,
    number bigint NOT NULL,
    key text NOT NULL, -- unique for what it says
    body text NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    denied boolean NOT NULL DEFAULT false, -- the last answer: refused until somebody changes a grant, credential or permission
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_error text,
    delivered_at timestamptz,
    dead_at timestamptz,
    leased_by text,
    leased_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (repository_id, number, key)
);
CREATE INDEX forge_comments_due ON forge_comments (next_attempt_at) WHERE delivered_at IS NULL AND dead_at IS NULL;
CREATE INDEX forge_comments_dead ON forge_comments (id) WHERE dead_at IS NOT NULL;

-- Notifications to reporters. Of one project, a reporter hears in the order in which things happened.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reporter text NOT NULL,
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    dedup_key text NOT NULL,
    payload jsonb NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    denied boolean NOT NULL DEFAULT false, -- the last answer: refused until somebody changes a grant, credential or permission
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_error text,
    delivered_at timestamptz,
    dead_at timestamptz, -- given up; can be replayed
    leased_by text,
    leased_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (reporter, dedup_key)
);
CREATE INDEX outbox_undelivered ON outbox (reporter, project_id, id) WHERE delivered_at IS NULL AND dead_at IS NULL;
CREATE INDEX outbox_dead ON outbox (id) WHERE dead_at IS NOT NULL;

-- Forges and reporters that asked to be left alone, or do not answer anybody.
CREATE TABLE delivery_pauses (
    kind text NOT NULL CHECK (kind IN ('forge', 'reporter')),
    name text NOT NULL,
    until timestamptz NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (kind, name)
);
