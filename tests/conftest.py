from __future__ import annotations

import pytest

# Before anything imports them: their asserts are to say what was compared.
pytest.register_assert_rewrite(
    "piecework.testing.contracts",
    *(f"piecework.testing.promises_{part}" for part in ("claims", "events", "pieces", "runs", "waits")),
)


@pytest.fixture
def anyio_backend() -> str:
    """Everything runs on asyncio."""
    return "asyncio"
