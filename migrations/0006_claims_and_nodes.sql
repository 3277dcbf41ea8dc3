-- Functions are how state changes, so that every change is one statement and one transaction, and so that evaluators and
-- builders need no right on any table: each function runs with its owner's rights and checks the claim token first.
-- This file: checking claims, notifications, nodes.
--
-- Errors for the caller: HC001 stale claim, HC002 not found, HC003 refused (host/db/src/error.rs).

CREATE FUNCTION raise_stale_claim() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the claim is no longer held' USING ERRCODE = 'HC001';
END
$$;

-- The job that this attempt and token hold, locked; HC001 if they do not.
CREATE FUNCTION held_job(p_attempt bigint, p_token_hash bytea) RETURNS build_jobs
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
CREATE FUNCTION held_evaluation(p_eval bigint, p_token_hash bytea) RETURNS evaluations
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

-- Notifications are hints, coalesced: one a class, one for all that ended.
CREATE FUNCTION notify_ready(p_classes integer[]) RETURNS void
LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT pg_notify('build_jobs', 'class:' || class) FROM (SELECT DISTINCT unnest(p_classes) AS class) c
    WHERE class IS NOT NULL
$$;
CREATE FUNCTION notify_done(p_jobs bigint[]) RETURNS void
LANGUAGE sql SET search_path = public, pg_temp AS $$
    SELECT pg_notify('build_jobs', CASE cardinality(p_jobs) WHEN 1 THEN 'done:' || p_jobs[1] ELSE 'done' END)
    WHERE cardinality(p_jobs) > 0
$$;

CREATE FUNCTION can_run(p_systems text[], p_features text[], p_class job_classes) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT (p_class.system = ANY (p_systems) OR p_class.system = 'builtin') AND p_class.features <@ p_features
$$;

-- Remembers that classes which such a node can run are not orphaned. Written at most every 10 s, since every heartbeat
-- of every builder comes here.
CREATE FUNCTION classes_seen(p_systems text[], p_features text[]) RETURNS void
LANGUAGE sql SET search_path = public, pg_temp AS $$
    UPDATE job_classes SET last_seen = now(), ever_seen = true
    WHERE id IN (SELECT c.id FROM job_classes c
        WHERE can_run(p_systems, p_features, c) AND (c.last_seen < now() - interval '10 s' OR NOT c.ever_seen)
        ORDER BY c.id FOR NO KEY UPDATE SKIP LOCKED)
$$;

-- The node's row, locked against being reaped, if this incarnation is the current one.
CREATE FUNCTION current_node(p_node text, p_incarnation bigint, p_capability text) RETURNS nodes
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_node nodes;
BEGIN
    SELECT * INTO v_node FROM nodes WHERE id = p_node AND incarnation = p_incarnation AND NOT stopped FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'node % is not registered by this process (another one took its name, or it said goodbye)', p_node
            USING ERRCODE = 'HC003';
    END IF;
    IF NOT p_capability = ANY (v_node.capabilities) THEN
        RAISE EXCEPTION 'node % is registered as %, not as %', p_node, array_to_string(v_node.capabilities, ', '), p_capability
            USING ERRCODE = 'HC003';
    END IF;
    RETURN v_node;
END
$$;

-- Makes these tokens worthless for claims to come. Claims hold the node's row shared: one that is under way ends before this
-- gets the row, so that the caller finds what it took; one that comes later finds its token here.
CREATE FUNCTION disown_tokens(p_node text, p_incarnation bigint, p_capability text, p_token_hashes bytea[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM nodes WHERE id = p_node FOR NO KEY UPDATE;
    PERFORM current_node(p_node, p_incarnation, p_capability);
    INSERT INTO disowned_claims (token_hash, node)
    SELECT DISTINCT t, p_node FROM unnest(p_token_hashes) AS t ORDER BY t
    ON CONFLICT DO NOTHING;
END
$$;
CREATE FUNCTION is_disowned(p_token_hashes bytea[]) RETURNS boolean
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM disowned_claims WHERE token_hash = ANY (p_token_hashes));
END
$$;

-- A capability may be registered only by the database role it belongs to, so that nobody poses as a signer.
CREATE FUNCTION check_capability_role(p_capability text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF p_capability NOT IN ('frontend', 'evaluator', 'builder', 'signer') THEN
        RAISE EXCEPTION 'unknown capability %', p_capability USING ERRCODE = 'HC003';
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'harmonia_' || p_capability)
        AND NOT pg_has_role(session_user, 'harmonia_' || p_capability, 'MEMBER')
    THEN
        RAISE EXCEPTION 'database user % may not register the capability %: grant it the role harmonia_%',
            session_user, p_capability, p_capability USING ERRCODE = 'HC003';
    END IF;
END
$$;

CREATE FUNCTION register_node(
    p_node text, p_incarnation bigint, p_capabilities text[], p_endpoint text, p_systems text[], p_features text[],
    p_max_jobs integer, p_max_evals integer, p_version text,
    OUT jobs bigint, OUT evaluations bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_old nodes;
    v_capability text;
BEGIN
    FOREACH v_capability IN ARRAY p_capabilities LOOP
        PERFORM check_capability_role(v_capability);
    END LOOP;
    SELECT * INTO v_old FROM nodes n WHERE n.id = p_node FOR UPDATE;
    -- Taking over a name is taking over its capabilities: their roles are needed too.
    IF FOUND AND NOT v_old.stopped THEN
        FOREACH v_capability IN ARRAY v_old.capabilities LOOP
            PERFORM check_capability_role(v_capability);
        END LOOP;
    END IF;
    INSERT INTO nodes (id, incarnation, capabilities, endpoint, systems, features, max_jobs, max_evals, version)
    VALUES (p_node, p_incarnation, p_capabilities, p_endpoint, p_systems, p_features, p_max_jobs, p_max_evals, p_version)
    ON CONFLICT (id) DO UPDATE SET
        incarnation = excluded.incarnation, capabilities = excluded.capabilities, endpoint = excluded.endpoint,
        systems = excluded.systems, features = excluded.features, max_jobs = excluded.max_jobs,
        max_evals = excluded.max_evals, version = excluded.version, registered_at = now(), last_seen = now(),
        draining = false, paused = NULL, stopped = false;
    IF 'builder' = ANY (p_capabilities) THEN
        PERFORM classes_seen(p_systems, p_features);
        PERFORM revive_unsupported();
    END IF;
    SELECT r.jobs, r.evaluations INTO jobs, evaluations
    FROM release_holdings(p_node, p_incarnation, 'aborted', 'its node was started again', 0) r;
    PERFORM pg_notify('nodes', left(p_node, 200));
END
$$;

CREATE FUNCTION heartbeat(p_node text, p_incarnation bigint, p_paused text, OUT is_current boolean, OUT is_draining boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_node nodes;
BEGIN
    UPDATE nodes SET last_seen = now(), paused = left(p_paused, 500)
    WHERE id = p_node AND incarnation = p_incarnation AND NOT stopped
    RETURNING * INTO v_node;
    is_current := FOUND;
    is_draining := coalesce(v_node.draining, false);
    IF is_current AND 'builder' = ANY (v_node.capabilities) THEN
        PERFORM classes_seen(v_node.systems, v_node.features);
    END IF;
END
$$;

CREATE FUNCTION deregister_node(p_node text, p_incarnation bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE nodes SET stopped = true WHERE id = p_node AND incarnation = p_incarnation AND NOT stopped;
    IF FOUND THEN
        PERFORM release_holdings(p_node, NULL, 'aborted', 'its node was stopped', 0);
        PERFORM pg_notify('nodes', left(p_node, 200));
    END IF;
END
$$;

-- Classes that such a node can run.
CREATE FUNCTION resolve_classes(p_systems text[], p_features text[]) RETURNS SETOF integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM classes_seen(p_systems, p_features);
    RETURN QUERY SELECT c.id FROM job_classes c WHERE can_run(p_systems, p_features, c) ORDER BY c.id;
END
$$;

CREATE FUNCTION set_draining(p_node text, p_draining boolean) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE nodes SET draining = p_draining WHERE id = p_node AND NOT stopped;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify('nodes', left(p_node, 200));
    RETURN true;
END
$$;
