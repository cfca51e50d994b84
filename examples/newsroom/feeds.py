"""From bytes to articles: RSS, RDF and Atom read into one shape, and the ids that articles keep for ever."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import feedparser

_UNSHOWN = {"script", "style", "template"}


class NotAFeed(ValueError):  # noqa: N818 - it is what the document is, and reads so in `except NotAFeed`
    """The document is neither RSS nor RDF nor Atom."""


@dataclass(frozen=True, slots=True)
class Article:
    """One entry of a feed.

    Attributes:
        guid: What the feed calls it, its link or title where the feed does not say.
        title: One line of text without markup.
        link: Where it can be read; empty when the feed does not say.
        summary: What the feed tells about it, HTML as it came.
    """

    guid: str
    title: str
    link: str
    summary: str


def parse(data: bytes, *, url: str = "", content_type: str = "") -> list[Article]:
    """Reads a feed document, in its own order, each article once.

    Args:
        data: The document as it came over the wire.
        url: Where it came from: relative links in it are relative to this.
        content_type: The header of that name, which may tell the encoding.

    Raises:
        NotAFeed: The document is something else, such as an HTML page.
    """
    headers = {"content-location": url, "content-type": content_type}
    # Bytes go in as a stream: feedparser takes a plain text or bytes for an address or a file name first.
    found = feedparser.parse(io.BytesIO(data), response_headers={k: v for k, v in headers.items() if v})
    if not found.get("version"):
        raise NotAFeed(f"not a feed: {_what_it_looks_like(data, found)}")
    articles = (_article(entry) for entry in found.entries)
    return list({article.guid: article for article in articles if article.guid}.values())


def article_id(space: str, guid: str) -> str:
    """Names an article for ever: the same in every run, whatever address its feed is read from."""
    return hashlib.sha256(f"{space}\n{guid}".encode()).hexdigest()[:32]


def plain_text(html: str, *, limit: int = 400) -> str:
    """Takes the markup out of HTML and puts the words on one line.

    Args:
        html: Text, with tags or without.
        limit: Where to cut, in characters.
    """
    stripper = _Stripper()
    stripper.feed(html)
    stripper.close()
    text = " ".join("".join(stripper.parts).split())
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def _article(entry: Any) -> Article:
    contents = entry.get("content") or [{}]
    summary = _clean(entry.get("summary") or contents[0].get("value") or "")
    link = _clean(entry.get("link") or "")
    title = plain_text(_clean(entry.get("title") or ""), limit=200)
    guid = _clean(entry.get("id") or "") or link or title
    return Article(guid, title or plain_text(summary, limit=80) or link or "(untitled)", link, summary)


def _clean(text: str) -> str:
    # A numeric reference in a feed may stand for NUL, an escape or half a surrogate pair: no database, mail or
    # terminal should have to meet them.
    kept = "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
    return kept.encode("utf-8", "replace").decode("utf-8").strip()


def _what_it_looks_like(data: bytes, found: Any) -> str:
    start = data[:200].lstrip().lower()
    if not start:
        return "the document is empty"
    if start.startswith((b"<!doctype html", b"<html")):
        return "this is an HTML page"
    if reason := found.get("bozo_exception"):
        return f"it cannot be read as XML ({reason})"
    return "it is XML of another kind"


class _Stripper(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._hidden += tag in _UNSHOWN
        self.parts.append(" " if tag in {"br", "div", "li", "p", "td", "tr"} else "")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _UNSHOWN and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)
