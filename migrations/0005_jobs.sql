-- Layer 2, third part: what is to be built, by whom, and how it went.

CREATE TABLE nodes (
    id text PRIMARY KEY CHECK (id <> '' AND length(id) <= 200),
    -- Which run of the node's process speaks: only who registered it knows.
    incarnation bigint NOT NULL,
    -- SHA-256 of what the node keeps for itself: its name is nobody else's.
    secret_hash bytea NOT NULL CHECK (length(secret_hash) = 32),
    capabilities text[] NOT NULL,
    endpoint text,
    version text NOT NULL,
    systems text[] NOT NULL DEFAULT '{}',
    features text[] NOT NULL DEFAULT '{}',
    max_jobs integer NOT NULL CHECK (max_jobs >= 0),
    max_evals integer NOT NULL CHECK (max_evals >= 0),
    registered_at timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz NOT NULL DEFAULT now(),
    draining boolean NOT NULL DEFAULT false,
    paused text, -- why it claims nothing
    stopped boolean NOT NULL DEFAULT false, -- it said goodbye
    -- What the scheduling policy last failed with on this node; null: it works.
    policy_error text,
    -- Everything of an evaluator that decides what a tree evaluates to: programs, versions, settings.
    -- Null until this run has said it.
    engine text CHECK (length(engine) <= 1000),
    -- The classes that the node can run, kept here so that claims find them in a row that they read anyway.
    classes integer[] NOT NULL DEFAULT '{}',
    -- When it last revoked tokens; null: never, so there is nothing to look for.
    revoked_at timestamptz
);

-- Systems that builders offer, and when one last did: those of the last weeks are evaluated, whether a builder is there now or
-- not.
CREATE TABLE builder_systems (
    system text PRIMARY KEY,
    last_seen timestamptz NOT NULL
);

-- (system, sorted required features): what a node must offer. A claim touches jobs of its own classes only.
CREATE TABLE job_classes (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    system text NOT NULL,
    features text[] NOT NULL,
    -- When a node able to run it was last heard of; of a new class, when it was made.
    last_seen timestamptz NOT NULL DEFAULT now(),
    ever_seen boolean NOT NULL DEFAULT false,
    UNIQUE (system, features)
);

-- No CHECKs: PostgreSQL parses those of a table once a statement, which was a sixth of a claim. What they would look at, the
-- triggers in functions/jobs.sql look at.
CREATE TABLE build_jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    drv_path text NOT NULL UNIQUE REFERENCES derivations,
    project_id bigint NOT NULL REFERENCES projects, -- whose evaluation first wanted it
    class_id integer NOT NULL REFERENCES job_classes,
    -- As its derivation: said here, too, so that what counts jobs sees both in one row, under one lock.
    public boolean NOT NULL DEFAULT false,
    status text NOT NULL DEFAULT 'pending',
    failure_kind text,
    message text,
    exit_code integer,
    root_cause bigint REFERENCES build_jobs ON DELETE SET NULL, -- the failed job a dep-failed one goes back to
    priority integer NOT NULL DEFAULT 0,
    -- How many input derivations have a job that is not succeeded; kept for pending jobs only (invariant 2).
    unmet_deps integer NOT NULL DEFAULT 0,
    -- Jobs on the longest chain of jobs that wait for this one, itself included, as known when it was inserted.
    path_length integer NOT NULL DEFAULT 1,
    claimed_by text,
    claim_incarnation bigint,
    claim_token_hash bytea,
    attempt_id bigint, -- the attempt that holds it
    retry_count integer NOT NULL DEFAULT 0,
    lost_count integer NOT NULL DEFAULT 0,
    not_before timestamptz,
    avoid_node text, -- where it last failed transiently, while another node could take it
    -- Limits: the most generous that live evaluations ask for,
    timeout_s bigint NOT NULL,
    max_silent_s bigint NOT NULL,
    output_bytes_max bigint NOT NULL,
    log_bytes_max bigint NOT NULL,
    limits_of bigint, -- and the evaluation that alone asked for them; null: several did
    created_at timestamptz NOT NULL DEFAULT now(),
    queued_at timestamptz NOT NULL DEFAULT now(), -- inserted or last reset
    started_at timestamptz,
    finished_at timestamptz
) WITH (fillfactor = 80);
-- Every claim opens all indexes of what it writes, so they are few (decision 0011). An index of a part is for those who ask for
-- that part by its own words, `status || ''` and not `status` (decision 0016): to the planner it looks empty whenever it was
-- empty when statistics were made, so that it would begin there to find a single job.
-- The ready queue, boosted jobs first: a claim walks from class to project to head, whatever the queue's length; projects that
-- have nothing ready have no entry, so that none is probed in vain.
CREATE INDEX build_jobs_ready ON build_jobs (class_id, priority DESC, project_id, id)
    WHERE status || '' = 'pending' AND unmet_deps = 0;
CREATE INDEX build_jobs_held ON build_jobs (claimed_by) WHERE status || '' IN ('building', 'uploading');
CREATE INDEX build_jobs_waiting ON build_jobs (id) WHERE '' || status = 'pending';
-- What may come back by itself: dep-failed jobs of a cause, and, without a cause, unsupported ones of a class.
CREATE INDEX build_jobs_stopped ON build_jobs (root_cause, class_id)
    WHERE status || '' = 'dep-failed' OR failure_kind = 'unsupported';
CREATE INDEX build_jobs_project ON build_jobs (project_id, id DESC);

-- One row a try. `job_id` has no foreign key, which would lock the job once more (a tenth of a claim): a trigger takes a
-- job's attempts along. `token_hash` has no index: 32 random bytes need none to be unique, a statement that is tried again
-- did nothing the first time, and whoever revokes tokens finds their jobs among those of the node.
CREATE TABLE build_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL,
    token_hash bytea NOT NULL,
    node text NOT NULL,
    incarnation bigint NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    uploading_at timestamptz,
    finished_at timestamptz,
    outcome text NOT NULL DEFAULT 'running',
    failure_kind text,
    message text,
    exit_code integer,
    log_key text,
    peak_memory_bytes bigint,
    cpu_seconds double precision,
    build_seconds double precision,
    output_bytes bigint,
    charged_seconds double precision NOT NULL DEFAULT 0,
    charged_up boolean NOT NULL DEFAULT false, -- its end is charged, nothing more will come
    timeout_s bigint NOT NULL,
    max_silent_s bigint NOT NULL,
    output_bytes_max bigint NOT NULL
);
CREATE INDEX build_attempts_job ON build_attempts (job_id, id DESC);
-- Invariant 1: one attempt at a time holds a job.
CREATE UNIQUE INDEX build_attempts_one_running ON build_attempts (job_id) WHERE outcome || '' = 'running';
CREATE INDEX build_attempts_uncharged ON build_attempts (id) WHERE NOT charged_up;

-- Empty after a crash of the server, which may have forgotten the last claims and with them how far attempts were numbered:
-- the next claim leaves a gap, so that no number comes again (`skip_forgotten_attempts`).
CREATE UNLOGGED TABLE since_crash (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row)
);
INSERT INTO since_crash DEFAULT VALUES;

-- Tokens of claims whose answer a node did not get. It holds nothing under them and never will, not even when the claim
-- itself is still on its way here. Forgotten after a day.
CREATE TABLE revoked_claims (
    token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
    node text NOT NULL,
    revoked_at timestamptz NOT NULL DEFAULT now()
);

-- A digest of the queue, remade by whichever claim finds it too old. It spares claims the walks that grow with the past: over
-- index entries of jobs claimed long ago (which an old snapshot keeps from being cleaned up), and over all that runs. One
-- row, unlogged: worth nothing after a crash.
CREATE UNLOGGED TABLE queue_digest (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    fresh_until timestamptz NOT NULL,
    -- For each class and project with ready jobs of priority 0: the smallest id of those,
    classes integer[] NOT NULL,
    projects bigint[] NOT NULL,
    marks bigint[] NOT NULL,
    -- and what a policy may know of the project.
    shares integer[] NOT NULL,
    consumed_seconds double precision[] NOT NULL,
    running bigint[] NOT NULL
) WITH (fillfactor = 10);

-- The end of each running build's log. Unlogged: worth nothing after a crash.
CREATE UNLOGGED TABLE build_log_tails (
    attempt_id bigint PRIMARY KEY,
    job_id bigint NOT NULL,
    start_offset bigint NOT NULL CHECK (start_offset >= 0), -- of the first byte kept, in the whole log
    bytes bytea NOT NULL CHECK (length(bytes) <= 65536),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX build_log_tails_job ON build_log_tails (job_id);

-- Builders' word that an input is in no cache, or damaged in ours, until a signer looked (healing).
CREATE TABLE missing_path_reports (
    path text PRIMARY KEY,
    attempt_id bigint, -- null: a reader met it
    damaged boolean NOT NULL DEFAULT false, -- it is there, and its bytes are not what they should be
    reported_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX missing_path_reports_age ON missing_path_reports (reported_at);

-- Pending jobs that an evaluator must walk below before they can be built: what they lean on was in an upstream cache (or a
-- source was ours) and is gone. Each counts as one input that is not there. A table of its own, since claims pay for every
-- index of build_jobs.
CREATE TABLE job_walks (
    job_id bigint PRIMARY KEY REFERENCES build_jobs ON DELETE CASCADE,
    eval_id bigint NOT NULL, -- a live evaluation that wants it, in whose name it is walked
    tries integer NOT NULL DEFAULT 0,
    not_before timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX job_walks_eval ON job_walks (eval_id, not_before);

-- Interest that was withdrawn, until all jobs were looked at that it held (functions/withdrawals.sql). Whoever withdraws says so
-- here in the transaction that does it, so that nothing is forgotten if nobody comes back to it.
CREATE TABLE withdrawals (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    eval_id bigint, -- whose it was; null: of no evaluation
    roots text[], -- derivations that are wanted by one less; null: all that the evaluation names
    job_id bigint, -- a job that somebody cancels: it goes with what waits for it, and then the roots are looked at
    running boolean NOT NULL, -- what is being built stops, too
    spares_boosted boolean NOT NULL DEFAULT false, -- what somebody asked to rebuild stays
    message text NOT NULL,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    looked boolean NOT NULL DEFAULT false, -- what nobody wants any more is in withdrawn_jobs
    done_to bigint, -- up to this place nothing is left of that
    forsakes boolean NOT NULL DEFAULT false -- but for jobs that stay as they are
);
CREATE INDEX withdrawals_eval ON withdrawals (eval_id);
-- What nobody wanted when somebody looked, and what is above it. It goes from the top down, a batch at a time.
CREATE TABLE withdrawn_jobs (
    withdrawal_id bigint NOT NULL,
    job_id bigint NOT NULL,
    place bigint NOT NULL, -- dependents come first
    ended_at timestamptz, -- of one that failed: when it did
    forsaken boolean NOT NULL DEFAULT false, -- it stays as it is, and holds nothing
    PRIMARY KEY (withdrawal_id, job_id)
);
CREATE INDEX withdrawn_jobs_next ON withdrawn_jobs (withdrawal_id, place) WHERE NOT forsaken;

-- Who walks in the name of an evaluation, whether that runs or has ended.
CREATE TABLE walk_claims (
    eval_id bigint PRIMARY KEY,
    node text NOT NULL,
    token_hash bytea NOT NULL CHECK (length(token_hash) = 32),
    lease_until timestamptz NOT NULL
);
