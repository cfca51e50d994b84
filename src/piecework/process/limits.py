"""What a space's processes may use, and how each limit is enforced here.

A limit that a single process can be held to is the kernel's (`apply`, in the worker, before anything of the user's
runs there); what they use together is seen by their keeper (`meter`), which kills and says why. It is fault isolation
and least privilege, no jail: what runs as the same user may do what this user may, where nothing below forbids it.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework.process import linux

if TYPE_CHECKING:
    from piecework.config import Settings
    from piecework.process.protocol import Init

# What stands behind the limits is imported where it is used: nodes read this file too, and a worker must stay small.
_THREAD_STACK_BYTES = 1024 * 1024
_TASKS_BESIDE = 512  # threads of the processes that are allowed: RLIMIT_NPROC counts them too
_SQLITE = "sqlite:///"
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the place for it, not for files
_of_zygote: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the processes of one space may use; None is no limit.

    Attributes:
        memory_bytes: Memory beyond what the worker is born with, of each process and of all together.
        run_cpu_seconds: Processor time of one run.
        open_files: Descriptors of one process.
        processes: How many at once, the worker included.
    """

    memory_bytes: int | None = None
    run_cpu_seconds: float | None = None
    open_files: int | None = None
    processes: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Those that an app's settings name."""
        return cls(
            memory_bytes=settings.space_memory_bytes,
            run_cpu_seconds=settings.space_run_cpu_seconds,
            open_files=settings.space_open_files,
            processes=settings.space_processes,
        )

    def told(self) -> dict[str, Any]:
        """Itself as JSON values: what `Limits(**…)` makes it of again."""
        return asdict(self)


def prepare() -> None:
    """Looks at what is the same for all workers; a zygote calls it once, when it has imported the app."""
    from piecework.process import kernel, landlock, meter, reach, seccomp  # noqa: F401 - so that each worker has them

    _of_zygote.update({kind: _namespace(kind) for kind in ("user", "mnt")})
    linux.prepare()
    if landlock.version():
        reach.code_paths()
    seccomp.program()


def apply(limits: Limits) -> None:
    """Holds this process, and each that it starts, to its limits. Called in the worker, before anything else."""
    threading.stack_size(_THREAD_STACK_BYTES)  # else some sixty threads of 8 MiB would fill the memory of a space
    if limits.memory_bytes is not None:
        _cap(resource.RLIMIT_DATA, _data_bytes() + limits.memory_bytes)
    if limits.open_files is not None:
        _cap(resource.RLIMIT_NOFILE, limits.open_files)
    if limits.processes is not None and _is_own("user"):  # it then counts the tasks of this space alone
        _cap(resource.RLIMIT_NPROC, limits.processes + _TASKS_BESIDE)
    if sys.platform == "linux":
        from piecework.process import kernel, seccomp

        kernel.gain_no_privileges()
        seccomp.refuse()


def separate_memory(limits: Limits) -> bool:
    """Gives this namespace shared memory of its own, no larger than its memory; False where that cannot be.

    Called in a keeper. What a space shares among its processes then is nobody else's, counts, and goes with it.
    """
    # Only where what is mounted shows nowhere else: a /proc of our own is there, so mounts are, and they go nowhere.
    own = os.getpid() == 1 and linux.own_number() == 1 and _is_own("mnt")
    if not own or not os.access(_SHARED_MEMORY, os.X_OK):
        return False
    from piecework.process import kernel

    return kernel.mount_memory(_SHARED_MEMORY, limits.memory_bytes)


def enter(init: Init) -> None:
    """Moves this process into its space's folder, and lets it reach nothing else from here on but what it needs.

    A call that is of no space stays where it is, and reaches what its user can.

    Args:
        init: What the node said.

    Raises:
        OSError: The folder cannot be made, or the kernel refuses the fence.
    """
    if init.folder is None:
        return
    from piecework.process import reach

    allowed = {name: init.settings.get(f"space_{name}_paths", ()) for name in ("readable", "writable")}
    hidden = [init.store_file] if init.store_file else []
    reached = reach.reach_of(init.folder, database=init.database, hidden=hidden, **allowed)
    reach.move_into(init.folder)
    reach.fence(reached)


def report(settings: Settings, *, mode: str, store: str | None = None, database: str | None = None) -> dict[str, str]:
    """Tells for each limit of a space how it is enforced on this machine; for `doctor` and a space's record.

    Args:
        settings: The app's.
        mode: What keeps workers together here, as `Zygote.mode` and `linux.namespaces` tell.
        store: The store's URL, without its password.
        database: The URL of the application's database.
    """
    from piecework.process import reach

    limits = Limits.of(settings)
    mebibytes = limits.memory_bytes and limits.memory_bytes / 2**20
    return {
        "memory": _word(mebibytes, "{:g} MiB: RLIMIT_DATA a process, the keeper's sum for all together"),
        "cpu": _word(limits.run_cpu_seconds, "{:g} s a run: metered by the keeper"),
        "processes": _word(limits.processes, f"{{}}: {_who_counts(mode)}"),
        "files": _word(limits.open_files, "{} open at once in a process: RLIMIT_NOFILE"),
        "wall": "the timeout of each piece; then cancelled, terminated, killed",
        "folder": f"{reach.folder_of('SPACE', store)}" if store else "one for each space",
        "filesystem": _fence_words(settings, store, database),
        "syscalls": _filter_words(),
    }


def _word(limit: float | None, words: str) -> str:
    return "no limit" if limit is None else words.format(limit)


def _who_counts(mode: str) -> str:
    if mode == "user namespace":
        return "RLIMIT_NPROC in the space's user namespace bounds its tasks, the keeper counts its processes"
    return "the keeper counts them; no cgroup and no RLIMIT_NPROC bounds a burst here"


def _fence_words(settings: Settings, store: str | None, database: str | None) -> str:
    from piecework.process import landlock, reach

    version = landlock.version()
    if not version:
        return "not enforced: this kernel has no Landlock; a piece reads and writes what its user may"
    words = f"Landlock {version}: its folder, the database's folder, code read-only"
    if not landlock.scopes_signals():
        words += "; signals to other processes of the user are not kept back (Landlock 6 would)"
    if settings.space_readable_paths or settings.space_writable_paths:
        words += f"; also {', '.join((*settings.space_readable_paths, *settings.space_writable_paths))}"
    folder = reach.database_folder(database)
    if folder is not None and store is not None and store.startswith(_SQLITE):
        file = Path(store[len(_SQLITE) :]).resolve()
        if file.is_relative_to(folder):
            words += f"; the store is NOT protected: it lies in the folder of the database, {folder}"
    return words


def _filter_words() -> str:
    if sys.platform != "linux":
        return "not enforced: this system has no seccomp"
    from piecework.process import seccomp

    if not seccomp.available():
        return "no_new_privs; no filter: this kernel has no seccomp, or the machine is not x86-64 or aarch64"
    return f"no_new_privs; seccomp refuses {len(seccomp.refused())} calls, such as ptrace and mount"


def _cap(kind: int, wanted: int) -> None:
    """Lowers a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    lowest = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (lowest, lowest))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process as it is now."""
    try:
        return int(linux.read("/proc/self/statm").split()[5]) * resource.getpagesize()
    except OSError:
        return 0


def _is_own(kind: str) -> bool:
    """Whether this process is in another namespace of that kind than the zygote."""
    return bool(_of_zygote.get(kind)) and _namespace(kind) not in {"", _of_zygote[kind]}


def _namespace(kind: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115 - as linux.read says
    except OSError:
        return ""
