"""An application that fails when it opens, or else when it closes."""

from __future__ import annotations

import builtins
import os

from piecework import App, Service


async def door():
    if "STUBBORN" in os.environ:
        raise getattr(builtins, os.environ["STUBBORN"])("the door is not there")
    yield "open"
    raise RuntimeError("the door is stuck")


app = App("stubborn", env={}, services=[Service("door", door, lazy=False)])
