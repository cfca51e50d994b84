"""The newsroom application: a piece reads feeds, a workflow turns each new article into an approved, mailed one.

feed (piece, one process a space) → article.new → editorial: extract → wait for article.approved → publish
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from newsroom.feeds import Article, NotAFeed, article_id, parse, plain_text
from newsroom.fetch import FetchFailed, TryLater, fetch, new_client
from piecework import App, Failed, RetryAfter, Skipped, Stage, Success, Transient, WaitFor, Workflow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import httpx2

    from piecework import Workspace
    from piecework.run.outcome import Outcome
    from piecework.space.piece import PieceContext
    from piecework.workflow import StepContext

REVIEW_SECONDS = 3600
"""How long an article waits for its editor before it expires."""

TABLE = """
CREATE TABLE IF NOT EXISTS articles (
    id TEXT PRIMARY KEY,
    space TEXT NOT NULL,
    feed TEXT NOT NULL,
    title TEXT NOT NULL,
    link TEXT NOT NULL,
    summary TEXT NOT NULL,
    status TEXT NOT NULL,  -- new, waiting, mailed or expired
    run_id TEXT            -- the editorial run that looks after it
)
"""

app = App("newsroom", import_path="newsroom.app:app")


async def set_up(ws: Workspace) -> None:
    """Makes the table; harmless when it is there."""
    await ws.database.run(TABLE)


@app.service(scope="app")
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """One HTTP client for each process."""
    async with new_client() as client:
        yield client


@app.piece("wire", every_seconds=3, timeout_seconds=60)  # a feed of our own, on loopback: nobody minds haste
@app.piece("feed", every_seconds=60, timeout_seconds=60)
async def read_feed(piece: PieceContext) -> Outcome:
    """Reads one feed, keeps what is new and announces it. Config: `url`, `to` (who gets the mails), `newest`."""
    try:
        document = await fetch(await piece.require("http"), piece.config["url"], piece.state)
        if document is None:
            return Skipped("not modified")
        articles = parse(document.data, url=document.url, content_type=document.content_type)
    except TryLater as later:
        return RetryAfter(later.seconds)
    except NotAFeed as error:
        return Failed(str(error))
    except FetchFailed as error:
        return Failed(str(error), permanent=error.permanent)

    kept = [await keep(piece, article) for article in articles[: piece.config.get("newest")]]
    await announce(piece)
    piece.state.update(document.validators)
    return Success({"new": sum(kept), "articles": len(articles)})


async def keep(piece: PieceContext, article: Article) -> bool:
    """Puts an article into the database; False when it was there."""
    row = await piece.workspace.database.articles.insert_missing(
        id=article_id(piece.space, article.guid),
        space=piece.space,
        feed=piece.piece_id,
        title=article.title,
        link=article.link,
        summary=article.summary,
        status="new",
    )
    return row is not None


async def announce(piece: PieceContext) -> None:
    """Publishes every article of this feed that nobody has taken up yet.

    Not only those kept just now: a process that dies between keeping and publishing must lose nothing. The event's
    id makes the repeat harmless.
    """
    for row in await piece.workspace.database.articles.where(
        space=piece.space, feed=piece.piece_id, status="new"
    ).all():
        payload = {"id": row.id, "title": row.title, "link": row.link, "feed": row.feed, "to": piece.config["to"]}
        await piece.publish("article.new", payload, id=f"article:{row.space}:{row.id}")


async def extract(ctx: StepContext) -> Mapping[str, Any]:
    """Takes the words out of the summary and puts the article on the editor's desk."""
    article = ctx.workspace.database.articles.where(id=ctx.state["id"])
    row = await article.first()
    assert row is not None, "an article is announced only after it was kept"
    await article.update(status="waiting", run_id=ctx.run_id)
    return {"excerpt": plain_text(row.summary)}


def approval(ctx: StepContext) -> WaitFor:
    """What an article waits for."""
    return WaitFor("article.approved", id=ctx.state["id"], timeout_seconds=REVIEW_SECONDS)


async def publish(ctx: StepContext) -> Mapping[str, Any]:
    """Mails an approved article; one that nobody approved in time expires."""
    article, state = ctx.workspace.database.articles.where(id=ctx.state["id"]), ctx.state
    if state["__resume_reason__"] == "timeout":
        await article.update(status="expired")
        return {"outcome": "expired"}
    # When this step is repeated after a crash its key makes this the same mail, not a second one.
    await ctx.workspace.send_mail(
        to=state["to"],
        subject=state["title"],
        text=lambda mail: [mail.line(state["excerpt"]), mail.line(), mail.line(state["link"])],
    )
    await article.update(status="mailed")
    return {"outcome": "mailed"}


editorial = Workflow(
    "editorial",
    on="article.new",
    stages=[
        Stage("extract", steps=[extract]),
        Stage("review", wait=approval),
        Stage("publish", steps=[publish]),
    ],
)
app.workflow(editorial, mode=Transient(concurrency=10))
