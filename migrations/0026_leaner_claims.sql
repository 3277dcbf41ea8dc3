-- Claims that touch half as much. PostgreSQL remembers sixteen locks of a transaction with the process that holds them; the rest
-- go through a table that all claims share, and so did twelve of the twenty-eight relations and indexes that a claim opened.
-- With sixteen builders claiming at once that was most of what they waited for. Decision 0011 has the figures.

-- 1. What a claim looked up in other tables.

-- The classes that the node can run, kept here so that claims find them in a row that they read anyway; and when it last
-- disowned tokens (null: never, so there is nothing to look for).
ALTER TABLE nodes ADD COLUMN classes integer[] NOT NULL DEFAULT '{}', ADD COLUMN disowned_at timestamptz;
-- At registration and with every heartbeat.
CREATE FUNCTION find_node_classes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    NEW.classes := ARRAY(SELECT c.id FROM job_classes c WHERE can_run(NEW.systems, NEW.features, c) ORDER BY c.id);
    RETURN NEW;
END
$$;
CREATE TRIGGER nodes_find_classes BEFORE INSERT OR UPDATE OF last_seen ON nodes
    FOR EACH ROW EXECUTE FUNCTION find_node_classes();
UPDATE nodes SET last_seen = last_seen;
-- At once when a class is new. (A node that registers meanwhile may miss it until its next heartbeat.)
CREATE FUNCTION tell_nodes_of_class() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE nodes SET classes = classes || NEW.id
    WHERE id IN (SELECT n.id FROM nodes n WHERE NOT n.stopped AND can_run(n.systems, n.features, NEW)
        ORDER BY n.id FOR NO KEY UPDATE);
    RETURN NULL;
END
$$;
CREATE TRIGGER job_classes_tell_nodes AFTER INSERT ON job_classes
    FOR EACH ROW EXECUTE FUNCTION tell_nodes_of_class();

CREATE OR REPLACE FUNCTION disown_tokens(p_node text, p_incarnation bigint, p_capability text, p_token_hashes bytea[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE nodes SET disowned_at = now() WHERE id = p_node;
    PERFORM current_node(p_node, p_incarnation, p_capability);
    INSERT INTO disowned_claims (token_hash, node)
    SELECT DISTINCT t, p_node FROM unnest(p_token_hashes) AS t ORDER BY t
    ON CONFLICT DO NOTHING;
END
$$;

-- 2. Indexes: a claim opens all those of the tables that it writes.

-- The ready queue, boosted jobs first: one index instead of two.
DROP INDEX build_jobs_ready, build_jobs_boosted;
CREATE INDEX build_jobs_ready ON build_jobs (class_id, priority DESC, project_id, id)
    WHERE status = 'pending' AND unmet_deps = 0;
-- What may come back by itself: dep-failed jobs of a cause, and, without a cause, unsupported ones of a class.
DROP INDEX build_jobs_dep_failed, build_jobs_unsupported;
CREATE INDEX build_jobs_stopped ON build_jobs (root_cause, class_id)
    WHERE status = 'dep-failed' OR failure_kind = 'unsupported';
-- Tokens are 32 random bytes, a statement that is tried again did nothing the first time, and whoever disowns tokens finds
-- their jobs among those of the node.
ALTER TABLE build_attempts DROP CONSTRAINT build_attempts_token_hash_key;

CREATE OR REPLACE FUNCTION disown_claims(p_node text, p_incarnation bigint, p_token_hashes bytea[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_jobs bigint[];
BEGIN
    PERFORM disown_tokens(p_node, p_incarnation, 'builder', p_token_hashes);
    SELECT array_agg(id) INTO v_jobs FROM build_jobs
    WHERE claimed_by = p_node AND claim_token_hash = ANY (p_token_hashes) AND status IN ('building', 'uploading');
    IF v_jobs IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM lock_jobs_with_inputs(v_jobs);
    -- Under the locks, since somebody may have cancelled it.
    SELECT array_agg(id) INTO v_jobs FROM build_jobs
    WHERE id = ANY (v_jobs) AND claimed_by = p_node AND claim_token_hash = ANY (p_token_hashes)
        AND (status = 'building' OR (status = 'uploading' AND NOT outputs_claimed(drv_path)));
    IF v_jobs IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM end_attempt(attempt_id, 'aborted', 'the answer to its claim was lost') FROM build_jobs WHERE id = ANY (v_jobs);
    PERFORM return_jobs(v_jobs);
    RETURN cardinality(v_jobs);
END
$$;

CREATE OR REPLACE FUNCTION revive_unsupported() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_jobs bigint[];
    v_reset bigint[];
BEGIN
    SELECT array_agg(j.id) INTO v_jobs FROM build_jobs j JOIN job_classes c ON c.id = j.class_id
    WHERE j.status = 'failed' AND j.failure_kind = 'unsupported' AND j.root_cause IS NULL AND c.last_seen > j.finished_at;
    IF v_jobs IS NULL THEN
        RETURN 0;
    END IF;
    v_reset := reset_jobs(v_jobs, NULL);
    PERFORM lock_withdrawals();
    PERFORM cancel_unwanted(array_agg(drv_path), false, 'no evaluation wants it any more')
    FROM build_jobs WHERE id = ANY (v_reset);
    RETURN cardinality(v_reset);
END
$$;

-- As in 0015, by the new index: boosted jobs are of no project's queue. Heads: `p_per_project` of each project, of those in
-- `p_deeper` as many as `p_depths` says.
CREATE OR REPLACE FUNCTION remake_queue_digest() RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_start timestamptz := clock_timestamp();
    v_digest queue_digest;
BEGIN
    WITH RECURSIVE ready(class_id, project_id) AS (
        SELECT c.id, p.project_id FROM job_classes c
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = c.id AND j.priority = 0 AND j.status = 'pending' AND j.unmet_deps = 0
            ORDER BY j.project_id LIMIT 1
        ) p
        UNION ALL
        SELECT r.class_id, p.project_id FROM ready r
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = r.class_id AND j.priority = 0 AND j.project_id > r.project_id AND j.status = 'pending'
                AND j.unmet_deps = 0
            ORDER BY j.project_id LIMIT 1
        ) p
    ), building AS (
        SELECT j.project_id, count(*) AS running FROM build_jobs j
        WHERE j.status IN ('building', 'uploading') AND j.status = 'building' GROUP BY j.project_id
    )
    SELECT array_agg(r.class_id), array_agg(r.project_id), array_agg(h.id), array_agg(p.scheduling_shares),
        array_agg(p.consumed_seconds), array_agg(coalesce(b.running, 0))
    INTO v_digest.classes, v_digest.projects, v_digest.marks, v_digest.shares, v_digest.consumed_seconds, v_digest.running
    FROM ready r
    CROSS JOIN LATERAL (
        SELECT j.id FROM build_jobs j
        WHERE j.class_id = r.class_id AND j.project_id = r.project_id AND j.priority = 0
            AND j.status = 'pending' AND j.unmet_deps = 0
        ORDER BY j.id LIMIT 1
    ) h
    JOIN projects p ON p.id = r.project_id
    LEFT JOIN building b ON b.project_id = r.project_id;
    INSERT INTO queue_digest (fresh_until, classes, projects, marks, shares, consumed_seconds, running)
    -- About a tenth of the time goes into digests, however long one takes.
    VALUES (clock_timestamp() + least(9 * (clock_timestamp() - v_start), interval '5 s'), coalesce(v_digest.classes, '{}'),
        coalesce(v_digest.projects, '{}'), coalesce(v_digest.marks, '{}'), coalesce(v_digest.shares, '{}'),
        coalesce(v_digest.consumed_seconds, '{}'), coalesce(v_digest.running, '{}'))
    ON CONFLICT (only_row) DO UPDATE SET fresh_until = excluded.fresh_until, classes = excluded.classes,
        projects = excluded.projects, marks = excluded.marks, shares = excluded.shares,
        consumed_seconds = excluded.consumed_seconds, running = excluded.running;
END
$$;

DROP FUNCTION queue_heads(integer[], integer);
CREATE FUNCTION queue_heads(p_classes integer[], p_per_project integer, p_deeper bigint[], p_depths integer[])
RETURNS TABLE (job_id bigint, project_id bigint, class_id integer, priority integer, queued_at timestamptz, retry_count integer,
    path_length integer, shares integer, consumed_seconds double precision, running bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_sort = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_digest queue_digest;
    v_rows bigint;
BEGIN
    SELECT * INTO v_digest FROM queue_digest WHERE only_row;
    -- One remakes it at a time; the others take what is there. (A clock that was set back must not make it last.)
    IF (v_digest.fresh_until IS NULL OR v_digest.fresh_until NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '5 s')
        AND pg_try_advisory_xact_lock(hashtext('harmonia-ci queue digest'))
    THEN
        PERFORM remake_queue_digest();
        SELECT * INTO v_digest FROM queue_digest WHERE only_row;
    END IF;
    RETURN QUERY
    SELECT h.id, h.project_id, r.class_id, h.priority, h.queued_at, h.retry_count, h.path_length,
        r.shares, r.consumed_seconds, r.running
    FROM unnest(v_digest.classes, v_digest.projects, v_digest.marks, v_digest.shares, v_digest.consumed_seconds, v_digest.running)
        AS r(class_id, project_id, mark, shares, consumed_seconds, running)
    CROSS JOIN LATERAL (
        SELECT j.id, j.project_id, j.priority, j.queued_at, j.retry_count, j.path_length FROM build_jobs j
        WHERE j.class_id = r.class_id AND j.project_id = r.project_id AND j.priority = 0 AND j.id >= r.mark
            AND j.status = 'pending' AND j.unmet_deps = 0 AND (j.not_before IS NULL OR j.not_before <= now())
        ORDER BY j.id LIMIT coalesce(p_depths[array_position(p_deeper, r.project_id)], p_per_project)
    ) h
    WHERE r.class_id = ANY (p_classes)
    UNION ALL
    SELECT h.id, h.project_id, h.class_id, h.priority, h.queued_at, h.retry_count, h.path_length,
        p.scheduling_shares, p.consumed_seconds,
        coalesce(v_digest.running[array_position(v_digest.projects, h.project_id)], 0)
    FROM unnest(p_classes) AS c(id)
    CROSS JOIN LATERAL (
        SELECT j.id, j.project_id, j.class_id, j.priority, j.queued_at, j.retry_count, j.path_length FROM build_jobs j
        WHERE j.class_id = c.id AND j.status = 'pending' AND j.unmet_deps = 0 AND j.priority > 0
            AND (j.not_before IS NULL OR j.not_before <= now())
        ORDER BY j.priority DESC, j.id LIMIT p_per_project
    ) h
    JOIN projects p ON p.id = h.project_id;
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    IF v_rows >= p_per_project THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH RECURSIVE ready(class_id, project_id) AS (
        SELECT c.id, p.project_id FROM unnest(p_classes) AS c(id)
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = c.id AND j.priority = 0 AND j.status = 'pending' AND j.unmet_deps = 0
            ORDER BY j.project_id LIMIT 1
        ) p
        UNION ALL
        SELECT r.class_id, p.project_id FROM ready r
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = r.class_id AND j.priority = 0 AND j.project_id > r.project_id AND j.status = 'pending'
                AND j.unmet_deps = 0
            ORDER BY j.project_id LIMIT 1
        ) p
    )
    SELECT h.id, h.project_id, h.class_id, h.priority, h.queued_at, h.retry_count, h.path_length,
        p.scheduling_shares, p.consumed_seconds,
        coalesce(v_digest.running[array_position(v_digest.projects, h.project_id)], 0)
    FROM ready r
    JOIN projects p ON p.id = r.project_id
    CROSS JOIN LATERAL (
        SELECT j.id, j.project_id, j.class_id, j.priority, j.queued_at, j.retry_count, j.path_length FROM build_jobs j
        WHERE j.class_id = r.class_id AND j.project_id = r.project_id AND j.priority = 0
            AND j.status = 'pending' AND j.unmet_deps = 0 AND (j.not_before IS NULL OR j.not_before <= now())
        ORDER BY j.id LIMIT coalesce(p_depths[array_position(p_deeper, r.project_id)], p_per_project)
    ) h;
END
$$;

-- 3. Triggers.

-- What became terminal, or left that, is marked by the guard: a trigger with a WHEN has it parsed for each statement.
DROP TRIGGER build_jobs_mark ON build_jobs;
DROP FUNCTION mark_job();
CREATE FUNCTION mark_job(p_job bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    INSERT INTO job_marks (job_id) VALUES (p_job)
$$;

-- As in 0020, but short for claims, and without a look at the attempt that a claim has just made (the sweep looks at both).
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
            PERFORM public.mark_job(NEW.id);
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

-- A boost puts first, nothing puts last.
CREATE TRIGGER build_jobs_refuse_priority BEFORE INSERT OR UPDATE OF priority ON build_jobs
    FOR EACH ROW WHEN (NEW.priority < 0) EXECUTE FUNCTION refuse_build_job();

-- An attempt begins running.
CREATE FUNCTION refuse_build_attempt() RETURNS trigger
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'attempt %: what it carries does not belong to a new one', NEW.id USING ERRCODE = 'check_violation';
END
$$;
DROP TRIGGER build_attempts_guard ON build_attempts;
CREATE TRIGGER build_attempts_guard BEFORE UPDATE ON build_attempts
    FOR EACH ROW EXECUTE FUNCTION guard_build_attempt();
CREATE TRIGGER build_attempts_refuse BEFORE INSERT ON build_attempts
    FOR EACH ROW WHEN (NEW.outcome <> 'running' OR NEW.finished_at IS NOT NULL OR length(NEW.token_hash) <> 32)
    EXECUTE FUNCTION refuse_build_attempt();

-- 4. The claim, as in 0020. It returns what only it knows: name, system and outputs are the derivation's, which a builder
-- reads anyway.
DROP FUNCTION claim_jobs(text, bigint, bigint[], bytea[], boolean);
CREATE FUNCTION claim_jobs(p_node text, p_incarnation bigint, p_ordered bigint[], p_token_hashes bytea[], p_kept boolean)
RETURNS TABLE (job_id bigint, attempt_id bigint, token_index integer, drv_path text, timeout_s bigint, max_silent_s bigint,
    output_bytes_max bigint, log_bytes_max bigint, retry_count integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_draining boolean;
    v_classes integer[];
    v_disowned_at timestamptz;
    v_off text;
BEGIN
    -- A claim that a crash of the server forgets is a void one: the job is pending again, and its holder's token is refused
    -- like any other that is not current. So nobody waits for the disk here; whatever comes of the claim is as durable as
    -- ever, and takes the claim with it.
    v_off := set_config('synchronous_commit', 'off', true);
    SELECT n.draining OR NOT 'builder' = ANY (n.capabilities), n.classes, n.disowned_at
    INTO v_draining, v_classes, v_disowned_at
    FROM nodes n WHERE n.id = p_node AND n.incarnation = p_incarnation AND NOT n.stopped FOR SHARE;
    IF v_draining IS NOT false THEN
        PERFORM current_node(p_node, p_incarnation, 'builder'); -- says what is wrong, unless it only drains
        RETURN;
    END IF;
    -- Looked up after the node's row was locked: see `disown_tokens`.
    IF v_disowned_at IS NOT NULL AND is_disowned(p_token_hashes) THEN
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
    )
    UPDATE build_jobs j SET status = 'building', claimed_by = p_node, claim_incarnation = p_incarnation,
        claim_token_hash = a.token_hash, attempt_id = a.id, started_at = now(), not_before = NULL, avoid_node = NULL
    FROM attempts a WHERE j.id = a.job_id
    RETURNING j.id, j.attempt_id, array_position(p_token_hashes, j.claim_token_hash), j.drv_path, j.timeout_s, j.max_silent_s,
        j.output_bytes_max, j.log_bytes_max, j.retry_count;
END
$$;
SELECT grant_to('EXECUTE ON FUNCTION ' || f, '{builder}') FROM (VALUES ('queue_heads'), ('claim_jobs')) AS g(f);
