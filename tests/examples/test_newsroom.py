"""The newsroom at work, as `piecework demo` runs it, on both engines."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from piecework.process import linux
from piecework.store.check import check
from piecework.store.looking import looking_at


@pytest.mark.timeout(120)
@pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
async def test_every_article_goes_through(store, tmp_path):
    """The demo ends by itself, every article read, approved and mailed; its store does not contradict itself."""
    program = "import sys; from piecework.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "demo", "--plain", "--store", store]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"}
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    told = out.decode()
    assert (process.returncode, err.decode()) == (0, ""), told
    assert "18 articles, 18 through" in told
    assert "mails: 18 delivered" in told
    async with looking_at(store) as look:
        assert await check(look) == []
