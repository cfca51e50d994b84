"""The public faces as a type checker sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.covers("N95")
@pytest.mark.timeout(300)  # the first run on a machine has to read all of Piecework; the next ones have its cache
def test_services_have_their_types() -> None:
    """Asked for by its type a service has that type, everywhere; a wrong use is refused by mypy --strict."""
    check("services.py")


@pytest.mark.covers("N172")
@pytest.mark.timeout(300)  # as above
def test_jobs_have_their_types() -> None:
    """A job takes its function's arguments and gives its value; a wrong one is refused by mypy --strict."""
    check("jobs.py")


def check(name: str) -> None:
    # Only this file is judged, also while something is wrong elsewhere: `make check` says that.
    command = ["mypy", "--strict", "--follow-imports=silent", "--no-error-summary", str(HERE / name)]
    told = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
