-- Layer 1, the Nix store layer: what derivations are and what the cache holds. It knows nothing of CI; the CI layer
-- joins it by `drv_path` alone.

-- Derivations, their outputs, inputs and sources are rows of signers alone, who read them from the bytes of `.drv` files that
-- they checked (`register_derivations`). They come before the graph that links to them.
CREATE TABLE derivations (
    drv_path text PRIMARY KEY CHECK (drv_path LIKE '/nix/store/%.drv' AND length(drv_path) <= 255),
    hash_part text NOT NULL GENERATED ALWAYS AS (substr(drv_path, 12, 32)) STORED,
    name text NOT NULL,
    system text NOT NULL,
    required_features text[] NOT NULL DEFAULT '{}',
    -- The hash modulo fixed outputs: what output paths of derivations above are checked against.
    modulo_hash text NOT NULL,
    -- A public project's evaluation reached it.
    public boolean NOT NULL DEFAULT false,
    drv_json jsonb, -- reserved
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX derivations_hash_part ON derivations (hash_part);
CREATE INDEX derivations_system ON derivations (system);

CREATE TABLE derivation_outputs (
    drv_path text NOT NULL REFERENCES derivations ON DELETE CASCADE,
    output_name text NOT NULL,
    output_path text, -- null: floating content-addressed
    fixed_hash text,
    PRIMARY KEY (drv_path, output_name)
);
CREATE INDEX derivation_outputs_path ON derivation_outputs (output_path);

-- `input_drv` has no foreign key: below a derivation whose outputs are available nobody walks, so its inputs may be
-- unknown here.
CREATE TABLE derivation_inputs (
    referrer text NOT NULL REFERENCES derivations ON DELETE CASCADE,
    input_drv text NOT NULL,
    outputs text[] NOT NULL,
    PRIMARY KEY (referrer, input_drv)
);
CREATE INDEX derivation_inputs_input ON derivation_inputs (input_drv);

CREATE TABLE derivation_sources (
    referrer text NOT NULL REFERENCES derivations ON DELETE CASCADE,
    path text NOT NULL,
    PRIMARY KEY (referrer, path)
);
CREATE INDEX derivation_sources_path ON derivation_sources (path);

-- A derivation that was to be registered as something else than what it is known as, which should never be.
CREATE TABLE derivation_findings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    drv_path text NOT NULL,
    said jsonb NOT NULL, -- what was to be registered
    found_at timestamptz NOT NULL DEFAULT now()
);

-- What the cache holds or is about to hold: one row a store path, whoever produced it.
CREATE TABLE store_paths (
    path text PRIMARY KEY CHECK (path LIKE '/nix/store/%' AND length(path) <= 255),
    hash_part text NOT NULL GENERATED ALWAYS AS (substr(path, 12, 32)) STORED,
    nar_hash text NOT NULL CHECK (nar_hash LIKE 'sha256:%'),
    nar_size bigint NOT NULL CHECK (nar_size >= 0),
    file_hash text NOT NULL CHECK (file_hash LIKE 'sha256:%'),
    file_size bigint NOT NULL CHECK (file_size >= 0),
    object_key text NOT NULL GENERATED ALWAYS AS ('nar/' || substr(file_hash, 8) || '.nar.zst') STORED,
    refs text[] NOT NULL,
    ca text,
    deriver text,
    producing_attempt bigint, -- null: a source, or a path found on the side
    generation integer NOT NULL DEFAULT 1 CHECK (generation >= 1),
    state text NOT NULL CHECK (state IN ('claimed', 'published', 'lost')),
    public boolean NOT NULL DEFAULT false,
    -- Garbage collection leaves the objects alone until then.
    leased_until timestamptz,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz,
    lost_at timestamptz,
    -- When it was found lost within the last hour: bounds how often it heals.
    losses timestamptz[] NOT NULL DEFAULT '{}',
    CHECK ((state = 'lost') = (lost_at IS NOT NULL))
);
CREATE INDEX store_paths_hash_part ON store_paths (hash_part);
CREATE INDEX store_paths_unpublished ON store_paths (claimed_at) WHERE state || '' = 'claimed'; -- (decision 0016)
CREATE INDEX store_paths_attempt ON store_paths (producing_attempt);
CREATE INDEX store_paths_object ON store_paths (object_key);

-- What is too small to be an object of its own: logs and listings, under the keys that they would have in the bucket.
CREATE TABLE small_objects (
    key text PRIMARY KEY,
    bytes bytea NOT NULL CHECK (length(bytes) <= 8192)
);
ALTER TABLE small_objects ALTER COLUMN bytes SET STORAGE EXTERNAL; -- logs are compressed already

-- What upstream caches answered about paths: a memo of both answers, bounded by their expiry.
CREATE TABLE upstream_paths (
    path text NOT NULL CHECK (path LIKE '/nix/store/%' AND length(path) <= 255),
    cache text NOT NULL CHECK (length(cache) <= 2000), -- its URL without credentials
    present boolean NOT NULL,
    -- What a builder met there and an evaluator saw itself, such as an archive that is gone. Until that expires, no narinfo
    -- says otherwise.
    fault text,
    checked_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (path, cache),
    CHECK (NOT present OR fault IS NULL)
);
CREATE INDEX upstream_paths_expiry ON upstream_paths (expires_at);

-- Which evaluator asks which caches. What a cache said that nobody asks any more does not count.
CREATE TABLE upstream_caches (
    node text NOT NULL,
    cache text NOT NULL,
    keys_digest text NOT NULL, -- of the keys whose signatures count there
    trouble text, -- why it gives nothing, for people
    PRIMARY KEY (node, cache)
);

-- What builders could not get from an upstream cache, until an evaluator asked that cache itself.
CREATE TABLE upstream_reports (
    path text NOT NULL,
    cache text NOT NULL,
    roots text[] NOT NULL, -- inputs of the job whose closures have the path
    reason text NOT NULL,
    attempt_id bigint NOT NULL,
    reported_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (path, cache)
);

-- The keys that signers sign with, for those who tell them to people.
CREATE TABLE signer_keys (
    node text PRIMARY KEY,
    keys text[] NOT NULL
);

-- A path that two attempts built differently: the first stays, the difference is a finding.
CREATE TABLE reproducibility_findings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    path text NOT NULL,
    published_nar_hash text NOT NULL,
    found_nar_hash text NOT NULL,
    attempt_id bigint,
    found_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX reproducibility_findings_path ON reproducibility_findings (path);

CREATE TABLE realisations ( -- reserved for content-addressed derivations
    drv_hash text NOT NULL,
    output_name text NOT NULL,
    output_path text NOT NULL,
    signatures text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (drv_hash, output_name)
);

