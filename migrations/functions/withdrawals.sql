-- What becomes of jobs that nobody wants any more (decision 0019).
--
-- Whoever takes interest away says so with its own change, which costs the same however many jobs there are (`withdraw`,
-- `withdraw_all`). What of them nobody else wants is looked for afterwards, without a lock, and goes in batches, each a
-- transaction: `withdraw_some`, again and again, by whoever asked, or by the chores if that crashed. Looking comes after the
-- commit of the change, so two that leave at once do not count on each other: the one that looks last sees both gone.
--
-- Batches go from the top down. So no pending job is ever above a cancelled one, and whether a job is still not wanted is seen
-- from what is directly above it, under its lock, whatever has come since somebody looked.

-- These derivations are wanted by one less, an evaluation that lives on or nobody in particular. Null: nothing is. Mostly there is
-- nothing to cancel, and nobody waits for it: the chores are woken.
CREATE OR REPLACE FUNCTION withdraw(p_eval bigint, p_roots text[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF p_roots IS NOT NULL THEN
        INSERT INTO withdrawals (eval_id, roots, running, message)
        VALUES (p_eval, p_roots, false, 'no evaluation wants it any more');
        PERFORM pg_notify('withdrawals', '');
    END IF;
END
$$;

-- These evaluations, which are not live any more, want nothing. Whoever calls this goes on with it, so nobody is woken. `p_running`: what is built for them stops, too, unless its outputs
-- are accepted already.
CREATE OR REPLACE FUNCTION withdraw_all(p_evals bigint[], p_running boolean, p_message text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO withdrawals (eval_id, running, message) SELECT e, p_running, p_message FROM unnest(p_evals) AS e ORDER BY e;
END
$$;

-- Held by a batch, and by whoever begins to want what another evaluation reached, so that neither misses the other. Nobody holds
-- it longer than a batch takes.
CREATE OR REPLACE FUNCTION lock_withdrawals() RETURNS void
LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtext('harmonia-ci withdrawals'))
$$;

-- Whether an evaluation that this transaction makes live may show what that one reached, which the caller has looked at: none of it
-- was withdrawn since, and none will be. So it is while that is live itself, or another that shows the same. Else what has not
-- ended is looked at again, if that is no more than a batch.
CREATE OR REPLACE FUNCTION stays_wanted(p_eval bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_open bigint[] := ARRAY(SELECT j.id FROM eval_attrs a JOIN build_jobs j USING (drv_path)
        WHERE a.eval_id = p_eval AND j.status IN ('pending', 'building', 'uploading', 'cancelled') LIMIT 251);
BEGIN
    PERFORM lock_withdrawals();
    RETURN EXISTS (SELECT FROM live_evaluations l WHERE l.id = p_eval AND l.attrs_of = p_eval)
        OR EXISTS (SELECT FROM evaluations r JOIN live_evaluations l ON l.id = r.id WHERE r.reuses_eval_id = p_eval)
        OR (cardinality(v_open) <= 250 AND NOT EXISTS (SELECT FROM build_jobs j
            WHERE j.id = ANY (v_open) AND j.status = 'cancelled' AND NOT drv_available(j.drv_path, false)));
END
$$;

-- Goes on with a withdrawal: looks what nobody wants any more, or cancels the next `p_limit` jobs of that. Whoever calls this with
-- something to do for long should do so until `is_over`; each call is a transaction of its own.
CREATE OR REPLACE FUNCTION withdraw_some(p_withdrawal bigint, p_limit integer, OUT cancelled bigint, OUT is_over boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_withdrawal withdrawals;
BEGIN
    cancelled := 0;
    -- One at a time.
    SELECT * INTO v_withdrawal FROM withdrawals WHERE id = p_withdrawal FOR UPDATE;
    is_over := NOT FOUND;
    IF is_over THEN
        RETURN;
    END IF;
    IF v_withdrawal.looked THEN
        cancelled := withdraw_batch(v_withdrawal, p_limit);
    ELSE
        PERFORM look_for_unwanted(v_withdrawal);
    END IF;
    SELECT * INTO v_withdrawal FROM withdrawals WHERE id = p_withdrawal;
    IF next_withdrawn(v_withdrawal, 1) <> '{}' THEN
        RETURN;
    END IF;
    IF v_withdrawal.forsakes THEN
        DELETE FROM withdrawn_jobs WHERE withdrawal_id = p_withdrawal;
    END IF;
    IF v_withdrawal.job_id IS NULL THEN
        DELETE FROM withdrawals WHERE id = p_withdrawal;
        is_over := true;
        RETURN;
    END IF;
    -- The job is cancelled, with what waited for it. What it waited for may have lost the last who wanted it.
    UPDATE withdrawals SET job_id = NULL, looked = false, done_to = NULL, forsakes = false, running = false, message = 'no evaluation wants it any more',
        roots = ARRAY(SELECT i.input_drv FROM build_jobs j JOIN derivation_inputs i ON i.referrer = j.drv_path
            WHERE j.id = v_withdrawal.job_id AND j.status = 'cancelled')
    WHERE id = p_withdrawal;
END
$$;

-- Which jobs a withdrawal is about: those below its roots that no live evaluation reaches, and what is above those. This reads
-- everything below and above, and locks nothing but the withdrawal.
CREATE OR REPLACE FUNCTION look_for_unwanted(p_withdrawal withdrawals) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_roots text[];
    v_unwanted bigint[];
    v_around bigint[]; -- these and what is above them
    v_wanting text[]; -- derivations of those that live evaluations name
BEGIN
    IF p_withdrawal.job_id IS NOT NULL THEN
        -- An order: not a matter of who wants it.
        v_around := ARRAY(SELECT p_withdrawal.job_id UNION SELECT id FROM jobs_above(ARRAY[p_withdrawal.job_id], '{pending}'));
    ELSE
        v_roots := coalesce(p_withdrawal.roots, ARRAY(
            SELECT a.drv_path FROM evaluations e JOIN eval_attrs a ON a.eval_id = coalesce(e.reuses_eval_id, e.id)
            WHERE e.id = p_withdrawal.eval_id AND a.drv_path IS NOT NULL
            UNION SELECT h.drv_path FROM eval_holds h WHERE h.eval_id = p_withdrawal.eval_id));
        -- (Nothing is looked for by nothing: to the planner an index of a part is as good as any for that.)
        IF v_roots <> '{}' THEN
            v_unwanted := ARRAY(
                SELECT j.id FROM jobs_below(v_roots, open_states()) b
                CROSS JOIN LATERAL (SELECT c.id, c.status, c.started_at FROM build_jobs c WHERE c.id = b.id OFFSET 0) j
                WHERE j.status = 'pending' OR (j.status IN ('building', 'uploading')
                    -- What was claimed after nobody wanted it stops in any case.
                    AND (p_withdrawal.running OR j.started_at > p_withdrawal.asked_at)));
        END IF;
        v_around := and_above(v_unwanted);
        v_wanting := ARRAY(
            SELECT j.drv_path FROM unnest(v_around) AS a(id)
            CROSS JOIN LATERAL (SELECT c.drv_path, c.priority FROM build_jobs c WHERE c.id = a.id OFFSET 0) j
            WHERE (p_withdrawal.spares_boosted AND j.priority > 0) OR EXISTS (SELECT FROM live_naming(j.drv_path)));
        IF v_wanting <> '{}' THEN
            v_unwanted := ARRAY(SELECT unnest(v_unwanted) EXCEPT SELECT id FROM jobs_below(v_wanting, open_states()));
            v_around := and_above(v_unwanted);
        END IF;
    END IF;
    -- (Ids follow dependencies, mostly; what comes too early is put off.)
    INSERT INTO withdrawn_jobs (withdrawal_id, job_id, place, ended_at)
    SELECT p_withdrawal.id, j.id, -j.id, j.finished_at FROM unnest(v_around) AS a(id)
    CROSS JOIN LATERAL (SELECT c.id, c.finished_at FROM build_jobs c WHERE c.id = a.id OFFSET 0) j;
    UPDATE withdrawals SET looked = true WHERE id = p_withdrawal.id;
    -- They were kept so that we find them.
    IF p_withdrawal.roots IS NULL AND p_withdrawal.job_id IS NULL THEN
        DELETE FROM eval_holds WHERE eval_id = p_withdrawal.eval_id;
    END IF;
END
$$;

-- These jobs and what has not ended above them.
CREATE OR REPLACE FUNCTION and_above(p_jobs bigint[]) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
BEGIN
    IF coalesce(p_jobs, '{}') = '{}' THEN
        RETURN '{}';
    END IF;
    -- Mostly they are above each other, and little else is.
    RETURN p_jobs || ARRAY(
        WITH RECURSIVE above(id, drv_path) AS (
            SELECT u.id, u.drv_path FROM (SELECT j.drv_path FROM build_jobs j WHERE j.id = ANY (p_jobs) OFFSET 0) s
            CROSS JOIN LATERAL jobs_on(s.drv_path, open_states()) u WHERE u.id NOT IN (SELECT unnest(p_jobs))
            UNION
            SELECT u.id, u.drv_path FROM above a CROSS JOIN LATERAL jobs_on(a.drv_path, open_states()) u
            WHERE u.id NOT IN (SELECT unnest(p_jobs))
        ) SELECT id FROM above);
END
$$;

-- The next jobs of a withdrawal. Each is cancelled, or is wanted by now (as is what is below it), or comes too early, or stays as it
-- is since it is built or failed: then it is remembered as one that holds nothing. Returns how many were cancelled.
CREATE OR REPLACE FUNCTION withdraw_batch(p_withdrawal withdrawals, p_limit integer) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_jobs bigint[] := next_withdrawn(p_withdrawal, p_limit);
    v_last constant bigint := (SELECT place FROM withdrawn_jobs
        WHERE withdrawal_id = p_withdrawal.id AND job_id = v_jobs[cardinality(v_jobs)]);
    v_ordered constant boolean := p_withdrawal.job_id IS NOT NULL;
    v_wanted bigint[];
    v_early bigint[];
    v_new bigint[]; -- what has come above since somebody looked
    v_left bigint[]; -- what stays as it is
    v_cancelled bigint;
BEGIN
    PERFORM lock_withdrawals();
    -- An evaluation that is just inserting above one of these, or naming it, holds it; after its commit we see what it wants.
    PERFORM FROM build_jobs WHERE id = ANY (v_jobs) ORDER BY id FOR NO KEY UPDATE;
    WITH above AS MATERIALIZED (
        SELECT b.id, d.id AS above_id, d.status = 'pending' AS is_pending, k.forsaken,
            -- As it was when it was looked at.
            d.status <> 'pending' AND d.finished_at IS NOT DISTINCT FROM k.ended_at AS is_same
        FROM build_jobs b
        CROSS JOIN LATERAL (SELECT i.referrer FROM derivation_inputs i WHERE i.input_drv = b.drv_path OFFSET 0) i
        CROSS JOIN LATERAL (SELECT j.id, j.status, j.finished_at FROM build_jobs j
            WHERE j.drv_path = i.referrer AND j.status = ANY (open_states()) OFFSET 0) d
        LEFT JOIN LATERAL (SELECT w.forsaken, w.ended_at FROM withdrawn_jobs w
            WHERE w.withdrawal_id = p_withdrawal.id AND w.job_id = d.id OFFSET 0) k ON true
        WHERE b.id = ANY (v_jobs) AND b.status = ANY (open_states())
    )
    SELECT array_agg(id) FILTER (WHERE NOT v_ordered AND coalesce(forsaken AND NOT is_same, forsaken IS NULL)),
        array_agg(id) FILTER (WHERE (forsaken IS FALSE AND above_id NOT IN (SELECT unnest(v_jobs)))
            OR (v_ordered AND is_pending AND forsaken IS NOT FALSE)),
        array_agg(DISTINCT above_id) FILTER (WHERE v_ordered AND is_pending AND forsaken IS NOT FALSE)
    INTO v_wanted, v_early, v_new FROM above;
    IF NOT v_ordered THEN
        v_wanted := v_wanted || ARRAY(SELECT b.id FROM build_jobs b
            WHERE b.id = ANY (v_jobs) AND b.status = ANY (open_states())
                AND ((p_withdrawal.spares_boosted AND b.priority > 0) OR EXISTS (SELECT FROM live_naming(b.drv_path))));
    END IF;
    IF v_wanted <> '{}' THEN
        v_wanted := within_below(v_wanted, v_jobs);
        DELETE FROM withdrawn_jobs WHERE ctid = ANY (rows_of_withdrawn(p_withdrawal.id, v_wanted));
        v_jobs := ARRAY(SELECT unnest(v_jobs) EXCEPT SELECT unnest(v_wanted));
    END IF;
    IF v_early IS NOT NULL THEN
        v_early := within_below(v_early, v_jobs);
        -- (There is always a last one: it may be one of these.)
        UPDATE withdrawn_jobs SET place = 1 + (SELECT w.place FROM withdrawn_jobs w
            WHERE w.withdrawal_id = p_withdrawal.id AND NOT w.forsaken ORDER BY w.place DESC LIMIT 1)
        WHERE ctid = ANY (rows_of_withdrawn(p_withdrawal.id, v_early));
        INSERT INTO withdrawn_jobs (withdrawal_id, job_id, place) SELECT p_withdrawal.id, n, -n FROM unnest(v_new) AS n
        ON CONFLICT (withdrawal_id, job_id) DO UPDATE SET forsaken = false, place = excluded.place;
        v_jobs := ARRAY(SELECT unnest(v_jobs) EXCEPT SELECT unnest(v_early));
    END IF;
    v_cancelled := cancel_jobs(v_jobs, p_withdrawal.running, p_withdrawal.asked_at, p_withdrawal.message);
    v_left := ARRAY(SELECT id FROM build_jobs WHERE id = ANY (v_jobs) AND status = ANY (open_states()));
    UPDATE withdrawn_jobs SET forsaken = true WHERE ctid = ANY (rows_of_withdrawn(p_withdrawal.id, v_left));
    v_jobs := ARRAY(SELECT unnest(v_jobs) EXCEPT SELECT unnest(v_left));
    DELETE FROM withdrawn_jobs WHERE ctid = ANY (rows_of_withdrawn(p_withdrawal.id, v_jobs));
    UPDATE withdrawals SET done_to = CASE WHEN v_new IS NULL THEN v_last END, forsakes = forsakes OR v_left <> '{}'
    WHERE id = p_withdrawal.id;
    RETURN v_cancelled;
END
$$;

-- The first in their order, read along an index from where the last ones were, and no further.
CREATE OR REPLACE FUNCTION next_withdrawn(p_withdrawal withdrawals, p_limit integer) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp SET enable_sort = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN ARRAY(SELECT job_id FROM withdrawn_jobs
        WHERE withdrawal_id = p_withdrawal.id AND NOT forsaken AND place > coalesce(p_withdrawal.done_to, '-9223372036854775808')
        ORDER BY place LIMIT p_limit);
END
$$;

-- Where the rows of these jobs are, looked for by their keys: there may be many more of the withdrawal.
CREATE OR REPLACE FUNCTION rows_of_withdrawn(p_withdrawal bigint, p_jobs bigint[]) RETURNS tid[]
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
BEGIN
    RETURN ARRAY(SELECT w.at FROM unnest(p_jobs) AS j(id)
        CROSS JOIN LATERAL (SELECT k.ctid AS at FROM withdrawn_jobs k
            WHERE k.withdrawal_id = p_withdrawal AND k.job_id = j.id OFFSET 0) w);
END
$$;

-- Of these jobs, those at or below `p_from` through others of them that have not ended.
CREATE OR REPLACE FUNCTION within_below(p_from bigint[], p_jobs bigint[]) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp AS $$
BEGIN
    RETURN ARRAY(
        WITH RECURSIVE found(id) AS (
            SELECT unnest(p_from)
            UNION
            SELECT i.id FROM found f
            CROSS JOIN LATERAL (SELECT d.input_drv FROM build_jobs j JOIN derivation_inputs d ON d.referrer = j.drv_path
                WHERE j.id = f.id OFFSET 0) d
            CROSS JOIN LATERAL (SELECT j.id FROM build_jobs j
                WHERE j.drv_path = d.input_drv AND j.status = ANY (open_states()) OFFSET 0) i
            WHERE i.id IN (SELECT unnest(p_jobs))
        ) SELECT id FROM found WHERE id IN (SELECT unnest(p_jobs)));
END
$$;

-- Cancels these jobs (locked, with nothing pending above them): those that wait and those that were claimed after `p_since`, and
-- with `p_running` all that are built, unless their outputs are accepted already. Returns how many.
CREATE OR REPLACE FUNCTION cancel_jobs(p_jobs bigint[], p_running boolean, p_since timestamptz, p_message text) RETURNS bigint
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_jobs bigint[];
    v_there bigint[];
BEGIN
    -- Looked at once: outputs may be claimed any moment, by another job that makes them, too.
    SELECT array_agg(id) INTO v_jobs FROM build_jobs
    WHERE id = ANY (p_jobs) AND (status = 'pending' OR ((p_running OR started_at > p_since)
        AND (status = 'building' OR (status = 'uploading' AND NOT outputs_claimed(drv_path)))));
    IF v_jobs IS NULL THEN
        RETURN 0;
    END IF;
    v_there := let_succeed(v_jobs, p_message);
    IF v_there IS NOT NULL THEN
        v_jobs := ARRAY(SELECT unnest(v_jobs) EXCEPT SELECT unnest(v_there));
    END IF;
    PERFORM let_go(v_jobs, p_message);
    UPDATE build_jobs SET status = 'cancelled', message = p_message, not_before = NULL WHERE id = ANY (v_jobs);
    PERFORM notify_done(v_jobs);
    RETURN cardinality(v_jobs);
END
$$;

-- What is built although another made its outputs meanwhile has succeeded; nobody goes on with it. Returns which of these jobs
-- (locked, neither ended nor accepted) that was; null: none.
CREATE OR REPLACE FUNCTION let_succeed(p_jobs bigint[], p_message text) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_there bigint[];
    -- Of most, nothing is known to be anywhere: that is cheaper to see.
    v_known constant bigint[] := ARRAY(
        SELECT j.id FROM (SELECT b.id, b.drv_path FROM build_jobs b WHERE b.id = ANY (p_jobs) OFFSET 0) j
        CROSS JOIN LATERAL (SELECT o.output_path FROM derivation_outputs o WHERE o.drv_path = j.drv_path OFFSET 0) o
        WHERE EXISTS (SELECT FROM store_paths s WHERE s.path = o.output_path)
            OR EXISTS (SELECT FROM upstream_paths u WHERE u.path = o.output_path));
BEGIN
    IF v_known <> '{}' THEN
        SELECT array_agg(id) INTO v_there FROM build_jobs WHERE id = ANY (v_known) AND drv_available(drv_path, true);
    END IF;
    IF v_there IS NOT NULL THEN
        PERFORM let_go(v_there, p_message);
        UPDATE build_jobs SET status = 'pending' WHERE id = ANY (v_there) AND status <> 'pending';
        PERFORM jobs_succeeded(v_there);
    END IF;
    RETURN v_there;
END
$$;

-- Ends the attempts that hold any of these jobs.
CREATE OR REPLACE FUNCTION let_go(p_jobs bigint[], p_message text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_held record;
BEGIN
    FOR v_held IN SELECT attempt_id, claimed_by FROM build_jobs WHERE id = ANY (p_jobs) AND attempt_id IS NOT NULL LOOP
        PERFORM end_attempt(v_held.attempt_id, 'aborted', p_message);
        PERFORM pg_notify('claims', v_held.claimed_by);
    END LOOP;
END
$$;
