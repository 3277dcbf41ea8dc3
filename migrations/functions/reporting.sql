-- What marks commits whose statuses may have changed, what takes the marks, and what the statuses are made of.

-- The commit whose statuses an evaluation decides.
CREATE OR REPLACE FUNCTION reported_commit(p_eval evaluations) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(p_eval.pr_head_sha, p_eval.commit_sha, '')
$$;

CREATE OR REPLACE FUNCTION mark_evaluation() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO report_marks (project_id, commit_sha, urgent)
    VALUES (NEW.project_id, reported_commit(NEW), TG_OP = 'INSERT');
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER evaluations_mark_new AFTER INSERT ON evaluations FOR EACH ROW EXECUTE FUNCTION mark_evaluation();
CREATE OR REPLACE TRIGGER evaluations_mark AFTER UPDATE ON evaluations
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status OR OLD.complete IS DISTINCT FROM NEW.complete
        OR OLD.superseded_by IS DISTINCT FROM NEW.superseded_by OR OLD.closed_at IS DISTINCT FROM NEW.closed_at
        OR OLD.commit_sha IS DISTINCT FROM NEW.commit_sha OR OLD.reuses_eval_id IS DISTINCT FROM NEW.reuses_eval_id
        OR OLD.allow_empty IS DISTINCT FROM NEW.allow_empty)
    EXECUTE FUNCTION mark_evaluation();

-- Attributes of a running evaluation are there to be built: of interest to forges only.
CREATE OR REPLACE FUNCTION mark_new_attrs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO report_marks (project_id, commit_sha)
    SELECT e.project_id, reported_commit(e) FROM evaluations e
    JOIN projects p ON p.id = e.project_id
    WHERE p.repository_id IS NOT NULL AND e.id IN (SELECT n.eval_id FROM new_attrs n);
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER eval_attrs_mark AFTER INSERT ON eval_attrs REFERENCING NEW TABLE AS new_attrs
    FOR EACH STATEMENT EXECUTE FUNCTION mark_new_attrs();

-- A job became terminal, or left that: called by its guard (a trigger of its own would be parsed for each statement).
CREATE OR REPLACE FUNCTION mark_job(p_job bigint, p_public boolean, p_was text, p_became text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO job_marks (job_id, public, was, became) VALUES (p_job, p_public, counted_as(p_was), counted_as(p_became));
END
$$;

-- Claims do not count: what is held is found by its index.
CREATE OR REPLACE FUNCTION counted_as(p_status text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_status IN ('building', 'uploading') THEN 'pending' ELSE p_status END
$$;

CREATE OR REPLACE FUNCTION mark_jobs_come() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO job_marks (became, public, jobs) SELECT counted_as(n.status), n.public, count(*) FROM come n GROUP BY 1, 2;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER build_jobs_mark_come AFTER INSERT ON build_jobs REFERENCING NEW TABLE AS come
    FOR EACH STATEMENT EXECUTE FUNCTION mark_jobs_come();

CREATE OR REPLACE FUNCTION mark_jobs_gone() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO job_marks (was, public, jobs) SELECT counted_as(o.status), o.public, count(*) FROM gone o GROUP BY 1, 2;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER build_jobs_mark_gone AFTER DELETE ON build_jobs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION mark_jobs_gone();

-- Derivations turned public or private, and their jobs with them, which count elsewhere from now on. Whoever inserts a job locks its
-- derivation first: that job either is seen here, or says itself what the derivation turned to.
CREATE OR REPLACE FUNCTION turn_jobs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_hashjoin = off AS $$
DECLARE
    v_turned text[];
    v_jobs bigint[];
BEGIN
    SELECT array_agg(t.drv_path) INTO v_turned
    FROM (SELECT drv_path, public FROM now_so EXCEPT SELECT drv_path, public FROM was_so) t;
    SELECT array_agg(j.id) INTO v_jobs FROM (
        SELECT id FROM build_jobs WHERE drv_path = ANY (v_turned) ORDER BY id FOR NO KEY UPDATE) j;
    IF v_jobs IS NULL THEN
        RETURN NULL;
    END IF;
    WITH turned AS (
        UPDATE build_jobs j SET public = d.public FROM derivations d
        WHERE j.id = ANY (v_jobs) AND d.drv_path = j.drv_path AND d.public <> j.public RETURNING j.status, j.public
    ) INSERT INTO job_marks (was, became, public, jobs)
    SELECT CASE WHEN NOT s.is_there THEN counted_as(t.status) END, CASE WHEN s.is_there THEN counted_as(t.status) END,
        t.public = s.is_there, count(*)
    FROM turned t CROSS JOIN (VALUES (true), (false)) AS s(is_there) GROUP BY 1, 2, 3;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER derivations_turn_jobs AFTER UPDATE ON derivations REFERENCING OLD TABLE AS was_so NEW TABLE AS now_so
    FOR EACH STATEMENT EXECUTE FUNCTION turn_jobs();

CREATE OR REPLACE FUNCTION mark_pull_request() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO report_marks (project_id, commit_sha, urgent) VALUES (NEW.project_id, NEW.head_commit, true);
    IF TG_OP = 'UPDATE' AND OLD.head_commit <> NEW.head_commit THEN
        INSERT INTO report_marks (project_id, commit_sha) VALUES (NEW.project_id, OLD.head_commit);
    END IF;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER pull_requests_mark_new AFTER INSERT ON pull_requests
    FOR EACH ROW WHEN (NEW.waiting IS NOT NULL) EXECUTE FUNCTION mark_pull_request();
CREATE OR REPLACE TRIGGER pull_requests_mark AFTER UPDATE ON pull_requests
    FOR EACH ROW WHEN ((OLD.waiting IS NOT NULL OR NEW.waiting IS NOT NULL)
        AND (OLD.waiting IS DISTINCT FROM NEW.waiting OR OLD.head_commit <> NEW.head_commit OR OLD.is_open <> NEW.is_open))
    EXECUTE FUNCTION mark_pull_request();

-- Finds whose commits the marked jobs concern: of live evaluations, and of others as long as something they show is not
-- green, so that a rebuild repairs it. And counts them. Returns how many marks it took. Two may do this at once.
CREATE OR REPLACE FUNCTION take_job_marks(p_limit integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_taken bigint;
    v_jobs bigint[];
    v_times timestamptz[];
    v_back bigint[]; -- had ended, and did not stay so
BEGIN
    WITH taken AS (
        DELETE FROM job_marks WHERE ctid = ANY (ARRAY(SELECT ctid FROM job_marks LIMIT p_limit FOR UPDATE SKIP LOCKED))
        RETURNING job_id, marked_at, was, became, public, jobs
    ), counted AS (
        INSERT INTO job_totals AS t (status, public, jobs)
        SELECT c.status, c.public, sum(c.jobs)
        FROM (SELECT became AS status, public, jobs FROM taken UNION ALL SELECT was, public, -jobs FROM taken) c
        WHERE c.status IS NOT NULL GROUP BY c.status, c.public ORDER BY c.status, c.public
        ON CONFLICT (status, public) DO UPDATE SET jobs = t.jobs + excluded.jobs
    ), first AS (
        SELECT job_id, count(*) AS marks, min(marked_at) AS since, bool_or(was <> 'pending') AS is_back FROM taken GROUP BY job_id
    ) SELECT coalesce(sum(marks), 0), array_agg(job_id), array_agg(since), array_agg(job_id) FILTER (WHERE is_back)
    INTO v_taken, v_jobs, v_times, v_back FROM first;
    IF v_taken = 0 THEN
        RETURN 0;
    END IF;
    IF v_back IS NOT NULL THEN
        PERFORM forget_counts(array_agg(drv_path)) FROM build_jobs WHERE id = ANY (v_back);
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

-- Counts all jobs, and corrects the totals by what they are off. Returns how many were. Each change is either in a total or in a
-- mark, in whatever moment one looks: so what they are off is found without keeping anybody from taking marks meanwhile, and is
-- the same afterwards.
CREATE OR REPLACE FUNCTION recount_jobs() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = on SET enable_hashjoin = on SET enable_mergejoin = on AS $$
DECLARE
    v_wrong bigint;
BEGIN
    -- Two that count at once would correct twice. Nobody else waits for this.
    PERFORM pg_advisory_xact_lock(hashtext('harmonia-ci recount'));
    WITH off AS (
        SELECT c.status, c.public, sum(c.jobs) AS jobs FROM (
            SELECT counted_as(j.status) AS status, j.public, count(*) AS jobs FROM build_jobs j GROUP BY 1, 2
            UNION ALL SELECT m.became, m.public, -m.jobs FROM job_marks m
            UNION ALL SELECT m.was, m.public, m.jobs FROM job_marks m
            UNION ALL SELECT t.status, t.public, -t.jobs FROM job_totals t
        ) c WHERE c.status IS NOT NULL GROUP BY c.status, c.public
    ), corrected AS (
        INSERT INTO job_totals AS t (status, public, jobs) SELECT o.status, o.public, o.jobs FROM off o WHERE o.jobs <> 0
        ON CONFLICT (status, public) DO UPDATE SET jobs = t.jobs + excluded.jobs
        RETURNING 1
    ) SELECT count(*) INTO v_wrong FROM corrected;
    RETURN v_wrong;
END
$$;

-- Commits that were not settled when they were computed, and not computed for so long: once more, in case a mark went
-- missing. Of projects without a forge only what still runs is of interest, and that marks itself.
CREATE OR REPLACE FUNCTION sweep_reports(p_age interval, p_limit integer) RETURNS bigint
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

-- Whether a forge or reporter is left alone now.
CREATE OR REPLACE FUNCTION is_paused(p_kind text, p_name text) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM delivery_pauses WHERE kind = p_kind AND name = p_name AND until > now())
$$;
