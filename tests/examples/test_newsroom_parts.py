"""The parts of the newsroom example, each alone: feeds, OPML, HTTP, the feed server, the mail sink, the view."""

from __future__ import annotations

import io
import smtplib
from email.message import EmailMessage

import anyio
import pytest
from rich.console import Console

from piecework.cli.demo import _place, _subscriptions, find_newsroom
from piecework.errors import ValidationError

FOLDER = find_newsroom()

from newsroom.feeds import NotAFeed, article_id, parse, plain_text  # noqa: E402 - importable only from here on
from newsroom.fetch import SIZE_LIMIT_BYTES, FetchFailed, TryLater, fetch, new_client  # noqa: E402
from newsroom.opml import NotOpml, Subscription, from_urls, read_opml  # noqa: E402
from newsroom.publisher import Publisher  # noqa: E402
from newsroom.sink import Sink  # noqa: E402
from newsroom.view import FeedLine, LiveView, Picture, PlainView, RunLine  # noqa: E402


def bundled(name: str) -> bytes:
    return (FOLDER / "feeds" / name).read_bytes()


@pytest.mark.parametrize(
    ("document", "count", "title"),
    [
        ("acme.press.later.xml", 5, "Tunnel paint passes the train test"),
        ("acme.lab.later.xml", 3, "Notes on a quiet compressor"),
        ("globex.weather.later.xml", 4, "Fog lifts early, gulls delighted"),
    ],
)
def test_rss_atom_and_rdf_become_articles(document, count, title):
    """RSS 2.0, Atom and RDF are read into the same shape, newest first as the feed has them."""
    articles = parse(bundled(document))
    assert (len(articles), articles[0].title) == (count, title)
    assert all(article.guid and article.link.startswith("https://") for article in articles)


def test_titles_keep_their_letters():
    """Titles beyond ASCII arrive as they were written."""
    assert "編集部より: reading week begins" in [article.title for article in parse(bundled("globex.notes.first.xml"))]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "empty"),
        (b"<!doctype html><html><body>gone</body></html>", "HTML page"),
        (b"<opml version='2.0'><body/></opml>", "another kind"),
        (b"\x00\xffnot even text", "cannot be read as XML"),
    ],
)
def test_what_is_not_a_feed_is_refused_with_its_reason(document, reason):
    """A document that is no feed says what it is instead."""
    with pytest.raises(NotAFeed, match=reason):
        parse(document)


def test_an_empty_feed_is_a_feed():
    """A feed without entries has no articles and no failure."""
    assert parse(b"<rss version='2.0'><channel><title>quiet</title></channel></rss>") == []


def test_an_article_that_is_listed_twice_is_one():
    """Two entries of the same guid are one article."""
    item = b"<item><guid>a</guid><title>A</title></item>"
    assert len(parse(b"<rss version='2.0'><channel>" + item + item + b"</channel></rss>")) == 1


def test_text_that_no_terminal_should_meet_is_taken_out():
    """Escapes and line breaks in a feed's titles do not reach a subject line or a screen."""
    feed = "<rss version='2.0'><channel><item><guid>a</guid><title>one\n two\u202e31m</title></item></channel></rss>"
    assert parse(feed.encode())[0].title == "one two 31m"


def test_an_article_id_depends_on_space_and_guid_alone():
    """The same article of two spaces is two; an id never changes."""
    assert article_id("acme", "x") == article_id("acme", "x") != article_id("globex", "x")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Felt took <b>9&nbsp;dB</b>;</p><p>the cat the felt.</p>", "Felt took 9 dB; the cat the felt."),
        ("before<script>quack()</script> after", "before after"),
        ("a &lt;b&gt; c", "a <b> c"),
        ("<p>unclosed", "unclosed"),
    ],
)
def test_html_becomes_words(html, text):
    """Markup and scripts go, words stay."""
    assert plain_text(html) == text


def test_long_text_is_cut():
    """No more than the limit is kept, with a sign that something is gone."""
    assert plain_text("word " * 100, limit=11) == "word word…"


OPML = """<opml version="2.0"><body>
  <outline text="News">
    <outline text="deeper"><outline text="Örtlich" type="rss" xmlUrl="https://one.example/feed"/></outline>
    <outline title="Wire" xmlUrl="http://two.example/rss"/>
  </outline>
  <outline text="Wire" xmlUrl="http://three.example/rss"/>
  <outline text="Wire" xmlUrl="http://four.example/rss"/>
  <outline text="Wire again" xmlUrl="http://four.example/rss"/>
</body></opml>"""


def test_folders_of_an_opml_file_become_spaces():
    """The outermost folder is the space, `reader` without one; names are unique and a feed is listed once."""
    assert read_opml(OPML.encode()) == [
        Subscription("news", "örtlich", "https://one.example/feed"),
        Subscription("news", "wire", "http://two.example/rss"),
        Subscription("reader", "wire", "http://three.example/rss"),
        Subscription("reader", "wire-2", "http://four.example/rss"),
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not xml", "cannot be read as XML"),
        (b"", "cannot be read as XML"),
        (b"<rss version='2.0'/>", "outermost element is <rss>"),
        (b"<opml version='2.0'><body/></opml>", "no feed in it"),
        (b"<!DOCTYPE opml [<!ENTITY a 'b'>]><opml><outline xmlUrl='&a;'/></opml>", "document type"),
        (b"<opml><outline xmlUrl='file:///etc/passwd'/></opml>", "http"),
    ],
)
def test_a_bad_opml_file_is_refused_with_its_reason(data, reason):
    """Whatever is not a usable list of feeds says why in one line."""
    with pytest.raises(NotOpml, match=reason) as caught:
        read_opml(data)
    assert "\n" not in str(caught.value)


def test_addresses_are_named_by_their_host():
    """Plain addresses become subscriptions of space `reader`."""
    assert from_urls(["https://one.example/a", "https://one.example/b"]) == [
        Subscription("reader", "one.example", "https://one.example/a"),
        Subscription("reader", "one.example-2", "https://one.example/b"),
    ]


@pytest.mark.parametrize("url", ["ftp://one.example/feed", "one.example/feed", "http://", "", "http://[broken"])
def test_an_address_that_is_not_http_is_refused(url):
    """Only whole http and https addresses are feeds."""
    with pytest.raises(NotOpml, match="https://"):
        from_urls([url])


async def test_a_document_is_fetched_once():
    """Asked again with its validators, the server says 304 and nothing is transferred."""
    with Publisher() as publisher:
        url = f"{publisher.url}/acme/press"
        async with new_client() as client:
            document = await fetch(client, url, {})
            assert document is not None
            assert await fetch(client, url, document.validators) is None
    assert (publisher.served["/acme/press"], publisher.unchanged["/acme/press"]) == (1, 1)


async def test_a_date_alone_is_enough_for_a_304():
    """A server that sends no ETag is asked by date."""
    with Publisher() as publisher:
        async with new_client() as client:
            document = await fetch(client, f"{publisher.url}/acme/lab", {})
            assert document is not None
            dated = {"etag": None, "last_modified": document.validators["last_modified"]}
            assert await fetch(client, f"{publisher.url}/acme/lab", dated) is None


async def test_the_page_turns_when_everybody_has_read():
    """Once all readable feeds went out, the later edition does, under other validators; then it is caught up."""
    with Publisher() as publisher:
        async with new_client() as client:
            urls = [feed.url for feed in publisher.subscriptions() if not feed.url.endswith("legacy")]
            first = [await fetch(client, url, {}) for url in urls]
            assert (publisher.edition, publisher.caught_up()) == ("later", False)
            later = [await fetch(client, url, before.validators) for url, before in zip(urls, first, strict=True)]
            for url, document in zip(urls, later, strict=True):
                assert await fetch(client, url, document.validators) is None
        assert publisher.caught_up()


def test_the_publisher_knows_its_articles_and_its_broken_feed():
    """Eighteen articles in the end; one feed is an HTML page on purpose."""
    publisher = Publisher()
    publisher._server.server_close()
    assert (len(publisher.article_ids()), publisher.broken()) == (18, {("acme", "legacy")})


class Raw:
    """A server that answers every request with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def __aenter__(self) -> str:
        self._listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._listener.serve, self._serve)
        return f"http://127.0.0.1:{self._listener.extra(anyio.abc.SocketAttribute.local_port)}/feed"

    async def __aexit__(self, *_) -> None:
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)
        await self._listener.aclose()

    async def _serve(self, stream) -> None:
        async with stream:
            try:
                await stream.receive()
                await stream.send(self._answer)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Connection: close", "", ""]).encode() + body


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        ("429 Too Many Requests", "Retry-After: 120", 120),
        ("503 Service Unavailable", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", 1),
        ("429 Too Many Requests", "Retry-After: 99999999", 86_400),
    ],
)
async def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(status, header, seconds):
    """Retry-After is understood in seconds and as a date, within a day."""
    async with Raw(answer(status, header)) as url, new_client() as client:
        with pytest.raises(TryLater) as caught:
            await fetch(client, url, {})
    assert caught.value.seconds == seconds


@pytest.mark.parametrize(
    ("status", "permanent"),
    [("404 Not Found", False), ("410 Gone", True), ("500 Oops", False), ("503 Busy", False)],
)
async def test_an_error_page_is_a_clear_failure(status, permanent):
    """The failure names the address and the status; only 410 is for good."""
    async with Raw(answer(status)) as url, new_client() as client:
        with pytest.raises(FetchFailed, match=f"/feed answered {status[:3]}") as caught:
            await fetch(client, url, {})
    assert caught.value.permanent is permanent


async def test_an_endless_answer_is_cut_off():
    """More than the limit is not read."""
    async with Raw(answer("200 OK", body=b"x" * (SIZE_LIMIT_BYTES + 1))) as url, new_client() as client:
        with pytest.raises(FetchFailed, match="that is no feed"):
            await fetch(client, url, {})


async def test_a_server_that_is_not_there_is_a_clear_failure():
    """The failure names the address."""
    async with Raw(b"") as url:
        pass
    async with new_client() as client:
        with pytest.raises(FetchFailed, match=r"127\.0\.0\.1"):
            await fetch(client, url, {})


async def test_the_sink_shows_what_arrived():
    """A letter that was sent over SMTP is there with its recipients, subject, id and text."""
    letter = EmailMessage()
    letter["Subject"], letter["Message-ID"] = "Zürich opens", "<one@newsroom.example>"
    letter.set_content("Grüezi!")

    def send(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.send_message(letter, "newsroom@newsroom.example", ["a@b.example"])

    async with Sink() as sink:
        await anyio.to_thread.run_sync(send, int(sink.url.split(":")[2].split("?")[0]))
    (mail,) = sink.mails
    assert (mail.to, mail.subject, mail.message_id) == (("a@b.example",), "Zürich opens", "<one@newsroom.example>")
    assert mail.text.strip() == "Grüezi!"


PICTURE = Picture(
    spaces={"acme": (FeedLine("press", "success", "3 new articles", 2.4), FeedLine("[red]lab[/red]"))},
    runs=(RunLine("Rocket \x1b[31mskates", "acme", "paused"),),
    mails=("Zürich opens",),
    articles=4,
    mailed=1,
    happened=("acme/press: 3 new articles", "mail arrived: [bold]\x1b[2J"),
)


def drawn(view: type[LiveView | PlainView]) -> str:
    out = io.StringIO()
    with view(Console(file=out, width=100, force_terminal=view is LiveView, color_system=None)) as shown:
        shown.show(PICTURE)
    return out.getvalue()


def test_the_live_view_shows_pieces_runs_mails_and_progress():
    """Every part of the picture is on the screen, and no foreign text can be markup or an escape."""
    screen = drawn(LiveView)
    for part in ("press", "3 new articles", "[red]lab[/red]", "paused", "mails arrived: 1", "1 of 4 articles"):
        assert part in screen
    assert "\x1b[31m" not in screen


def test_the_plain_view_prints_a_line_for_each_thing_that_happened():
    """Lines come out as they are, without escapes."""
    assert drawn(PlainView) == "acme/press: 3 new articles\nmail arrived: [bold] [2J\n"


def test_the_demo_keeps_articles_beside_its_store(tmp_path):
    """With a store the state stays, and so do the articles."""
    with _place(f"sqlite:///{tmp_path}/deep/state.db") as (store, database):
        assert store == f"sqlite:///{tmp_path}/deep/state.db"
        assert database == f"sqlite:///{tmp_path}/deep/state-articles.db"


@pytest.mark.parametrize("store", ["mysql://host/db", "state.db", "sqlite:///"])
def test_a_store_that_the_demo_cannot_use_is_refused(store):
    """The demo's state is an SQLite file; anything else is said in one line."""
    with pytest.raises(ValidationError, match="sqlite:///path"), _place(store):
        pass


def test_bad_feeds_are_one_clear_line(tmp_path):
    """A file that is no OPML, a missing one and a wrong address each say which it is."""
    file = tmp_path / "my.opml"
    file.write_text("not xml")
    for feeds, opml, words in (
        ((), file, "my.opml: not OPML"),
        ((), tmp_path / "none", "cannot be read"),
        (["ftp://x"], None, "ftp://x"),
    ):
        with pytest.raises(ValidationError, match=words) as caught:
            _subscriptions(feeds, opml)
        assert "\n" not in caught.value.message
