"""An app whose pieces differ in when they run, and hardly in what they do."""

from __future__ import annotations

import socket

from piecework import App, Success
from workers_seen import who

app = App("times")


async def look(piece):
    """Tells what it was handed."""
    event = piece.event
    told = None if event is None else [event.type, event.id, event.payload, event.space]
    piece.state["count"] = piece.state.get("count", 0) + 1
    await piece.publish("looked", {"piece": piece.piece_id})
    return Success({"event": told, "count": piece.state["count"]})


def hold(piece):
    """Calls up the test, says which process it is, and goes on when it is answered."""
    with socket.create_connection(("127.0.0.1", piece.config["port"])) as line:
        line.sendall(f"{who()}\n".encode())
        line.recv(100)


app.piece("minutely", jitter=0)(look)
app.piece("daily", schedule="0 8 * * *", tz="Europe/Berlin")(look)
app.piece("daily-or-not", schedule="0 8 * * *", missed="skip")(look)
app.piece("each-day", schedule="0 8 * * *", missed="all")(look)
app.piece("waits", on=["feed.changed", "mail.*"])(look)
app.piece("waits-or-polls", on=["feed.changed"], every_seconds=3600)(look)


@app.piece("feeds-itself", on=["round"])
async def feeds_itself(piece):
    """Publishes what wakes it."""
    await piece.publish("round", {"hops": piece.event.hops})
    return Success({"hops": piece.event.hops})


for overlap in ("skip", "queue", "cancel"):
    app.piece(f"held-{overlap}", every_seconds=3600, overlap=overlap)(hold)
