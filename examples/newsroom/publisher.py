"""The bundled feeds, served on loopback as a careful web server would: validators, 304, and news while it runs.

There are two editions of each document. The later one goes out once everybody has read the first.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Self

from newsroom.feeds import NotAFeed, article_id, parse
from newsroom.opml import Subscription

if TYPE_CHECKING:
    from types import TracebackType

EDITIONS = ("first", "later")
_PUBLISHED = {"first": "Mon, 05 Jan 2026 08:00:00 GMT", "later": "Mon, 05 Jan 2026 09:00:00 GMT"}


class Publisher:
    """Serves `<space>.<feed>.<edition>.xml` of a folder as `/<space>/<feed>` on 127.0.0.1, from a thread of its own.

    Use it as a context manager.

    Attributes:
        served: How often each path was answered with a document.
        unchanged: How often each path was answered with 304.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._documents = _load(folder or Path(__file__).parent / "feeds")
        self._readable = {path for path in self._documents if _articles(path, self._documents[path]["later"])}
        self._edition = EDITIONS[0]
        self._seen: dict[str, set[str]] = {edition: set() for edition in EDITIONS}
        self._lock = threading.Lock()
        self.served: Counter[str] = Counter()
        self.unchanged: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="publisher")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens; the port is a free one, another each time."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def edition(self) -> str:
        """Which edition goes out now: first or later."""
        return self._edition

    def subscriptions(self) -> list[Subscription]:
        """All its feeds, broken ones included."""
        return [Subscription(*_names(path), f"{self.url}{path}") for path in self._documents]

    def broken(self) -> set[tuple[str, str]]:
        """Space and name of the feeds that are not feeds, on purpose."""
        return {_names(path) for path in self._documents.keys() - self._readable}

    def article_ids(self) -> set[str]:
        """The ids of all articles that will have gone out in the end."""
        return {found for path in self._readable for found in _articles(path, self._documents[path]["later"])}

    def caught_up(self) -> bool:
        """Whether every readable feed was read in its later edition, and asked for once more to no effect."""
        with self._lock:
            return self._readable <= self._seen["later"] and all(self.unchanged[path] for path in self._readable)

    def answer(
        self, path: str, if_none_match: str | None, if_modified_since: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        """Decides what a GET gets: status, headers and body; the last reader of the first edition turns the page."""
        with self._lock:
            editions = self._documents.get(path)
            if editions is None:
                return HTTPStatus.NOT_FOUND, {}, b"no such feed"
            edition = self._edition
            body = editions[edition]
            etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            headers = {"ETag": etag, "Last-Modified": _PUBLISHED[edition], "Content-Type": "application/xml"}
            self._seen[edition].add(path)
            if self._readable <= self._seen["first"]:
                self._edition = "later"
            # RFC 9110: a client that sends an entity tag has said all; the date counts only without one.
            known = etag in if_none_match if if_none_match else if_modified_since == _PUBLISHED[edition]
            (self.unchanged if known else self.served)[path] += 1
            return (HTTPStatus.NOT_MODIFIED, headers, b"") if known else (HTTPStatus.OK, headers, body)


def _load(folder: Path) -> dict[str, dict[str, bytes]]:
    documents: dict[str, dict[str, bytes]] = {}
    for file in sorted(folder.glob("*.*.*.xml")):
        space, feed, edition, _ = file.name.split(".")
        documents.setdefault(f"/{space}/{feed}", {})[edition] = file.read_bytes()
    return documents


def _names(path: str) -> tuple[str, str]:
    _, space, feed = path.split("/")
    return space, feed


def _articles(path: str, data: bytes) -> set[str]:
    space, _ = _names(path)
    try:
        return {article_id(space, article.guid) for article in parse(data)}
    except NotAFeed:
        return set()


def _handler_for(publisher: Publisher) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get
            status, headers, body = publisher.answer(self.path, asked("If-None-Match"), asked("If-Modified-Since"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != HTTPStatus.NOT_MODIFIED:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing: the screen belongs to the demo."""

    return Handler
