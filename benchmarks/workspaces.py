"""What an empty workspace costs, beside the cheapest scope of the libraries that only inject dependencies.

All are opened and closed in one process, alternated, so that the machine's load is everybody's. The bar is a ratio:
at most three times the cheapest of them as it comes; one that is told to do with fewer scopes than it has is shown
beside. A thousand at once are opened, held together and closed, and told per one.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from container_peers import OURS, Graph, contenders

from piecework import App, Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

BAR = 3.0
ROUNDS = 15
TIMES = 4000
AT_ONCE = 1000


async def one_by_one(enter: Callable[[], AbstractAsyncContextManager[Any]]) -> float:
    """Microseconds of this thread for each, one after the other: what others do meanwhile does not count."""
    began = time.thread_time()
    for _ in range(TIMES):
        async with enter():
            pass
    return (time.thread_time() - began) / TIMES * 1e6


async def at_once(enter: Callable[[], AbstractAsyncContextManager[Any]]) -> float:
    """Microseconds for each of a thousand that are open together."""
    meeting = asyncio.Barrier(AT_ONCE)

    async def hold() -> None:
        async with enter():
            await meeting.wait()

    began = time.thread_time()
    await asyncio.gather(*(hold() for _ in range(AT_ONCE)))
    return (time.thread_time() - began) / AT_ONCE * 1e6


async def measure() -> bool:
    """Prints the table; True when the bar is kept."""
    with tempfile.TemporaryDirectory() as folder:
        app = App("benchmark", store=f"sqlite:///{folder}/store.db", settings=Settings(workspaces_limit=AT_ONCE))
        async with app:
            peers = {peer.name: peer.enter for peer in contenders(Graph()) if peer.name != OURS and not peer.beside}
            entries: dict[str, Callable[[], AbstractAsyncContextManager[Any]]] = {"workspace": app.workspace, **peers}
            best = dict.fromkeys(entries, float("inf"))
            for _ in range(ROUNDS):
                for name, enter in entries.items():
                    best[name] = min(best[name], await one_by_one(enter))
            together = {name: min([await at_once(enter) for _ in range(3)]) for name, enter in entries.items()}
    cheapest = min((name for name in peers if ", " not in name), key=best.__getitem__)
    print(f"{'microseconds for each':24} {'one by one':>12} {f'{AT_ONCE} at once':>14}")
    for name in sorted(entries, key=best.__getitem__):
        print(f"{name:24} {best[name]:12.2f} {together[name]:14.2f}")
    ratio = best["workspace"] / best[cheapest]
    print(f"an empty workspace costs {ratio:.2f} times the cheapest scope ({cheapest}); at most {BAR:g}")
    return ratio <= BAR


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(measure()) else 1)
