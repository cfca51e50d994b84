"""Every error of Piecework: a stable code, the data it is about, and a sentence that says what to do next.

Read `PieceworkError` first; the rest are the same with a code of their own. Lookup errors are also `LookupError`,
bad values also `ValueError`, timeouts also `TimeoutError`, so that code that knows nothing of Piecework can catch
them.
Several failures at once are an `ExceptionGroup`: every clean-up is tried and none is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class PieceworkError(Exception):
    """Base of all errors that Piecework raises on purpose.

    Attributes:
        code: A stable name in capitals: what programs compare.
        cause: What leads to it, in general; docs/errors.md is made from it.
        cure: What to do then, in general; the message says it for the case at hand.
        message: What happened, to which id, and what to do: what people read.
        data: The values that the message is about, by name; they are attributes too.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    cause: ClassVar[str] = "a fault of ours"
    cure: ClassVar[str] = "please report it, with the whole message"

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data = data

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.data))


def _rebuild(cls: type[PieceworkError], message: str, data: dict[str, Any]) -> PieceworkError:
    return cls(message, **data)


class NotFoundError(PieceworkError, LookupError):
    """Something was asked for by an id that nobody registered."""

    code = "NOT_FOUND"
    cause = "an id that nobody registered, or that is not there any more"
    cure = (
        "look at the names that the message suggests; `piecework runs list`, `piecework pieces list`, `piecework "
        "workflows list`"
    )

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str], *, hint: str = "", **data: Any) -> NotFoundError:
        """Builds the error for an unknown name, with the nearest known ones.

        Args:
            kind: What was looked for ("workflow", "piece", "service").
            name: What was asked for.
            known: The names there are.
            hint: What else to do about it; a sentence.
            data: What else the error is about; `kind`, and `name`, which is `key` too, are there anyhow.

        Raises:
            ValidationError: What was asked for is no text, and so no name at all.
        """
        import difflib

        if not isinstance(name, str):
            raise ValidationError(f"no {kind} {name!r:.80}: give its name as a text, not a {type(name).__name__}")
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3)
        if near:
            advice = f"did you mean {' or '.join(repr(n) for n in near)}?"
        elif names:
            shown = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
            advice = f"there are: {shown}"
        else:
            advice = f"there is no {kind.removesuffix(' named')} at all"
        text = f"no {kind} {name!r}: {advice}"
        return cls(f"{text}. {hint}" if hint else text, kind=kind, name=name, key=name, **data)


class ValidationError(PieceworkError, ValueError):
    """A value, a definition or an argument is not acceptable; nothing was changed."""

    code = "VALIDATION_ERROR"
    cause = "a definition, an argument or a value is not acceptable; nothing was changed"
    cure = "the message says which, and where in it; change that and call again"


class DuplicateKeyError(PieceworkError):
    """An id is taken already, or reserved."""

    code = "DUPLICATE_KEY"
    cause = "an id is taken, or reserved"
    cure = "choose another id, or say `replace=True` where that is offered"


class ConflictError(PieceworkError):
    """Two writers disagree about the same thing."""

    code = "CONFLICT"
    cause = "two steps wrote different values to one place, or a workflow id is registered already"
    cure = "let one of them write it; deregister the other first"


class InvalidStateError(PieceworkError):
    """What was asked is not possible in the present state, or somebody else was faster."""

    code = "INVALID_STATE"
    cause = "what was asked is not possible now, or somebody else was faster"
    cure = "look at it as it is now (`piecework runs show RUN_ID`) and decide anew"


class BusyError(PieceworkError):
    """The workflow's mode takes no run now; `data` has the outcome and the active run's id."""

    code = "BUSY"
    cause = '`invoke(admission="enforce")` while the workflow\'s mode takes no run'
    cure = 'try again when the active run has ended, choose a mode that queues, or invoke with `admission="bypass"`'


class InvalidScopeError(PieceworkError):
    """A service asked for something that does not live as long as itself."""

    code = "INVALID_SCOPE"
    cause = "a service asked for something that lives shorter than itself"
    cure = "give it a narrower scope, or pass the value at the call"


class CycleError(PieceworkError):
    """Services need each other in a circle; the message draws it."""

    code = "CYCLE"
    cause = "services need each other in a circle"
    cure = "the message draws it: break it at one place, for instance by asking later, at the first use"


class UnstableError(PieceworkError):
    """A service was discarded five times: what it had read kept changing while it was built."""

    code = "UNSTABLE"
    cause = "a service was discarded five times because what it had read kept changing while it was built"
    cure = "read less of the state in its factory, or change the state less often; the next call tries again"


class TimeoutExceededError(PieceworkError, TimeoutError):
    """A time limit passed; what was under way was stopped."""

    code = "TIMEOUT"
    cause = "a time limit passed; what was under way was stopped"
    cure = "raise the limit, or do less at once"


class WorkspacesLimitError(TimeoutExceededError):
    """As many workspaces as may be are open, and none was closed in time."""

    code = "WORKSPACES_LIMIT"
    cause = "as many workspaces as may be are open, and none was closed in time"
    cure = "the message names who has them; open fewer at once, or raise `workspaces_limit`"


class ExecutionFailedError(PieceworkError):
    """A step or a hook of a run raised."""

    code = "EXECUTION_FAILED"
    cause = "your code raised"
    cure = "the message has its words, the run's timeline the place: `piecework runs show RUN_ID`"


class AbortedError(PieceworkError):
    """The run was aborted, by a person, a program or its successor."""

    code = "ABORTED"
    cause = "the run was aborted: by a person, a program or its successor"
    cure = "the reason stands in its timeline: `piecework runs show RUN_ID`"


class CrashedError(PieceworkError):
    """A run took its process down again and again without any progress, or a worker died under it."""

    code = "CRASHED"
    cause = "a run took its process down again and again, without any progress"
    cure = "look at the worker's output; the checkpoint is kept"


class MemoryLimitError(CrashedError):
    """What a run does takes more memory than its space may have."""

    code = "MEMORY_LIMIT"
    cause = "an update, or all that it started, took more than `space_memory_bytes`"
    cure = "hold less at once, page by page or line by line, or raise the setting"


class ProcessLimitError(CrashedError):
    """What a run started is more processes than its space may have."""

    code = "PROCESS_LIMIT"
    cause = "more than `space_processes` processes of a space were there at once"
    cure = "start fewer at a time and wait for them, or raise the setting"


class CpuLimitError(PieceworkError):
    """A run used more processor time than it may have."""

    code = "CPU_LIMIT"
    cause = "a run used more than `space_run_cpu_seconds` of processor time"
    cure = "do less in one update, or raise the setting"


class StoppedError(PieceworkError):
    """The app, the runtime or the worker has stopped and takes no more work."""

    code = "STOPPED"
    cause = "the app, the node or the worker is stopping and takes no more work"
    cure = "what was accepted goes on when a node starts: `piecework serve MODULE:APP`"


class ExpiredDefinitionError(PieceworkError):
    """A run cannot go on: no definition of its workflow that is there has its stage, or they are older than it."""

    code = "EXPIRED_DEFINITION"
    cause = "a run stands at a stage, or is of a version, that no living node's definition of its workflow has"
    cure = (
        "`piecework runs resume RUN_ID --at STAGE` says where it goes on; or start a node with a definition that fits"
    )


class ClosedError(PieceworkError):
    """A workspace, container or connection was used after it had been closed."""

    code = "CLOSED"
    cause = "a workspace, container, store or app was used after its end"
    cure = "open a new one"


class CrossWorkspaceError(PieceworkError):
    """What belongs to one workspace was used for input or output inside another."""

    code = "CROSS_WORKSPACE"
    cause = "a row, a query or a service of one workspace was used inside a function that has another"
    cure = "ask the function's own `ws` for it; hand over plain values such as ids"


class DisposedError(ClosedError):
    """What a service lives in was closed while, or before, it was asked for."""

    code = "CANCELLED"
    cause = "what a service lives in was closed while, or before, it was asked for"
    cure = "open a new one and ask there; close what lasts longer last"


class StoreError(PieceworkError):
    """The store could not do its work; nothing of the failed item was written."""

    code = "STORE_ERROR"
    cause = "the store could not do its work; nothing of it was written"
    cure = "the message has the reason; `piecework store check`"


class StoreLockedError(StoreError):
    """Another process is the node of this store file; the message names its pid."""

    code = "STORE_LOCKED"
    cause = "another process is the node of this file"
    cure = "stop it (its pid is named), or use another store"


class StoreFormatError(StoreError):
    """The file is not a store of ours, or damaged; it was not touched."""

    code = "STORE_FORMAT"
    cause = "the file is not a store of ours, or damaged; it was not touched"
    cure = "name another file, or restore a backup"


class SchemaVersionError(StoreError):
    """The store was written by a newer Piecework; it was not touched."""

    code = "SCHEMA_VERSION"
    cause = "the store was written by a newer Piecework; it was not touched"
    cure = "upgrade: `pip install --upgrade piecework`"


class StoreUnavailableError(StoreError):
    """The store cannot be reached (any more)."""

    code = "STORE_UNAVAILABLE"
    cause = "the database server cannot be reached, or went away in mid-commit"
    cure = "see that it runs; doing the same again is harmless"


class StoreFullError(StoreError):
    """The disk is full; nothing was acknowledged, work goes on when there is room."""

    code = "STORE_FULL"
    cause = "the disk is full; nothing was acknowledged"
    cure = "make room; what runs waits and goes on by itself"


class StaleEpochError(StoreError):
    """A write of a superseded attempt was refused: somebody else owns the run now."""

    code = "STALE_EPOCH"
    cause = "a late write of a superseded attempt was refused"
    cure = "nothing: its successor is at work"


class TimelineGapError(PieceworkError):
    """Lines of a run's timeline could not be written, and `strict_timeline` says that a run ends with that."""

    code = "TIMELINE_GAP"
    cause = "log lines of a run could not be written to its timeline, and the setting `strict_timeline` is on"
    cure = "see what ails the store: `piecework store check`; or let runs go on: `strict_timeline = false`"


class NoNodeError(PieceworkError):
    """No node of this store is running, or it went away."""

    code = "NO_NODE"
    cause = "no node of this store is running, or it went away"
    cure = "`piecework serve MODULE:APP --store URL`"

    @property
    def unknown(self) -> bool:
        """Whether what was asked may have been done all the same."""
        return bool(self.data.get("unknown"))


class MissingExtraError(PieceworkError, ImportError):
    """An optional part is not installed; the message says which to install."""

    code = "MISSING_EXTRA"
    cause = "an optional part is not installed"
    cure = "`pip install 'piecework[…]'` as the message says"

    @classmethod
    def needs(cls, what: str, extra: str) -> MissingExtraError:
        """Builds the error for a part `what` that the extra `extra` brings."""
        return cls(f"{what} needs an optional part: pip install 'piecework[{extra}]'", extra=extra)


class AppImportError(PieceworkError, ImportError):
    """The application cannot be imported under the name that was given, or not in another process."""

    code = "APP_IMPORT"
    cause = "the app cannot be imported under that name, or not in another process"
    cure = "assign it at module level, or give `import_path`"

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message, **data)
        self.name = data.get("name")  # every ImportError has one of its own, which would stand before ours


class RemoteError(PieceworkError):
    """User code failed in another process.

    Attributes:
        type: The exception's qualified name over there.
        trace: Its traceback, as text.
    """

    code = "EXECUTION_FAILED"
    cause = "your code raised in another process"
    cure = "the message has its words, `error.trace` the place"


class ProtocolError(PieceworkError):
    """A peer sent something that is not of the protocol; the connection was ended."""

    code = "PROTOCOL"
    cause = "a peer sent something malformed; the connection was ended"
    cure = "look at what it is, and that both sides run the same version"


class DatabaseError(PieceworkError):
    """The application's database could not do its work; nothing of the statement was written."""

    code = "DATABASE_ERROR"
    cause = "the application's database could not do it; nothing of the statement was written"
    cure = "the message has table and kind of statement"


class PoolExhaustedError(DatabaseError, TimeoutError):
    """No connection came free: all are held by transactions, perhaps by those that wait for one themselves."""

    code = "POOL_EXHAUSTED"
    cause = "every connection is held, by transactions that wait for each other or for too long"
    cure = "open no workspace that uses the database inside a transaction, or raise `database_pool_size`"


class TransactionClosedError(ClosedError):
    """A transaction was used after its end: by a task that outlived it, or after it was rolled back underneath."""

    code = "TRANSACTION_CLOSED"
    cause = "a task outlived the transaction that it was started in, or the transaction was undone"
    cure = "await the task inside the transaction, or start it with spawn_in_new_workspace"


class DeadlockError(PieceworkError):
    """Going on would wait for ever: what is waited for is held by whoever waits."""

    code = "DEADLOCK"
    cause = "a lock or a transaction was awaited by whoever holds it, from another workspace or in a circle"
    cure = "the message names both holders: let the outer one go first, or do the inner work without it"


class DeliveryUnknownError(PieceworkError):
    """A mail may have arrived, and it is not known whether it did: it is not sent again."""

    code = "DELIVERY_UNKNOWN"
    cause = "a mail may have arrived, nobody knows; it is not sent again"
    cure = "ask the recipient before sending it again"


class MailUnknown(PieceworkError):  # noqa: N818 - a verdict on an attempt, not a fault of the program
    """A mail was handed over and it is not known whether the server took it."""

    code = "DELIVERY_UNKNOWN"
    cause = "a mail was handed over, and the server's answer was lost"
    cure = "it is tried once more with the same Message-ID; after that ask the recipient"


class MailRefused(PieceworkError):  # noqa: N818 - a verdict on an attempt, not a fault of the program
    """The server certainly did not take the mail.

    Args:
        message: What it, or the way to it, said.
        permanent: True when the same mail can never be taken.

    Attributes:
        error: The same as `message`.
    """

    code = "MAIL_REFUSED"
    cause = "the mail server did not take it, for good or too often"
    cure = "the message has its words; correct the address, the mail or the server, then send again"

    def __init__(self, message: str, permanent: bool = False, **data: Any) -> None:
        super().__init__(message, permanent=permanent, **data)
        self.error = message
        self.permanent = permanent


def describe(error: BaseException) -> dict[str, Any]:
    """Tells an error as JSON values: `type`, `code` and `message`, safe to store and to show.

    Args:
        error: Any exception. Text that UTF-8 or a database cannot carry is escaped, and cut at 4,000 characters.
    """
    code = getattr(error, "code", None)
    return {
        "type": f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        "code": code if isinstance(code, str) else "EXECUTION_FAILED",
        "message": clean_text(_text_of(error)),
    }


def trace_of(error: BaseException, limit: int = 16_000) -> str:
    """The traceback of an error and its causes as text, safe to store; of a long one the end.

    Args:
        error: Any exception.
        limit: At most so many characters.
    """
    import traceback

    text = "".join(traceback.format_exception(error))
    return clean_text(text[-limit:], limit=2 * limit)


def place_of(error: BaseException) -> str:
    """Where an error was raised, as ` (file.py:17)`: the innermost line that is not ours; empty when there is none."""
    ours, found, frame = f"{__package__}/", "", error.__traceback__
    while frame is not None:
        path = frame.tb_frame.f_code.co_filename.replace("\\", "/")
        if f"/{ours}" not in path:
            found = f" ({path.rsplit('/', 1)[-1]}:{frame.tb_lineno})"
        frame = frame.tb_next
    return found


def _text_of(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception as broken:  # noqa: BLE001 - an exception whose own text raises must not take its run along
        return f"{type(error).__name__} (its text cannot be read: {type(broken).__name__})"


def clean_text(text: str, limit: int = 4000) -> str:
    """Makes free text storable: escapes NUL and lone surrogates, cuts at `limit` characters."""
    safe = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"
