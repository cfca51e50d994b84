"""What a space's process reaches in the file system: a folder of its own, its database's, and what it needs to run.

Code may be read: the interpreter's, that on `sys.path`, and the folders of modules that are loaded. A place that holds
more than code is never opened as a whole: the working folder of the node, `/`, the home folder, and whatever holds one
of these or the store. Of such a place, where it is on `sys.path`, what can be imported is readable, and the names.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from piecework.process import landlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SQLITE = "sqlite:///"
_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_IN_A_PREFIX = ("bin", "sbin", "lib", "lib32", "lib64", "libexec", "share", "ssl", "pyvenv.cfg")
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys/devices/system", "/sys/kernel/mm/transparent_hugepage")
_ETC = (
    *("resolv.conf", "hosts", "host.conf", "nsswitch.conf", "gai.conf", "services", "protocols"),
    *("ssl", "pki", "ca-certificates", "ca-certificates.conf", "localtime", "timezone", "locale.alias", "mime.types"),
    *("passwd", "group", "os-release", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "fonts"),
    *("gitconfig", "krb5.conf"),  # git does not begin where it may not read its own
)
_OF_RESOLVERS = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager")  # where resolv.conf is made anew
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/shm", "/dev/urandom", "/dev/random")  # noqa: S108 - what multiprocessing needs
_OF_PROC = ("cpuinfo", "meminfo", "stat", "uptime", "loadavg", "version", "filesystems", "sys")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PYTHONTZPATH")
_OF_POSTGRES = ("~/.pgpass", "~/.postgresql", "~/.pg_service.conf")


@dataclass(frozen=True, slots=True)
class Reach:
    """What a process may read and write; absolute paths.

    Attributes:
        readable: Files and whole folders to read and execute.
        writable: Files and whole folders to read, write and make things in.
        listable: Folders of which only the names may be read.
    """

    readable: list[str] = field(default_factory=list)
    writable: list[str] = field(default_factory=list)
    listable: list[str] = field(default_factory=list)


def folder_of(space: str, store: str) -> str:
    """Where the folder of a space is: beside the file of the store, else in the system's folder for temporary files.

    Args:
        space: The tenant.
        store: The URL of the store.
    """
    name = space
    if not _PLAIN.fullmatch(space):
        digest = hashlib.sha256(space.encode()).hexdigest()[:16]
        name = f"{re.sub('[^a-z0-9_-]', '_', space.lower())[:40]}.{digest}"
    if store.startswith(_SQLITE):
        return str(Path(f"{Path(store[len(_SQLITE) :]).resolve()}.spaces", name))
    import tempfile  # late: a worker must stay small

    digest = hashlib.sha256(store.encode()).hexdigest()[:16]
    return str(Path(tempfile.gettempdir(), f"piecework-{os.geteuid()}", digest, name))


def move_into(folder: str) -> None:
    """Makes a folder of one's own where it is not there, and makes it the working folder and that of temporary files.

    Raises:
        OSError: It cannot be made, or belongs to somebody else.
    """
    sys.path[:] = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - a Path would touch the folder
    # The first that is ours to make is closed to others; those above are as they are.
    for place in (Path(folder).parent.parent, Path(folder).parent, Path(folder)):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)
    if Path(folder).stat().st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to somebody else: remove it, or give the store another place")
    os.chdir(folder)
    os.environ["TMPDIR"] = folder
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None  # type: ignore[attr-defined]  # an import has asked: it was the node's


def fence(reach: Reach) -> bool:
    """Lets this process reach that and nothing else from here on; False where the kernel cannot do it."""
    return landlock.restrict(readable=reach.readable, writable=reach.writable, listable=reach.listable)


def reach_of(
    folder: str,
    *,
    database: str | None,
    hidden: Iterable[str] = (),
    readable: Iterable[str] = (),
    writable: Iterable[str] = (),
) -> Reach:
    """Puts together what a space's process may reach.

    Args:
        folder: Its own folder.
        database: The URL of the application's database.
        hidden: Files that are not for it, as the store: no place that holds one is readable as a whole.
        readable: What its operator allows besides.
        writable: The same, for writing.
    """
    code = code_paths()
    guarded = tuple(map(_absolute, hidden))
    if any(_holds(root, guard) for root in code.readable for guard in guarded):
        code = code_paths(guarded)
    reach = Reach(list(code.readable), [folder, *_DEVICES, *map(_absolute, writable)], list(code.listable))
    reach.readable.extend(_of_the_system())
    reach.readable.extend(map(_absolute, readable))
    if database is not None:
        _add_database(reach, database)
    return reach


def database_folder(database: str | None) -> str | None:
    """The folder of a database that is a file; None where it is none."""
    if database is None or not database.startswith(_SQLITE):
        return None
    return str(Path(database[len(_SQLITE) :]).resolve().parent)


@cache
def code_paths(hidden: tuple[str, ...] = ()) -> Reach:
    """Where code is, as far as it is known now. It is looked for once: a zygote does it for all of its workers.

    Args:
        hidden: As of `reach_of`.
    """
    reach = Reach()
    roots = _Roots([*hidden, _home(), str(Path.cwd()), "/"])
    for prefix in dict.fromkeys((sys.prefix, sys.base_prefix, sys.exec_prefix, "/usr", "/usr/local")):
        roots.add(*(str(Path(prefix, part)) for part in _IN_A_PREFIX))
    for entry in map(_absolute, sys.path):
        if roots.add(entry) or roots.has(entry) or not os.path.isdir(entry):  # noqa: PTH112 - False of what we may not look at
            continue
        reach.listable.append(entry)
        roots.add(*_importable(entry))
    roots.add(*_loaded())
    reach.readable.extend(roots.paths)
    return reach


class _Roots:
    """Places that are readable with all below them, none twice, and none that holds what is guarded."""

    def __init__(self, guarded: Iterable[str]) -> None:
        self.paths: dict[str, None] = {}
        self._guarded = [str(Path(path).resolve()) for path in guarded]

    def has(self, path: str) -> bool:
        """Tells whether a place is readable already."""
        return path in self.paths or any(parent in self.paths for parent in _parents(path))

    def add(self, *paths: str) -> bool:
        """Makes places readable; False when the last one was not added."""
        added = False
        for path in paths:
            added = not self.has(path) and not self._guards(os.path.realpath(path))
            if added:
                self.paths[path] = None
        return added

    def _guards(self, path: str) -> bool:
        return any(_holds(path, guarded) for guarded in self._guarded)


def _holds(folder: str, path: str) -> bool:
    return folder == path or folder in _parents(path)


def _parents(path: str) -> Iterator[str]:
    at = path
    while (above := at.rsplit("/", 1)[0]) != at:
        at = above
        yield at or "/"
        if not at:
            return


def _importable(folder: str) -> list[str]:
    """What an import finds in a folder: modules, packages, and their compiled forms; not what we may not look at."""
    suffixes = tuple(all_suffixes())
    found = []
    with suppress(PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                package = entry.is_dir() and (entry.name == "__pycache__" or Path(entry.path, "__init__.py").exists())
                if package or (entry.name.endswith(suffixes) and entry.is_file()):
                    found.append(entry.path)
    return found


def _loaded() -> Iterator[str]:
    """The folders of the packages that are loaded, and the files of the other modules."""
    for module in list(sys.modules.values()):
        places: list[object] = []
        with suppress(Exception):  # what stands in sys.modules may be anything, and answers for itself
            # Not by asking the module: one that loads itself when it is first asked for something would.
            known = object.__getattribute__(module, "__dict__")
            places = [*(known.get("__path__") or ()), known.get("__file__")]
        for place in places:
            if isinstance(place, str) and place.startswith("/"):
                yield place


def _of_the_system() -> Iterator[str]:
    yield from _SYSTEM
    yield from (f"/etc/{name}" for name in _ETC)
    yield from _OF_RESOLVERS
    yield from _proc()
    for name in _CERTIFICATES:
        yield from filter(None, os.environ.get(name, "").split(os.pathsep))


def _proc() -> list[str]:
    """All of `/proc` where it shows nothing but our own namespace, else what is this process's, and the machine's."""
    if os.getppid() == 1 and Path("/proc/self").readlink().name == str(os.getpid()):
        return ["/proc"]
    return ["/proc/self", *(f"/proc/{name}" for name in _OF_PROC)]


def _add_database(reach: Reach, database: str) -> None:
    folder = database_folder(database)
    if folder is not None:
        reach.writable.append(folder)
        return
    reach.readable.extend(os.path.expanduser(path) for path in _OF_POSTGRES)  # noqa: PTH111 - of a home that may not be there
    reach.readable.extend(path for name in ("PGPASSFILE", "PGSERVICEFILE") if (path := os.environ.get(name)))
    # Certificates and the like stand in the address.
    reach.readable.extend(unquote(value) for _, value in parse_qsl(urlsplit(database).query) if value.startswith("/"))


def _home() -> str:
    return os.path.expanduser("~")  # noqa: PTH111 - Path.home raises where there is none


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - as above
