-- Who holds what: claim tokens, the ready queue, claims and their end when a node does not know of them.

-- Functions are how state changes, so that every change is one statement and one transaction, and so that evaluators and
-- builders need no right on any table: each function runs with its owner's rights and checks the claim token first.
--
-- Errors for the caller: HC001 stale claim, HC002 not found, HC003 refused (host/db/src/error.rs).
CREATE OR REPLACE FUNCTION raise_stale_claim() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the claim is no longer held' USING ERRCODE = 'HC001';
END
$$;

-- The job that this attempt and token hold, locked; HC001 if they do not.
CREATE OR REPLACE FUNCTION held_job(p_attempt bigint, p_token_hash bytea) RETURNS build_jobs
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs;
BEGIN
    SELECT j.* INTO v_job FROM build_jobs j
    WHERE j.id = (SELECT a.job_id FROM build_attempts a WHERE a.id = p_attempt)
        AND j.attempt_id = p_attempt AND j.claim_token_hash = p_token_hash
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM raise_stale_claim();
    END IF;
    RETURN v_job;
END
$$;

-- The evaluation that this token holds, locked against its end; HC001 if it does not.
CREATE OR REPLACE FUNCTION held_evaluation(p_eval bigint, p_token_hash bytea) RETURNS evaluations
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_eval evaluations;
BEGIN
    SELECT * INTO v_eval FROM evaluations
    WHERE id = p_eval AND status = 'running' AND claim_token_hash = p_token_hash
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM raise_stale_claim();
    END IF;
    RETURN v_eval;
END
$$;

-- The evaluation whose graph this token may add to: it runs under the token, or jobs that it wants are walked under it.
CREATE OR REPLACE FUNCTION graph_evaluation(p_eval bigint, p_token_hash bytea) RETURNS evaluations
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_eval evaluations;
BEGIN
    SELECT * INTO v_eval FROM evaluations e WHERE e.id = p_eval AND evaluation_held(p_eval, p_token_hash) FOR NO KEY UPDATE;
    -- What had to be waited for may have ended it.
    IF NOT FOUND OR NOT evaluation_held(p_eval, p_token_hash) THEN
        PERFORM raise_stale_claim();
    END IF;
    RETURN v_eval;
END
$$;

-- Whether this token holds the evaluation, or a walk in its name.
CREATE OR REPLACE FUNCTION evaluation_held(p_eval bigint, p_token_hash bytea) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT EXISTS (SELECT FROM evaluations WHERE id = p_eval AND status = 'running' AND claim_token_hash = p_token_hash)
        OR EXISTS (SELECT FROM walk_claims w JOIN live_evaluations l ON l.id = w.eval_id
            WHERE w.eval_id = p_eval AND w.token_hash = p_token_hash AND w.lease_until > now())
$$;

-- The job behind an attempt's token; HC001 when it is no longer held.
CREATE OR REPLACE FUNCTION attempt_job(p_attempt bigint, p_token_hash bytea) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job bigint;
BEGIN
    SELECT j.id INTO v_job FROM build_attempts a JOIN build_jobs j ON j.id = a.job_id
    WHERE a.id = p_attempt AND j.attempt_id = a.id AND j.claim_token_hash = p_token_hash;
    IF NOT FOUND THEN
        PERFORM raise_stale_claim();
    END IF;
    RETURN v_job;
END
$$;

-- The ready queues of these classes that have anything: a loose index scan hops from project to project through
-- `build_jobs_ready`. Boosted jobs are of no project's queue. (No settings of its own, so that callers' plans take it in.)
CREATE OR REPLACE FUNCTION ready_queues(p_classes integer[]) RETURNS TABLE (class_id integer, project_id bigint)
LANGUAGE sql STABLE AS $$
    WITH RECURSIVE ready(class_id, project_id) AS (
        SELECT c.id, p.project_id FROM unnest(p_classes) AS c(id)
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = c.id AND j.priority = 0 AND j.status || '' = 'pending' AND j.unmet_deps = 0
            ORDER BY j.project_id LIMIT 1
        ) p
        UNION ALL
        SELECT r.class_id, p.project_id FROM ready r
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = r.class_id AND j.priority = 0 AND j.project_id > r.project_id AND j.status || '' = 'pending'
                AND j.unmet_deps = 0
            ORDER BY j.project_id LIMIT 1
        ) p
    )
    SELECT ready.class_id, ready.project_id FROM ready
$$;

-- What `queue_heads` reads instead of hopping, from time to time.
CREATE OR REPLACE FUNCTION remake_queue_digest() RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_start timestamptz := clock_timestamp();
    v_digest queue_digest;
BEGIN
    WITH building AS (
        SELECT j.project_id, count(*) AS running FROM build_jobs j
        WHERE j.status || '' IN ('building', 'uploading') AND j.status = 'building' GROUP BY j.project_id
    )
    SELECT array_agg(r.class_id), array_agg(r.project_id), array_agg(h.id), array_agg(p.scheduling_shares),
        array_agg(p.consumed_seconds), array_agg(coalesce(b.running, 0))
    INTO v_digest.classes, v_digest.projects, v_digest.marks, v_digest.shares, v_digest.consumed_seconds, v_digest.running
    FROM ready_queues((SELECT array_agg(id) FROM job_classes)) r
    CROSS JOIN LATERAL (
        SELECT j.id FROM build_jobs j
        WHERE j.class_id = r.class_id AND j.project_id = r.project_id AND j.priority = 0
            AND j.status || '' = 'pending' AND j.unmet_deps = 0
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

-- Heads of the ready queues of these classes with what a policy may know of their projects: boosted jobs, and of each
-- project that has anything ready its first `p_per_project` jobs.
--
-- When there is plenty, from the digest: as things stood a few milliseconds ago, so that a job readied since then before the
-- others of its project is passed over for that long. When that finds too little, exactly. A job may be there twice.
CREATE OR REPLACE FUNCTION queue_heads(p_classes integer[], p_per_project integer)
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
            AND j.status || '' = 'pending' AND j.unmet_deps = 0 AND (j.not_before IS NULL OR j.not_before <= now())
        ORDER BY j.id LIMIT p_per_project
    ) h
    WHERE r.class_id = ANY (p_classes)
    UNION ALL
    SELECT h.id, h.project_id, h.class_id, h.priority, h.queued_at, h.retry_count, h.path_length,
        p.scheduling_shares, p.consumed_seconds,
        coalesce(v_digest.running[array_position(v_digest.projects, h.project_id)], 0)
    FROM unnest(p_classes) AS c(id)
    CROSS JOIN LATERAL (
        SELECT j.id, j.project_id, j.class_id, j.priority, j.queued_at, j.retry_count, j.path_length FROM build_jobs j
        WHERE j.class_id = c.id AND j.status || '' = 'pending' AND j.unmet_deps = 0 AND j.priority > 0
            AND (j.not_before IS NULL OR j.not_before <= now())
        ORDER BY j.priority DESC, j.id LIMIT p_per_project
    ) h
    JOIN projects p ON p.id = h.project_id;
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    IF v_rows >= p_per_project THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT h.id, h.project_id, h.class_id, h.priority, h.queued_at, h.retry_count, h.path_length,
        p.scheduling_shares, p.consumed_seconds,
        coalesce(v_digest.running[array_position(v_digest.projects, h.project_id)], 0)
    FROM ready_queues(p_classes) r
    JOIN projects p ON p.id = r.project_id
    CROSS JOIN LATERAL (
        SELECT j.id, j.project_id, j.class_id, j.priority, j.queued_at, j.retry_count, j.path_length FROM build_jobs j
        WHERE j.class_id = r.class_id AND j.project_id = r.project_id AND j.priority = 0
            AND j.status || '' = 'pending' AND j.unmet_deps = 0 AND (j.not_before IS NULL OR j.not_before <= now())
        ORDER BY j.id LIMIT p_per_project
    ) h;
END
$$;

-- The first jobs of `p_ordered` that can still be locked, at most one a token, become building; it looks no further down than
-- it must. When that order is one that the caller kept (`p_kept`), nothing is claimed while boosted jobs are ready for the
-- node: it has to look at the queue again, where they go first. Returns what only it knows: name, system and outputs are the
-- derivation's, which a builder reads anyway. What else it leaves out, and why: decision 0011.
CREATE OR REPLACE FUNCTION claim_jobs(p_node text, p_incarnation bigint, p_ordered bigint[], p_token_hashes bytea[], p_kept boolean)
RETURNS TABLE (job_id bigint, attempt_id bigint, token_index integer, drv_path text, timeout_s bigint, max_silent_s bigint,
    output_bytes_max bigint, log_bytes_max bigint, retry_count integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_draining boolean;
    v_classes integer[];
    v_revoked_at timestamptz;
    v_off text;
BEGIN
    -- A claim that a crash of the server forgets is a void one: the job is pending again, and its holder's token is refused
    -- like any other that is not current. So nobody waits for the disk here; whatever comes of the claim is as durable as
    -- ever, and takes the claim with it.
    v_off := set_config('synchronous_commit', 'off', true);
    SELECT n.draining OR NOT 'builder' = ANY (n.capabilities), n.classes, n.revoked_at
    INTO v_draining, v_classes, v_revoked_at
    FROM nodes n WHERE n.id = p_node AND n.incarnation = p_incarnation AND NOT n.stopped FOR SHARE;
    IF v_draining IS NOT false THEN
        PERFORM current_node(p_node, p_incarnation, 'builder'); -- says what is wrong, unless it only drains
        RETURN;
    END IF;
    -- Looked up after the node's row was locked: see `revoke_tokens`.
    IF v_revoked_at IS NOT NULL AND is_revoked(p_token_hashes) THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM since_crash) THEN
        PERFORM skip_forgotten_attempts();
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
                    WHERE b.class_id = ANY (v_classes) AND b.status || '' = 'pending' AND b.unmet_deps = 0 AND b.priority > 0
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

-- The first claim after a crash of the server. Of claims that nobody waited for (`claim_jobs`) it may have forgotten those of the
-- last second, which nodes know by their numbers: these must not come again. (Once: whoever comes second waits for the first.)
CREATE OR REPLACE FUNCTION skip_forgotten_attempts() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO since_crash DEFAULT VALUES ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM setval(pg_get_serial_sequence('build_attempts', 'id'), nextval(pg_get_serial_sequence('build_attempts', 'id')) + 100000);
        -- Or another crash could forget the gap.
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
END
$$;

-- Makes these tokens worthless for claims to come. Claims hold the node's row shared: one that is under way ends before this
-- gets the row, so that the caller finds what it took; one that comes later finds its token here.
CREATE OR REPLACE FUNCTION revoke_tokens(p_node text, p_incarnation bigint, p_capability text, p_token_hashes bytea[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE nodes SET revoked_at = now() WHERE id = p_node;
    PERFORM current_node(p_node, p_incarnation, p_capability);
    INSERT INTO revoked_claims (token_hash, node)
    SELECT DISTINCT t, p_node FROM unnest(p_token_hashes) AS t ORDER BY t
    ON CONFLICT DO NOTHING;
END
$$;

CREATE OR REPLACE FUNCTION is_revoked(p_token_hashes bytea[]) RETURNS boolean
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM revoked_claims WHERE token_hash = ANY (p_token_hashes));
END
$$;

-- What the node took under tokens that it does not hold, because the answer to its claim was lost: pending again, nothing
-- counted. Returns how many jobs.
CREATE OR REPLACE FUNCTION revoke_claims(p_node text, p_incarnation bigint, p_token_hashes bytea[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_jobs bigint[];
BEGIN
    PERFORM revoke_tokens(p_node, p_incarnation, 'builder', p_token_hashes);
    SELECT array_agg(id) INTO v_jobs FROM build_jobs
    WHERE claimed_by = p_node AND claim_token_hash = ANY (p_token_hashes) AND status || '' IN ('building', 'uploading');
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

-- Which of these claims are void: their work must stop.
CREATE OR REPLACE FUNCTION void_claims(p_attempts bigint[], p_token_hashes bytea[]) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT a.id FROM unnest(p_attempts, p_token_hashes) AS a(id, token_hash)
    WHERE NOT EXISTS (SELECT FROM build_jobs j WHERE j.id = (SELECT b.job_id FROM build_attempts b WHERE b.id = a.id)
        AND j.attempt_id = a.id AND j.claim_token_hash = a.token_hash);
END
$$;

-- Whether this token was given out for a claim that is held (true) or was until lately (false); null: nobody had it. Asked with
-- whatever strangers send: it must not cost what history costs, and tokens of attempts have no index (decision 0011). So only
-- the newest attempts are looked through for one that ended: their holders may ask once more for an answer that was lost.
CREATE OR REPLACE FUNCTION claim_is_held(p_token_hash bytea) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT CASE
        WHEN EXISTS (SELECT FROM build_jobs WHERE status || '' IN ('building', 'uploading') AND claim_token_hash = p_token_hash)
            OR EXISTS (SELECT FROM evaluations WHERE status || '' = 'running' AND claim_token_hash = p_token_hash)
            OR EXISTS (SELECT FROM walk_claims w JOIN live_evaluations l ON l.id = w.eval_id
                WHERE w.token_hash = p_token_hash AND w.lease_until > now()) THEN true
        WHEN EXISTS (SELECT FROM (SELECT token_hash FROM build_attempts ORDER BY id DESC LIMIT 20000) newest
            WHERE token_hash = p_token_hash) THEN false
    END
$$;
