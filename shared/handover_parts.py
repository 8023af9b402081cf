"""The ranges of hand-overs that are on their way to an agent, in parts that fit its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import InvalidStateError, UsageError
from shared.handover import HandOver, digest

if TYPE_CHECKING:
    from shared.admin.server import Client

BYTES_MAX = 16 << 20
"""What is kept at most of one hand-over; RANGES_MAX ranges take less."""
BYTES_ALL_MAX = 4 * BYTES_MAX
"""And of all that are on their way at the same time."""


class HandOverParts:
    """Of one hand-over of each command at a time: whoever begins another one drops what he sent before."""

    def __init__(self) -> None:
        self._sent: dict[Client, tuple[str, bytearray]] = {}

    def add(self, client: Client, vm: str, offset: int, data: bytes) -> None:
        """Raises UsageError for a part that does not follow the ones before, InvalidStateError for too many of all."""
        if offset == 0:
            if self._sent.pop(client, None) is None:
                client.on_closed(lambda: self._drop(client))
            if not client.closed.done():
                self._sent[client] = (vm, bytearray())
        known, kept = self._sent.get(client, ("", bytearray()))
        if vm != known or offset != len(kept) or offset + len(data) > BYTES_MAX:
            text = "This part of a hand-over does not follow the one before."
            raise UsageError(text, "Run `vmreplica reverse` again.")
        if sum(len(each) for _, each in self._sent.values()) + len(data) > BYTES_ALL_MAX:
            text = "Too much is carried from one agent of this host to the other at the same time."
            raise InvalidStateError(text, "Run `vmreplica reverse` again when the other VMs are reversed.")
        kept += data

    def take(self, client: Client, handed: HandOver) -> bytes:
        """All of it, which is then forgotten. Raises UsageError unless it is what the hand-over says."""
        vm, sent = self._sent.pop(client, ("", bytearray()))
        data = bytes(sent) if vm == handed.vm else b""
        if len(data) != handed.ranges_bytes or (data and digest(data) != handed.ranges_digest):
            raise UsageError(
                f"The ranges that go with the hand-over of {handed.name} are not here wholly.",
                "Run `vmreplica reverse` again.",
            )
        return data

    def _drop(self, client: Client) -> None:
        self._sent.pop(client, None)


def require_carrier(client: Client, handed: HandOver) -> None:
    """Raises InvalidStateError where the command that brought it has ended: it could tell nobody what came of it."""
    if client.closed.done():
        raise InvalidStateError(
            f"The command that brought the hand-over of {handed.name} has ended.",
            f"Run `vmreplica reverse {handed.name}` again, which goes on where it stopped.",
        )
