-- What people and programs say of calls and sessions. A rater (owner: `team/NAME`, or `key/NAME` of a key without a team) has one
-- word on each metric of each subject; the last one stands. Ids sort by time.
CREATE TABLE feedback (
    about TEXT NOT NULL,
    subject TEXT NOT NULL,
    metric TEXT NOT NULL,
    source TEXT NOT NULL,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    rated_ms INTEGER NOT NULL,
    "key" TEXT NOT NULL,
    team TEXT,
    kind TEXT NOT NULL,
    number REAL,
    text TEXT,
    comment TEXT
) STRICT;

CREATE UNIQUE INDEX feedback_subject ON feedback (about, subject, metric, source, owner);
CREATE INDEX feedback_id ON feedback (id);
CREATE INDEX feedback_received ON feedback (received_ms);

-- Reports of evaluations. They are not deleted with calls.
CREATE TABLE evaluations (
    id TEXT NOT NULL PRIMARY KEY,
    suite TEXT NOT NULL,
    candidate TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    report TEXT NOT NULL
) STRICT;

CREATE INDEX evaluations_suite ON evaluations (suite, created_ms, id);
CREATE INDEX evaluations_created ON evaluations (created_ms, id);
