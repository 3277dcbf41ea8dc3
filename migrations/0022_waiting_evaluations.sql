-- Evaluations that cannot be fetched now: a forge is down or asks to be left alone, or no frontend can be asked for a
-- credential. That says nothing about the commit, so they go back to the queue with a time before which nobody takes them, and
-- say why they wait. How long, and when it has been too long, is decided by a pure function (host/core/src/retry.rs).

ALTER TABLE evaluations
    ADD COLUMN not_before timestamptz, -- nobody claims it before; null: at any time
    ADD COLUMN wait_reason text, -- why it was put off the last time
    ADD COLUMN waiting_since timestamptz, -- when it was put off for the first time
    ADD COLUMN wait_count integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT waiting_whole CHECK (wait_count >= 0
        AND (wait_count = 0) = (waiting_since IS NULL)
        AND (wait_count = 0) = (not_before IS NULL)
        AND (wait_count = 0) = (wait_reason IS NULL));

-- As before; what was put off is left until its time has come, and then has the place in the queue that belongs to that time,
-- so that a forge that is away holds up nobody else.
CREATE OR REPLACE FUNCTION claim_evaluation(p_node text, p_incarnation bigint, p_token_hash bytea) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_node nodes := current_node(p_node, p_incarnation, 'evaluator');
    v_id bigint;
BEGIN
    IF v_node.draining OR is_disowned(ARRAY[p_token_hash]) THEN
        RETURN NULL;
    END IF;
    SELECT id INTO v_id FROM evaluations
    WHERE status = 'queued' AND (not_before IS NULL OR not_before <= now())
    ORDER BY coalesce(not_before, created_at), id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE evaluations SET status = 'running', claimed_by = p_node, claim_incarnation = p_incarnation,
            claim_token_hash = p_token_hash, started_at = now(), warnings = '{}',
            -- Of an earlier try, perhaps by another engine.
            reuse_key = NULL, embeds_commit = NULL
        WHERE id = v_id;
        DELETE FROM evaluation_log_chunks WHERE eval_id = v_id;
        PERFORM pg_notify('evaluations', v_id::text);
    END IF;
    RETURN v_id;
END
$$;

-- Back to the queue, for later.
CREATE FUNCTION put_off_evaluation(p_eval bigint, p_token_hash bytea, p_delay interval, p_reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    PERFORM requeue_evaluation(p_eval, false);
    UPDATE evaluations SET not_before = now() + p_delay, wait_reason = left(p_reason, 4096),
        waiting_since = coalesce(waiting_since, now()), wait_count = wait_count + 1
    WHERE id = p_eval;
END
$$;

DO $$
BEGIN
    PERFORM grant_to('SELECT (not_before, wait_reason, waiting_since, wait_count) ON evaluations',
        '{evaluator,builder,signer,frontend}');
    PERFORM grant_to('EXECUTE ON FUNCTION put_off_evaluation', '{evaluator}');
END
$$;
