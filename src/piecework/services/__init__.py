"""What a workspace can ask for besides its own parts: the application's database, commands, jobs and mail.

Read `rows` first (what `ws.database` offers), then `database` (one per process), `pool` (a thread for each connection),
`schema` and `query` (the only two that import SQLAlchemy; they are imported on first use). For mail: `mail` (what
`ws.send_mail` makes durable), `text` (the builder of its bodies), `delivery` (pure: what follows an attempt),
`transport` and `smtp` (how it leaves the process). For commands and
jobs: `arguments` (what they take), `command`, `job` (the kind of work), `declared_job` (the user's own), `job_handle`
(what `@app.job` makes), `bot` (their schedules). May import `run` and everything below, never `workflow` or `space`.
"""
