-- Tags that few calls have are found by an index. Partitions made from now on have it; those that are there are read day by day as
-- before until they are dropped, since building it for a large log could take longer than a batch may.
CREATE INDEX calls_tags ON ONLY calls USING gin (tags jsonb_path_ops) WHERE tags <> '{}';

-- What people and programs say of calls and sessions. A rater (owner: `team/NAME`, or `key/NAME` of a key without a team) has one
-- word on each metric of each subject; the last one stands. Ids sort by time.
CREATE TABLE feedback (
    about text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    metric text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    owner text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    received_ms bigint NOT NULL,
    rated_ms bigint NOT NULL,
    "key" text NOT NULL,
    team text,
    kind text NOT NULL,
    number double precision,
    text text,
    comment text,
    PRIMARY KEY (about, subject, metric, source, owner)
);

CREATE INDEX feedback_id ON feedback (id);
CREATE INDEX feedback_received ON feedback (received_ms);

-- Reports of evaluations. They are not deleted with calls.
CREATE TABLE evaluations (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    suite text COLLATE "C" NOT NULL,
    candidate text NOT NULL,
    created_ms bigint NOT NULL,
    report text NOT NULL
);

CREATE INDEX evaluations_suite ON evaluations (suite, created_ms, id);
CREATE INDEX evaluations_created ON evaluations (created_ms, id);
