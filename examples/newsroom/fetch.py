"""Reading a document over HTTP the polite way: conditional, bounded, and patient when the server asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from collections.abc import Mapping

SIZE_LIMIT_BYTES = 8 * 1024 * 1024
TIMEOUT_SECONDS = 20
LONGEST_WAIT_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Document:
    """What a server answered.

    Attributes:
        data: The body, decompressed.
        url: Where it came from in the end, redirects followed.
        content_type: The header of that name, or empty.
        validators: What to ask with next time: `etag` and `last_modified`, None where the server sent none.
    """

    data: bytes
    url: str
    content_type: str
    validators: dict[str, str | None]


class FetchFailed(Exception):  # noqa: N818 - it reads so in `except FetchFailed`
    """The document could not be had; the message says why.

    Attributes:
        permanent: True when the server says that it is gone for good.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class TryLater(Exception):  # noqa: N818 - it reads so in `except TryLater`
    """The server asked to be left alone for a while.

    Attributes:
        seconds: For how long.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the server asks to come back in {seconds:.0f} seconds")
        self.seconds = seconds


def new_client() -> httpx2.AsyncClient:
    """Makes an HTTP client with the newsroom's manners; the caller closes it."""
    return httpx2.AsyncClient(
        timeout=TIMEOUT_SECONDS,
        follow_redirects=True,
        headers={"user-agent": "piecework-newsroom", "accept": "application/atom+xml, application/rss+xml, */*;q=0.8"},
    )


async def fetch(client: httpx2.AsyncClient, url: str, known: Mapping[str, Any]) -> Document | None:
    """Asks for a document unless it is what we know already.

    Args:
        client: Who asks.
        url: An http or https address.
        known: The `validators` of the last answer; empty the first time.

    Returns:
        The document, or None when it has not changed.

    Raises:
        FetchFailed: There is no such document, the server failed, or the answer is larger than 8 MiB.
        TryLater: The server is busy and said for how long.
    """
    try:
        async with client.stream("GET", url, headers=_conditions(known)) as response:
            if response.status_code == httpx2.codes.NOT_MODIFIED:
                return None
            _check(response)
            data = await _body(response)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise FetchFailed(f"{url}: {str(error) or type(error).__name__}") from error
    headers = response.headers
    validators = {"etag": headers.get("etag"), "last_modified": headers.get("last-modified")}
    return Document(data, str(response.url), headers.get("content-type", ""), validators)


def _conditions(known: Mapping[str, Any]) -> dict[str, str]:
    wanted = {"if-none-match": known.get("etag"), "if-modified-since": known.get("last_modified")}
    return {name: value for name, value in wanted.items() if value}


def _check(response: httpx2.Response) -> None:
    status = response.status_code
    if status in {429, 503}:
        seconds = _retry_after(response.headers.get("retry-after", ""))
        if seconds is not None:
            raise TryLater(seconds)
    if not response.is_success:
        raise FetchFailed(
            f"{response.url} answered {status} {response.reason_phrase}".rstrip(), permanent=status == 410
        )


def _retry_after(header: str) -> float | None:
    if header.strip().isdecimal():
        seconds = float(header)
    else:
        try:
            moment = parsedate_to_datetime(header)
        except ValueError:
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 1.0), LONGEST_WAIT_SECONDS)


async def _body(response: httpx2.Response) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > SIZE_LIMIT_BYTES:
            raise FetchFailed(f"{response.url} sent more than {SIZE_LIMIT_BYTES} bytes: that is no feed")
    return bytes(data)
