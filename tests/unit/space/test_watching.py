from __future__ import annotations

import importlib
import os
import sys

from piecework.space.watching import CodeWatch


def test_a_changed_file_is_told_once(tmp_path, monkeypatch):
    """A file of the app's own code that has changed is told once; one that is gone only when it is there again."""
    file = tmp_path / "watched_shop.py"
    file.write_text("apples = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("watched_shop")
    try:
        watch = CodeWatch()
        assert str(file) not in watch.changed()
        os.utime(file, (1, 1))
        assert (watch.changed(), watch.changed()) == ([str(file)], [])
        file.unlink()
        assert watch.changed() == []
        file.write_text("apples = 2\n")
        assert watch.changed() == [str(file)]
    finally:
        del sys.modules["watched_shop"]


def test_installed_packages_are_not_looked_at():
    """Files of the standard library and of installed packages are left alone."""
    watch = CodeWatch()
    assert not [path for path in watch._seen if path in {os.__file__, importlib.import_module("msgspec").__file__}]
