-- Nodes: registering, staying, leaving, and what they can run.

-- The node's row, locked against being reaped, if this incarnation is the current one.
CREATE OR REPLACE FUNCTION current_node(p_node text, p_incarnation bigint, p_capability text) RETURNS nodes
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

-- What an earlier run of the node held goes back. If that did not say goodbye, it crashed or was killed, which counts
-- (`p_lost_max`): perhaps by what it held.
CREATE OR REPLACE FUNCTION register_node(
    p_node text, p_incarnation bigint, p_capabilities text[], p_endpoint text, p_systems text[], p_features text[],
    p_max_jobs integer, p_max_evals integer, p_version text, p_lost_max integer, p_secret bytea,
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
    -- A name stays with the secret that it was registered with, until nobody has used it for a day.
    IF FOUND AND v_old.secret_hash <> sha256(p_secret) AND v_old.last_seen > now() - interval '1 day' THEN
        RAISE EXCEPTION 'the name % belongs to another node (last heard of %): give this one a name of its own (node.name); a node '
            'that lost its state folder, and the secret in it, may take its name again a day after it was last heard of',
            p_node, to_char(v_old.last_seen AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"') USING ERRCODE = 'HC003';
    END IF;
    -- Taking over a name is taking over its capabilities: their roles are needed too.
    IF FOUND AND NOT v_old.stopped THEN
        FOREACH v_capability IN ARRAY v_old.capabilities LOOP
            PERFORM check_capability_role(v_capability);
        END LOOP;
    END IF;
    INSERT INTO nodes (id, incarnation, capabilities, endpoint, systems, features, max_jobs, max_evals, version, secret_hash)
    VALUES (p_node, p_incarnation, p_capabilities, p_endpoint, p_systems, p_features, p_max_jobs, p_max_evals, p_version, sha256(p_secret))
    ON CONFLICT (id) DO UPDATE SET
        incarnation = excluded.incarnation, capabilities = excluded.capabilities, endpoint = excluded.endpoint,
        systems = excluded.systems, features = excluded.features, max_jobs = excluded.max_jobs,
        max_evals = excluded.max_evals, version = excluded.version, registered_at = now(), last_seen = now(),
        secret_hash = excluded.secret_hash, engine = NULL, draining = false, paused = NULL, stopped = false;
    IF 'builder' = ANY (p_capabilities) THEN
        PERFORM systems_seen(p_systems);
        PERFORM classes_seen(p_systems, p_features);
    END IF;
    SELECT r.jobs, r.evaluations INTO jobs, evaluations
    FROM release_holdings(p_node, p_incarnation, 'lost', 'its node ended without stopping, and was started again',
        CASE WHEN v_old.stopped THEN 0 ELSE p_lost_max END) r;
    IF 'builder' = ANY (p_capabilities) THEN
        PERFORM revive_unsupported(250); -- the chores see to the others
    END IF;
    PERFORM pg_notify('nodes', left(p_node, 200));
END
$$;

CREATE OR REPLACE FUNCTION heartbeat(p_node text, p_incarnation bigint, p_paused text, OUT is_current boolean, OUT is_draining boolean)
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
        PERFORM systems_seen(v_node.systems);
        PERFORM classes_seen(v_node.systems, v_node.features);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION deregister_node(p_node text, p_incarnation bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE nodes SET stopped = true WHERE id = p_node AND incarnation = p_incarnation AND NOT stopped;
    IF FOUND THEN
        PERFORM release_holdings(p_node, NULL, 'aborted', 'its node was stopped', 0);
        PERFORM pg_notify('nodes', left(p_node, 200));
    END IF;
END
$$;

-- A node says that it takes nothing more and ends when its work has ended. It is shown so, others do not count on it, and a claim
-- of it that is still under way gets nothing.
CREATE OR REPLACE FUNCTION set_draining(p_node text, p_incarnation bigint, p_draining boolean) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE nodes SET draining = p_draining WHERE id = p_node AND incarnation = p_incarnation AND NOT stopped;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM pg_notify('nodes', left(p_node, 200));
    RETURN true;
END
$$;

-- What the node's policy failed with; null: it works again.
CREATE OR REPLACE FUNCTION report_policy_error(p_node text, p_incarnation bigint, p_error text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE nodes SET policy_error = left(p_error, 2000) WHERE id = p_node AND incarnation = p_incarnation
$$;

CREATE OR REPLACE FUNCTION set_evaluator_engine(p_node text, p_incarnation bigint, p_engine text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM current_node(p_node, p_incarnation, 'evaluator');
    UPDATE nodes SET engine = p_engine WHERE id = p_node AND incarnation = p_incarnation;
END
$$;

CREATE OR REPLACE FUNCTION can_run(p_systems text[], p_features text[], p_class job_classes) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT (p_class.system = ANY (p_systems) OR p_class.system = 'builtin') AND p_class.features <@ p_features
$$;

-- Remembers that classes which such a node can run are not orphaned. Written at most every 10 s, since every heartbeat
-- of every builder comes here.
CREATE OR REPLACE FUNCTION classes_seen(p_systems text[], p_features text[]) RETURNS void
LANGUAGE sql SET search_path = public, pg_temp AS $$
    UPDATE job_classes SET last_seen = now(), ever_seen = true
    WHERE id IN (SELECT c.id FROM job_classes c
        WHERE can_run(p_systems, p_features, c) AND (c.last_seen < now() - interval '10 s' OR NOT c.ever_seen)
        ORDER BY c.id FOR NO KEY UPDATE SKIP LOCKED)
$$;

-- Remembers that a builder offers these systems. Written at most once a minute, like the above.
CREATE OR REPLACE FUNCTION systems_seen(p_systems text[]) RETURNS void
LANGUAGE sql SET search_path = public, pg_temp AS $$
    INSERT INTO builder_systems AS b (system, last_seen)
    SELECT DISTINCT s, now() FROM unnest(p_systems) AS s
    WHERE NOT EXISTS (SELECT FROM builder_systems k WHERE k.system = s AND k.last_seen > now() - interval '1 minute')
    ORDER BY s
    ON CONFLICT (system) DO UPDATE SET last_seen = now() WHERE b.last_seen < now()
$$;

-- Classes that such a node can run.
CREATE OR REPLACE FUNCTION resolve_classes(p_systems text[], p_features text[]) RETURNS SETOF integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM classes_seen(p_systems, p_features);
    RETURN QUERY SELECT c.id FROM job_classes c WHERE can_run(p_systems, p_features, c) ORDER BY c.id;
END
$$;

-- Classes that a node can run stand in its row: at registration and with every heartbeat,
CREATE OR REPLACE FUNCTION find_node_classes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    NEW.classes := ARRAY(SELECT c.id FROM job_classes c WHERE can_run(NEW.systems, NEW.features, c) ORDER BY c.id);
    RETURN NEW;
END
$$;
CREATE OR REPLACE TRIGGER nodes_find_classes BEFORE INSERT OR UPDATE OF last_seen ON nodes
    FOR EACH ROW EXECUTE FUNCTION find_node_classes();

-- and at once when a class is new. (A node that registers meanwhile may miss it until its next heartbeat.)
CREATE OR REPLACE FUNCTION tell_nodes_of_class() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE nodes SET classes = classes || NEW.id
    WHERE id IN (SELECT n.id FROM nodes n WHERE NOT n.stopped AND can_run(n.systems, n.features, NEW)
        ORDER BY n.id FOR NO KEY UPDATE);
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER job_classes_tell_nodes AFTER INSERT ON job_classes
    FOR EACH ROW EXECUTE FUNCTION tell_nodes_of_class();

-- Gives back what a node's older incarnations hold (all, when `p_incarnation` is null). A job whose outputs are accepted
-- stays uploading for a signer. `p_lost_max` > 0: the node was lost, which counts; what was held so often is a failure.
CREATE OR REPLACE FUNCTION release_holdings(
    p_node text, p_incarnation bigint, p_outcome text, p_message text, p_lost_max integer,
    OUT jobs bigint, OUT evaluations bigint
) LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_jobs bigint[];
    v_back bigint[];
    v_held record;
    v_lost constant integer := CASE WHEN p_lost_max > 0 THEN 1 ELSE 0 END;
BEGIN
    SELECT array_agg(j.id) INTO v_jobs FROM build_jobs j
    WHERE j.claimed_by = p_node AND j.status || '' IN ('building', 'uploading')
        AND (p_incarnation IS NULL OR j.claim_incarnation <> p_incarnation);
    jobs := 0;
    evaluations := 0;
    IF v_jobs IS NOT NULL THEN
        PERFORM lock_jobs_with_inputs(v_jobs);
        FOR v_held IN
            SELECT j.id, j.attempt_id, j.lost_count + v_lost AS lost_count FROM build_jobs j
            WHERE j.id = ANY (v_jobs) AND j.claimed_by = p_node
                AND (p_incarnation IS NULL OR j.claim_incarnation <> p_incarnation)
                AND (j.status = 'building' OR (j.status = 'uploading' AND NOT outputs_claimed(j.drv_path)))
            ORDER BY j.id
        LOOP
            jobs := jobs + 1;
            PERFORM end_attempt(v_held.attempt_id, p_outcome, p_message);
            UPDATE build_jobs SET lost_count = v_held.lost_count WHERE id = v_held.id AND lost_count <> v_held.lost_count;
            IF v_lost > 0 AND v_held.lost_count >= p_lost_max THEN
                PERFORM fail_job(v_held.id, 'infrastructure',
                    format('%s times the node that built this crashed, was killed or vanished; the last one: %s',
                        v_held.lost_count, p_node), NULL);
            ELSE
                v_back := v_back || v_held.id;
            END IF;
        END LOOP;
        IF v_back IS NOT NULL THEN
            PERFORM return_jobs(v_back);
        END IF;
        PERFORM pg_notify('claims', left(p_node, 200));
    END IF;
    FOR v_held IN
        SELECT e.id, e.lost_count + v_lost AS lost_count FROM public.evaluations e
        WHERE e.claimed_by = p_node AND e.status || '' = 'running' AND (p_incarnation IS NULL OR e.claim_incarnation <> p_incarnation)
        ORDER BY e.id FOR NO KEY UPDATE
    LOOP
        evaluations := evaluations + 1;
        IF v_lost > 0 AND v_held.lost_count >= p_lost_max THEN
            UPDATE public.evaluations SET lost_count = v_held.lost_count WHERE id = v_held.id;
            PERFORM evaluation_failed(v_held.id,
                format('infrastructure: %s times the node that evaluated this crashed, was killed or vanished; the last one: %s. '
                    'If it ran out of memory, lower eval.memory_max or evaluator.max_evals; then run the evaluation again',
                    v_held.lost_count, p_node));
        ELSE
            PERFORM requeue_evaluation(v_held.id, v_lost > 0);
        END IF;
    END LOOP;
END
$$;

-- Nodes that were silent for so long are dead: what they held goes back, counted as lost.
CREATE OR REPLACE FUNCTION reap_silent_nodes(p_silent interval, p_lost_max integer, OUT nodes bigint, OUT jobs bigint, OUT evaluations bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_node text;
    v_released record;
BEGIN
    nodes := 0;
    jobs := 0;
    evaluations := 0;
    FOR v_node IN
        SELECT DISTINCT h.claimed_by FROM (
            SELECT j.claimed_by FROM build_jobs j WHERE j.status || '' IN ('building', 'uploading')
            UNION SELECT e.claimed_by FROM evaluations e WHERE e.status || '' = 'running'
        ) h LEFT JOIN public.nodes n ON n.id = h.claimed_by
        WHERE n.id IS NULL OR n.stopped OR n.last_seen < now() - p_silent
        ORDER BY 1
    LOOP
        -- A heartbeat or a claim may have come in between.
        PERFORM FROM public.nodes n WHERE n.id = v_node FOR UPDATE;
        CONTINUE WHEN EXISTS (SELECT FROM public.nodes n WHERE n.id = v_node AND NOT n.stopped AND n.last_seen >= now() - p_silent);
        SELECT * INTO v_released FROM release_holdings(v_node, NULL, 'lost', 'its node vanished', p_lost_max);
        IF v_released.jobs + v_released.evaluations > 0 THEN
            nodes := nodes + 1;
            jobs := jobs + v_released.jobs;
            evaluations := evaluations + v_released.evaluations;
        END IF;
    END LOOP;
END
$$;
