-- Layer 2, second part: what is to be built, by whom, and how it went.

CREATE TABLE nodes (
    id text PRIMARY KEY CHECK (id <> '' AND length(id) <= 200),
    incarnation bigint NOT NULL,
    capabilities text[] NOT NULL,
    endpoint text,
    systems text[] NOT NULL DEFAULT '{}',
    features text[] NOT NULL DEFAULT '{}',
    max_jobs integer NOT NULL CHECK (max_jobs >= 0),
    max_evals integer NOT NULL CHECK (max_evals >= 0),
    speed_factor double precision NOT NULL DEFAULT 1,
    registered_at timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz NOT NULL DEFAULT now(),
    draining boolean NOT NULL DEFAULT false,
    paused text, -- why it claims nothing
    stopped boolean NOT NULL DEFAULT false, -- it said goodbye
    version text NOT NULL
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

CREATE TABLE build_jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    drv_path text NOT NULL UNIQUE REFERENCES derivations,
    project_id bigint NOT NULL REFERENCES projects, -- whose evaluation first wanted it
    class_id integer NOT NULL REFERENCES job_classes,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN
        ('pending', 'building', 'uploading', 'succeeded', 'failed', 'cancelled', 'dep-failed')),
    failure_kind text CHECK (failure_kind IN ('build', 'timeout', 'limit', 'infrastructure', 'unsupported')),
    message text,
    exit_code integer,
    root_cause bigint REFERENCES build_jobs ON DELETE SET NULL, -- the failed job a dep-failed one goes back to
    priority integer NOT NULL DEFAULT 0,
    -- How many input derivations have a job that is not succeeded; kept for pending jobs only (invariant 2).
    unmet_deps integer NOT NULL DEFAULT 0 CHECK (unmet_deps >= 0),
    claimed_by text,
    claim_incarnation bigint,
    claim_token_hash bytea CHECK (length(claim_token_hash) = 32),
    attempt_id bigint, -- the attempt that holds it
    retry_count integer NOT NULL DEFAULT 0,
    lost_count integer NOT NULL DEFAULT 0,
    not_before timestamptz,
    avoid_node text, -- where it last failed transiently, while another node could take it
    -- Limits of the most generous project that wants it.
    timeout_s bigint NOT NULL,
    max_silent_s bigint NOT NULL,
    output_bytes_max bigint NOT NULL,
    log_bytes_max bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    queued_at timestamptz NOT NULL DEFAULT now(), -- inserted or last reset
    started_at timestamptz,
    finished_at timestamptz,
    CONSTRAINT claimed_iff_held CHECK ((status IN ('building', 'uploading')) = (claim_token_hash IS NOT NULL)
        AND (claim_token_hash IS NULL) = (claimed_by IS NULL)
        AND (claim_token_hash IS NULL) = (claim_incarnation IS NULL)
        AND (claim_token_hash IS NULL) = (attempt_id IS NULL)),
    CONSTRAINT kind_iff_failed CHECK ((status = 'failed') = (failure_kind IS NOT NULL)),
    CONSTRAINT cause_only_of_dep_failed CHECK (root_cause IS NULL OR status = 'dep-failed'),
    CONSTRAINT counted_only_while_pending CHECK (status = 'pending' OR unmet_deps = 0),
    CONSTRAINT finished_iff_terminal CHECK
        ((status IN ('succeeded', 'failed', 'cancelled', 'dep-failed')) = (finished_at IS NOT NULL))
) WITH (fillfactor = 80);
-- The ready queue: a claim walks from class to project to head, whatever the queue's length; projects that have
-- nothing ready have no entry, so that none is probed in vain.
CREATE INDEX build_jobs_ready ON build_jobs (class_id, project_id, priority DESC, id)
    WHERE status = 'pending' AND unmet_deps = 0;
CREATE INDEX build_jobs_held ON build_jobs (claimed_by) WHERE status IN ('building', 'uploading');
CREATE INDEX build_jobs_unsupported ON build_jobs (class_id) WHERE status = 'failed' AND failure_kind = 'unsupported';
CREATE INDEX build_jobs_waiting ON build_jobs (id) WHERE status = 'pending';
CREATE INDEX build_jobs_dep_failed ON build_jobs (root_cause) WHERE status = 'dep-failed';
CREATE INDEX build_jobs_project ON build_jobs (project_id, id DESC);

CREATE TABLE build_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id bigint NOT NULL REFERENCES build_jobs ON DELETE CASCADE,
    token_hash bytea NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    node text NOT NULL,
    incarnation bigint NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    uploading_at timestamptz,
    finished_at timestamptz,
    outcome text NOT NULL DEFAULT 'running'
        CHECK (outcome IN ('running', 'succeeded', 'failed', 'transient', 'aborted', 'lost')),
    failure_kind text CHECK (failure_kind IN ('build', 'timeout', 'limit', 'infrastructure', 'unsupported')),
    message text,
    exit_code integer,
    log_key text,
    peak_memory_bytes bigint,
    cpu_seconds double precision,
    build_seconds double precision,
    output_bytes bigint,
    charged_seconds double precision NOT NULL DEFAULT 0,
    timeout_s bigint NOT NULL,
    max_silent_s bigint NOT NULL,
    output_bytes_max bigint NOT NULL,
    CHECK ((outcome = 'running') = (finished_at IS NULL))
);
CREATE INDEX build_attempts_job ON build_attempts (job_id, id DESC);
-- Invariant 1: one attempt at a time holds a job.
CREATE UNIQUE INDEX build_attempts_one_running ON build_attempts (job_id) WHERE outcome = 'running';

-- Tokens of claims whose answer a node did not get. It holds nothing under them and never will, not even when the claim
-- itself is still on its way here. Forgotten after a day.
CREATE TABLE disowned_claims (
    token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
    node text NOT NULL,
    disowned_at timestamptz NOT NULL DEFAULT now()
);

-- The end of each running build's log. Unlogged: worth nothing after a crash.
CREATE UNLOGGED TABLE build_log_tails (
    attempt_id bigint PRIMARY KEY,
    job_id bigint NOT NULL,
    start_offset bigint NOT NULL CHECK (start_offset >= 0), -- of the first byte kept, in the whole log
    bytes bytea NOT NULL CHECK (length(bytes) <= 65536),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX build_log_tails_job ON build_log_tails (job_id);

-- Builders' word that an input is in no cache, until a signer looked (healing).
CREATE TABLE missing_path_reports (
    path text PRIMARY KEY,
    attempt_id bigint NOT NULL,
    reported_at timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION job_may_become(old_status text, new_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE old_status
        WHEN 'pending' THEN new_status IN ('building', 'succeeded', 'failed', 'cancelled', 'dep-failed')
        WHEN 'building' THEN new_status IN ('uploading', 'pending', 'failed', 'cancelled')
        WHEN 'uploading' THEN new_status IN ('succeeded', 'pending', 'failed', 'cancelled')
        ELSE new_status = 'pending' AND old_status IN ('succeeded', 'failed', 'dep-failed', 'cancelled')
    END
$$;

-- The state machine (core's JobStatus::may_become), what each state carries, and invariant 1.
CREATE FUNCTION guard_build_job() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF NEW.status = OLD.status THEN
        IF NEW.claim_token_hash IS DISTINCT FROM OLD.claim_token_hash OR NEW.attempt_id IS DISTINCT FROM OLD.attempt_id THEN
            RAISE EXCEPTION 'job %: a claim may not change hands', OLD.id USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF NOT job_may_become(OLD.status, NEW.status) THEN
        RAISE EXCEPTION 'job %: % may not become %', OLD.id, OLD.status, NEW.status USING ERRCODE = 'check_violation';
    END IF;
    IF OLD.status IN ('building', 'uploading') AND NEW.status <> 'uploading' THEN
        NEW.claimed_by := NULL;
        NEW.claim_incarnation := NULL;
        NEW.claim_token_hash := NULL;
        NEW.attempt_id := NULL;
    ELSIF OLD.status = 'building' AND (NEW.claim_token_hash, NEW.attempt_id, NEW.claimed_by)
        IS DISTINCT FROM (OLD.claim_token_hash, OLD.attempt_id, OLD.claimed_by)
    THEN
        RAISE EXCEPTION 'job %: a claim may not change hands', OLD.id USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.status = 'building' AND (OLD.unmet_deps <> 0 OR NOT EXISTS
        (SELECT FROM build_attempts a WHERE a.id = NEW.attempt_id AND a.job_id = NEW.id
            AND a.outcome = 'running' AND a.token_hash = NEW.claim_token_hash))
    THEN
        RAISE EXCEPTION 'job %: not ready, or claimed without an attempt', OLD.id USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.status <> 'pending' THEN
        NEW.unmet_deps := 0;
    END IF;
    IF NEW.status <> 'failed' THEN
        NEW.failure_kind := NULL;
    END IF;
    IF NEW.status <> 'dep-failed' THEN
        NEW.root_cause := NULL;
    END IF;
    IF NEW.status IN ('succeeded', 'failed', 'cancelled', 'dep-failed') THEN
        NEW.finished_at := coalesce(NEW.finished_at, now());
    ELSE
        NEW.finished_at := NULL;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER build_jobs_guard BEFORE UPDATE ON build_jobs
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status
        OR OLD.claim_token_hash IS DISTINCT FROM NEW.claim_token_hash OR OLD.attempt_id IS DISTINCT FROM NEW.attempt_id)
    EXECUTE FUNCTION guard_build_job();

-- An attempt's end is final, and its token never changes.
CREATE FUNCTION guard_build_attempt() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF NEW.token_hash <> OLD.token_hash OR NEW.job_id <> OLD.job_id
        OR (OLD.outcome <> 'running' AND NEW.outcome <> OLD.outcome)
    THEN
        RAISE EXCEPTION 'attempt %: % is final', OLD.id, OLD.outcome USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER build_attempts_guard BEFORE UPDATE ON build_attempts
    FOR EACH ROW EXECUTE FUNCTION guard_build_attempt();
