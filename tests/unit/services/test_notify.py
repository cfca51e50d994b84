from __future__ import annotations

import pytest

from piecework.errors import ValidationError
from piecework.services.notify import BODY_LIMIT_BYTES, Notify

ADA = {"id": 1, "email": "ada@example.org"}


class Kept(dict):
    """What was kept, by id."""

    async def __call__(self, *, notification_id, **told):
        self.setdefault(notification_id, told)


async def test_a_notification_is_made_and_kept():
    """The words are made by the builder, several lines joined by one line break; the address is the row's."""
    kept = Kept()
    notification_id = await Notify(kept, key=None)(ADA, lambda mail: mail.line("New post").line("Read it"), subject="x")
    assert kept == {
        notification_id: {
            "email": "ada@example.org",
            "body": "New post\nRead it",
            "subject": "x",
            "frequency": "asap",
            "force": False,
        }
    }


async def test_the_row_says_how_often():
    """`notify_frequency` of the row is passed on; for `none` the words are not even made."""
    kept = Kept()
    notify = Notify(kept, key=None)
    await notify(ADA | {"notify_frequency": "daily"}, "x", force=True)
    assert [(told["frequency"], told["force"]) for told in kept.values()] == [("daily", True)]
    assert await notify({"email": None, "notify_frequency": "none"}, lambda mail: 1 / 0) is None
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("row", "text", "subject", "said"),
    [
        ({"id": 1, "name": "Ada"}, "x", None, "column email.*id, name"),
        ({"email": None}, "x", None, "column email"),
        ({"email": "nobody"}, "x", None, "email has 'nobody'"),
        ({"email": "a@b.c, d@e.f"}, "x", None, "one address"),
        ({"email": "a@b.c\nBcc: x@y.z"}, "x", None, "line break"),
        (ADA | {"notify_frequency": "weekly"}, "x", None, "weekly"),
        (ADA, "x", "a\nb", "line break"),
        (ADA, "\ud800", None, "surrogate"),
        (ADA, "x" * BODY_LIMIT_BYTES, None, "bytes"),
        (ADA, 7, None, "text"),
    ],
)
async def test_what_cannot_be_told_is_refused(row, text, subject, said):
    """A row without an address, an unknown frequency or words that no mail can carry are refused; nothing is kept."""
    kept = Kept()
    with pytest.raises(ValidationError, match=said):
        await Notify(kept, key=None)(row, text, subject=subject)
    assert kept == {}


async def test_the_same_work_tells_the_same():
    """Work that is tried again tells the same notifications under the same ids; alike ones of one attempt are two."""
    kept = Kept()
    for _attempt in range(2):
        notify = Notify(kept, key="run/step")
        for body in ("x", "x", "y"):
            await notify(ADA, body)
    assert [told["body"] for told in kept.values()] == ["x", "x", "y"]
