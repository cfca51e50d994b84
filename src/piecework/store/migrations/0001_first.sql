CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT UNIQUE,
    type TEXT NOT NULL,
    space TEXT,
    payload BLOB NOT NULL,
    accepted_at INTEGER NOT NULL
) STRICT;

CREATE TABLE slots (
    slot_key TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    mode TEXT NOT NULL,
    concurrency INTEGER NOT NULL,
    capacity INTEGER NOT NULL,
    hold_while_paused INTEGER NOT NULL,
    live INTEGER NOT NULL CHECK (live >= 0),
    queued INTEGER NOT NULL CHECK (queued >= 0),
    closing INTEGER NOT NULL CHECK (closing >= 0),
    paused INTEGER NOT NULL CHECK (paused >= 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    trigger_id TEXT NOT NULL,
    pipeline_id TEXT NOT NULL,
    slot_key TEXT,
    key_value TEXT,
    space TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('queued', 'running', 'paused', 'completed', 'failed', 'aborted')),
    stage TEXT,
    version TEXT,
    event_seq INTEGER,
    epoch INTEGER NOT NULL,
    owner TEXT,
    visit INTEGER NOT NULL,
    decision INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    resume_count INTEGER NOT NULL,
    cleaned INTEGER NOT NULL,
    due_at INTEGER,
    expires_at INTEGER,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    paused_at INTEGER,
    ended_at INTEGER,
    abort_reason TEXT,
    waiting_for TEXT,
    outcome TEXT,
    error TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX runs_due ON runs (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX runs_expiring ON runs (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX runs_owned ON runs (owner) WHERE owner IS NOT NULL;
CREATE INDEX runs_queued ON runs (slot_key, event_seq) WHERE status = 'queued' AND due_at IS NULL;
CREATE INDEX runs_by_time ON runs (created_at, run_id);
CREATE INDEX runs_by_piece ON runs (space, key_value, created_at) WHERE kind = 'piece';

CREATE TABLE run_values (
    run_id TEXT NOT NULL,
    name TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (run_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE waits (
    wait_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    run_id TEXT NOT NULL,
    stage TEXT NOT NULL,
    field TEXT NOT NULL,
    probe TEXT NOT NULL,
    clauses BLOB NOT NULL,
    patch BLOB,
    timeout INTEGER,
    max_buffer INTEGER NOT NULL,
    registered_at INTEGER NOT NULL,
    PRIMARY KEY (wait_id, event_type)
) STRICT, WITHOUT ROWID;

CREATE INDEX waits_by_probe ON waits (probe);
CREATE INDEX waits_by_field ON waits (event_type, field);
CREATE INDEX waits_by_run ON waits (run_id);

CREATE TABLE buffers (
    run_id TEXT NOT NULL,
    event_seq INTEGER NOT NULL,
    wait_id TEXT NOT NULL,
    patch BLOB NOT NULL,
    PRIMARY KEY (run_id, event_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE deliveries (
    event_seq INTEGER NOT NULL,
    workflow_id TEXT NOT NULL,
    trigger_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT,
    PRIMARY KEY (event_seq, workflow_id, trigger_id, run_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE timeline (
    run_id TEXT NOT NULL,
    decision INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    at INTEGER NOT NULL,
    source TEXT NOT NULL,
    type TEXT NOT NULL,
    path TEXT NOT NULL,
    payload BLOB,
    PRIMARY KEY (run_id, decision, attempt, ordinal)
) STRICT, WITHOUT ROWID;

CREATE TABLE pieces (
    space TEXT NOT NULL,
    piece_id TEXT NOT NULL,
    integration TEXT NOT NULL,
    config BLOB NOT NULL,
    every INTEGER NOT NULL,
    desired TEXT NOT NULL,
    desired_reason TEXT,
    observed TEXT NOT NULL,
    status TEXT NOT NULL,
    state BLOB NOT NULL,
    run_id TEXT,
    next_run_at INTEGER,
    last_run_at INTEGER,
    last_success_at INTEGER,
    last_failure_at INTEGER,
    consecutive_failures INTEGER NOT NULL,
    last_error TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (space, piece_id)
) STRICT, WITHOUT ROWID;
