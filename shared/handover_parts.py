"""The ranges of hand-overs that are on their way to an agent, in parts that fit its messages."""

from __future__ import annotations

from shared.errors import UsageError
from shared.handover import HandOver, digest

BYTES_MAX = 16 << 20
"""What is kept at most of one hand-over; RANGES_MAX ranges take less."""


class HandOverParts:
    """Of one hand-over at a time: whoever begins another one drops what came before."""

    def __init__(self) -> None:
        self._vm = ""
        self._data = bytearray()

    def add(self, vm: str, offset: int, data: bytes) -> None:
        """Raises UsageError for a part that does not follow the ones before."""
        if offset == 0:
            self._vm = vm
            self._data.clear()
        if vm != self._vm or offset != len(self._data) or offset + len(data) > BYTES_MAX:
            text = "This part of a hand-over does not follow the one before."
            raise UsageError(text, "Run `vmreplica reverse` again.")
        self._data += data

    def take(self, handed: HandOver) -> bytes:
        """All of it, which is then forgotten. Raises UsageError unless it is what the hand-over says."""
        data = bytes(self._data) if self._vm == handed.vm else b""
        self._vm = ""
        self._data.clear()
        if len(data) != handed.ranges_bytes or (data and digest(data) != handed.ranges_digest):
            raise UsageError(
                f"The ranges that go with the hand-over of {handed.name} are not here wholly.",
                "Run `vmreplica reverse` again.",
            )
        return data
