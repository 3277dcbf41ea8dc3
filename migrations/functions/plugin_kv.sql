-- The small store of plugins: one function that writes.

-- Writes a value. p_condition: 'always', 'absent' (no unexpired row), 'version' (the unexpired row has p_version).
-- Gives the outcome and, when written, its version. Writes of one plugin take turns: only so do the condition and the
-- number of keys still hold when the row is written. Turns are short, and other plugins do not wait.
CREATE OR REPLACE FUNCTION set_plugin_kv(
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
