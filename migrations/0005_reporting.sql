-- What goes out and comes in: statuses to forges, notifications, webhooks, tokens, settings. Most of it is written by
-- later parts of the program; the tables are here so that the schema is one thing.

-- Desired and delivered state of one commit's status. One leased row, so that two frontends cannot reorder.
CREATE TABLE commit_statuses (
    repository_id bigint NOT NULL REFERENCES repositories ON DELETE CASCADE,
    commit_sha text NOT NULL,
    context text NOT NULL,
    desired_state text NOT NULL,
    desired_description text NOT NULL DEFAULT '',
    desired_url text,
    desired_at timestamptz NOT NULL DEFAULT now(),
    delivered_state text,
    delivered_description text,
    delivered_at timestamptz,
    ambiguous boolean NOT NULL DEFAULT false, -- the last answer was lost: assert again
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_error text,
    leased_by text,
    leased_until timestamptz,
    PRIMARY KEY (repository_id, commit_sha, context)
);
CREATE INDEX commit_statuses_due ON commit_statuses (next_attempt_at)
    WHERE ambiguous OR delivered_state IS DISTINCT FROM desired_state;

CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reporter text NOT NULL,
    dedup_key text NOT NULL,
    payload jsonb NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_error text,
    delivered_at timestamptz,
    dead_at timestamptz, -- given up; can be replayed
    leased_by text,
    leased_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (reporter, dedup_key)
);
CREATE INDEX outbox_due ON outbox (next_attempt_at) WHERE delivered_at IS NULL AND dead_at IS NULL;

CREATE TABLE webhook_deliveries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    forge text NOT NULL,
    delivery_id text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    events jsonb NOT NULL DEFAULT '[]',
    outcome text,
    duration_ms integer,
    UNIQUE (forge, delivery_id)
);

CREATE TABLE plugin_kv (
    plugin text NOT NULL,
    key text NOT NULL,
    value bytea NOT NULL,
    expires_at timestamptz,
    PRIMARY KEY (plugin, key)
);

CREATE TABLE api_tokens (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    token_hash bytea NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    scopes text[] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    last_used_at timestamptz
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
