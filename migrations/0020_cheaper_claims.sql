-- Claims that cost half: what CHECKs refused is refused by triggers, what a claim looks up is less, and a builder may claim
-- from an order that is some moments old.

-- PostgreSQL parses the CHECKs of a table once a statement, which was a sixth of a claim. The guard below looks at what they
-- looked at, and so does one trigger for rows that are inserted or counted (whose WHEN, too, is parsed once a statement,
-- but not by claims).
ALTER TABLE build_jobs
    DROP CONSTRAINT build_jobs_status_check,
    DROP CONSTRAINT build_jobs_failure_kind_check,
    DROP CONSTRAINT build_jobs_unmet_deps_check,
    DROP CONSTRAINT build_jobs_claim_token_hash_check,
    DROP CONSTRAINT build_jobs_path_length_check,
    DROP CONSTRAINT claimed_iff_held,
    DROP CONSTRAINT kind_iff_failed,
    DROP CONSTRAINT cause_only_of_dep_failed,
    DROP CONSTRAINT counted_only_while_pending,
    DROP CONSTRAINT finished_iff_terminal;
ALTER TABLE build_attempts
    DROP CONSTRAINT build_attempts_token_hash_check,
    DROP CONSTRAINT build_attempts_outcome_check,
    DROP CONSTRAINT build_attempts_failure_kind_check,
    DROP CONSTRAINT build_attempts_check,
    -- A tenth of a claim: it locked the job once more, which the claim has locked already, and the guard of jobs looks for the
    -- attempt anyway. What is left of it is below: a job takes its attempts along.
    DROP CONSTRAINT build_attempts_job_id_fkey;
CREATE FUNCTION forget_attempts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM build_attempts WHERE job_id IN (SELECT id FROM gone);
    RETURN NULL;
END
$$;
CREATE TRIGGER build_jobs_forget_attempts AFTER DELETE ON build_jobs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION forget_attempts();

-- What must hold for every row. Inlined where it is used.
CREATE FUNCTION job_is_sound(p_status text, p_kind text, p_cause bigint, p_unmet integer, p_claimed_by text,
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

-- (Every claim comes through the guards. Entering a function that sets something costs more than what these do, so they name
-- the schema instead.)
CREATE OR REPLACE FUNCTION guard_build_job() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = OLD.status THEN
        IF NEW.claim_token_hash IS DISTINCT FROM OLD.claim_token_hash OR NEW.attempt_id IS DISTINCT FROM OLD.attempt_id THEN
            RAISE EXCEPTION 'job %: a claim may not change hands', OLD.id USING ERRCODE = 'check_violation';
        END IF;
    ELSE
        IF NOT public.job_may_become(OLD.status, NEW.status) THEN
            RAISE EXCEPTION 'job %: % may not become %', OLD.id, OLD.status, NEW.status USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.status = 'building' THEN
            IF OLD.unmet_deps <> 0 OR NOT EXISTS (SELECT FROM public.build_attempts a WHERE a.id = NEW.attempt_id
                AND a.job_id = NEW.id AND a.outcome = 'running' AND a.token_hash = NEW.claim_token_hash)
            THEN
                RAISE EXCEPTION 'job %: not ready, or claimed without an attempt', OLD.id USING ERRCODE = 'check_violation';
            END IF;
        ELSIF NEW.status = 'uploading' THEN
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
    END IF;
    IF NOT public.job_is_sound(NEW.status, NEW.failure_kind, NEW.root_cause, NEW.unmet_deps, NEW.claimed_by, NEW.claim_incarnation,
        NEW.claim_token_hash, NEW.attempt_id, NEW.finished_at, NEW.path_length)
    THEN
        RAISE EXCEPTION 'job %: what it carries does not belong to %', OLD.id, NEW.status USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
DROP TRIGGER build_jobs_guard ON build_jobs;
CREATE TRIGGER build_jobs_guard BEFORE UPDATE OF status, failure_kind, root_cause, claimed_by, claim_incarnation,
    claim_token_hash, attempt_id, finished_at ON build_jobs
    FOR EACH ROW EXECUTE FUNCTION guard_build_job();

CREATE FUNCTION refuse_build_job() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'job %: what it carries does not belong to %', NEW.id, NEW.status USING ERRCODE = 'check_violation';
END
$$;
CREATE TRIGGER build_jobs_refuse BEFORE INSERT ON build_jobs
    FOR EACH ROW WHEN (NOT job_is_sound(NEW.status, NEW.failure_kind, NEW.root_cause, NEW.unmet_deps, NEW.claimed_by,
        NEW.claim_incarnation, NEW.claim_token_hash, NEW.attempt_id, NEW.finished_at, NEW.path_length))
    EXECUTE FUNCTION refuse_build_job();
-- Counting is done to many rows at once.
CREATE TRIGGER build_jobs_refuse_count BEFORE UPDATE OF unmet_deps, path_length ON build_jobs
    FOR EACH ROW WHEN (NEW.unmet_deps < 0 OR (NEW.unmet_deps <> 0 AND NEW.status <> 'pending') OR NEW.path_length < 1)
    EXECUTE FUNCTION refuse_build_job();

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
DROP TRIGGER build_attempts_guard ON build_attempts;
CREATE TRIGGER build_attempts_guard BEFORE INSERT OR UPDATE ON build_attempts
    FOR EACH ROW EXECUTE FUNCTION guard_build_attempt();

-- As in 0015, but looking no further down `p_ordered` than it must. When that order is one that the caller kept (`p_kept`),
-- nothing is claimed while boosted jobs are ready for the node: it has to look at the queue again, where they go first.
DROP FUNCTION claim_jobs(text, bigint, bigint[], bytea[]);
CREATE FUNCTION claim_jobs(p_node text, p_incarnation bigint, p_ordered bigint[], p_token_hashes bytea[], p_kept boolean)
RETURNS TABLE (job_id bigint, attempt_id bigint, token_index integer, drv_path text, name text, system text, project text,
    output_names text[], output_paths text[], timeout_s bigint, max_silent_s bigint, output_bytes_max bigint,
    log_bytes_max bigint, retry_count integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_classes integer[];
    v_draining boolean;
    v_off text;
BEGIN
    -- A claim that a crash of the server forgets is a void one: the job is pending again, and its holder's token is refused
    -- like any other that is not current. So nobody waits for the disk here; whatever comes of the claim is as durable as
    -- ever, and takes the claim with it.
    v_off := set_config('synchronous_commit', 'off', true);
    SELECT n.draining OR NOT 'builder' = ANY (n.capabilities),
        ARRAY(SELECT c.id FROM job_classes c WHERE can_run(n.systems, n.features, c))
    INTO v_draining, v_classes
    FROM nodes n WHERE n.id = p_node AND n.incarnation = p_incarnation AND NOT n.stopped FOR SHARE OF n;
    IF v_draining IS NOT false THEN
        PERFORM current_node(p_node, p_incarnation, 'builder'); -- says what is wrong, unless it only drains
        RETURN;
    END IF;
    RETURN QUERY
    WITH picked AS (
        SELECT j.id, row_number() OVER () AS place, j.timeout_s, j.max_silent_s, j.output_bytes_max FROM (
            SELECT j.id, j.timeout_s, j.max_silent_s, j.output_bytes_max
            -- Sorted here and kept so by the join, which therefore ends with the last job that is wanted.
            FROM (SELECT o.id, o.place FROM unnest(p_ordered) WITH ORDINALITY AS o(id, place) ORDER BY o.place) o
            JOIN build_jobs j ON j.id = o.id
            WHERE j.status = 'pending' AND j.unmet_deps = 0 AND (j.not_before IS NULL OR j.not_before <= now())
                AND j.class_id = ANY (v_classes)
                -- For a minute, leave it to another node if one could.
                AND (j.avoid_node IS DISTINCT FROM p_node OR j.not_before < now() - interval '1 minute' OR j.not_before IS NULL)
                -- Looked up after the node's row was locked: see `disown_tokens`.
                AND NOT EXISTS (SELECT FROM disowned_claims d WHERE d.token_hash = ANY (p_token_hashes))
                AND NOT (p_kept AND EXISTS (SELECT FROM build_jobs b
                    WHERE b.class_id = ANY (v_classes) AND b.status = 'pending' AND b.unmet_deps = 0 AND b.priority > 0
                        AND (b.not_before IS NULL OR b.not_before <= now())))
            ORDER BY o.place
            LIMIT cardinality(p_token_hashes)
            FOR NO KEY UPDATE OF j SKIP LOCKED
        ) j
    ), attempts AS (
        INSERT INTO build_attempts (job_id, token_hash, node, incarnation, timeout_s, max_silent_s, output_bytes_max)
        SELECT p.id, p_token_hashes[p.place], p_node, p_incarnation, p.timeout_s, p.max_silent_s, p.output_bytes_max FROM picked p
        RETURNING id, job_id, token_hash
    ), claimed AS (
        UPDATE build_jobs j SET status = 'building', claimed_by = p_node, claim_incarnation = p_incarnation,
            claim_token_hash = a.token_hash, attempt_id = a.id, started_at = now(), not_before = NULL, avoid_node = NULL
        FROM attempts a WHERE j.id = a.job_id
        RETURNING j.id, j.attempt_id, j.claim_token_hash, j.drv_path, j.project_id, j.class_id, j.timeout_s, j.max_silent_s,
            j.output_bytes_max, j.log_bytes_max, j.retry_count
    )
    SELECT j.id, j.attempt_id, array_position(p_token_hashes, j.claim_token_hash), j.drv_path,
        -- A derivation's name is in its path, and its system in its class.
        substr(j.drv_path, 45, length(j.drv_path) - 48), c.system, p.name,
        o.names, o.paths, j.timeout_s, j.max_silent_s, j.output_bytes_max, j.log_bytes_max, j.retry_count
    FROM claimed j
    JOIN job_classes c ON c.id = j.class_id
    JOIN projects p ON p.id = j.project_id
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(o.output_name ORDER BY o.output_name), '{}') AS names,
            coalesce(array_agg(o.output_path ORDER BY o.output_name), '{}') AS paths
        FROM derivation_outputs o WHERE o.drv_path = j.drv_path
    ) o;
END
$$;
SELECT grant_to('EXECUTE ON FUNCTION claim_jobs', '{builder}');
