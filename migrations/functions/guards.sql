-- What must hold of rows, whatever function or statement writes them: the state machine of jobs, attempts that end once,
-- store paths that are fixed within a generation.

CREATE OR REPLACE FUNCTION job_may_become(old_status text, new_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE old_status
        WHEN 'pending' THEN new_status IN ('building', 'succeeded', 'failed', 'cancelled', 'dep-failed')
        WHEN 'building' THEN new_status IN ('uploading', 'pending', 'failed', 'cancelled')
        WHEN 'uploading' THEN new_status IN ('succeeded', 'pending', 'failed', 'cancelled')
        ELSE new_status = 'pending' AND old_status IN ('succeeded', 'failed', 'dep-failed', 'cancelled')
    END
$$;

-- What must hold for every row. Inlined where it is used.
CREATE OR REPLACE FUNCTION job_is_sound(p_status text, p_kind text, p_cause bigint, p_unmet integer, p_claimed_by text,
    p_incarnation bigint, p_token_hash bytea, p_attempt bigint, p_finished_at timestamptz, p_path_length integer)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE p_status
            WHEN 'pending' THEN p_token_hash IS NULL AND p_kind IS NULL AND p_cause IS NULL AND p_finished_at IS NULL
            WHEN 'building' THEN p_token_hash IS NOT NULL AND p_kind IS NULL AND p_cause IS NULL AND p_finished_at IS NULL
            WHEN 'uploading' THEN p_token_hash IS NOT NULL AND p_kind IS NULL AND p_cause IS NULL AND p_finished_at IS NULL
            WHEN 'succeeded' THEN p_token_hash IS NULL AND p_kind IS NULL AND p_cause IS NULL AND p_finished_at IS NOT NULL
            WHEN 'cancelled' THEN p_token_hash IS NULL AND p_kind IS NULL AND p_cause IS NULL AND p_finished_at IS NOT NULL
            -- Its cause may have been deleted.
            WHEN 'dep-failed' THEN p_token_hash IS NULL AND p_kind IS NULL AND p_finished_at IS NOT NULL
            WHEN 'failed' THEN p_token_hash IS NULL AND p_cause IS NULL AND p_finished_at IS NOT NULL
                AND coalesce(p_kind IN ('build', 'timeout', 'limit', 'infrastructure', 'unsupported'), false)
            ELSE false END
        AND (p_token_hash IS NULL OR length(p_token_hash) = 32)
        AND (p_token_hash IS NULL) = (p_claimed_by IS NULL) AND (p_token_hash IS NULL) = (p_incarnation IS NULL)
        AND (p_token_hash IS NULL) = (p_attempt IS NULL)
        AND p_unmet >= 0 AND (p_unmet = 0 OR p_status = 'pending') AND p_path_length >= 1
$$;

-- The state machine (core's JobStatus::may_become) and what each state carries. That a held job has a running attempt with its
-- token, and the reverse (invariant 1), is what the sweep looks at.
--
-- Every claim comes through the guards. Entering a function that sets something costs more than what these do, so they name
-- the schema instead; and claims have a short way.
CREATE OR REPLACE FUNCTION guard_build_job() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    -- Claims come here thousands of times a second: one expression, and out.
    IF OLD.status = 'pending' AND NEW.status = 'building' THEN
        IF OLD.unmet_deps = 0 AND NEW.unmet_deps = 0 AND length(NEW.claim_token_hash) = 32 AND NEW.attempt_id IS NOT NULL
            AND NEW.claimed_by IS NOT NULL AND NEW.claim_incarnation IS NOT NULL AND NEW.failure_kind IS NULL
            AND NEW.root_cause IS NULL AND NEW.finished_at IS NULL
        THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'job %: not ready, or claimed without an attempt', OLD.id USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.status = OLD.status THEN
        IF NEW.claim_token_hash IS DISTINCT FROM OLD.claim_token_hash OR NEW.attempt_id IS DISTINCT FROM OLD.attempt_id THEN
            RAISE EXCEPTION 'job %: a claim may not change hands', OLD.id USING ERRCODE = 'check_violation';
        END IF;
    ELSE
        IF NOT public.job_may_become(OLD.status, NEW.status) THEN
            RAISE EXCEPTION 'job %: % may not become %', OLD.id, OLD.status, NEW.status USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.status = 'uploading' THEN
            IF (NEW.claim_token_hash, NEW.attempt_id, NEW.claimed_by)
                IS DISTINCT FROM (OLD.claim_token_hash, OLD.attempt_id, OLD.claimed_by)
            THEN
                RAISE EXCEPTION 'job %: a claim may not change hands', OLD.id USING ERRCODE = 'check_violation';
            END IF;
        ELSIF OLD.status IN ('building', 'uploading') THEN
            NEW.claimed_by := NULL;
            NEW.claim_incarnation := NULL;
            NEW.claim_token_hash := NULL;
            NEW.attempt_id := NULL;
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
        NEW.finished_at := CASE WHEN NEW.status IN ('succeeded', 'failed', 'cancelled', 'dep-failed')
            THEN coalesce(NEW.finished_at, now()) END;
        -- Became terminal, or is to be built again: statuses of forges may change.
        IF NEW.finished_at IS NOT NULL OR OLD.finished_at IS NOT NULL THEN
            PERFORM public.mark_job(NEW.id, NEW.public, OLD.status, NEW.status);
        END IF;
    END IF;
    IF NOT public.job_is_sound(NEW.status, NEW.failure_kind, NEW.root_cause, NEW.unmet_deps, NEW.claimed_by, NEW.claim_incarnation,
        NEW.claim_token_hash, NEW.attempt_id, NEW.finished_at, NEW.path_length)
    THEN
        RAISE EXCEPTION 'job %: what it carries does not belong to %', OLD.id, NEW.status USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER build_jobs_guard BEFORE UPDATE OF status, failure_kind, root_cause, claimed_by, claim_incarnation,
    claim_token_hash, attempt_id, finished_at ON build_jobs
    FOR EACH ROW EXECUTE FUNCTION guard_build_job();

CREATE OR REPLACE FUNCTION refuse_build_job() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'job %: what it carries does not belong to %', NEW.id, NEW.status USING ERRCODE = 'check_violation';
END
$$;
-- (A trigger's WHEN is parsed once a statement, but not by claims: these are for rows that are inserted, counted or boosted.)
CREATE OR REPLACE TRIGGER build_jobs_refuse BEFORE INSERT ON build_jobs
    FOR EACH ROW WHEN (NOT job_is_sound(NEW.status, NEW.failure_kind, NEW.root_cause, NEW.unmet_deps, NEW.claimed_by,
        NEW.claim_incarnation, NEW.claim_token_hash, NEW.attempt_id, NEW.finished_at, NEW.path_length))
    EXECUTE FUNCTION refuse_build_job();
-- Counting is done to many rows at once.
CREATE OR REPLACE TRIGGER build_jobs_refuse_count BEFORE UPDATE OF unmet_deps, path_length ON build_jobs
    FOR EACH ROW WHEN (NEW.unmet_deps < 0 OR (NEW.unmet_deps <> 0 AND NEW.status <> 'pending') OR NEW.path_length < 1)
    EXECUTE FUNCTION refuse_build_job();
-- A boost puts first, nothing puts last.
CREATE OR REPLACE TRIGGER build_jobs_refuse_priority BEFORE INSERT OR UPDATE OF priority ON build_jobs
    FOR EACH ROW WHEN (NEW.priority < 0) EXECUTE FUNCTION refuse_build_job();

-- An attempt's end is final, its token never changes, and it ended if and only if it has an outcome.
CREATE OR REPLACE FUNCTION guard_build_attempt() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND (NEW.token_hash <> OLD.token_hash OR NEW.job_id <> OLD.job_id
        OR (OLD.outcome <> 'running' AND NEW.outcome <> OLD.outcome))
    THEN
        RAISE EXCEPTION 'attempt %: % is final', OLD.id, OLD.outcome USING ERRCODE = 'check_violation';
    END IF;
    IF length(NEW.token_hash) <> 32 OR (NEW.outcome = 'running') <> (NEW.finished_at IS NULL)
        OR NEW.outcome NOT IN ('running', 'succeeded', 'failed', 'transient', 'aborted', 'lost')
        OR NEW.failure_kind NOT IN ('build', 'timeout', 'limit', 'infrastructure', 'unsupported')
    THEN
        RAISE EXCEPTION 'attempt %: what it carries does not belong to %', NEW.id, NEW.outcome USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER build_attempts_guard BEFORE UPDATE ON build_attempts
    FOR EACH ROW EXECUTE FUNCTION guard_build_attempt();

-- An attempt begins running.
CREATE OR REPLACE FUNCTION refuse_build_attempt() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'attempt %: what it carries does not belong to a new one', NEW.id USING ERRCODE = 'check_violation';
END
$$;
CREATE OR REPLACE TRIGGER build_attempts_refuse BEFORE INSERT ON build_attempts
    FOR EACH ROW WHEN (NEW.outcome <> 'running' OR NEW.finished_at IS NOT NULL OR length(NEW.token_hash) <> 32)
    EXECUTE FUNCTION refuse_build_attempt();

CREATE OR REPLACE FUNCTION forget_attempts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM build_attempts WHERE job_id IN (SELECT id FROM gone);
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER build_jobs_forget_attempts AFTER DELETE ON build_jobs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION forget_attempts();

-- Invariant 4: within a generation, what a path is never changes. A new generation begins only with a lost path.
CREATE OR REPLACE FUNCTION guard_store_path() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF NEW.generation = OLD.generation THEN
        IF (NEW.nar_hash, NEW.nar_size, NEW.refs, NEW.file_hash, NEW.file_size) IS DISTINCT FROM
           (OLD.nar_hash, OLD.nar_size, OLD.refs, OLD.file_hash, OLD.file_size)
           OR NEW.producing_attempt IS DISTINCT FROM OLD.producing_attempt
           OR NEW.ca IS DISTINCT FROM OLD.ca
        THEN
            RAISE EXCEPTION 'store path %: generation % is fixed and cannot change', OLD.path, OLD.generation
                USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.state IS DISTINCT FROM OLD.state AND (OLD.state, NEW.state) NOT IN
           (('claimed', 'published'), ('claimed', 'lost'), ('published', 'lost'))
        THEN
            RAISE EXCEPTION 'store path %: % may not become % in one generation', OLD.path, OLD.state, NEW.state
                USING ERRCODE = 'check_violation';
        END IF;
    ELSIF NEW.generation <> OLD.generation + 1 OR OLD.state <> 'lost' OR NEW.state <> 'claimed' THEN
        RAISE EXCEPTION 'store path %: generation % begins only as claimed after a loss', OLD.path, NEW.generation
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER store_paths_guard BEFORE UPDATE ON store_paths
    FOR EACH ROW EXECUTE FUNCTION guard_store_path();

-- What an evaluation is to answer for is asked while it runs. Afterwards its attributes tell, and how many they were.
CREATE OR REPLACE FUNCTION forget_expected_attrs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM eval_expected_attrs WHERE eval_id = NEW.id;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER evaluations_forget_expected AFTER UPDATE OF status ON evaluations
    FOR EACH ROW WHEN (OLD.status = 'running' AND NEW.status <> 'running') EXECUTE FUNCTION forget_expected_attrs();
