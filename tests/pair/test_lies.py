"""Answers and blocks that are not what was asked for, on a real pair: each ends its session, and nothing else.

Only the lie is made here, in what one side hands to its channel; both agents, their link and their files are real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from primary_agent.resync_report import report
from protocol.bulk import Manifest, decode_blocks, decode_manifest, encode_blocks, encode_manifest
from protocol.compression import decompress
from protocol.messages import BLOCK_SIZE, MessageType
from shared.channel import Channel
from shared.ports import Buffer
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair

SIZE = 4 * MIB
OTHER = b"another one 16 B"
Payload = list[bytes]


def manifest(change: Callable[[Manifest], Manifest]) -> Callable[[bytes], Payload]:
    def lie(honest: bytes) -> Payload:
        return [b"".join(encode_manifest(change(decode_manifest(honest))))]

    return lie


MANIFESTS: dict[str, Callable[[bytes], Payload]] = {
    "of another run": manifest(lambda each: replace(each, id=OTHER)),
    "of another key": manifest(lambda each: replace(each, key_id=OTHER)),
    "of another round": manifest(lambda each: replace(each, round=each.round + 1)),
    "of another disk": manifest(lambda each: replace(each, disk=each.disk + 1)),
    "of another range": manifest(lambda each: replace(each, offset=each.offset + each.length)),
    "overlapping the range": manifest(lambda each: replace(each, offset=each.offset + BLOCK_SIZE)),
    "of another block size": manifest(lambda each: replace(each, block_size=2 * BLOCK_SIZE,
        holes=each.holes[::2], tags=each.tags[:0], equal=each.equal)) ,
    "cut off": lambda honest: [honest[: len(honest) - 1]],
    "twice": lambda honest: [honest, honest],
}  # fmt: skip


def blocks(change: Callable[[bytes, int], tuple[bytes, int]], *, move: int = 0) -> Callable[[bytes], Payload]:
    def lie(honest: bytes) -> Payload:
        told = decode_blocks(honest, {0: SIZE})
        identity, number = change(told.id, told.round)
        table = told.table.copy()
        table["offset"] += move
        entries = [row.tobytes() for row in table]
        return [b"".join(encode_blocks(identity, number, entries, [bytes(told.payload)]))]

    return lie


BLOCKS: dict[str, Callable[[bytes], Payload]] = {
    "of another run": blocks(lambda _identity, number: (OTHER, number)),
    "of another round": blocks(lambda identity, number: (identity, number + 1)),
    "behind the end of the disk": blocks(lambda identity, number: (identity, number), move=SIZE),
    "cut off": lambda honest: [honest[: len(honest) - 1]],
}


class Liar:
    """The first frame of ``kind`` on each connection is a lie, until all have been told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: MessageType, lies: dict[str, Callable[[bytes], Payload]]):
        self.left = dict(lies)
        self.told: list[str] = []
        self.late: bytes | None = None
        self._liars: list[Channel] = []
        self._kind = kind
        self._send = Channel.send_bulk
        liar = self

        def send(channel: Channel, kind: MessageType, pieces: Sequence[Buffer], **options: Any) -> None:
            liar.send(channel, kind, pieces, options)

        monkeypatch.setattr(Channel, "send_bulk", send)

    def send(self, channel: Channel, kind: MessageType, pieces: Sequence[Buffer], options: dict[str, Any]) -> None:
        if kind is not self._kind or not self.left or channel in self._liars:
            self._send(channel, kind, pieces, **options)
            return
        self._liars.append(channel)
        name = next(iter(self.left))
        lie = self.left.pop(name)
        self.told.append(name)
        honest = b"".join(pieces)
        if (raw := options.get("raw_length")) is not None:
            honest = bytes(decompress(honest, raw))
        for payload in lie(honest):
            self._send(channel, kind, [payload])
        self.late = self.late or honest


async def resynchronized(pair: Pair, liar: Liar, lies: int) -> None:
    """A resync that differs in one place, through as many sessions as there are lies."""
    before = Path(pair.copy.parts.layout.disk(0)).read_bytes()
    await pair.vm.parts.tap.require().client.stop_tracking("the test")
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.write(0, "write -P 0x5a 128k 64k")
    point = pair.copy.point()
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)

    def all_told() -> bool:
        pair.vm.parts.link.poke.notify()
        if not liar.left:
            return True
        assert Path(pair.copy.parts.layout.disk(0)).read_bytes() == before
        assert pair.copy.point() == point
        return False

    await pair.until("all lies", all_told)
    pair.vm.parts.link.poke.notify()
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    run = report(pair.vm).last
    assert run is not None
    assert len(liar.told) == lies
    assert run.interruption_count >= lies, [each.reason for each in run.interruptions]


async def test_manifests_that_lie_end_their_session_each(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """R23, I18: of another run, key, round, disk or range, overlapping, torn, twice, and one that comes late."""
    await pair.replicate(SIZE)
    await pair.assert_same()
    lies = dict(MANIFESTS)
    liar = Liar(monkeypatch, MessageType.MANIFEST, lies)

    def late(_honest: bytes) -> Payload:
        assert liar.late is not None
        return [liar.late]

    liar.left["late, from a session before"] = late
    await resynchronized(pair, liar, len(MANIFESTS) + 1)


async def test_blocks_that_lie_end_their_session_each(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """I11, I18: of another run or round, beside the disk, torn."""
    await pair.replicate(SIZE, log_limit_bytes=64 * MIB)
    await pair.assert_same()
    liar = Liar(monkeypatch, MessageType.BLOCKS, BLOCKS)
    await resynchronized(pair, liar, len(BLOCKS))


async def test_blocks_that_come_twice_change_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """I11."""
    await pair.replicate(SIZE)
    await pair.assert_same()
    liar = Liar(monkeypatch, MessageType.BLOCKS, {"twice": lambda honest: [honest, honest]})
    await pair.vm.parts.tap.require().client.stop_tracking("the test")
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.write(0, "write -P 0x5a 128k 64k")
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)
    await pair.state(ReplicationState.REPLICATING)
    assert liar.told == ["twice"]
    await pair.assert_same()
