"""What importing costs: nothing optional, nothing heavy, and a worker that stays small."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

OPTIONAL = ["aiosmtplib", "aiosmtpd", "cyclopts", "feedparser", "httpx2", "rich", "sqlalchemy", "structlog"]


def loaded_after(code: str) -> list[str]:
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    names: list[str] = json.loads(answer.stdout)
    return names


@pytest.mark.parametrize(
    "code",
    ["import piecework; piecework.App, piecework.Workflow", "import piecework.space.worker, piecework.app"],
    ids=["the public names", "a worker"],
)
def test_nothing_optional_or_heavy_is_loaded(code: str) -> None:
    """Importing what an app or a worker needs loads no extra and none of the large libraries."""
    assert [name for name in OPTIONAL if name in loaded_after(code)] == []


def test_importing_the_package_loads_hardly_anything() -> None:
    """`import piecework` alone loads no module of ours but itself: names are imported when they are named."""
    assert [name for name in loaded_after("import piecework") if name.startswith("piecework.")] == []


def test_every_public_name_is_there() -> None:
    """Every name of `__all__` can be imported, and a name that is not there is refused as Python does."""
    import piecework

    assert all(getattr(piecework, name) is not None for name in piecework.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Wokflow'"):
        _ = piecework.Wokflow


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_is_small_before_user_code() -> None:
    """A process that has imported what a worker needs is resident with at most 32 MiB, the interpreter included."""
    script = (
        "import piecework.space.worker, piecework.app\n"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1])"
    )
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(answer.stdout) <= 32 * 1024
