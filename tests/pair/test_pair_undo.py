"""A failover to any point that is undone, and one that is committed: real agents and taps, and the primary goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from primary_agent import unfencing
from replica_agent.points import points_of
from replica_agent.vm_status import status_of
from shared.errors import InvalidStateError
from shared.events import EventId
from shared.map_file import MapFile, MapKind
from shared.states import ReplicationState
from shared.tap_config import DIRTY_BLOCK_BITS, load_config
from tests.pair.rig import MIB, Pair, past_the_fence
from tests.pair.test_replica_failover import image_of, qemu_io


def base_of(pair: Pair) -> list[bytes]:
    return [Path(pair.copy.parts.layout.disk(index)).read_bytes() for index in range(2)]


async def goes_on(pair: Pair, *commands: str) -> None:
    """The old primary replicates again, by itself and without a resync."""
    await pair.state(ReplicationState.REPLICATING)
    await pair.until("writes", lambda: pair.vm.parts.tap.config.fenced == "" and pair.vm.parts.link.healthy())
    await pair.write(0, *commands)
    await pair.assert_same()
    assert pair.vm.parts.replication.record.causes == []


async def test_failover_to_an_older_point_is_undone_and_the_next_is_committed(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1, I6, I8, R40, R42: the chosen point at once; undone nothing has happened; committed nothing is lost."""
    await pair.replicate(8 * MIB, 2 * MIB)
    await pair.write(0, "write -P 0x11 1M 1M")
    await pair.assert_same()
    first, point = [pair.disk(index).read_bytes() for index in range(2)], pair.copy.point()
    assert point is not None
    await pair.write(0, "write -P 0x22 1M 512k", "write -z 5M 64k")
    await pair.write(1, "write -P 0x33 4k 4k")
    await pair.assert_same()
    points = [each.point for each in points_of(pair.copy).points]
    kept = base_of(pair)

    await pair.copy.failover(point)
    status = status_of(pair.copy)
    failover = status.failover
    assert failover is not None
    assert failover.cut is not None
    assert failover.received is not None
    assert (status.state, failover.undoable, failover.layered) == ("FailedOverWaitingCompletion", True, True)
    assert (failover.cut.segment, failover.cut.segment < failover.received.segment) == (point.segment, True)
    assert "--commit" in status.remedy
    assert "--undo" in status.remedy
    for uri, content in zip(status.uris, first, strict=True):
        assert await image_of(uri, tmp_path) == content
    code, output = await qemu_io(status.uris[0], "write -P 0x99 1536k 2M", "write -P 0x98 512 512", "flush")
    assert code == 0, output
    layout, parts = pair.copy.parts.layout, pair.copy.parts
    changed = MapFile.open(
        parts.ports.files, layout.reverse_map, MapKind.DIRTY, parts.vm, DIRTY_BLOCK_BITS, parts.disks.geometry
    )
    for index in range(2):
        for block in range(0, len(first[index]), 1 << DIRTY_BLOCK_BITS):
            end = block + (1 << DIRTY_BLOCK_BITS)
            differs = first[index][block:end] != kept[index][block:end]
            assert not differs or changed.is_set(index, block >> DIRTY_BLOCK_BITS), "R41"
    changed.close()
    assert base_of(pair) == kept
    await pair.state(ReplicationState.FAILED_OVER)

    # The agent and the tap may go and come: everything is as it was.
    assert pair.copy.promotion.tap is not None
    await pair.replica.stop()
    await pair.start_replica()
    await pair.until("the disks", lambda: status_of(pair.copy).uris)
    code, output = await qemu_io(status_of(pair.copy).uris[0], "read -P 0x99 1536k 2M", "read -P 0x98 512 512")
    assert (code, "verification failed" in output) == (0, False)
    # The former primary is down when it is undone.
    await pair.primary.stop()
    await pair.copy.undo_failover()
    while pair.copy.ledger.promotion is not None or pair.copy.point() is None:  # noqa: ASYNC110 - no primary to ask
        await asyncio.sleep(0.02)
    assert base_of(pair) == kept
    assert [each.point for each in points_of(pair.copy).points] == points
    assert not Path(layout.tap).exists()
    assert not Path(layout.reverse_map).exists()
    with pytest.raises(InvalidStateError, match="is not failed over"):
        await pair.copy.undo_failover()
    # It asks at its start, and its tap takes writes again once a session has begun that the replica did not refuse.
    monkeypatch.setattr(unfencing, "ASK_SECONDS", 0.2)
    await pair.start_primary()
    await goes_on(pair, "write -P 0x44 3M 64k")
    (lifted,) = await pair.events(EventId.FENCE_LIFTED)
    assert lifted["data"]["failover"] == failover.epoch
    assert "Whatever was written on beta since the failover was dropped there" in lifted["text"]
    assert "is kept, and is replicated" not in lifted["text"]

    # Written on both sides, by a guest that was connected here before: what that wrote stays, and is told of.
    await pair.copy.failover()
    await pair.state(ReplicationState.FAILED_OVER)
    code, output = await qemu_io(status_of(pair.copy).uris[0], "write -P 0x66 6M 64k", "flush")
    assert code == 0, output
    await past_the_fence(pair.vm.parts.tap, lambda: pair.write(0, "write -P 0x77 6M 64k"))
    await pair.copy.undo_failover()
    await goes_on(pair, "write -P 0x45 4M 64k", "read -P 0x77 6M 64k")
    *_, lifted = await pair.events(EventId.FENCE_LIFTED)
    assert "What was written here meanwhile is kept, and is replicated." in lifted["text"]

    await pair.copy.failover()
    uri = status_of(pair.copy).uris[0]
    code, output = await qemu_io(uri, "write -P 0x55 7M 64k", "write -z 2M 8k", "flush")
    assert code == 0, output
    expected = await image_of(uri, tmp_path)
    await pair.copy.promotion.commit()
    await pair.copy.promotion.commit()
    assert status_of(pair.copy).state == "FailedOver"
    await pair.until("settled", lambda: pair.copy.ledger.promotion and not pair.copy.ledger.promotion.layered)
    assert base_of(pair)[0] == expected
    assert pair.copy.ledger.points.logs == []
    config = load_config(parts.ports.files, layout.tap)
    assert (config.undo_layers, [disk.overlay for disk in config.disks]) == ([], [config.disks[0].overlay] * 2)
    await pair.until("room", lambda: not list(Path(layout.tap).glob("overlay*")))
    with pytest.raises(InvalidStateError, match="can't be undone"):
        await pair.copy.undo_failover()
    # A tap that is started anew serves the plain disks, and nothing is in doubt.
    tap = pair.copy.promotion.tap
    assert tap is not None
    assert tap.status is not None
    before = tap.status.pid
    await tap.stop_tap()
    await pair.until("another tap", lambda: tap.status is not None and tap.status.pid != before)
    assert tap.status.layers is None
    await pair.until("tracking", lambda: tap.status is not None and tap.status.tracking.value == "on")
    assert await image_of(uri, tmp_path) == expected
    status = status_of(pair.copy)
    assert (status.health, status.failover is not None and status.failover.undoable) == ("Warning", False)
    # Committed it stays fenced, however often it asks.
    assert pair.vm.parts.replication.state is ReplicationState.FAILED_OVER
    assert len(await pair.events(EventId.FENCE_LIFTED)) == 2
    assert pair.vm.parts.tap.config.fenced
