"""What the documentation says of the store is what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_table_of_verbs_is_the_codes():
    """docs/store.md has every verb with its own words; `python docs/make_verbs.py` writes them."""
    spec = importlib.util.spec_from_file_location("make_verbs", DOCS / "make_verbs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == (DOCS / "store.md").read_text("utf-8")
