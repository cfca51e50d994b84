"""Promises about hearing of a run."""

from __future__ import annotations

import asyncio

import pytest

from piecework.errors import StoppedError
from piecework.run.news import News


async def test_who_expects_a_run_hears_of_it():
    """Everybody who waits for a run is told its next status; nobody hears of other runs."""
    news = News()
    one, other, stranger = news.expect("r-1"), news.expect("r-1"), news.expect("r-2")
    news.announce("r-1", "paused")
    assert (await one, await other, stranger.done()) == ("paused", "paused", False)
    stranger.cancel()


async def test_an_announcement_is_heard_once():
    """The next status is not the one before."""
    news = News()
    await_first = news.expect("r-1")
    news.announce("r-1", "paused")
    second = news.expect("r-1")
    news.announce("r-1", "completed")
    assert (await await_first, await second) == ("paused", "completed")


async def test_nobody_waits():
    """Announcing what nobody waits for is no error, and is not remembered."""
    news = News()
    news.announce("r-1", "completed")
    late = news.expect("r-1")
    assert not late.done()
    late.cancel()


async def test_who_gives_up_is_forgotten():
    """A wait that was cancelled leaves nothing behind."""
    news = News()
    news.expect("r-1").cancel()
    await asyncio.sleep(0)
    assert not news._waiting
    news.announce("r-1", "completed")


async def test_a_listener_hears_everything_until_it_stops():
    """Listeners hear of every run until they say stop; saying it twice is harmless."""
    news, heard = News(), []
    stop = news.listen(lambda *told: heard.append(told))
    news.announce("r-1", "running")
    stop()
    stop()
    news.announce("r-2", "running")
    assert heard == [("r-1", "running")]


async def test_closing_ends_every_wait():
    """When the node stops everybody who waits is told so, and who comes later too."""
    news = News()
    waiting = news.expect("r-1")
    news.close()
    for future in (waiting, news.expect("r-2")):
        with pytest.raises(StoppedError, match="goes on when a node"):
            await future


async def test_closing_with_nobody_there():
    """A wait that nobody looks at any more makes no noise when the node stops."""
    news = News()
    future = news.expect("r-1")
    news.close()
    del future


async def test_where_others_commit_a_wait_ends_by_itself(monkeypatch):
    """An announcement of another process may get lost: who waits for one looks again after a while."""
    monkeypatch.setattr("piecework.run.news._LOOK_AGAIN_SECONDS", 0)
    news = News(shared=True)
    await news.after(news.expect("r-1"))
    assert not news._waiting


@pytest.mark.parametrize("shared", [False, True])
async def test_a_wait_that_is_told(shared):
    """It ends with the announcement, or says that the node is stopping; who is cancelled leaves nothing behind."""
    news = News(shared=shared)
    told, gone, stopped = (asyncio.create_task(news.after(news.expect(run_id))) for run_id in ("r-1", "r-2", "r-3"))
    await asyncio.sleep(0)
    news.announce("r-1", "completed")
    gone.cancel()
    assert await told is None
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert set(news._waiting) == {"r-3"}
    news.close()
    with pytest.raises(StoppedError):
        await stopped
