-- Statuses as desired state, notifications as a durable outbox. What changes a commit's state leaves a mark in the same
-- transaction; a frontend takes the marks, reads the rows as they are then, and writes what forges should show. Marks are
-- only ever added and removed, never changed, so that nobody who completes a job waits for anybody else's mark.
--
-- The last word is never lost: whoever computes removes the marks first and reads afterwards, in statements of their own. A
-- mark that was removed was committed before, and with it the change that it tells of, so the reading sees that change; a
-- mark that comes later stays for the next time.

-- Commits whose statuses may have changed. No key: a burst leaves many, one computation takes them all.
CREATE TABLE report_marks (
    project_id bigint NOT NULL,
    commit_sha text NOT NULL, -- of a pull request its head; empty: not known
    urgent boolean NOT NULL DEFAULT false, -- the first sign of life, which does not wait for a burst to end
    marked_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX report_marks_commit ON report_marks (project_id, commit_sha);

-- Jobs that came to an end or back from it. Whose commits that concerns is found when the marks are taken, so that ending a
-- job costs one insertion, whatever hangs on it.
CREATE TABLE job_marks (
    job_id bigint NOT NULL,
    marked_at timestamptz NOT NULL DEFAULT now()
);

-- Commits that were computed, for the slow sweep that looks after those that are not settled.
CREATE TABLE commit_reports (
    project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    commit_sha text NOT NULL,
    computed_at timestamptz NOT NULL DEFAULT now(),
    cost_ms integer NOT NULL DEFAULT 0, -- what is expensive is computed less often
    settled boolean NOT NULL,
    PRIMARY KEY (project_id, commit_sha)
);
CREATE INDEX commit_reports_unsettled ON commit_reports (computed_at) WHERE NOT settled;

-- What reporters were told of an evaluation, or would have been, had there been any.
CREATE TABLE evaluations_told (
    eval_id bigint PRIMARY KEY REFERENCES evaluations ON DELETE CASCADE,
    evaluation boolean, -- null: nothing yet; else whether it ended well
    builds boolean,
    rounds integer NOT NULL DEFAULT 0
);
-- The past stays quiet.
INSERT INTO evaluations_told (eval_id, evaluation)
SELECT id, status = 'succeeded' FROM evaluations WHERE status IN ('succeeded', 'failed');

-- Forges and reporters that asked to be left alone, or do not answer anybody.
CREATE TABLE delivery_pauses (
    kind text NOT NULL CHECK (kind IN ('forge', 'reporter')),
    name text NOT NULL,
    until timestamptz NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (kind, name)
);

ALTER TABLE projects
    ADD COLUMN status_prefix text CHECK (length(status_prefix) BETWEEN 1 AND 64); -- null: the node's
ALTER TABLE evaluations
    ADD COLUMN source_path text; -- store path of its tree, to find its files in errors
CREATE INDEX evaluations_head ON evaluations (project_id, pr_head_sha) WHERE pr_head_sha IS NOT NULL;
CREATE INDEX pull_requests_waiting ON pull_requests (project_id, head_commit) WHERE waiting IS NOT NULL;

ALTER TABLE commit_statuses
    ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    ADD COLUMN attr text, -- of a status of one attribute
    ADD COLUMN desired_summary text NOT NULL DEFAULT '',
    ADD COLUMN desired_annotations jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN desired_started_at timestamptz,
    ADD COLUMN desired_finished_at timestamptz,
    ADD COLUMN desired_digest bytea NOT NULL DEFAULT '',
    ADD COLUMN delivered_digest bytea,
    ADD COLUMN delivered_url text,
    ADD COLUMN dead_at timestamptz, -- the forge will never take it; another desired state is tried again
    ADD COLUMN asserts integer NOT NULL DEFAULT 0, -- how often it is asserted again although the last answer was good
    ADD CONSTRAINT leased_whole CHECK ((leased_by IS NULL) = (leased_until IS NULL));
DROP INDEX commit_statuses_due;
CREATE INDEX commit_statuses_due ON commit_statuses (next_attempt_at)
    WHERE dead_at IS NULL AND (ambiguous OR delivered_digest IS DISTINCT FROM desired_digest);
CREATE INDEX commit_statuses_dead ON commit_statuses (id) WHERE dead_at IS NOT NULL;

ALTER TABLE forge_comments
    ADD COLUMN created_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX forge_comments_dead ON forge_comments (id) WHERE dead_at IS NOT NULL;

-- Of one project, a reporter hears in the order in which things happened.
ALTER TABLE outbox
    ADD COLUMN project_id bigint NOT NULL REFERENCES projects ON DELETE CASCADE;
DROP INDEX outbox_due;
CREATE INDEX outbox_undelivered ON outbox (reporter, project_id, id) WHERE delivered_at IS NULL AND dead_at IS NULL;
CREATE INDEX outbox_dead ON outbox (id) WHERE dead_at IS NOT NULL;

-- The commit whose statuses an evaluation decides.
CREATE FUNCTION reported_commit(p_eval evaluations) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(p_eval.pr_head_sha, p_eval.commit_sha, '')
$$;

CREATE FUNCTION mark_evaluation() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO report_marks (project_id, commit_sha, urgent)
    VALUES (NEW.project_id, reported_commit(NEW), TG_OP = 'INSERT');
    RETURN NULL;
END
$$;
CREATE TRIGGER evaluations_mark_new AFTER INSERT ON evaluations FOR EACH ROW EXECUTE FUNCTION mark_evaluation();
CREATE TRIGGER evaluations_mark AFTER UPDATE ON evaluations
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status OR OLD.complete IS DISTINCT FROM NEW.complete
        OR OLD.superseded_by IS DISTINCT FROM NEW.superseded_by OR OLD.closed_at IS DISTINCT FROM NEW.closed_at
        OR OLD.commit_sha IS DISTINCT FROM NEW.commit_sha OR OLD.reuses_eval_id IS DISTINCT FROM NEW.reuses_eval_id
        OR OLD.allow_empty IS DISTINCT FROM NEW.allow_empty)
    EXECUTE FUNCTION mark_evaluation();

-- Attributes of a running evaluation are there to be built: of interest to forges only.
CREATE FUNCTION mark_new_attrs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO report_marks (project_id, commit_sha)
    SELECT e.project_id, reported_commit(e) FROM evaluations e
    JOIN projects p ON p.id = e.project_id
    WHERE p.repository_id IS NOT NULL AND e.id IN (SELECT n.eval_id FROM new_attrs n);
    RETURN NULL;
END
$$;
CREATE TRIGGER eval_attrs_mark AFTER INSERT ON eval_attrs REFERENCING NEW TABLE AS new_attrs
    FOR EACH STATEMENT EXECUTE FUNCTION mark_new_attrs();

CREATE FUNCTION mark_job() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO job_marks (job_id) VALUES (NEW.id);
    RETURN NULL;
END
$$;
CREATE TRIGGER build_jobs_mark AFTER UPDATE ON build_jobs
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status
        AND (NEW.status IN ('succeeded', 'failed', 'cancelled', 'dep-failed')
            OR OLD.status IN ('succeeded', 'failed', 'cancelled', 'dep-failed')))
    EXECUTE FUNCTION mark_job();

CREATE FUNCTION mark_pull_request() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO report_marks (project_id, commit_sha, urgent) VALUES (NEW.project_id, NEW.head_commit, true);
    IF TG_OP = 'UPDATE' AND OLD.head_commit <> NEW.head_commit THEN
        INSERT INTO report_marks (project_id, commit_sha) VALUES (NEW.project_id, OLD.head_commit);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER pull_requests_mark_new AFTER INSERT ON pull_requests
    FOR EACH ROW WHEN (NEW.waiting IS NOT NULL) EXECUTE FUNCTION mark_pull_request();
CREATE TRIGGER pull_requests_mark AFTER UPDATE ON pull_requests
    FOR EACH ROW WHEN ((OLD.waiting IS NOT NULL OR NEW.waiting IS NOT NULL)
        AND (OLD.waiting IS DISTINCT FROM NEW.waiting OR OLD.head_commit <> NEW.head_commit OR OLD.is_open <> NEW.is_open))
    EXECUTE FUNCTION mark_pull_request();

-- Finds whose commits the marked jobs concern: of live evaluations, and of others as long as something they show is not
-- green, so that a rebuild repairs it. Returns how many marks it took. Two may do this at once.
CREATE FUNCTION take_job_marks(p_limit integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_taken bigint;
    v_jobs bigint[];
    v_times timestamptz[];
BEGIN
    WITH taken AS (
        DELETE FROM job_marks WHERE ctid = ANY (ARRAY(SELECT ctid FROM job_marks LIMIT p_limit FOR UPDATE SKIP LOCKED))
        RETURNING job_id, marked_at
    ), first AS (
        SELECT job_id, count(*) AS marks, min(marked_at) AS since FROM taken GROUP BY job_id
    ) SELECT coalesce(sum(marks), 0), array_agg(job_id), array_agg(since) INTO v_taken, v_jobs, v_times FROM first;
    IF v_taken = 0 THEN
        RETURN 0;
    END IF;
    -- A statement of its own, which sees what was committed with the marks. A burst began with its first job.
    INSERT INTO report_marks (project_id, commit_sha, marked_at)
    SELECT e.project_id, coalesce(e.pr_head_sha, e.commit_sha, ''), min(m.since)
    FROM unnest(v_jobs, v_times) AS m(id, since)
    JOIN build_jobs j ON j.id = m.id
    JOIN eval_attrs a ON a.drv_path = j.drv_path
    CROSS JOIN LATERAL (
        SELECT * FROM evaluations WHERE id = a.eval_id
        UNION ALL SELECT * FROM evaluations WHERE reuses_eval_id = a.eval_id
    ) e
    JOIN projects p ON p.id = e.project_id
    WHERE (e.superseded_by IS NULL AND e.closed_at IS NULL AND e.status IN ('queued', 'running', 'succeeded', 'skipped'))
        OR EXISTS (SELECT FROM commit_statuses s WHERE s.repository_id = p.repository_id
            AND s.commit_sha = coalesce(e.pr_head_sha, e.commit_sha, '') AND s.desired_state <> 'success')
    GROUP BY 1, 2;
    RETURN v_taken;
END
$$;
CREATE INDEX evaluations_reusing ON evaluations (reuses_eval_id) WHERE reuses_eval_id IS NOT NULL;

-- Commits that were not settled when they were computed, and not computed for so long: once more, in case a mark went
-- missing. Of projects without a forge only what still runs is of interest, and that marks itself.
CREATE FUNCTION sweep_reports(p_age interval, p_limit integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_count bigint;
BEGIN
    WITH stale AS (
        SELECT r.project_id, r.commit_sha FROM commit_reports r
        WHERE NOT r.settled AND r.computed_at < now() - p_age
        ORDER BY r.computed_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), marked AS (
        INSERT INTO report_marks (project_id, commit_sha) SELECT s.project_id, s.commit_sha FROM stale s
        WHERE NOT EXISTS (SELECT FROM report_marks m WHERE m.project_id = s.project_id AND m.commit_sha = s.commit_sha)
        RETURNING 1
    ) SELECT count(*) INTO v_count FROM marked;
    -- What waits for a repository that is gone is looked at rarely, not at every round.
    UPDATE commit_statuses s SET next_attempt_at = now() + interval '1 hour'
    FROM repositories r
    WHERE r.id = s.repository_id AND r.removed_at IS NOT NULL AND s.dead_at IS NULL
        AND (s.ambiguous OR s.delivered_digest IS DISTINCT FROM s.desired_digest) AND s.next_attempt_at <= now();
    DELETE FROM outbox WHERE delivered_at < now() - interval '30 days';
    DELETE FROM forge_comments WHERE delivered_at < now() - interval '180 days';
    DELETE FROM delivery_pauses WHERE until < now() - interval '1 day';
    RETURN v_count;
END
$$;

-- The store path of the tree under evaluation.
CREATE FUNCTION set_evaluation_source(p_eval bigint, p_token_hash bytea, p_path text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM held_evaluation(p_eval, p_token_hash);
    UPDATE evaluations SET source_path = p_path WHERE id = p_eval;
END
$$;

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['report_marks', 'job_marks', 'commit_reports', 'evaluations_told', 'delivery_pauses'] LOOP
        PERFORM grant_to('SELECT, INSERT, UPDATE, DELETE ON ' || v_table, '{frontend}');
    END LOOP;
    PERFORM grant_to('SELECT (source_path) ON evaluations', '{evaluator,builder,signer,frontend}');
    PERFORM grant_to('EXECUTE ON FUNCTION take_job_marks', '{frontend}');
    PERFORM grant_to('EXECUTE ON FUNCTION sweep_reports', '{frontend}');
    PERFORM grant_to('EXECUTE ON FUNCTION set_evaluation_source', '{evaluator}');
END
$$;
