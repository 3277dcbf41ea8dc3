-- Rights: a grant to a role that may not exist, columns without secrets, and who may register which capability.

-- Grants to a role that may not exist on this cluster.
CREATE OR REPLACE FUNCTION grant_to(privileges text, roles text[]) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY roles LOOP
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'harmonia_' || role) THEN
            EXECUTE format('GRANT %s TO %I', privileges, 'harmonia_' || role);
        END IF;
    END LOOP;
END
$$;

-- Columns of a table but its secrets.
CREATE OR REPLACE FUNCTION open_columns(p_table text, p_secrets text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = public, pg_temp AS $$
    SELECT string_agg(format('%I', attname), ', ' ORDER BY attnum) FROM pg_attribute
    WHERE attrelid = p_table::regclass AND attnum > 0 AND NOT attisdropped AND attname <> ALL (p_secrets)
$$;

-- A capability may be registered only by the database role it belongs to, so that nobody poses as a signer.
CREATE OR REPLACE FUNCTION check_capability_role(p_capability text) RETURNS void
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
