"""What the documentation says of admission is what the code decides."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.covers("N308")
def test_the_table_of_admission_is_the_codes():
    """docs/how-it-works.md has what `admit` decides; `python docs/make_admission.py` writes it."""
    spec = importlib.util.spec_from_file_location("make_admission", DOCS / "make_admission.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == (DOCS / "how-it-works.md").read_text("utf-8")
