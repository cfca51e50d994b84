"""Three-step runs by Piecework, fifty at a time; prints its rate as JSON.

Run by `peers.py`: `peers_ours.py URL RUNS`.
"""

from __future__ import annotations

import asyncio
import json
import sys

from runs_common import opened, run_all

_WARM_UP = 20


async def measured(url: str, runs: int) -> float:
    """Runs per second, once it is warm."""
    async with opened(url) as app:
        await run_all(app, range(_WARM_UP))
        return runs / await run_all(app, range(_WARM_UP, _WARM_UP + runs))


if __name__ == "__main__":
    print(json.dumps({"rate": asyncio.run(measured(sys.argv[1], int(sys.argv[2])))}))
