"""A replica that acknowledges cuts which the primary never sent: no log is given up for it, and replication goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.messages import Received, WirePosition
from protocol.position import Position
from replica_agent.control import Control
from replica_agent.spool import Spool
from shared.events import EventId
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair

pytestmark = pytest.mark.slow

LIES: dict[str, Callable[[Position], Position]] = {
    "of the future": lambda cut: Position(cut.epoch, cut.segment + 1000, cut.entry, cut.chain),
    "of another generation": lambda cut: Position(b"\7" * 16, cut.segment, cut.entry, cut.chain),
    "with another chain": lambda cut: Position(cut.epoch, cut.segment, cut.entry, bytes(16)),
    "with more entries": lambda cut: Position(cut.epoch, cut.segment, cut.entry + 1, cut.chain),
}


async def test_acknowledged_cuts_that_were_never_sent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A25."""
    await pair.replicate(MIB)
    await pair.cut()
    await pair.until("an acknowledged cut", lambda: pair.vm.parts.replication.acked is not None)
    left, told, honest = dict(LIES), [], []
    acknowledge = Control._acknowledge

    def lie(control: Control, spool: Spool, cut: Position) -> None:
        if not left:
            acknowledge(control, spool, cut)
            return
        name = next(iter(left))
        honest.append(cut)
        told.append(name)
        control.channel.send(Received(position=WirePosition.of(left.pop(name)(cut))))

    acked = pair.vm.parts.replication.acked
    assert acked is not None
    monkeypatch.setattr(Control, "_acknowledge", lie)

    def all_told() -> bool:
        pair.vm.parts.link.poke.notify()
        now = pair.vm.parts.replication.acked
        assert now is not None and now.position in (acked.position, *honest)
        connection = pair.vm.parts.tap.connection
        # What is still needed to go on is kept: everything behind what was truly acknowledged.
        assert connection is not None and connection.status.first_segment <= now.position.segment + 1
        return not left

    await pair.write(0, "write -P 0x11 64k 64k")
    await pair.until("all lies", all_told)
    monkeypatch.undo()
    pair.vm.parts.link.poke.notify()
    await pair.state(ReplicationState.REPLICATING)
    await pair.write(0, "write -P 0x22 128k 64k")
    await pair.assert_same()
    assert told == list(LIES)
    refused = [event["cause"] for event in await pair.events(EventId.WILL_RETRY)]
    assert "gap" in refused
    assert await pair.events(EventId.RESYNC_REQUIRED) == []
