-- The first schema. Why it looks like this:
-- * Rows that make no sense cannot be stored: every CHECK below is an invariant that the code relies on.
-- * Ids are UUIDv7 as text. They sort by creation time, so "newest first" and "oldest queued" are index scans over the id.
-- * Times are integer milliseconds since the Unix epoch, UTC; structured values are JSON text. Both read the same on any database.

CREATE TABLE dataset (
    id         TEXT    NOT NULL PRIMARY KEY CHECK (length(id) = 36),
    name       TEXT    NOT NULL,
    layout     TEXT    NOT NULL, -- JSON: format, header, columns
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    sha256     TEXT    NOT NULL CHECK (length(sha256) = 64),
    row_count  INTEGER NOT NULL CHECK (row_count >= 0),
    created_at INTEGER NOT NULL
) STRICT;

-- The dataset ids are not foreign keys: a dataset may go once every job that names it is final, and the job keeps saying what it used.
CREATE TABLE job (
    id                  TEXT    NOT NULL PRIMARY KEY CHECK (length(id) = 36),
    status              TEXT    NOT NULL CHECK (status IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')),
    phase               TEXT,
    spec                TEXT    NOT NULL, -- JSON
    train_dataset_id    TEXT    NOT NULL,
    eval_dataset_id     TEXT,
    progress            TEXT,             -- JSON, newest only
    metrics             TEXT    NOT NULL DEFAULT '{}', -- JSON: newest value by name
    error               TEXT,             -- JSON
    attempt             INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0), -- attempts started so far
    last_seq            INTEGER NOT NULL DEFAULT 0 CHECK (last_seq >= 0), -- newest event's number
    cancel_requested_at INTEGER,
    model_step          INTEGER CHECK (model_step >= 0),
    created_at          INTEGER NOT NULL,
    started_at          INTEGER,
    finished_at         INTEGER,
    CHECK ((phase IS NOT NULL) = (status = 'running')),
    CHECK ((finished_at IS NOT NULL) = (status IN ('succeeded', 'failed', 'cancelled'))),
    CHECK ((error IS NOT NULL) = (status = 'failed')),
    CHECK ((model_step IS NOT NULL) = (status = 'succeeded')),
    CHECK ((started_at IS NOT NULL) = (attempt > 0)),
    CHECK (status <> 'running' OR attempt > 0),
    CHECK (cancel_requested_at IS NULL OR status = 'running')
) STRICT;

-- The claim (oldest queued), the queue position and lists of one status.
CREATE INDEX job_by_status ON job (status, id);
-- Is this dataset still needed?
CREATE INDEX job_unfinished_by_train_dataset ON job (train_dataset_id) WHERE finished_at IS NULL;
CREATE INDEX job_unfinished_by_eval_dataset ON job (eval_dataset_id) WHERE finished_at IS NULL;
-- Trainers that were told to stop and have not.
CREATE INDEX job_by_cancel_request ON job (cancel_requested_at) WHERE cancel_requested_at IS NOT NULL;

-- One trainer process from start to end. Only the hash of its token is kept, so that a stolen database cannot speak for a trainer.
CREATE TABLE attempt (
    id               TEXT    NOT NULL PRIMARY KEY CHECK (length(id) = 36),
    job_id           TEXT    NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    number           INTEGER NOT NULL CHECK (number > 0),
    token_sha256     TEXT    NOT NULL CHECK (length(token_sha256) = 64),
    acked_seq        INTEGER NOT NULL DEFAULT 0 CHECK (acked_seq >= 0), -- every message up to this one is applied
    lease_expires_at INTEGER NOT NULL,
    -- `returned` gave the job back in good order and does not count against the retries; `lost` died or fell silent and does.
    outcome          TEXT    CHECK (outcome IN ('succeeded', 'failed', 'cancelled', 'returned', 'lost')),
    created_at       INTEGER NOT NULL,
    ended_at         INTEGER,
    UNIQUE (job_id, number),
    CHECK ((ended_at IS NOT NULL) = (outcome IS NOT NULL))
) STRICT;

-- A job is never trained twice at once.
CREATE UNIQUE INDEX attempt_open_by_job ON attempt (job_id) WHERE ended_at IS NULL;
CREATE INDEX attempt_open_by_lease ON attempt (lease_expires_at) WHERE ended_at IS NULL;

-- A job's log, numbered from 1 without gaps.
CREATE TABLE event (
    job_id      TEXT    NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL CHECK (seq > 0),
    attempt     INTEGER,          -- NULL for what the server did
    message_seq INTEGER,          -- the trainer's own number; NULL for what the server did
    kind        TEXT    NOT NULL,
    body        TEXT    NOT NULL, -- JSON: the event
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (job_id, seq),
    CHECK (message_seq IS NULL OR attempt IS NOT NULL)
) STRICT, WITHOUT ROWID;

-- A message that was sent twice happened once.
CREATE UNIQUE INDEX event_by_message ON event (job_id, attempt, message_seq) WHERE message_seq IS NOT NULL;
-- A job ends once.
CREATE UNIQUE INDEX event_final ON event (job_id) WHERE kind IN ('succeeded', 'failed', 'cancelled');

-- Metric events once more, value by value, so that a series is one range scan. `seq` is the event's.
CREATE TABLE metric (
    job_id     TEXT    NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    name       TEXT    NOT NULL,
    seq        INTEGER NOT NULL,
    step       INTEGER NOT NULL CHECK (step >= 0),
    epoch      REAL    NOT NULL,
    value      REAL    NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (job_id, name, seq)
) STRICT, WITHOUT ROWID;

-- All series of a job in order of time.
CREATE INDEX metric_by_time ON metric (job_id, seq, name);

CREATE TABLE checkpoint (
    job_id     TEXT    NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    step       INTEGER NOT NULL CHECK (step >= 0),
    attempt    INTEGER NOT NULL,
    record     TEXT    NOT NULL, -- JSON: epoch, metrics, files
    created_at INTEGER NOT NULL,
    PRIMARY KEY (job_id, step)
) STRICT, WITHOUT ROWID;

-- A key lives as long as the job it made.
CREATE TABLE idempotency_key (
    key            TEXT    NOT NULL PRIMARY KEY,
    request_sha256 TEXT    NOT NULL,
    job_id         TEXT    NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    created_at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_key_by_job ON idempotency_key (job_id);
