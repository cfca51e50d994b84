from __future__ import annotations

import base64

import pytest

from piecework.errors import ValidationError
from piecework.services import attachments
from piecework.services.mail import build, checked
from piecework.services.transport import compose

TWO = [("ä b.png", bytes(range(256))), ("t.txt", b"\r\n")]


def stored(name, kind, data):
    return {"name": name, "type": kind, "data": base64.b64encode(data).decode()}


async def test_files_are_read_when_the_mail_is_made(tmp_path):
    """A path is read at once; content may be given with a name and a type, which else follows from the name."""
    path = tmp_path / "table.csv"
    path.write_bytes(b"a,b")
    given = [path, str(path), ("logo.png", b"\x89"), ("x", bytearray(b"y")), ("z", b"z", "Text/Markdown")]
    mail = await build(to="a@b.c", subject="x", attachments=given)
    path.unlink()
    assert mail["attachments"] == [
        stored("table.csv", "text/csv", b"a,b"),
        stored("table.csv", "text/csv", b"a,b"),
        stored("logo.png", "image/png", b"\x89"),
        stored("x", "application/octet-stream", b"y"),
        stored("z", "text/markdown", b"z"),
    ]


async def test_attachments_are_in_the_mail():
    """What goes over the wire has the text, and each file with its name, type and bytes."""
    mail = await build(to="a@b.c", subject="x", text="t", html="<p>", attachments=TWO)
    wire = compose(mail, message_id="<1@b.c>", sender="a@b.c")
    files = list(wire.iter_attachments())
    assert [(file.get_filename(), file.get_payload(decode=True)) for file in files] == TWO
    assert [file.get_content_type() for file in files] == ["image/png", "text/plain"]
    assert wire.get_body(("plain",)).get_content() == "t\n"


async def test_too_large_attachments_are_refused(tmp_path):
    """More than a mail may carry is refused with the file's name and the limit; exactly that much is not."""
    big = tmp_path / "big.bin"
    big.write_bytes(b"x" * 11)
    assert len(await attachments.read([("a", b"x" * 5), ("b", b"x" * 5)], limit_bytes=10)) == 2
    for too_much in ([big], [("a", b"x" * 5), ("big.bin", b"x" * 6)]):
        with pytest.raises(ValidationError, match=r"10 bytes.*'big\.bin'") as caught:
            await attachments.read(too_much, limit_bytes=10)
        assert caught.value.limit_bytes == 10


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("report.pdf", r"write \['report.pdf'\]"),
        (7, "has to be a list"),
        ([b"content"], "path, "),
        ([("", b"x")], "needs a name"),
        ([("a\nb", b"x")], "line break"),
        ([("a", "text")], "path, "),
        ([("a", b"x", "image")], "path, "),
        ([("a", b"x", "image/png\r\nBcc: x")], "path, "),
        (["/nowhere/at/all"], "/nowhere/at/all.*cannot be read"),
        (["a\0b"], "cannot be read"),
    ],
)
async def test_what_is_no_attachment_is_refused(wrong, said):
    """Something else than a path or a name with bytes is refused, and so is a file that cannot be read."""
    with pytest.raises(ValidationError, match=said):
        await build(to="a@b.c", subject="x", attachments=wrong)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"subject": "x"}, "needs to"),
        ({}, "to and subject"),
        ({"to": "a@b.c", "subject": "x", "body": "y"}, "argument of send-mail"),
        ({"to": "a@b.c", "subject": "x", "txt": "y"}, "'text'"),
        ({"to": "nobody", "subject": "x"}, "no mail address"),
        ({"to": "a@b.c", "subject": "x", "text": 7}, "text of a stored mail"),
        ({"to": "a@b.c", "subject": "x", "headers": ["X-A"]}, "headers"),
        ({"to": "a@b.c", "subject": "x", "message_id": "<a\r\nb@c>"}, "message_id"),
        ({"to": "a@b.c", "subject": "x", "attachments": [{"name": "x"}]}, "base64"),
        ({"to": "a@b.c", "subject": "x", "attachments": [stored("x", "a/b", b"") | {"data": "#"}]}, "base64"),
        ({"to": "a@b.c", "subject": "x", "attachments": 7}, "base64"),
    ],
)
def test_arguments_that_make_no_mail_are_refused(args, said):
    """Arguments of the job that are unknown, missing or wrong are refused with their names."""
    with pytest.raises(ValidationError, match=said):
        checked(args, "run-1")


async def test_what_was_built_is_what_is_sent():
    """A mail that was built is complete; one that was not gets the rest, and a Message-ID of its run."""
    built = await build(to="Ada <a@b.c>", subject="x", text="t", sender="n@b.c", attachments=[("a", b"b")])
    assert checked(built, "run-1") == built | {"message_id": "<run-1@b.c>"}
    told = checked({"to": ["a@b.c"], "subject": "x", "message_id": "<1@b.c>"}, "run-1")
    assert (told["cc"], told["text"], told["message_id"]) == ([], None, "<1@b.c>")
