"""What a workspace can ask for besides its own parts: the application's database, and mail.

Read `rows` first (what `ws.database` offers), then `database` (one per process), `pool` (a thread for each connection),
`schema` and `query` (the only two that import SQLAlchemy; they are imported on first use). For mail: `mail` (what
`ws.send_mail` makes durable), `text` (the builder of its bodies), `delivery` (pure: what follows an attempt),
`transport` and `smtp` (how it leaves the process). May import `run` and everything below, never `workflow` or `space`.
"""
