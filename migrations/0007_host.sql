-- What the host keeps for itself: the small store of plugins, API tokens, who did what, settings.

-- One sequence for all keys: a version never comes again, not even when a key was deleted and written anew.
CREATE SEQUENCE plugin_kv_version;
CREATE TABLE plugin_kv (
    plugin text NOT NULL,
    key text NOT NULL,
    value bytea NOT NULL,
    expires_at timestamptz,
    version bigint NOT NULL DEFAULT nextval('plugin_kv_version'), -- for conditional writes
    PRIMARY KEY (plugin, key),
    CONSTRAINT plugin_kv_key_bytes CHECK (octet_length(key) <= 512),
    CONSTRAINT plugin_kv_value_bytes CHECK (octet_length(value) <= 65536)
);
CREATE INDEX plugin_kv_expiry ON plugin_kv (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE api_tokens (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    token_hash bytea NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);

CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE settings (
    key text PRIMARY KEY,
    value jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
