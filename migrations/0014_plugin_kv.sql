-- The small store of plugins: versions for conditional writes, bounds, and one function that writes.

-- One sequence for all keys: a version never comes again, not even when a key was deleted and written anew.
CREATE SEQUENCE plugin_kv_version;

ALTER TABLE plugin_kv
    ADD COLUMN version bigint NOT NULL DEFAULT nextval('plugin_kv_version'),
    ADD CONSTRAINT plugin_kv_key_bytes CHECK (octet_length(key) <= 512),
    ADD CONSTRAINT plugin_kv_value_bytes CHECK (octet_length(value) <= 65536);
CREATE INDEX plugin_kv_expiry ON plugin_kv (expires_at) WHERE expires_at IS NOT NULL;

-- Writes a value. p_condition: 'always', 'absent' (no unexpired row), 'version' (the unexpired row has p_version).
-- Gives the outcome and, when written, its version. Writes of one plugin take turns: only so do the condition and the
-- number of keys still hold when the row is written. Turns are short, and other plugins do not wait.
CREATE FUNCTION set_plugin_kv(
    p_plugin text, p_key text, p_value bytea, p_lifetime interval, p_condition text, p_version bigint, p_keys_max integer,
    OUT outcome text, OUT new_version bigint
)
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    v_now timestamptz;
    v_live bigint;
    v_exists boolean;
    v_keys integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('harmonia-ci plugin_kv'), hashtext(p_plugin));
    -- Not now(): that is when the transaction began to wait.
    v_now := clock_timestamp();
    SELECT CASE WHEN expires_at IS NULL OR expires_at > v_now THEN version END INTO v_live
    FROM plugin_kv WHERE plugin = p_plugin AND key = p_key FOR UPDATE;
    v_exists := FOUND;
    IF (p_condition = 'absent' AND v_live IS NOT NULL)
        OR (p_condition = 'version' AND v_live IS DISTINCT FROM p_version) THEN
        outcome := 'conflict';
        RETURN;
    END IF;
    IF NOT v_exists THEN
        SELECT count(*) INTO v_keys FROM plugin_kv WHERE plugin = p_plugin;
        IF v_keys >= p_keys_max THEN
            DELETE FROM plugin_kv WHERE plugin = p_plugin AND expires_at <= v_now;
            SELECT count(*) INTO v_keys FROM plugin_kv WHERE plugin = p_plugin;
        END IF;
        IF v_keys >= p_keys_max THEN
            outcome := 'full';
            RETURN;
        END IF;
    END IF;
    INSERT INTO plugin_kv AS kv (plugin, key, value, expires_at)
    VALUES (p_plugin, p_key, p_value, v_now + p_lifetime)
    ON CONFLICT (plugin, key) DO UPDATE
        SET value = excluded.value, expires_at = excluded.expires_at, version = excluded.version
    RETURNING version INTO new_version;
    outcome := 'written';
END
$$;

SELECT grant_to('USAGE ON SEQUENCE plugin_kv_version', '{frontend}');
REVOKE EXECUTE ON FUNCTION set_plugin_kv FROM PUBLIC;
SELECT grant_to('EXECUTE ON FUNCTION set_plugin_kv', '{frontend}');
