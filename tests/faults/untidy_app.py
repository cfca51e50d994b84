"""An application whose import leaves behind all that no fork can share."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import threading

from stub_app import StubApp

app = StubApp()
SEEN = os.environ.get("SEEN_AT_IMPORT")
LOOP = asyncio.new_event_loop()
SOCKET = socket.socket()
DATABASE = sqlite3.connect(os.environ["DATABASE_OF_THE_TEST"])
DATABASE.execute("CREATE TABLE IF NOT EXISTS rows (n)")
THREAD = threading.Thread(target=threading.Event().wait, name="poller", daemon=True)
THREAD.start()
