"""Which variables a zygote gets: few in its real environment, all but the secrets over a descriptor.

Clearing `os.environ` later would leave `/proc/self/environ` readable; what was never there cannot be read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

WITHHELD = "withheld:"
_SECRETS = frozenset({"OPERATOR_PASS", "IDENTITY", "PIECEWORK_TOKEN"})
_REAL = frozenset({"PATH", "HOME", "LANG", "TZ", "LD_LIBRARY_PATH"})
_REAL_PREFIXES = ("LC_", "PYTHON")
_WORKER = ("PATH", "HOME", "LANG", "TMPDIR")
# A password ends at the last @ before the host. What looks like host:port is left alone, whatever follows it.
_PASSWORD_IN_AUTHORITY = re.compile(r"(://[^\s/:@?#]*:)(?!\d{1,5}(?:[/?#]|$))[^\s@]+@(?:[^\s/@]*@)*")
_PASSWORD_IN_QUERY = re.compile(r"([?&;]password=)[^&;\s]+", re.IGNORECASE)


def real(environ: Mapping[str, str]) -> dict[str, str]:
    """Picks what an interpreter needs to start; the rest goes over a descriptor."""
    return {
        name: without_password(value)
        for name, value in environ.items()
        if name in _REAL or name.startswith(_REAL_PREFIXES)
    }


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Copies an environment with secrets replaced by `withheld:`, so that looking one up still works."""
    return {name: WITHHELD if name in _SECRETS else without_password(value) for name, value in environ.items()}


def without_password(text: str) -> str:
    """Replaces the password in each URL of a text by `withheld:`."""
    if "://" not in text:
        return text
    return _PASSWORD_IN_QUERY.sub(rf"\1{WITHHELD}", _PASSWORD_IN_AUTHORITY.sub(r"\1withheld%3A@", text))


def for_worker(environ: Mapping[str, str], layer: Mapping[str, str]) -> dict[str, str]:
    """What `os.environ` is in a worker: the few that every program needs, under the layer of its space."""
    return {name: environ[name] for name in _WORKER if name in environ} | dict(layer)
