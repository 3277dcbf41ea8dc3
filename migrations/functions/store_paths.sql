-- What signers do to store paths, and what may be had.
--
-- What is asked of each job or called by other functions is PL/pgSQL, which keeps its plans: a function in SQL is planned for
-- every statement that calls it, one that is called by another function for every call.

-- Whether all outputs of a derivation can be had: published, or known upstream. `p_fresh`: expired memo rows do not count.
CREATE OR REPLACE FUNCTION drv_available(p_drv text, p_fresh boolean) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
BEGIN
    RETURN drv_available_since(p_drv, CASE WHEN p_fresh THEN now() ELSE '-infinity' END);
END
$$;

-- The same; memo rows count that had not expired at that time (and were not found wrong since).
CREATE OR REPLACE FUNCTION drv_available_since(p_drv text, p_time timestamptz) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
BEGIN
    RETURN (
        SELECT count(*) > 0 AND count(*) = count(*) FILTER (WHERE
            EXISTS (SELECT FROM store_paths s WHERE s.path = o.output_path AND s.state = 'published')
            OR EXISTS (SELECT FROM upstream_paths u WHERE u.path = o.output_path AND u.present AND u.expires_at > p_time))
        FROM derivation_outputs o WHERE o.drv_path = p_drv);
END
$$;

-- Whether the cache holds, or a signer is about to publish, every output: such a job is finished, never built again.
CREATE OR REPLACE FUNCTION outputs_claimed(p_drv text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
BEGIN
    RETURN (
        SELECT count(*) > 0 AND count(*) = count(s.path)
        FROM derivation_outputs o
        LEFT JOIN store_paths s ON s.path = o.output_path AND s.state IN ('claimed', 'published')
        WHERE o.drv_path = p_drv);
END
$$;

-- All outputs of an attempt in one transaction, with its log and their listings, where those are small; the first writer of a
-- path wins. Returns the rows that count from now on; or, with null for all else, those of `p_references` that are in no cache: then
-- nothing is claimed.
CREATE OR REPLACE FUNCTION claim_outputs(
    p_attempt bigint, p_token_hash bytea, p_paths text[], p_nar_hashes text[], p_nar_sizes bigint[], p_file_hashes text[],
    p_file_sizes bigint[], p_refs text[], p_cas text[], p_derivers text[], p_log bytea, p_listings bytea[],
    p_references text[]
) RETURNS TABLE (path text, nar_hash text, nar_size bigint, file_hash text, file_size bigint, refs text[], ca text, deriver text,
    producing_attempt bigint, generation integer, state text, public boolean,
    differs boolean) -- from the content that the attempt has
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
    v_wrong text[];
BEGIN
    SELECT array_agg(coalesce(o.output_path, g.path)) INTO v_wrong
    FROM (SELECT output_path FROM derivation_outputs WHERE drv_path = v_job.drv_path) o
    FULL JOIN unnest(p_paths) AS g(path) ON g.path = o.output_path
    WHERE o.output_path IS NULL OR g.path IS NULL;
    IF v_wrong IS NOT NULL THEN
        RAISE EXCEPTION 'a completion must name exactly the outputs of %; missing or foreign: %', v_job.drv_path,
            array_to_string(v_wrong[1:5], ', ') USING ERRCODE = 'HC003';
    END IF;
    IF cardinality(p_references) > 0 THEN
        RETURN QUERY
        SELECT w.path, null::text, null::bigint, null::text, null::bigint, null::text[], null::text, null::text, null::bigint,
            null::integer, null::text, null::boolean, null::boolean
        FROM unnest(p_references) AS w(path)
        WHERE NOT EXISTS (SELECT FROM store_paths s WHERE s.path = w.path AND s.state = 'published')
            AND NOT EXISTS (SELECT FROM upstream_paths u WHERE u.path = w.path AND u.present AND u.expires_at > now());
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    UPDATE build_jobs SET status = 'uploading' WHERE id = v_job.id AND status = 'building';
    UPDATE build_attempts SET uploading_at = now() WHERE id = p_attempt AND uploading_at IS NULL;
    PERFORM claim_store_paths(p_attempt, p_paths, p_nar_hashes, p_nar_sizes, p_file_hashes, p_file_sizes, p_refs, p_cas,
        p_derivers, (SELECT d.public FROM derivations d WHERE d.drv_path = v_job.drv_path));
    IF p_log IS NOT NULL THEN
        PERFORM keep_log(p_attempt, p_token_hash, p_log);
    END IF;
    INSERT INTO small_objects (key, bytes)
    SELECT substr(g.path, 12, 32) || '.ls', g.listing
    FROM unnest(p_paths, p_listings) AS g(path, listing) JOIN store_paths s ON s.path = g.path
    -- What another attempt made has its own.
    WHERE g.listing IS NOT NULL AND s.producing_attempt = p_attempt AND s.state = 'claimed'
    ON CONFLICT (key) DO UPDATE SET bytes = excluded.bytes;
    INSERT INTO reproducibility_findings (path, published_nar_hash, found_nar_hash, attempt_id)
    SELECT s.path, s.nar_hash, g.nar_hash, p_attempt
    FROM unnest(p_paths, p_nar_hashes) AS g(path, nar_hash) JOIN store_paths s ON s.path = g.path
    WHERE s.nar_hash <> g.nar_hash AND NOT EXISTS (SELECT FROM reproducibility_findings f
        WHERE f.path = s.path AND f.attempt_id = p_attempt AND f.found_nar_hash = g.nar_hash);
    RETURN QUERY
    SELECT s.path, s.nar_hash, s.nar_size, s.file_hash, s.file_size, s.refs, s.ca, s.deriver, s.producing_attempt, s.generation,
        s.state, s.public, s.nar_hash <> g.nar_hash
    FROM unnest(p_paths, p_nar_hashes) AS g(path, nar_hash) JOIN store_paths s ON s.path = g.path ORDER BY s.path;
END
$$;

-- Inserts or revives rows as claimed; leaves those that are claimed or published. `p_refs`: joined by spaces.
CREATE OR REPLACE FUNCTION claim_store_paths(
    p_attempt bigint, p_paths text[], p_nar_hashes text[], p_nar_sizes bigint[], p_file_hashes text[],
    p_file_sizes bigint[], p_refs text[], p_cas text[], p_derivers text[], p_public boolean
) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO store_paths AS s (path, nar_hash, nar_size, file_hash, file_size, refs, ca, deriver, producing_attempt, state, public)
    SELECT t.path, t.nar_hash, t.nar_size, t.file_hash, t.file_size, string_to_array(t.refs, ' '), t.ca, t.deriver,
        p_attempt, 'claimed', coalesce(p_public, false)
    FROM unnest(p_paths, p_nar_hashes, p_nar_sizes, p_file_hashes, p_file_sizes, p_refs, p_cas, p_derivers)
        AS t(path, nar_hash, nar_size, file_hash, file_size, refs, ca, deriver)
    ORDER BY t.path
    ON CONFLICT (path) DO UPDATE SET nar_hash = excluded.nar_hash, nar_size = excluded.nar_size,
        file_hash = excluded.file_hash, file_size = excluded.file_size, refs = excluded.refs, ca = excluded.ca,
        deriver = excluded.deriver, producing_attempt = excluded.producing_attempt, generation = s.generation + 1,
        state = 'claimed', public = s.public OR excluded.public, claimed_at = now(), published_at = NULL, lost_at = NULL
    WHERE s.state = 'lost';
    -- It says at which offsets of an earlier archive files lie. (Nothing, but where a path was lost.)
    DELETE FROM small_objects WHERE key IN (SELECT substr(s.path, 12, 32) || '.ls' FROM store_paths s
        WHERE s.path = ANY (p_paths) AND s.generation > 1 AND s.state = 'claimed' AND s.claimed_at = now());
END
$$;

-- Sources of an evaluation, or paths found on the side of an attempt (`p_eval` or `p_attempt`, with its token).
CREATE OR REPLACE FUNCTION claim_side_paths(
    p_eval bigint, p_attempt bigint, p_token_hash bytea, p_paths text[], p_nar_hashes text[], p_nar_sizes bigint[],
    p_file_hashes text[], p_file_sizes bigint[], p_refs text[], p_cas text[], p_derivers text[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_public boolean;
BEGIN
    IF p_eval IS NOT NULL THEN
        SELECT p.is_public INTO v_public FROM projects p WHERE p.id = (graph_evaluation(p_eval, p_token_hash)).project_id;
    ELSE
        SELECT d.public INTO v_public FROM derivations d WHERE d.drv_path = (held_job(p_attempt, p_token_hash)).drv_path;
    END IF;
    PERFORM claim_store_paths(NULL, p_paths, p_nar_hashes, p_nar_sizes, p_file_hashes, p_file_sizes, p_refs, p_cas,
        p_derivers, v_public);
    IF v_public THEN
        UPDATE store_paths SET public = true WHERE path = ANY (p_paths) AND NOT public;
    END IF;
END
$$;

-- Claimed rows become published; what waited for them goes on. The closure gate is the signer's, before.
CREATE OR REPLACE FUNCTION publish_paths(p_paths text[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_published text[];
BEGIN
    PERFORM FROM store_paths WHERE path = ANY (p_paths) ORDER BY path FOR NO KEY UPDATE;
    WITH published AS (
        UPDATE store_paths SET state = 'published', published_at = now() WHERE path = ANY (p_paths) AND state = 'claimed'
        RETURNING path
    ) SELECT array_agg(path) INTO v_published FROM published;
    DELETE FROM missing_path_reports WHERE path = ANY (v_published);
    RETURN outputs_turned_up(v_published);
END
$$;

-- Ends a job whose outputs are claimed: published, attempt and job succeeded, dependents readied. Idempotent; needs no
-- token, so that any signer finishes what another one began.
CREATE OR REPLACE FUNCTION publish_outputs(
    p_job bigint, p_paths text[], p_log_key text,
    p_build_seconds double precision, p_cpu_seconds double precision, p_peak_memory_bytes bigint, p_output_bytes bigint
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs;
    v_readied bigint := 0;
BEGIN
    SELECT * INTO v_job FROM build_jobs WHERE id = p_job FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job %', p_job USING ERRCODE = 'HC002';
    END IF;
    IF EXISTS (
        SELECT FROM derivation_outputs o LEFT JOIN store_paths s ON s.path = o.output_path
        WHERE o.drv_path = v_job.drv_path
            AND NOT coalesce(s.state = 'published' OR (s.state = 'claimed' AND s.path = ANY (p_paths)), false)
    ) THEN
        RAISE EXCEPTION 'job %: not all of its outputs are claimed or published', p_job USING ERRCODE = 'HC003';
    END IF;
    IF v_job.status = 'uploading' THEN
        UPDATE build_attempts SET outcome = 'succeeded', finished_at = now(), exit_code = 0, log_key = p_log_key,
            build_seconds = p_build_seconds, cpu_seconds = p_cpu_seconds, peak_memory_bytes = p_peak_memory_bytes,
            output_bytes = p_output_bytes
        WHERE id = v_job.attempt_id;
        v_readied := jobs_succeeded(ARRAY[p_job]);
    END IF;
    RETURN v_readied + publish_paths(p_paths);
END
$$;

-- Jobs whose outputs are all claimed or published and that nobody has ended: a signer died in between.
CREATE OR REPLACE FUNCTION unfinished_publications(p_limit integer) RETURNS TABLE (job_id bigint, attempt_id bigint, drv_path text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT id, attempt_id, drv_path FROM build_jobs
    WHERE status || '' IN ('building', 'uploading') AND status = 'uploading' AND outputs_claimed(drv_path)
    ORDER BY id LIMIT p_limit
$$;

-- Objects that somebody relies on now are safe from the sweep for the grace period.
CREATE OR REPLACE FUNCTION renew_leases(p_paths text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE store_paths SET leased_until = now() + interval '24 hours'
    WHERE path IN (SELECT s.path FROM store_paths s WHERE s.path = ANY (p_paths)
        AND (s.leased_until IS NULL OR s.leased_until < now() + interval '23 hours') ORDER BY s.path FOR NO KEY UPDATE);
END
$$;

-- A signer found the object of a claimed row gone, before anybody published it. The row is lost, and what was to be finished
-- with it is pending again, but for the attempt that is just being completed (`p_attempt`). False: it is not claimed any more.
CREATE OR REPLACE FUNCTION give_up_claimed_path(p_path text, p_attempt bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_jobs bigint[];
BEGIN
    -- Jobs before store paths, like everybody.
    SELECT array_agg(j.id) INTO v_jobs FROM derivation_outputs o JOIN build_jobs j USING (drv_path)
    WHERE o.output_path = p_path AND j.status = 'uploading' AND j.attempt_id IS DISTINCT FROM p_attempt;
    IF v_jobs IS NOT NULL THEN
        PERFORM lock_jobs_with_inputs(v_jobs);
    END IF;
    PERFORM FROM store_paths WHERE path = p_path AND state = 'claimed' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT array_agg(id) INTO v_jobs FROM build_jobs
    WHERE id = ANY (v_jobs) AND status = 'uploading' AND attempt_id IS DISTINCT FROM p_attempt AND outputs_claimed(drv_path);
    UPDATE store_paths SET state = 'lost', lost_at = now(),
        losses = ARRAY(SELECT t FROM unnest(losses) AS t WHERE t > now() - interval '1 hour') || now()
    WHERE path = p_path;
    IF v_jobs IS NOT NULL THEN
        PERFORM end_attempt(attempt_id, 'aborted', format('what it uploaded as %s is gone from the object store', p_path))
        FROM build_jobs WHERE id = ANY (v_jobs);
        PERFORM pg_notify('claims', left(claimed_by, 200)) FROM build_jobs WHERE id = ANY (v_jobs);
        PERFORM return_jobs(v_jobs);
    END IF;
    RETURN true;
END
$$;

-- The public halves of the keys that this signer signs with.
CREATE OR REPLACE FUNCTION set_signer_keys(p_node text, p_incarnation bigint, p_keys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM current_node(p_node, p_incarnation, 'signer');
    INSERT INTO signer_keys (node, keys) VALUES (p_node, p_keys) ON CONFLICT (node) DO UPDATE SET keys = excluded.keys;
END
$$;
