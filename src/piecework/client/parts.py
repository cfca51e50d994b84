"""What an open client consists of; apart from the doors, which a process that is no client need not load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from piecework.client.doors import RemoteIntake, RemotePieces, RemoteRuntime
    from piecework.client.node_link import NodeLink
    from piecework.services.transport import Transport


@dataclass(frozen=True, slots=True)
class RemoteParts:
    """What an open client of a file's node consists of.

    Attributes:
        link: To the node.
        mail: Says who sends; the node does it.
    """

    link: NodeLink
    intake: RemoteIntake
    runtime: RemoteRuntime
    pieces: RemotePieces
    mail: Transport
