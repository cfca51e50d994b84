"""An application whose import starts a thread, in processes that a test starts; not in the tests' own."""

from __future__ import annotations

import threading

from piecework import App
from piecework.process import inside

app = App("careless")
if inside():
    threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()
