-- What builders say of their attempts (and signers for them when one failed).

CREATE OR REPLACE FUNCTION attempt_uploading(p_attempt bigint, p_token_hash bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
BEGIN
    UPDATE build_jobs SET status = 'uploading' WHERE id = v_job.id AND status = 'building';
    UPDATE build_attempts SET uploading_at = now() WHERE id = p_attempt AND uploading_at IS NULL;
END
$$;

-- The job behind an attempt's token, for a signer; HC001 when it is no longer held. `p_uploading`: its outputs are on their way,
-- which it need not have been told before.
CREATE OR REPLACE FUNCTION upload_job(p_attempt bigint, p_token_hash bytea, p_uploading boolean) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job bigint := attempt_job(p_attempt, p_token_hash);
BEGIN
    IF p_uploading AND EXISTS (SELECT FROM build_jobs WHERE id = v_job AND status = 'building') THEN
        -- A crash of the server that forgets it leaves a job that is building, whose outputs can be claimed all the same.
        PERFORM set_config('synchronous_commit', 'off', true);
        PERFORM attempt_uploading(p_attempt, p_token_hash);
    END IF;
    RETURN v_job;
END
$$;

-- A small log, of an attempt that is held.
CREATE OR REPLACE FUNCTION keep_log(p_attempt bigint, p_token_hash bytea, p_log bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
BEGIN
    INSERT INTO small_objects (key, bytes) VALUES (format('log/%s.%s', substr(v_job.drv_path, 12), p_attempt), p_log)
    ON CONFLICT (key) DO UPDATE SET bytes = excluded.bytes;
END
$$;

-- `p_kind` null: transient. `p_delays_ms[n]` is the delay after the n-th transient failure; none left: infrastructure failure.
CREATE OR REPLACE FUNCTION fail_attempt(
    p_attempt bigint, p_token_hash bytea, p_kind text, p_message text, p_exit_code integer, p_log_key text,
    p_build_seconds double precision, p_cpu_seconds double precision, p_peak_memory_bytes bigint, p_output_bytes bigint,
    p_delays_ms bigint[],
    OUT retry_at timestamptz, OUT dependents bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
    v_delay_ms bigint := p_delays_ms[v_job.retry_count + 1];
    v_attempt build_attempts;
BEGIN
    IF v_job.status = 'uploading' AND outputs_claimed(v_job.drv_path) THEN
        RAISE EXCEPTION 'the outputs of this attempt were accepted already: a signer finishes it' USING ERRCODE = 'HC003';
    END IF;
    -- Another one would be shown to all who may see this build.
    IF p_log_key <> format('log/%s.%s', substr(v_job.drv_path, 12), p_attempt) THEN
        RAISE EXCEPTION '% is not the log of this attempt', p_log_key USING ERRCODE = 'HC003';
    END IF;
    UPDATE build_attempts SET outcome = CASE WHEN p_kind IS NULL THEN 'transient' ELSE 'failed' END,
        failure_kind = p_kind, message = left(p_message, 65536), exit_code = p_exit_code, log_key = p_log_key,
        build_seconds = p_build_seconds, cpu_seconds = p_cpu_seconds, peak_memory_bytes = p_peak_memory_bytes,
        output_bytes = p_output_bytes, finished_at = now()
    WHERE id = p_attempt RETURNING * INTO v_attempt;
    IF (p_kind = 'timeout' AND (v_job.timeout_s > v_attempt.timeout_s OR v_job.max_silent_s > v_attempt.max_silent_s))
        OR (p_kind = 'limit' AND v_job.output_bytes_max > v_attempt.output_bytes_max)
    THEN
        -- Somebody who allows more came while it was built.
        retry_at := now();
        dependents := 0;
        PERFORM return_jobs(ARRAY[v_job.id]);
    ELSIF p_kind IS NOT NULL THEN
        dependents := fail_job(v_job.id, p_kind, p_message, p_exit_code);
    ELSIF v_delay_ms IS NULL THEN
        dependents := fail_job(v_job.id, 'infrastructure',
            format('gave up after %s tries; the last one: %s', v_job.retry_count + 1, p_message), p_exit_code);
    ELSE
        retry_at := now() + v_delay_ms * interval '1 ms';
        dependents := 0;
        UPDATE build_jobs SET retry_count = retry_count + 1, message = left(p_message, 65536), not_before = retry_at,
            avoid_node = CASE WHEN EXISTS (
                SELECT FROM nodes n, job_classes c
                WHERE c.id = v_job.class_id AND n.id <> v_job.claimed_by AND 'builder' = ANY (n.capabilities)
                    AND NOT n.stopped AND NOT n.draining AND n.last_seen > now() - interval '2 minutes'
                    AND can_run(n.systems, n.features, c)
            ) THEN v_job.claimed_by END
        WHERE id = v_job.id;
        PERFORM return_jobs(ARRAY[v_job.id]);
    END IF;
END
$$;

-- Aborted: pending again, nothing counted.
CREATE OR REPLACE FUNCTION release_attempt(p_attempt bigint, p_token_hash bytea, p_reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_job build_jobs := held_job(p_attempt, p_token_hash);
BEGIN
    IF v_job.status = 'uploading' AND outputs_claimed(v_job.drv_path) THEN
        RETURN; -- finished by a signer; the claim stays until then
    END IF;
    PERFORM end_attempt(p_attempt, 'aborted', left(p_reason, 65536));
    PERFORM return_jobs(ARRAY[v_job.id]);
END
$$;

-- The last bytes of the logs of all builds of a node: one statement and one notification a tick.
CREATE OR REPLACE FUNCTION write_log_tails(p_node text, p_attempts bigint[], p_token_hashes bytea[], p_offsets bigint[], p_bytes bytea[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO build_log_tails (attempt_id, job_id, start_offset, bytes)
    SELECT t.attempt, j.id, t.start_offset, t.bytes
    FROM unnest(p_attempts, p_token_hashes, p_offsets, p_bytes) AS t(attempt, token_hash, start_offset, bytes)
    JOIN build_attempts a ON a.id = t.attempt
    JOIN build_jobs j ON j.id = a.job_id AND j.attempt_id = a.id AND j.claim_token_hash = t.token_hash
    WHERE j.claimed_by = p_node
    ORDER BY t.attempt
    ON CONFLICT (attempt_id) DO UPDATE
        SET start_offset = excluded.start_offset, bytes = excluded.bytes, updated_at = now();
    IF FOUND THEN
        PERFORM pg_notify('build_log', left(p_node, 200));
    END IF;
END
$$;
