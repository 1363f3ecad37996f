-- One row per finished call, a partition a day. Columns are the fields of CallRow (src/record.rs), units in their names.
-- Ids and names compare by their bytes.
CREATE TABLE calls (
    id text COLLATE "C" NOT NULL,
    received_ms bigint NOT NULL,
    endpoint text NOT NULL,
    "key" text NOT NULL,
    team text,
    "user" text NOT NULL,
    session text,
    tags jsonb NOT NULL,
    model text NOT NULL,
    named text,
    version text,
    variants jsonb NOT NULL,
    prompt text,
    provider text NOT NULL,
    target text,
    status integer NOT NULL,
    outcome text NOT NULL,
    refusal text,
    streamed boolean NOT NULL,
    input_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    cache_write_1h_tokens bigint NOT NULL,
    input_audio_tokens bigint NOT NULL,
    cached_audio_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    output_audio_tokens bigint NOT NULL,
    usage_source text NOT NULL,
    cost_nanousd bigint NOT NULL,
    priced boolean NOT NULL,
    prices text,
    attempts bigint NOT NULL,
    attempt_list jsonb NOT NULL,
    read_us bigint NOT NULL,
    waited_us bigint NOT NULL,
    overhead_us bigint,
    first_token_us bigint,
    duration_us bigint NOT NULL,
    -- An id holds its time, so this is the id alone.
    PRIMARY KEY (received_ms, id)
) PARTITION BY RANGE (received_ms);

CREATE INDEX calls_model ON calls (model, received_ms);
CREATE INDEX calls_key ON calls ("key", received_ms);
CREATE INDEX calls_team ON calls (team, received_ms) WHERE team IS NOT NULL;
CREATE INDEX calls_user ON calls ("user", received_ms);
CREATE INDEX calls_session ON calls (session, received_ms) WHERE session IS NOT NULL;
CREATE INDEX calls_provider ON calls (provider, received_ms);
-- Most calls are ok, and are found without an index as quickly.
CREATE INDEX calls_outcome ON calls (outcome, received_ms) WHERE outcome <> 'ok';
CREATE INDEX calls_variants ON calls USING gin (variants jsonb_path_ops) WHERE variants <> '[]';

-- What calls sent and received, where it is kept.
CREATE TABLE bodies (
    id text COLLATE "C" NOT NULL,
    received_ms bigint NOT NULL,
    request text,
    request_bytes bigint,
    request_cut boolean,
    reply text,
    reply_bytes bigint,
    reply_cut boolean,
    PRIMARY KEY (received_ms, id)
) PARTITION BY RANGE (received_ms);

-- Sums over one dimension ('' is all calls together) by minute and by hour, of users by day. Histograms: src/store/records/histogram.rs.
CREATE TABLE rollup (
    dimension text COLLATE "C" NOT NULL,
    width_ms bigint NOT NULL,
    bucket_ms bigint NOT NULL,
    value text COLLATE "C" NOT NULL,
    calls bigint NOT NULL,
    errors bigint NOT NULL,
    refused bigint NOT NULL,
    cost_nanousd bigint NOT NULL,
    input_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    duration bytea NOT NULL,
    first_token bytea NOT NULL,
    PRIMARY KEY (dimension, width_ms, bucket_ms, value)
);

-- Sums by hour and by day of each combination of values, for queries across dimensions.
CREATE TABLE cube (
    width_ms bigint NOT NULL,
    bucket_ms bigint NOT NULL,
    model text COLLATE "C" NOT NULL,
    team text COLLATE "C" NOT NULL,
    "key" text COLLATE "C" NOT NULL,
    provider text COLLATE "C" NOT NULL,
    variant text COLLATE "C" NOT NULL,
    outcome text COLLATE "C" NOT NULL,
    calls bigint NOT NULL,
    errors bigint NOT NULL,
    refused bigint NOT NULL,
    cost_nanousd bigint NOT NULL,
    input_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    duration bytea NOT NULL,
    first_token bytea NOT NULL,
    PRIMARY KEY (width_ms, bucket_ms, model, team, "key", provider, variant, outcome)
);
