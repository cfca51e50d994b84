"""Small services that tests of containers are made of."""

from __future__ import annotations

import asyncio


class Thing:
    """Something that a service is."""


def closing(log, name, *needs):
    """A factory that needs other services, and says when what it made is closed."""

    async def make(ctx):
        made = [name, *[await ctx.require(key) for key in needs]]
        ctx.on_cleanup(lambda: log.append(name))
        return made

    return make


def failing(times, made="made"):
    """A factory that fails so many times, and its attempts."""
    attempts = []

    def make():
        attempts.append(len(attempts) + 1)
        if len(attempts) <= times:
            raise OSError(f"attempt {len(attempts)}")
        return made

    return make, attempts


def told(container, event):
    """What a container tells of an event, from now on."""
    seen = []
    container.on(event, seen.append)
    return seen


async def never():
    """Waits until it is cancelled."""
    await asyncio.Event().wait()
