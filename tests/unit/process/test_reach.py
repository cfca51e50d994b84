from __future__ import annotations

import os
import pwd
import sys
import tempfile
from pathlib import Path

import pytest

from piecework.process import reach


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder on `sys.path` with code and with what is nobody's business."""
    for name in ("letters/__init__.py", "shop.py", ".env", "store.db", "assets/logo.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    reach.code_paths.cache_clear()
    yield tmp_path
    reach.code_paths.cache_clear()


def readable(reached, path):
    return any(Path(path).is_relative_to(root) for root in reached.readable)


def test_of_the_working_folder_code_alone_is_readable(project):
    """What can be imported from the working folder is readable, and the names in it; nothing else there is."""
    reached = reach.reach_of("/nowhere", database=None)
    assert [readable(reached, project / name) for name in ("letters/__init__.py", "shop.py")] == [True, True]
    assert [readable(reached, project / name) for name in (".env", "store.db", "assets/logo.svg")] == [False] * 3
    assert str(project) in reached.listable


def test_a_folder_of_code_that_has_the_store_is_not_readable(project, monkeypatch):
    """A folder on `sys.path` is readable as a whole, unless the store is in it."""
    monkeypatch.chdir("/")
    reach.code_paths.cache_clear()
    assert readable(reach.reach_of("/nowhere", database=None), project / "assets/logo.svg")
    reached = reach.reach_of("/nowhere", database=None, hidden=[str(project / "store.db")])
    assert [readable(reached, project / name) for name in ("shop.py", "store.db")] == [True, False]


def test_neither_home_nor_all(project):
    """Neither `/`, nor home, nor what holds them is ever readable."""
    reached = reach.reach_of("/nowhere", database=None)
    assert not {"/", str(Path.home()), "/home", "/tmp"} & {*reached.readable, *reached.listable}
    assert readable(reached, os.__file__)
    assert readable(reached, sys.executable)


@pytest.mark.covers("N505")
def test_folders_that_nobody_may_look_into(monkeypatch):
    """Folders on `sys.path`, and in them, that the user may not look into are passed over: spaces start without."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        folder = Path(place)
        for name in ("app/secret", "closed/below", "unlisted"):
            (folder / name).mkdir(parents=True)
        (folder / "app/shop.py").touch()
        folder.chmod(0o755)
        for name, mode in (("app/secret", 0), ("closed", 0), ("unlisted", 0o111)):
            (folder / name).chmod(mode)
        monkeypatch.chdir(folder / "app")
        monkeypatch.setattr(sys, "path", [str(folder / name) for name in ("app", "closed/below", "unlisted")])
        reach.code_paths.cache_clear()
        user = os.geteuid()
        os.seteuid(user or pwd.getpwnam("nobody").pw_uid)  # root looks into everything
        try:
            reached = reach.code_paths((str(folder / "unlisted/store.db"),))
        finally:
            os.seteuid(user)
            reach.code_paths.cache_clear()
            for name in ("app/secret", "closed", "unlisted"):
                (folder / name).chmod(0o755)
        assert readable(reached, folder / "app/shop.py")


def test_a_server_database_needs_its_files(project, monkeypatch):
    """A database on a server makes the files readable that its address names, and no folder writable."""
    address = "postgresql://db.example/app?sslrootcert=%2Fcerts%2Froot.pem&application_name=x"
    reached = reach.reach_of("/nowhere", database=address)
    assert readable(reached, "/certs/root.pem")
    assert [path for path in reached.writable if not path.startswith("/dev/")] == ["/nowhere"]


@pytest.mark.parametrize("space", ["..", "Acme", "a/b", "é", "x" * 500, "-", ""])
def test_every_space_has_a_folder_of_its_own(space):
    """A space's name is never a way out of the folder of spaces, nor two spaces' folder one."""
    others = {reach.folder_of(other, "sqlite:////srv/state.db") for other in ("acme", "a_b", "x", "_")}
    folder = Path(reach.folder_of(space, "sqlite:////srv/state.db"))
    assert folder.parent == Path("/srv/state.db.spaces")
    assert len(folder.name) < 64
    assert ".." not in folder.parts
    assert str(folder) not in others


def test_a_folder_of_somebody_elses_is_refused(tmp_path, monkeypatch):
    """A folder that belongs to another user is not moved into."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        reach.move_into(str(tmp_path))
