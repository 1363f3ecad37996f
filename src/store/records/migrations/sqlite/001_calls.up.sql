-- One row per finished call. Columns are the fields of CallRow (src/record.rs), units in their names.
CREATE TABLE calls (
    id TEXT NOT NULL UNIQUE,
    received_ms INTEGER NOT NULL,
    endpoint TEXT NOT NULL,
    "key" TEXT NOT NULL,
    team TEXT,
    "user" TEXT NOT NULL,
    session TEXT,
    tags TEXT,
    model TEXT NOT NULL,
    named TEXT,
    version TEXT,
    variants TEXT,
    prompt TEXT,
    provider TEXT NOT NULL,
    target TEXT,
    status INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    refusal TEXT,
    streamed INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    cache_write_1h_tokens INTEGER NOT NULL,
    input_audio_tokens INTEGER NOT NULL,
    cached_audio_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    output_audio_tokens INTEGER NOT NULL,
    usage_source TEXT NOT NULL,
    cost_nanousd INTEGER NOT NULL,
    priced INTEGER NOT NULL,
    prices TEXT,
    attempts INTEGER NOT NULL,
    attempt_list TEXT,
    read_us INTEGER NOT NULL,
    waited_us INTEGER NOT NULL,
    overhead_us INTEGER,
    first_token_us INTEGER,
    duration_us INTEGER NOT NULL
) STRICT;

-- With what calls are filtered by, so that others are passed over without a look at them. An index of each such column would have
-- to be written for every call.
CREATE INDEX calls_received ON calls (received_ms, outcome, model, team, "key", provider, endpoint);
CREATE INDEX calls_key ON calls ("key", received_ms);
CREATE INDEX calls_user ON calls ("user", received_ms);
CREATE INDEX calls_session ON calls (session, received_ms) WHERE session IS NOT NULL;
-- Most calls are ok, and are found without an index as quickly.
CREATE INDEX calls_not_ok ON calls (received_ms, outcome, model, team, "key", provider, endpoint) WHERE outcome <> 'ok';
-- With the variants and tags themselves, so that rare ones are found without looking at every call.
CREATE INDEX calls_variants ON calls (received_ms, variants) WHERE variants IS NOT NULL;
CREATE INDEX calls_tags ON calls (received_ms, tags) WHERE tags IS NOT NULL;

-- What calls sent and received, where it is kept.
CREATE TABLE bodies (
    id TEXT PRIMARY KEY,
    received_ms INTEGER NOT NULL,
    request TEXT,
    request_bytes INTEGER,
    request_cut INTEGER,
    reply TEXT,
    reply_bytes INTEGER,
    reply_cut INTEGER
) STRICT;

CREATE INDEX bodies_received ON bodies (received_ms);

-- Sums over one dimension ('' is all calls together) by minute and by hour, of users by day. Histograms: src/store/records/histogram.rs.
CREATE TABLE rollup (
    dimension TEXT NOT NULL,
    width_ms INTEGER NOT NULL,
    bucket_ms INTEGER NOT NULL,
    value TEXT NOT NULL,
    calls INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    cost_nanousd INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    duration BLOB NOT NULL,
    first_token BLOB NOT NULL,
    PRIMARY KEY (dimension, width_ms, bucket_ms, value)
) STRICT, WITHOUT ROWID;

-- Sums by hour and by day of each combination of values, for queries across dimensions.
CREATE TABLE cube (
    width_ms INTEGER NOT NULL,
    bucket_ms INTEGER NOT NULL,
    model TEXT NOT NULL,
    team TEXT NOT NULL,
    "key" TEXT NOT NULL,
    provider TEXT NOT NULL,
    variant TEXT NOT NULL,
    outcome TEXT NOT NULL,
    calls INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    cost_nanousd INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    duration BLOB NOT NULL,
    first_token BLOB NOT NULL,
    PRIMARY KEY (width_ms, bucket_ms, model, team, "key", provider, variant, outcome)
) STRICT, WITHOUT ROWID;
