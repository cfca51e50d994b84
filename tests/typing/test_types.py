"""The public faces as a type checker sees them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
QUICK_START = ROOT / "docs" / "quickstart.md"


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


@pytest.mark.timeout(300)  # as above
def test_receipts_have_their_types() -> None:
    """What became of an event can be looked at, unless it goes along with a transaction: mypy --strict knows."""
    check("events.py")


@pytest.mark.covers("R5")
@pytest.mark.timeout(300)  # as above
def test_a_clean_environment_has_it_by_one_command(tmp_path: Path) -> None:
    """Installed by one command into a clean environment it imports, and a type checker passes the quick start."""
    run("pip", "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("piecework-*.whl")
    run("venv", "--without-pip", str(tmp_path / "clean"))
    python = tmp_path / "clean" / "bin" / "python"
    run("pip", "--python", str(python), "install", "-q", "--no-index", "--no-deps", str(wheel))
    (site,) = (tmp_path / "clean").glob("lib/python*/site-packages")
    # What it depends on is taken from here: the network is nobody's to need in a test.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = [str(python), "-I", "-c", "import piecework; piecework.App; print(piecework.__file__)"]
    told = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(site / "piecework" / "__init__.py")
    (letters,) = re.findall(r"Put this into `letters.py`:\n\n```python\n(.*?)```", QUICK_START.read_text(), re.DOTALL)
    (tmp_path / "letters.py").write_text(letters)
    checker = ["--python-executable", str(python), "--follow-imports=silent", "--config-file=", "--no-error-summary"]
    run("mypy", *checker, str(tmp_path / "letters.py"), cwd=tmp_path)


def run(module: str, *args: str, cwd: Path | None = None) -> None:
    """Runs a module of this environment and shows what it said when it fails."""
    command = [sys.executable, "-m", module, *args]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


def check(name: str) -> None:
    # Only this file is judged, also while something is wrong elsewhere: `make check` says that.
    command = ["mypy", "--strict", "--follow-imports=silent", "--no-error-summary", str(HERE / name)]
    told = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
