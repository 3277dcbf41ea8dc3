-- Claims by a policy: what candidates look like, claims that cost the same whatever waits, runs or was claimed before,
-- and the books that policies keep.

-- Jobs on the longest chain of jobs that wait for this one, itself included, as known when it was inserted.
ALTER TABLE build_jobs ADD COLUMN path_length integer NOT NULL DEFAULT 1 CHECK (path_length >= 1);
-- What the scheduling policy last failed with on this node; null: it works.
ALTER TABLE nodes ADD COLUMN policy_error text;
SELECT grant_to('SELECT (path_length) ON build_jobs', '{evaluator,builder,signer,frontend}');

-- Boosted ready jobs: few, and looked at by every claim before anything else.
CREATE INDEX build_jobs_boosted ON build_jobs (class_id, priority DESC, id)
    WHERE status = 'pending' AND unmet_deps = 0 AND priority > 0;

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

CREATE FUNCTION remake_queue_digest() RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_start timestamptz := clock_timestamp();
    v_digest queue_digest;
BEGIN
    WITH RECURSIVE ready(class_id, project_id) AS (
        SELECT c.id, p.project_id FROM job_classes c
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = c.id AND j.status = 'pending' AND j.unmet_deps = 0
            ORDER BY j.project_id LIMIT 1
        ) p
        UNION ALL
        SELECT r.class_id, p.project_id FROM ready r
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = r.class_id AND j.project_id > r.project_id AND j.status = 'pending' AND j.unmet_deps = 0
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
DROP FUNCTION project_loads(bigint[]);

-- Heads of the ready queues of these classes with what a policy may know of their projects: boosted jobs, and of each
-- project that has anything ready its first `p_per_project` jobs.
--
-- When there is plenty, from the digest: as things stood a few milliseconds ago, so that a job readied since then before the
-- others of its project is passed over for that long. When that finds too little, exactly: a loose index scan hops from
-- project to project through `build_jobs_ready`. A job may be there twice.
CREATE FUNCTION queue_heads(p_classes integer[], p_per_project integer)
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
            WHERE j.class_id = c.id AND j.status = 'pending' AND j.unmet_deps = 0
            ORDER BY j.project_id LIMIT 1
        ) p
        UNION ALL
        SELECT r.class_id, p.project_id FROM ready r
        CROSS JOIN LATERAL (
            SELECT j.project_id FROM build_jobs j
            WHERE j.class_id = r.class_id AND j.project_id > r.project_id AND j.status = 'pending' AND j.unmet_deps = 0
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
        WHERE j.class_id = r.class_id AND j.project_id = r.project_id AND j.status = 'pending' AND j.unmet_deps = 0
            AND (j.not_before IS NULL OR j.not_before <= now())
        ORDER BY j.priority DESC, j.id LIMIT p_per_project
    ) h;
END
$$;

-- The first jobs of `p_ordered` that can still be locked, at most one a token, become building. Returns what their builder
-- needs to know.
DROP FUNCTION claim_jobs(text, bigint, bigint[], bytea[]);
DROP FUNCTION claimed_jobs(bigint[]);
CREATE FUNCTION claim_jobs(p_node text, p_incarnation bigint, p_ordered bigint[], p_token_hashes bytea[])
RETURNS TABLE (job_id bigint, attempt_id bigint, token_index integer, drv_path text, name text, system text, project text,
    output_names text[], output_paths text[], timeout_s bigint, max_silent_s bigint, output_bytes_max bigint,
    log_bytes_max bigint, retry_count integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_systems text[];
    v_features text[];
    v_draining boolean;
BEGIN
    -- A claim that a crash of the server forgets is a void one: the job is pending again, and its holder's token is refused
    -- like any other that is not current. So nobody waits for the disk here; whatever comes of the claim is as durable as
    -- ever, and takes the claim with it.
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT systems, features, draining OR NOT 'builder' = ANY (capabilities) INTO v_systems, v_features, v_draining
    FROM nodes WHERE id = p_node AND incarnation = p_incarnation AND NOT stopped FOR SHARE;
    IF v_draining IS NOT false THEN
        PERFORM current_node(p_node, p_incarnation, 'builder'); -- says what is wrong, unless it only drains
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM disowned_claims WHERE token_hash = ANY (p_token_hashes)) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH picked AS (
        SELECT j.id, row_number() OVER () AS place, j.timeout_s, j.max_silent_s, j.output_bytes_max FROM (
            SELECT j.id, j.timeout_s, j.max_silent_s, j.output_bytes_max
            FROM unnest(p_ordered) WITH ORDINALITY AS o(id, place)
            JOIN build_jobs j ON j.id = o.id
            JOIN job_classes c ON c.id = j.class_id
            WHERE j.status = 'pending' AND j.unmet_deps = 0 AND (j.not_before IS NULL OR j.not_before <= now())
                AND can_run(v_systems, v_features, c)
                -- For a minute, leave it to another node if one could.
                AND (j.avoid_node IS DISTINCT FROM p_node OR j.not_before < now() - interval '1 minute' OR j.not_before IS NULL)
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
        RETURNING j.id, j.attempt_id, j.claim_token_hash, j.drv_path, j.project_id, j.timeout_s, j.max_silent_s,
            j.output_bytes_max, j.log_bytes_max, j.retry_count
    )
    SELECT j.id, j.attempt_id, array_position(p_token_hashes, j.claim_token_hash), j.drv_path, d.name, d.system, p.name,
        o.names, o.paths, j.timeout_s, j.max_silent_s, j.output_bytes_max, j.log_bytes_max, j.retry_count
    FROM claimed j
    JOIN derivations d ON d.drv_path = j.drv_path
    JOIN projects p ON p.id = j.project_id
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(o.output_name ORDER BY o.output_name), '{}') AS names,
            coalesce(array_agg(o.output_path ORDER BY o.output_name), '{}') AS paths
        FROM derivation_outputs o WHERE o.drv_path = j.drv_path
    ) o;
END
$$;
SELECT grant_to('EXECUTE ON FUNCTION ' || f, '{builder}') FROM (VALUES ('queue_heads'), ('claim_jobs')) AS g(f);

-- As in 0009, but for `p_path_lengths`.
DROP FUNCTION insert_batch(bigint, bytea, text[], text[], text[], text[], boolean[], text[], bigint[], bigint[], integer[], text[], text[], text[], integer[], text[], text[], integer[], text[], text[], text[], text[], text[]);
CREATE FUNCTION insert_batch(
    p_eval bigint, p_token_hash bytea,
    p_drvs text[], p_names text[], p_systems text[], p_features text[], p_available boolean[], p_modulo text[],
    p_timeouts bigint[], p_silents bigint[], p_path_lengths integer[],
    p_output_drvs integer[], p_output_names text[], p_output_paths text[], p_output_hashes text[],
    p_input_drvs integer[], p_input_paths text[], p_input_outputs text[],
    p_source_drvs integer[], p_source_paths text[],
    p_attrs text[], p_attr_drvs text[], p_attr_errors text[],
    p_holds text[],
    OUT new_jobs bigint, OUT revived bigint, OUT missing text[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_eval evaluations := held_evaluation(p_eval, p_token_hash);
    v_project projects;
    v_new_drvs text[];   -- derivations that nobody knew
    v_wanted text[];     -- derivations that need a job: neither available upstream nor here
    v_new bigint[];      -- jobs inserted now
    v_reopen bigint[];   -- jobs made pending again
    v_reset bigint[] := '{}';
    v_others text[];     -- what the batch leans on and does not hold: inputs, attributes, holds
    v_above bigint[];
BEGIN
    SELECT * INTO v_project FROM project_with_limits(v_eval.project_id);
    new_jobs := 0;
    revived := 0;

    -- Layer 1: facts, in one order for everybody, so that two evaluators do not wait for each other crosswise.
    WITH fresh AS (
        INSERT INTO derivations (drv_path, name, system, required_features, modulo_hash, public)
        SELECT t.drv, t.name, t.system, string_to_array(t.features, ' '), t.modulo, v_project.is_public
        FROM unnest(p_drvs, p_names, p_systems, p_features, p_modulo) AS t(drv, name, system, features, modulo)
        ORDER BY t.drv
        ON CONFLICT DO NOTHING RETURNING drv_path
    ) SELECT array_agg(drv_path) INTO v_new_drvs FROM fresh;
    INSERT INTO derivation_outputs (drv_path, output_name, output_path, fixed_hash)
    SELECT p_drvs[t.drv], t.name, t.path, t.fixed
    FROM unnest(p_output_drvs, p_output_names, p_output_paths, p_output_hashes) AS t(drv, name, path, fixed)
    ORDER BY p_drvs[t.drv], t.name
    ON CONFLICT DO NOTHING;
    INSERT INTO derivation_inputs (referrer, input_drv, outputs)
    SELECT p_drvs[t.drv], t.input, string_to_array(t.outputs, ' ')
    FROM unnest(p_input_drvs, p_input_paths, p_input_outputs) AS t(drv, input, outputs)
    ORDER BY p_drvs[t.drv], t.input
    ON CONFLICT DO NOTHING;
    INSERT INTO derivation_sources (referrer, path)
    SELECT p_drvs[t.drv], t.path FROM unnest(p_source_drvs, p_source_paths) AS t(drv, path)
    ORDER BY p_drvs[t.drv], t.path
    ON CONFLICT DO NOTHING;
    IF v_project.is_public THEN
        UPDATE derivations SET public = true WHERE drv_path = ANY (p_drvs) AND NOT public;
        UPDATE store_paths s SET public = true
        WHERE NOT s.public AND (
            s.path IN (SELECT o.output_path FROM derivation_outputs o WHERE o.drv_path = ANY (p_drvs))
            OR s.path = ANY (p_source_paths));
    END IF;
    -- What the evaluator found upstream (for a day; asked again then).
    INSERT INTO upstream_paths (path, present, expires_at)
    SELECT o.path, true, now() + interval '1 day' FROM (
        SELECT DISTINCT p_output_paths[i] AS path FROM generate_subscripts(p_output_drvs, 1) AS i
        WHERE p_available[p_output_drvs[i]] AND p_output_paths[i] IS NOT NULL
    ) o
    WHERE NOT EXISTS (SELECT FROM store_paths s WHERE s.path = o.path AND s.state = 'published')
    ORDER BY o.path
    ON CONFLICT (path) DO UPDATE SET present = true, checked_at = now(), expires_at = excluded.expires_at;

    -- Jobs, in the order of the batch, so that ids follow dependencies.
    SELECT array_agg(t.drv ORDER BY t.place) INTO v_wanted
    FROM unnest(p_drvs, p_available) WITH ORDINALITY AS t(drv, available, place)
    WHERE NOT t.available AND NOT (EXISTS (SELECT FROM store_paths s JOIN derivation_outputs o ON o.output_path = s.path
        WHERE o.drv_path = t.drv) AND drv_available(t.drv, true));
    v_wanted := coalesce(v_wanted, '{}');
    IF cardinality(v_wanted) > 0 THEN
        INSERT INTO job_classes (system, features)
        SELECT DISTINCT t.system, sorted_features(t.features)
        FROM unnest(p_drvs, p_systems, p_features) AS t(drv, system, features)
        WHERE NOT EXISTS (SELECT FROM job_classes c WHERE c.system = t.system AND c.features = sorted_features(t.features))
        ORDER BY 1, 2
        ON CONFLICT DO NOTHING;
        -- The counts are a first guess from before the locks; settle_jobs corrects the few that moved.
        WITH unfinished AS (
            SELECT unnest(v_wanted) AS drv
            UNION
            SELECT drv_path FROM build_jobs WHERE drv_path = ANY (p_input_paths) AND status <> 'succeeded'
        ), guessed AS (
            SELECT i.drv, count(*) AS unmet FROM unnest(p_input_drvs, p_input_paths) AS i(drv, input)
            JOIN unfinished u ON u.drv = i.input GROUP BY i.drv
        ), fresh AS (
            INSERT INTO build_jobs (drv_path, project_id, class_id, unmet_deps, timeout_s, max_silent_s, output_bytes_max, log_bytes_max,
                path_length)
            SELECT t.drv, v_project.id, c.id, coalesce(g.unmet, 0),
                least(coalesce(t.timeout, v_project.timeout_s), greatest(v_project.timeout_max_s, v_project.timeout_s)),
                least(coalesce(t.silent, v_project.max_silent_s), greatest(v_project.timeout_max_s, v_project.max_silent_s)),
                v_project.output_bytes_max, v_project.log_bytes_max, t.path_length
            FROM unnest(p_drvs, p_systems, p_features, p_timeouts, p_silents, p_path_lengths) WITH ORDINALITY
                AS t(drv, system, features, timeout, silent, path_length, place)
            JOIN job_classes c ON c.system = t.system AND c.features = sorted_features(t.features)
            LEFT JOIN guessed g ON g.drv = t.place
            WHERE t.drv = ANY (v_wanted)
                AND NOT EXISTS (SELECT FROM build_jobs j WHERE j.drv_path = t.drv)
            ORDER BY t.place
            ON CONFLICT DO NOTHING RETURNING id
        ) SELECT array_agg(id) INTO v_new FROM fresh;
    END IF;
    v_new := coalesce(v_new, '{}');

    -- Lock what the batch leans on, then what it holds; only then look.
    SELECT array_agg(DISTINCT o.drv) INTO v_others FROM (
        SELECT p_input_paths[i] AS drv FROM generate_subscripts(p_input_drvs, 1) AS i WHERE p_drvs[p_input_drvs[i]] = ANY (v_wanted)
        UNION ALL SELECT unnest(p_attr_drvs) UNION ALL SELECT unnest(p_holds)
    ) o
    WHERE o.drv IS NOT NULL AND o.drv <> ALL (p_drvs);
    v_others := coalesce(v_others, '{}');
    PERFORM FROM build_jobs WHERE drv_path = ANY (v_others) ORDER BY id FOR SHARE;
    PERFORM FROM build_jobs WHERE drv_path = ANY (p_drvs) ORDER BY id FOR NO KEY UPDATE;
    SELECT array_agg(o.drv) INTO missing
    FROM unnest(v_others) AS o(drv) LEFT JOIN build_jobs j ON j.drv_path = o.drv
    WHERE CASE
        WHEN j.id IS NULL THEN NOT drv_available(o.drv, true)
        -- A dep-failed job is looked at again unless its cause is a failure that stays.
        WHEN j.status = 'dep-failed' THEN coalesce(
            (SELECT job_reopens(c, v_project) FROM build_jobs c WHERE c.id = j.root_cause), true)
        ELSE job_reopens(j, v_project)
    END AND NOT drv_available(o.drv, true);
    IF missing IS NOT NULL THEN
        DELETE FROM build_jobs WHERE id = ANY (v_new); -- made a moment ago, seen by nobody
        RETURN;
    END IF;
    missing := '{}';
    -- Of jobs that were there, the longest chain above counts.
    IF cardinality(v_new) < cardinality(v_wanted) THEN
        UPDATE build_jobs j SET path_length = t.path_length
        FROM unnest(p_drvs, p_path_lengths) AS t(drv, path_length)
        WHERE j.drv_path = t.drv AND j.drv_path = ANY (v_wanted) AND j.id <> ALL (v_new) AND j.path_length < t.path_length;
    END IF;

    -- Who is wanted again, with the limits of the most generous project that wants it.
    SELECT array_agg(j.id) INTO v_reopen FROM build_jobs j
    WHERE j.drv_path = ANY (v_wanted) AND j.id <> ALL (v_new) AND job_reopens(j, v_project);
    UPDATE build_jobs SET
        timeout_s = greatest(timeout_s, v_project.timeout_s), max_silent_s = greatest(max_silent_s, v_project.max_silent_s),
        output_bytes_max = greatest(output_bytes_max, v_project.output_bytes_max),
        log_bytes_max = greatest(log_bytes_max, v_project.log_bytes_max)
    WHERE id = ANY (v_reopen);
    IF v_reopen IS NOT NULL THEN
        PERFORM count_unmet(v_new); -- some that come back may succeed at once and count down
        v_reset := reset_jobs(v_reopen, 0);
        revived := cardinality(v_reset);
    END IF;
    -- After that, or new jobs would be blocked by what just came back.
    PERFORM settle_jobs(v_new, false);
    PERFORM notify_ready(array_agg(DISTINCT class_id)) FROM build_jobs
    WHERE id = ANY (v_new) AND status = 'pending' AND unmet_deps = 0;
    new_jobs := cardinality(v_new);

    -- A derivation that was available and no longer is gets a job below jobs that already wait: they wait for it too.
    SELECT array_agg(DISTINCT j.id) INTO v_above
    FROM build_jobs n
    JOIN derivation_inputs d ON d.input_drv = n.drv_path
    JOIN build_jobs j ON j.drv_path = d.referrer
    WHERE n.id = ANY (v_new) AND n.drv_path <> ALL (coalesce(v_new_drvs, '{}')) AND j.id <> ALL (v_new) AND j.status = 'pending';
    IF v_above IS NOT NULL THEN
        PERFORM lock_jobs_with_inputs(v_above);
        PERFORM settle_jobs(v_above, false);
    END IF;
    -- And one that had a job and turned out to be available needs it no more.
    PERFORM outputs_turned_up(array_agg(o.output_path)) FROM derivation_outputs o
    JOIN build_jobs j USING (drv_path)
    WHERE o.drv_path = ANY (p_drvs) AND o.drv_path <> ALL (v_wanted) AND j.status = 'pending';

    -- Who wants it: the attributes, and until they come the tops of what was inserted.
    INSERT INTO eval_attrs (eval_id, attr, drv_path, error, cached)
    SELECT p_eval, t.attr, t.drv, t.error,
        t.drv IS NOT NULL AND NOT EXISTS (SELECT FROM build_jobs j WHERE j.drv_path = t.drv AND j.status <> 'succeeded')
            AND drv_available(t.drv, false)
    FROM unnest(p_attrs, p_attr_drvs, p_attr_errors) AS t(attr, drv, error)
    ON CONFLICT (eval_id, attr) DO UPDATE
        SET drv_path = excluded.drv_path, error = excluded.error, cached = excluded.cached;
    INSERT INTO eval_holds (eval_id, drv_path)
    SELECT p_eval, h.drv FROM (
        SELECT unnest(p_holds) AS drv
        UNION
        (SELECT unnest(p_drvs) EXCEPT SELECT unnest(p_input_paths) EXCEPT SELECT unnest(p_attr_drvs))
    ) h
    ON CONFLICT DO NOTHING;
    -- What was dep-failed above a revived job came back with it; what of that nobody wants goes.
    IF cardinality(v_reset) > coalesce(cardinality(v_reopen), 0) THEN
        PERFORM lock_withdrawals();
        PERFORM cancel_unwanted(array_agg(drv_path), false, 'no evaluation wants it any more')
        FROM build_jobs WHERE id = ANY (v_reset) AND id <> ALL (v_reopen);
    END IF;
    PERFORM pg_notify('evaluations', p_eval::text);
END
$$;
SELECT grant_to('EXECUTE ON FUNCTION insert_batch', '{evaluator}');

-- The books. `charged_up`: its end is charged, nothing more will come.
ALTER TABLE build_attempts ADD COLUMN charged_up boolean NOT NULL DEFAULT true;
ALTER TABLE build_attempts ALTER COLUMN charged_up SET DEFAULT false;
CREATE INDEX build_attempts_uncharged ON build_attempts (id) WHERE NOT charged_up;
SELECT grant_to('SELECT (charged_up) ON build_attempts', '{evaluator,builder,signer,frontend}');

-- Up to `p_limit` attempts above `p_after`, by id, with seconds to charge: those that ended, and those that run. A build
-- counts from its claim until it uploads or ends.
CREATE FUNCTION uncharged_attempts(p_after bigint, p_limit integer)
RETURNS TABLE (attempt_id bigint, project_id bigint, charged_seconds double precision, elapsed_seconds double precision, ended boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT a.id, j.project_id, a.charged_seconds,
        greatest(extract(epoch FROM coalesce(a.uploading_at, a.finished_at, now()) - a.started_at)::double precision, 0),
        a.uploading_at IS NOT NULL OR a.finished_at IS NOT NULL
    FROM build_attempts a JOIN build_jobs j ON j.id = a.job_id
    WHERE NOT a.charged_up AND a.id > p_after
    ORDER BY a.id LIMIT p_limit;
END
$$;

-- What a policy may know of these projects.
CREATE FUNCTION project_loads(p_projects bigint[])
RETURNS TABLE (project_id bigint, shares integer, consumed_seconds double precision, running bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT p.id, p.scheduling_shares, p.consumed_seconds, coalesce(b.running, 0)
    FROM projects p LEFT JOIN (
        SELECT j.project_id, count(*) AS running FROM build_jobs j
        WHERE j.status IN ('building', 'uploading') AND j.status = 'building' GROUP BY j.project_id
    ) b ON b.project_id = p.id
    WHERE p.id = ANY (p_projects);
END
$$;

-- Books seconds: attempts and projects in one transaction, and only when all of them still are as the caller read them. So a
-- second is charged once, whoever crashes and however many try. Returns whether it was booked.
CREATE FUNCTION charge_attempts(p_attempts bigint[], p_charged double precision[], p_elapsed double precision[], p_ended boolean[],
    p_projects bigint[], p_consumed double precision[], p_becomes double precision[])
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_projects bigint;
    v_attempts bigint;
BEGIN
    SELECT count(*) INTO v_projects FROM (
        SELECT FROM projects p JOIN unnest(p_projects, p_consumed) AS t(id, consumed) ON t.id = p.id
        WHERE p.consumed_seconds = t.consumed ORDER BY p.id FOR NO KEY UPDATE OF p) l;
    SELECT count(*) INTO v_attempts FROM (
        SELECT FROM build_attempts a JOIN unnest(p_attempts, p_charged) AS t(id, charged) ON t.id = a.id
        WHERE a.charged_seconds = t.charged AND NOT a.charged_up ORDER BY a.id FOR NO KEY UPDATE OF a) l;
    IF v_projects <> cardinality(p_projects) OR v_attempts <> cardinality(p_attempts) THEN
        RETURN false;
    END IF;
    UPDATE build_attempts a SET charged_seconds = greatest(t.elapsed, a.charged_seconds), charged_up = t.ended
    FROM unnest(p_attempts, p_elapsed, p_ended) AS t(id, elapsed, ended) WHERE a.id = t.id;
    UPDATE projects p SET consumed_seconds = t.becomes
    FROM unnest(p_projects, p_becomes) AS t(id, becomes) WHERE p.id = t.id AND p.consumed_seconds <> t.becomes;
    RETURN true;
END
$$;

-- When consumption last decayed (now, if it never did), how long ago that is, and every project that consumed anything.
CREATE FUNCTION decay_due() RETURNS TABLE (decayed_at timestamptz, seconds double precision, projects bigint[], consumed double precision[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO settings (key, value) VALUES ('scheduling.decayed_at', to_jsonb(now())) ON CONFLICT DO NOTHING;
    RETURN QUERY
    SELECT (s.value #>> '{}')::timestamptz, greatest(extract(epoch FROM now() - (s.value #>> '{}')::timestamptz)::double precision, 0),
        coalesce((SELECT array_agg(p.id ORDER BY p.id) FROM projects p WHERE p.consumed_seconds > 0), '{}'),
        coalesce((SELECT array_agg(p.consumed_seconds ORDER BY p.id) FROM projects p WHERE p.consumed_seconds > 0), '{}')
    FROM settings s WHERE s.key = 'scheduling.decayed_at';
END
$$;

-- Books a decay over `p_seconds` since `p_decayed_at`, when nobody else did and all is as the caller read it.
CREATE FUNCTION decay_projects(p_decayed_at timestamptz, p_seconds double precision, p_projects bigint[],
    p_consumed double precision[], p_becomes double precision[])
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_projects bigint;
BEGIN
    SELECT count(*) INTO v_projects FROM (
        SELECT FROM projects p JOIN unnest(p_projects, p_consumed) AS t(id, consumed) ON t.id = p.id
        WHERE p.consumed_seconds = t.consumed ORDER BY p.id FOR NO KEY UPDATE OF p) l;
    IF v_projects <> cardinality(p_projects) THEN
        RETURN false;
    END IF;
    UPDATE settings SET value = to_jsonb(p_decayed_at + p_seconds * interval '1 second'), updated_at = now()
    WHERE key = 'scheduling.decayed_at' AND (value #>> '{}')::timestamptz = p_decayed_at;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE projects p SET consumed_seconds = t.becomes
    FROM unnest(p_projects, p_becomes) AS t(id, becomes) WHERE p.id = t.id;
    RETURN true;
END
$$;

-- What the node's policy failed with; null: it works again.
CREATE FUNCTION report_policy_error(p_node text, p_incarnation bigint, p_error text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE nodes SET policy_error = left(p_error, 2000) WHERE id = p_node AND incarnation = p_incarnation
$$;

SELECT grant_to('EXECUTE ON FUNCTION ' || f, r) FROM (VALUES
    ('uncharged_attempts', '{frontend}'::text[]),
    ('project_loads', '{frontend}'),
    ('charge_attempts', '{frontend}'),
    ('decay_due', '{frontend}'),
    ('decay_projects', '{frontend}'),
    ('report_policy_error', '{builder,frontend}')
) AS g(f, r);

-- As in 0008, but found by id: asked for those that are held, the planner may walk over everything that is held (its
-- statistics may be of a time when nothing was).
CREATE OR REPLACE FUNCTION return_jobs(p_jobs bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM lock_jobs_with_inputs(p_jobs);
    UPDATE build_jobs SET status = 'pending', started_at = NULL
    WHERE id = ANY (p_jobs) AND status NOT IN ('pending', 'succeeded', 'failed', 'cancelled', 'dep-failed');
    PERFORM settle_jobs(p_jobs, true);
    PERFORM recheck_jobs(p_jobs);
END
$$;
