-- The books that scheduling policies go by: seconds that projects consumed.

-- Up to `p_limit` attempts above `p_after`, by id, with seconds to charge: those that ended, and those that run. A build
-- counts from its claim until it uploads or ends.
CREATE OR REPLACE FUNCTION uncharged_attempts(p_after bigint, p_limit integer)
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
CREATE OR REPLACE FUNCTION project_loads(p_projects bigint[])
RETURNS TABLE (project_id bigint, shares integer, consumed_seconds double precision, running bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT p.id, p.scheduling_shares, p.consumed_seconds, coalesce(b.running, 0)
    FROM projects p LEFT JOIN (
        SELECT j.project_id, count(*) AS running FROM build_jobs j
        WHERE j.status || '' IN ('building', 'uploading') AND j.status = 'building' GROUP BY j.project_id
    ) b ON b.project_id = p.id
    WHERE p.id = ANY (p_projects);
END
$$;

-- Books seconds: attempts and projects in one transaction, and only when all of them still are as the caller read them. So a
-- second is charged once, whoever crashes and however many try. Returns whether it was booked.
CREATE OR REPLACE FUNCTION charge_attempts(p_attempts bigint[], p_charged double precision[], p_elapsed double precision[], p_ended boolean[],
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
CREATE OR REPLACE FUNCTION decay_due() RETURNS TABLE (decayed_at timestamptz, seconds double precision, projects bigint[], consumed double precision[])
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
CREATE OR REPLACE FUNCTION decay_projects(p_decayed_at timestamptz, p_seconds double precision, p_projects bigint[],
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
