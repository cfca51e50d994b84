-- Written in SQLite's words; `migrate` says the same in PostgreSQL's. Lines that begin with `-- postgres:` are for it alone.

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT UNIQUE,
    type TEXT NOT NULL,
    space TEXT,
    payload BLOB NOT NULL,
    accepted_at INTEGER NOT NULL,
    hops INTEGER NOT NULL
) STRICT;

CREATE TABLE event_inbox (
    inbox_seq INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    type TEXT NOT NULL,
    space TEXT,
    payload BLOB NOT NULL,
    published_at INTEGER NOT NULL,
    hops INTEGER NOT NULL
) STRICT;

CREATE TABLE workflows (
    workflow_id TEXT PRIMARY KEY,
    version TEXT,
    registered_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE routes (
    event_type TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    version TEXT,
    registered_at INTEGER NOT NULL,
    PRIMARY KEY (event_type, workflow_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX routes_of_workflow ON routes (workflow_id);

CREATE TABLE fanouts (
    event_seq INTEGER PRIMARY KEY,
    probe TEXT NOT NULL,
    wait_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE occurrences (
    occurrence TEXT PRIMARY KEY,
    run_id TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE nodes (
    node_id TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    version TEXT NOT NULL,
    workflows BLOB NOT NULL,
    started_at INTEGER NOT NULL,
    renewed_at INTEGER NOT NULL,
    expires_at INTEGER,
    spaces BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE spaces (
    space TEXT PRIMARY KEY,
    next_due INTEGER,
    weight INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX spaces_due ON spaces (next_due) WHERE next_due IS NOT NULL;

CREATE TABLE slots (
    slot_key TEXT PRIMARY KEY,
    workflow_id TEXT NOT NULL,
    mode TEXT NOT NULL,
    on_busy TEXT NOT NULL,
    concurrency INTEGER NOT NULL,
    capacity INTEGER NOT NULL,
    hold_while_paused INTEGER NOT NULL,
    live INTEGER NOT NULL CHECK (live >= 0),
    queued INTEGER NOT NULL CHECK (queued >= 0),
    closing INTEGER NOT NULL CHECK (closing >= 0),
    paused INTEGER NOT NULL CHECK (paused >= 0),
    admitted INTEGER NOT NULL,
    active_run_id TEXT,
    pending_run_id TEXT
) STRICT, WITHOUT ROWID;

CREATE INDEX slots_of_workflow ON slots (workflow_id, slot_key);
-- postgres: ALTER TABLE slots SET (fillfactor = 70);

CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    workflow_id TEXT NOT NULL,
    trigger_id TEXT NOT NULL,
    pipeline_id TEXT NOT NULL,
    slot_key TEXT,
    place INTEGER,
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
    patched INTEGER NOT NULL,
    signals INTEGER NOT NULL,
    telling INTEGER NOT NULL,
    cleaned INTEGER NOT NULL,
    due_at INTEGER,
    expires_at INTEGER,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    paused_at INTEGER,
    ended_at INTEGER,
    abort_reason TEXT,
    told TEXT,
    waiting_for TEXT,
    outcome TEXT,
    error TEXT,
    hops INTEGER NOT NULL,
    progress TEXT
) STRICT, WITHOUT ROWID;

-- postgres: ALTER TABLE runs SET (fillfactor = 70);

CREATE INDEX runs_due ON runs (space, due_at, place) WHERE due_at IS NOT NULL;
CREATE INDEX runs_expiring ON runs (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX runs_owned ON runs (owner) WHERE owner IS NOT NULL;
CREATE INDEX runs_queued ON runs (slot_key, place) WHERE status = 'queued' AND due_at IS NULL;
CREATE INDEX runs_unended ON runs (created_at, run_id) WHERE ended_at IS NULL;
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
    mode TEXT NOT NULL,
    PRIMARY KEY (wait_id, event_type)
) STRICT, WITHOUT ROWID;

CREATE INDEX waits_by_probe ON waits (probe, wait_id);
CREATE INDEX waits_by_field ON waits (event_type, field);
CREATE INDEX waits_by_run ON waits (run_id);

CREATE TABLE buffers (
    run_id TEXT NOT NULL,
    event_seq INTEGER NOT NULL,
    wait_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    patch BLOB NOT NULL,
    PRIMARY KEY (run_id, event_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE signals (
    run_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    patch BLOB NOT NULL,
    sent_at INTEGER NOT NULL,
    PRIMARY KEY (run_id, number)
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

CREATE INDEX deliveries_pending ON deliveries (workflow_id, event_seq) WHERE outcome = 'pending';

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
    delta BLOB,
    PRIMARY KEY (run_id, decision, attempt, ordinal)
) STRICT, WITHOUT ROWID;

CREATE TABLE pieces (
    space TEXT NOT NULL,
    piece_id TEXT NOT NULL,
    integration TEXT NOT NULL,
    config BLOB NOT NULL,
    every INTEGER,
    schedule TEXT,
    occurrence INTEGER,
    after_run_id TEXT,
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
    broken_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (space, piece_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE digests (
    digest_id TEXT PRIMARY KEY,
    space TEXT NOT NULL,
    email TEXT NOT NULL,
    last_id TEXT NOT NULL,
    due_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX digests_due ON digests (due_at, digest_id);

CREATE TABLE notifications (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    notification_id TEXT UNIQUE,
    digest_id TEXT NOT NULL,
    alike TEXT NOT NULL,
    subject TEXT,
    body BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX notifications_of_digest ON notifications (digest_id, seq);
