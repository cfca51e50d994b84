"""Files that go along with a mail: read when the mail is made, so that every attempt sends the same ones."""

from __future__ import annotations

import asyncio
import base64
import mimetypes
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from piecework.errors import ValidationError
from piecework.services.addresses import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from email.message import EmailMessage

    Attachment: TypeAlias = str | os.PathLike[str] | tuple[str, bytes] | tuple[str, bytes, str]

LIMIT_BYTES = 10_485_760
"""How large all files of one mail may be together, unless the app's payloads may be larger or have to be smaller."""

_TYPE = re.compile(r"[a-z0-9][a-z0-9.+_-]*/[a-z0-9][a-z0-9.+_-]*", re.IGNORECASE)
_UNKNOWN = "application/octet-stream"


def limit_of(payload_limit_bytes: int) -> int:
    """How large the files of a mail may be together where a payload may be so large: they are stored as text."""
    return payload_limit_bytes * 5 // 8


async def read(given: Iterable[Attachment], *, limit_bytes: int = LIMIT_BYTES) -> list[dict[str, Any]]:
    """Reads what is to be attached, in a thread.

    Args:
        given: Each a path, or a file's name and its content, perhaps with its type (`("a.bin", b"…", "image/png")`).
        limit_bytes: The most that they may have together.

    Returns:
        For each its `name`, `type` and `data` (base64), which are JSON values.

    Raises:
        ValidationError: One is none of these, cannot be read, or they are too large.
    """
    files = _listed(given)
    return await asyncio.to_thread(_read_all, files, limit_bytes) if files else []


def _listed(given: Any) -> list[Any]:
    if isinstance(given, str | bytes | os.PathLike):
        raise ValidationError(f"attachments has to be a list: write [{given!r:.80}]", path="attachments")
    try:
        return list(given)
    except TypeError:
        raise ValidationError(f"attachments has to be a list, not {given!r:.80}", path="attachments") from None


def _read_all(files: Sequence[Any], limit_bytes: int) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = []
    left = limit_bytes
    for file in files:
        name, content, kind = _parts(file, left)
        left -= len(content)
        if left < 0:
            raise ValidationError(
                f"the attachments have more than the {limit_bytes} bytes that a mail may carry, from {name!r:.80} on: "
                "put the file where it can be fetched, and send a link",
                path="attachments",
                limit_bytes=limit_bytes,
            )
        told = kind or mimetypes.guess_type(name)[0] or _UNKNOWN
        read.append({"name": name, "type": told, "data": base64.b64encode(content).decode()})
    return read


def _parts(file: Any, left: int) -> tuple[str, bytes, str | None]:
    if isinstance(file, str | os.PathLike):
        path = Path(file)
        try:
            with path.open("rb") as opened:
                # One byte more than there is room for tells that it is too large, however large it is.
                return one_line(path.name, "the name of an attachment"), opened.read(max(left, 0) + 1), None
        except (OSError, ValueError) as error:
            raise ValidationError(
                f"the attachment {file!s:.200} cannot be read: {error}", path="attachments"
            ) from error
    match file:
        case (str() as name, bytes() | bytearray() | memoryview() as content):
            return _name(name), bytes(content), None
        case (str() as name, bytes() | bytearray() | memoryview() as content, str() as kind) if _TYPE.fullmatch(kind):
            return _name(name), bytes(content), kind.lower()
    raise ValidationError(
        f"an attachment has to be a path, (name, bytes) or (name, bytes, 'image/png'), not {file!r:.80}",
        path="attachments",
    )


def _name(name: str) -> str:
    if not name:
        raise ValidationError("an attachment needs a name: ('report.pdf', data)", path="attachments")
    return one_line(name, "the name of an attachment")


def check(stored: Any) -> list[dict[str, Any]]:
    """Checks attachments that are JSON values already, as a job's arguments are.

    Raises:
        ValidationError: They are not what `read` makes.
    """
    try:
        found = [(_name(one["name"]), one["type"], one["data"]) for one in stored]
        for _, kind, data in found:
            if not _TYPE.fullmatch(kind):
                raise ValueError(kind)
            base64.b64decode(data, validate=True)
    except (TypeError, KeyError, ValueError) as error:
        raise ValidationError(
            "each attachment of a stored mail has to have a name, a type such as image/png, and data in base64",
            path="attachments",
        ) from error
    return [{"name": name, "type": kind, "data": data} for name, kind, data in found]


def attach(mail: EmailMessage, stored: Iterable[Mapping[str, Any]]) -> None:
    """Puts what `read` made into a mail."""
    for one in stored:
        kind, _, detail = one["type"].partition("/")
        mail.add_attachment(base64.b64decode(one["data"]), maintype=kind, subtype=detail, filename=one["name"])


def described(stored: Mapping[str, Any]) -> str:
    """Tells an attachment's name, type and size in one line."""
    size = len(base64.b64decode(stored["data"]))
    return f"{stored['name']} ({stored['type']}, {size} bytes)"
