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

-- New functions are for nobody until `grants.sql` says for whom.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- What binaries may use this schema, and which functions it has.
CREATE TABLE schema_info (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- A binary older than that refuses to start.
    oldest_binary text NOT NULL,
    -- Digest of `functions/` and `grants.sql` as they were applied last; null: never.
    functions_digest text,
    -- The version of the binary that applied them: an older one leaves them as they are.
    functions_version text,
    -- The functions that were made then. What is no longer in the files is dropped, and nothing else.
    functions text[] NOT NULL DEFAULT '{}'
);
INSERT INTO schema_info (oldest_binary) VALUES ('0.1.0');
