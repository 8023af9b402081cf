"""A failover to any point that is undone, and one that is committed: real agents and taps, and the primary goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from replica_agent.points import points_of
from replica_agent.vm_status import status_of
from shared.errors import InvalidStateError
from shared.map_file import MapFile, MapKind
from shared.states import ReplicationState
from shared.tap_config import DIRTY_BLOCK_BITS, load_config
from tests.pair.rig import MIB, Pair
from tests.pair.test_replica_failover import image_of, qemu_io


def base_of(pair: Pair) -> list[bytes]:
    return [Path(pair.copy.parts.layout.disk(index)).read_bytes() for index in range(2)]


async def test_failover_to_an_older_point_is_undone_and_the_next_is_committed(pair: Pair, tmp_path: Path) -> None:
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
    await pair.copy.undo_failover()
    await pair.until("a replica", lambda: pair.copy.ledger.promotion is None and pair.copy.point())
    assert base_of(pair) == kept
    assert [each.point for each in points_of(pair.copy).points] == points
    assert not Path(layout.tap).exists()
    assert not Path(layout.reverse_map).exists()
    with pytest.raises(InvalidStateError, match="is not failed over"):
        await pair.copy.undo_failover()
    await pair.vm.resume(resynchronize=False)
    await pair.state(ReplicationState.REPLICATING)
    # Its tap takes writes again once a session has begun that the replica did not refuse.
    await pair.until("writes", lambda: pair.vm.parts.tap.config.fenced == "")
    await pair.write(0, "write -P 0x44 3M 64k")
    await pair.assert_same()
    assert pair.vm.parts.replication.record.causes == []

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
