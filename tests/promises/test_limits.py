from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from piecework import Settings
from piecework.cli.asking import Where
from piecework.cli.doctor import doctor
from piecework.errors import CpuLimitError, RemoteError
from piecework.process import landlock, linux, seccomp
from piecework.process.launch import Zygote
from piecework.process.limits import report
from piecework.space import supply

from .apps import calls
from .apps.greedy import __name__ as greedy_module
from .apps.greedy import app as greedy

pytestmark = [
    pytest.mark.engines("sqlite"),
    pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds"),
]
fenced = pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
MEBIBYTE = 1 << 20
ROOT = Path(__file__).parents[2]
SETTINGS = Settings(
    space_memory_bytes=100 * MEBIBYTE,
    space_processes=12,
    space_open_files=64,
    space_run_cpu_seconds=0.5,
    space_grace_seconds=0.3,
)


@pytest.fixture
def places(tmp_path):
    """A folder for the store, one for the database, and one that is nobody's."""
    for name in ("state", "data", "else"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
async def app(places):
    """The app of `apps/greedy`, open, with limits that are soon reached."""
    greedy.configure(
        store=f"sqlite:///{places}/state/piecework.db", database=f"sqlite:///{places}/data/app.db", settings=SETTINGS
    )
    async with greedy:
        yield greedy


@pytest.fixture(params=["namespaces", "sessions"])
def kept_by(request, monkeypatch):
    """Workers are kept together by namespaces, where they can be had, or by sessions."""
    if request.param == "sessions":
        monkeypatch.setattr(supply, "Zygote", partial(Zygote, namespaces=False))


async def update(app, integration, space="acme", **config):
    """Registers a piece of that kind and answers its first update, ended."""
    await app.pieces.register(space=space, piece_id=integration, integration=integration, config=config)
    run = (await app.pieces.runs(space, integration))[-1]
    _ = (await app.runtime.wait(run.run_id, timeout_seconds=20)).ok
    return (await app.pieces.runs(space, integration))[-1]


async def outgrow(app, integration):
    """The code of an update that takes too much; its space goes on afterwards, and its neighbour all the while."""
    before = (await update(app, "modest", "neighbour")).result
    run = await update(app, integration)
    assert (await update(app, "modest")).result["count"] == 1
    after = await app.pieces.run_now("neighbour", "modest", wait=True)
    assert after.result == before | {"count": 2}
    return run.error["code"]


@pytest.mark.covers("N430")
@pytest.mark.parametrize("integration", ["hoards", "hoards-together"])
async def test_memory(app, integration):
    """An update that takes too much memory fails with MEMORY_LIMIT, by itself or with what it started."""
    assert await outgrow(app, integration) == "MEMORY_LIMIT"


@pytest.mark.covers("N430")
async def test_shared_memory_counts_once(app):
    """What forked processes share counts once: four of 50 MiB each stay below 100."""
    if os.geteuid() != 0:
        pytest.skip("an ordinary user's keeper is not told what is shared")
    assert (await update(app, "shares")).result == 50 * MEBIBYTE


@pytest.mark.covers("N441")
async def test_memory_that_is_shared(app):
    """Shared memory of a space is out of reach of others, and holds no more than the space may have."""
    if linux.namespaces() == "session":
        pytest.skip("without namespaces all spaces share it")
    shared = "/dev/shm/piecework-shared"
    looks = await update(app, "looks", write=[shared], read=[shared])
    assert looks.result["write"] == {shared: "done"}
    assert not Path(shared).exists()
    assert (await update(app, "looks", "neighbour", read=[shared])).result["read"] == {shared: "ENOENT"}
    assert (await update(app, "fills", at="/dev/shm/large", mebibytes=101)).error["message"].endswith("left on device")


@pytest.mark.covers("N431")
async def test_processes(kept_by, app):
    """An update that forks without end fails with PROCESS_LIMIT, and all that it forked is gone."""
    assert await outgrow(app, "forks") == "PROCESS_LIMIT"


@pytest.mark.covers("N432")
@pytest.mark.parametrize("integration", ["spins", "spins-elsewhere"])
async def test_processor_time(app, integration):
    """An update that uses more processor time than it may, in its process or another, fails with CPU_LIMIT."""
    assert await outgrow(app, integration) == "CPU_LIMIT"


@pytest.mark.covers("N433")
async def test_processor_time_is_that_of_whose_code_runs(app, places):
    """Of two updates in a worker the one whose code ran is charged; the other is run again, uncharged."""
    sleeping = asyncio.ensure_future(update(app, "sleeps"))
    folder = places / "state" / "piecework.db.spaces" / "acme"
    await there(folder / "sleeping")
    assert (await update(app, "spins")).error["code"] == "CPU_LIMIT"
    (folder / "wake").touch()
    assert (await sleeping).status == "completed"


@pytest.mark.covers("N433")
async def test_processor_time_that_is_nobodys(app, places):
    """When it is unclear which of two updates used it, both run again alone, and the one that does it again fails."""
    sleeping = asyncio.ensure_future(update(app, "sleeps"))
    folder = places / "state" / "piecework.db.spaces" / "acme"
    await there(folder / "sleeping")
    spinning = asyncio.ensure_future(update(app, "spins-elsewhere"))
    (folder / "sleeping").unlink()
    await there(folder / "sleeping")  # again, alone
    (folder / "wake").touch()
    assert (await spinning).error["code"] == "CPU_LIMIT"
    assert (await sleeping).status == "completed"


@pytest.mark.covers("N434")
async def test_open_files(app):
    """An update that opens too many files is told so by the kernel, and fails; its worker goes on."""
    run = await update(app, "opens")
    assert "Too many open files" in run.error["message"]
    assert (await update(app, "modest")).status == "completed"


@pytest.mark.covers("N435")
def test_full_disk(places):
    """A space whose disk is full fails its own updates, and no others."""
    folder = places / "state" / "piecework.db.spaces" / "acme"
    folder.mkdir(parents=True)
    mount = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c"]
    if not may_mount(unshare, folder):
        pytest.skip("no file system may be mounted here")
    command = [*unshare, mount, str(folder), sys.executable, "-c", FULL, str(places)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=25, check=False)
    assert answer.stdout.splitlines() == ["failed No space left on device", "completed", "completed"], answer.stderr


FULL = """
import asyncio, sys
from pathlib import Path
from piecework import Settings
from tests.promises.apps.greedy import app

async def update(app, integration, space="acme"):
    await app.pieces.register(space=space, piece_id=integration, integration=integration)
    run = (await app.pieces.runs(space, integration))[-1]
    _ = (await app.runtime.wait(run.run_id, timeout_seconds=20)).ok
    return (await app.pieces.runs(space, integration))[-1]

async def main():
    place = sys.argv[1]
    app.configure(store=f"sqlite:///{place}/state/piecework.db", settings=Settings())
    async with app:
        run = await update(app, "fills")
        print(run.status, run.error["message"].partition("] ")[2])
        print((await update(app, "modest", "neighbour")).status)
        Path(f"{place}/state/piecework.db.spaces/acme/large").unlink()
        print((await update(app, "modest")).status)

asyncio.run(main())
"""


def may_mount(unshare, folder):
    """Whether this user may mount something in a namespace of its own."""
    command = [*unshare, 'mount -t tmpfs tmpfs "$0"', str(folder)]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@fenced
@pytest.mark.covers("N436")
async def test_reach(app, places):
    """An update reads and writes its space's folder and the database's; of the rest it reads what it needs to run."""
    (places / "else" / "secret").touch()
    shut = [f"{places}/else/secret", f"{places}/state/piecework.db", str(ROOT / "README.md"), "/etc/shadow"]
    looks = await update(app, "looks", read=[*shut, __file__], write=["own", f"{places}/data/x", f"{places}/else/x"])
    assert looks.result["read"] == dict.fromkeys(shut, "EACCES") | {__file__: "done"}
    assert looks.result["write"] == {"own": "done", f"{places}/data/x": "done", f"{places}/else/x": "EACCES"}
    folder = f"{places}/state/piecework.db.spaces/acme"
    assert (looks.result["cwd"], looks.result["temporary"]) == (folder, folder)


@fenced
@pytest.mark.covers("N501")
@pytest.mark.skipif(not Path("/etc/gitconfig").exists(), reason="git has no configuration of the machine's")
async def test_git_reads_the_configuration_of_the_machine(app):
    """An update may read what git reads before all else: without it no command of git begins."""
    looks = await update(app, "looks", read=["/etc/gitconfig"], write=[])
    assert looks.result["read"] == {"/etc/gitconfig": "done"}


@fenced
@pytest.mark.covers("N436")
async def test_more_reach(places):
    """What the settings name is in reach of every space besides."""
    (places / "else" / "shared").write_text("x")
    more = Settings(space_readable_paths=(str(ROOT / "README.md"),), space_writable_paths=(f"{places}/else",))
    greedy.configure(store=f"sqlite:///{places}/state/piecework.db", settings=more)
    paths = [str(ROOT / "README.md"), f"{places}/else/shared"]
    async with greedy:
        looks = (await update(greedy, "looks", read=paths, write=paths)).result
    assert looks["read"] == dict.fromkeys(paths, "done")
    assert list(looks["write"].values()) == ["EACCES", "done"]


@pytest.mark.covers("N437")
async def test_what_pieces_need_works(app):
    """Behind all that, rows, imports, time zones, certificates, names, programs and pools of processes work."""
    needed = (await update(app, "works")).result
    assert needed["rows"] == 1
    assert needed["certificates"] > 0
    assert (needed["zone"], needed["module"], needed["program"], needed["pool"]) == ("Europe/Paris", "wave", 0, 4)
    assert needed["name"] in {"127.0.0.1", "::1"}


@fenced
@pytest.mark.covers("N438")
@pytest.mark.skipif(not seccomp.available(), reason="this kernel filters no calls")
async def test_meddling(app):
    """An update can signal or trace no process but its own, mount nothing, and gain no privileges."""
    meddles = (await update(app, "meddles", node=os.getpid())).result
    assert meddles.pop("signal") in {"EPERM", "ESRCH"}
    assert (meddles.pop("tasks") == 12 + 512) is (linux.namespaces() == "user namespace")
    assert meddles == {"ptrace": "EPERM", "mount": "EPERM", "new_privileges": "1"}


@fenced
@pytest.mark.covers("N439")
def test_report(tmp_path):
    """How each limit is enforced here is told, and where one is not, that."""
    told = report(
        SETTINGS, mode="session", store=f"sqlite:///{tmp_path}/state.db", database=f"sqlite:///{tmp_path}/app.db"
    )
    assert list(told) == ["memory", "cpu", "processes", "files", "wall", "folder", "filesystem", "syscalls"]
    assert "RLIMIT_DATA" in told["memory"]
    assert "the store is NOT protected" in told["filesystem"]
    apart = report(Settings(), mode="session", store=f"sqlite:///{tmp_path}/state.db", database="postgresql:///x")
    assert "NOT protected" not in apart["filesystem"]
    assert apart["cpu"] == "no limit"


@pytest.mark.covers("N439")
def test_doctor(places, capsys):
    """`piecework doctor` has a line for each limit, and warns of a store beside the database."""
    store = f"sqlite:///{places}/data/piecework.db"
    greedy.configure(store=store, database=f"sqlite:///{places}/data/app.db", settings=SETTINGS)
    asyncio.run(doctor(as_json=True, where=Where(store=store, app=f"{greedy_module}:app")))
    told = {item["name"]: item for item in json.loads(capsys.readouterr().out)["items"]}
    assert [name for name in report(Settings(), mode="session") if f"limit {name}" not in told] == []
    assert told["limit memory"]["detail"].startswith(f"{SETTINGS.space_memory_bytes >> 20} MiB")
    assert told["limit filesystem"]["status"] == "warning"


@pytest.mark.covers("N440")
async def test_calls(store, places):
    """A function in a process of its own has the same limits; of no space, it stays where its caller is."""
    calls.app.configure(store=store, settings=SETTINGS)
    async with calls.app:
        new = calls.app.workspace(isolation="process")
        with pytest.raises(RemoteError, match="MemoryError"):
            await new.run(calls.hoard)
        with pytest.raises(CpuLimitError, match=r"more than 0\.5 s"):
            await new.run(calls.spin)
        assert await new.run(calls.here) == str(Path.cwd())
        assert await calls.app.workspace(isolation="process", space="acme").run(calls.here) != str(Path.cwd())


@pytest.mark.covers("A21")
async def test_secrets(kept_by, places, monkeypatch, caplog):
    """No secret of the node is in its workers' environment, arguments, descriptors or logs; a piece finds none."""
    halves = {"half": "planted-", "other_half": "secret-3b1f"}
    secret = "".join(halves.values())
    for name in ("OPERATOR_PASS", "IDENTITY", "PIECEWORK_TOKEN"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("PIECEWORK_STORE", f"postgresql://u:{secret}@db.example/state")
    monkeypatch.setenv("FEED_URL", f"https://u:{secret}@feeds.example/")
    store = f"sqlite:///{places}/state/piecework.db"
    greedy.configure(store=store, mail=f"smtp://u:{secret}@127.0.0.1:9?from=a@example.org", settings=Settings())
    async with greedy:
        found = (await update(greedy, "tells-all", **halves)).result
        pids = linux.descendants(os.getpid())
        shown = {pid: shown_of(pid) for pid in pids}
    assert (found["found"], found["looked"] > 5, len(pids) > 2) == ([], True, True)
    assert [pid for pid, text in shown.items() if secret.encode() in text] == []
    assert secret not in caplog.text


def shown_of(pid):
    """What the kernel shows of a process."""
    text = b""
    for name in ("environ", "cmdline", "status"):
        with contextlib.suppress(OSError):
            text += Path(f"/proc/{pid}/{name}").read_bytes()
    with contextlib.suppress(OSError):
        text += b"".join(str(entry.readlink()).encode() for entry in Path(f"/proc/{pid}/fd").iterdir())
    return text


async def there(path):
    """Waits until another process has made a file."""
    while not path.exists():
        await asyncio.sleep(0.01)
