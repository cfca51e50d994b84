"""Subscriptions: from an OPML file, as every feed reader exports it, or from plain addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from xml.parsers import expat

if TYPE_CHECKING:
    from collections.abc import Iterable

SPACE = "reader"
"""Where feeds go that are in no folder."""


class NotOpml(ValueError):  # noqa: N818 - it is what the file is, and reads so in `except NotOpml`
    """The file is not a list of feeds that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One feed that is read for somebody.

    Attributes:
        space: The tenant whose feed it is.
        piece_id: Its name, unique in the space.
        url: Where it is.
    """

    space: str
    piece_id: str
    url: str


def read_opml(data: bytes) -> list[Subscription]:
    """Reads an OPML document: each outermost folder is a space, feeds outside go to `reader`.

    Args:
        data: The file's bytes.

    Raises:
        NotOpml: It is not OPML, has no feeds, a document type declaration (entities could be anything), or a feed
            whose address is not http or https.
    """
    reader = _Reader()
    reader.read(data)
    if not reader.feeds:
        raise NotOpml("no feed in it: an outline with an xmlUrl is one")
    return _named(reader.feeds)


def from_urls(urls: Iterable[str]) -> list[Subscription]:
    """Makes subscriptions in space `reader` of addresses, each named by its host; the same address twice is one.

    Raises:
        NotOpml: An address is not http or https.
    """
    return _named([(SPACE, urlsplit(checked).hostname or checked, checked) for checked in map(check_url, urls)])


def check_url(url: str) -> str:
    """Gives an address back when it is a whole http or https one.

    Raises:
        NotOpml: It is not.
    """
    try:
        parts = urlsplit(url.strip())
        complete = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        complete = False
    if not complete:
        raise NotOpml(f"{url!r:.200} is not the address of a feed: it has to begin with http:// or https://")
    return url.strip()


def _named(feeds: list[tuple[str, str, str]]) -> list[Subscription]:
    taken: dict[tuple[str, str], str] = {}
    for folder, title, url in feeds:
        space, name = _slug(folder) or SPACE, _slug(title) or "feed"
        if any(place == space and known == url for (place, _), known in taken.items()):
            continue
        number, piece_id = 1, name
        while (space, piece_id) in taken:
            number += 1
            piece_id = f"{name}-{number}"
        taken[space, piece_id] = url
    return [Subscription(space, piece_id, url) for (space, piece_id), url in taken.items()]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text.casefold())[:60].strip("-.")


class _Reader:
    """Walks the outlines; expat itself, because a document type is refused before any entity of it is read."""

    def __init__(self) -> None:
        self.feeds: list[tuple[str, str, str]] = []
        self._root: str | None = None
        self._folders: list[str] = []

    def read(self, data: bytes) -> None:
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.StartElementHandler = self._enter
        parser.EndElementHandler = self._leave
        try:
            parser.Parse(data, True)
        except (expat.ExpatError, LookupError, ValueError) as error:
            if isinstance(error, NotOpml):
                raise
            raise NotOpml(f"not OPML: it cannot be read as XML ({error})") from error

    def _refuse_doctype(self, *_: object) -> None:
        raise NotOpml("it has a document type declaration (<!DOCTYPE …>), which is not read: remove that line")

    def _enter(self, tag: str, attributes: dict[str, str]) -> None:
        if self._root is None:
            self._root = tag
            if tag.lower() != "opml":
                raise NotOpml(f"not OPML: its outermost element is <{tag:.40}>, not <opml>")
        if tag.lower() != "outline":
            return
        found = {name.lower(): value for name, value in attributes.items()}
        title = found.get("title") or found.get("text") or ""
        if url := found.get("xmlurl"):
            folder = next(filter(None, self._folders), SPACE)
            self.feeds.append((folder, title or urlsplit(check_url(url)).hostname or "", check_url(url)))
        self._folders.append("" if url else title)

    def _leave(self, tag: str) -> None:
        if tag.lower() == "outline":
            self._folders.pop()
