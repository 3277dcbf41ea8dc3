-- Roles, one a capability, so that a compromised builder or evaluator can do through PostgreSQL only what its work needs.
-- They cannot log in: an operator grants them to login users. Roles belong to the whole cluster, so they may exist.
-- Where the migrating user may not create roles (one user for everything), there is nothing to separate and they are left out.
DO $$
DECLARE
    capability text;
BEGIN
    FOREACH capability IN ARRAY ARRAY['frontend', 'evaluator', 'builder', 'signer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'harmonia_' || capability) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', 'harmonia_' || capability);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN NULL; -- another database of this cluster was faster
                WHEN insufficient_privilege THEN
                    RAISE NOTICE 'role harmonia_% not created: % may not create roles', capability, current_user;
            END;
        END IF;
        -- The owner acts in every capability.
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'harmonia_' || capability)
            AND NOT pg_has_role(current_user, 'harmonia_' || capability, 'MEMBER')
        THEN
            BEGIN
                EXECUTE format('GRANT %I TO %I', 'harmonia_' || capability, current_user);
            EXCEPTION WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'role harmonia_% exists, and % may not become its member', capability, current_user
                    USING HINT = format('as a superuser: GRANT harmonia_%s TO %I', capability, current_user);
            END;
        END IF;
    END LOOP;
END
$$;

-- New functions are for nobody until a migration says for whom.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- What binaries may use this schema. A binary older than `oldest_binary` refuses to start.
CREATE TABLE schema_info (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    oldest_binary text NOT NULL
);
INSERT INTO schema_info (oldest_binary) VALUES ('0.1.0');

-- Grants to a role that may not exist on this cluster.
CREATE FUNCTION grant_to(privileges text, roles text[]) RETURNS void
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
