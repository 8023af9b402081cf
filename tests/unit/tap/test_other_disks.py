"""A tap that is started with other disks than it was stopped with: nothing that the replica may lack is forgotten."""

from __future__ import annotations

import msgspec
import pytest

from primary_agent.tap.engine import TapEngine
from primary_agent.tap.ports import OwnPorts
from protocol.hrl import SealReason
from protocol.position import Position
from shared.tap_config import TapConfig, TapDisk
from shared.tap_control import LostReason, Tracking
from tests.unit.tap.rig import EPOCH, KIB, make_config, write
from tests.unit.tap.world import World

pytestmark = pytest.mark.usefixtures("small_maps_of_taps")

CAME = TapDisk(index=2, uuid="7" * 32, path="/vm/disk-2.raw", size=64 * KIB, export="disk2")


class Exchange:
    """A tap that tracks two disks, leaves its log, and is configured to have the first of them and another one."""

    def __init__(self, *, ordered: bool = True) -> None:
        config = make_config("/vm", (256 * KIB, 128 * KIB), log_file_bytes=64 * KIB, log_limit_bytes=512 * KIB)
        self.world = World(config)
        self.cut: Position | None = None
        self.at_cut = b""
        self._ordered = ordered
        assert self.world.run(self._before)
        file = self.world.files.open(CAME.path, write=True, create=True)
        file.write(0, self.world.rng.randbytes(CAME.size))
        file.sync()
        file.close()
        self.world.files.sync_folder("/vm")
        self.after: TapConfig = msgspec.structs.replace(config, disks=[config.disks[0], CAME])
        self.result = ""

    async def _before(self, ports: OwnPorts) -> None:
        tap = TapEngine(self.world.folder, self.world.config, ports)
        await tap.start()
        await tap.begin(EPOCH)
        await self._write(tap, 4 * KIB)
        self.cut = (await tap.cut(SealReason.COMMAND)).position
        self.at_cut = self.world.images()[0]
        await self._write(tap, 40 * KIB)
        if self._ordered:
            await tap.leave_log("disk 2 was added, disk 1 was removed")
            assert tap.tracker.tracking is Tracking.MAP and tap.tracker.maps.is_complete(EPOCH)
            await self._write(tap, 90 * KIB)
        await tap.stop()

    async def _write(self, tap: TapEngine, offset: int) -> None:
        for disk in tap.disks:
            done = tap.mutate(disk, [write(offset, self.world.rng.randbytes(5 * KIB))])
            if done is not None:
                await done

    async def start(self, ports: OwnPorts) -> None:
        """With the other disks; then what is known of them is checked against what they hold (I3, R28)."""
        tap = TapEngine(self.world.folder, self.after, ports)
        await tap.start()
        await tap.tracker.settle()
        loss, dirty = tap.tracker.loss, tap.tracker.maps.dirty
        self.result = f"{tap.tracker.tracking} {loss.reason if loss else ''}"
        if tap.tracker.tracking is Tracking.MAP:
            assert [disk.index for disk in tap.disks] == [0, 2]
            assert dirty is not None and self.cut is not None
            assert dirty.knows(EPOCH, self.cut.segment, self.cut.chain), "R34: the cut can be proven still"
            now, compared = self.world.images()[0], bytearray(self.at_cut)
            for offset, length in dirty.file.ranges(0):
                compared[offset : offset + length] = now[offset : offset + length]
            assert bytes(compared) == now, "the disk that stays differs from the cut beside the map"
            assert list(dirty.file.ranges(2)) == [(0, CAME.size)], "of a disk that came nothing is known"
        await tap.stop()

    def close(self) -> None:
        self.world.close()


def test_what_was_known_of_the_disks_that_stay_is_known_of_them_further_on() -> None:
    exchange = Exchange()
    assert exchange.world.run(exchange.start)
    assert exchange.result == f"map {LostReason.DISKS_CHANGED}"
    # And the start after that is one like any other.
    assert exchange.world.run(exchange.start)
    assert exchange.result == f"map {LostReason.DISKS_CHANGED}"
    exchange.close()


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
def test_a_death_anywhere_in_that_start_leaves_it_to_the_next_one(power: bool) -> None:
    """Each call of a port is a place to die at; what the map says afterwards is true, or there is none."""
    results: list[str] = []
    # A step that shares no factor with the number of a start's calls comes to all parts of it.
    for die_at in range(1, 2000, 5):
        exchange = Exchange()
        try:
            lived = exchange.world.run(exchange.start, die_at=die_at)
            if not lived:
                if power:
                    exchange.world.lose_power()
                assert exchange.world.run(exchange.start)
                results.append(exchange.result)
        finally:
            exchange.close()
        if lived:
            break
    mapped = [result for result in results if result.startswith("map")]
    assert len(results) > 10 and len(mapped) >= len(results) * 3 // 4, results


def test_disks_that_are_others_without_an_order_lose_tracking() -> None:
    exchange = Exchange(ordered=False)
    assert exchange.world.run(exchange.start)
    assert exchange.result == f"lost {LostReason.DISK_CHANGED}"
    exchange.close()


def test_a_foreign_change_of_a_disk_that_stays_is_found_as_ever() -> None:
    """I10."""
    exchange = Exchange()
    file = exchange.world.files.open("/vm/disk-0.raw", write=True)
    file.write(0, b"somebody else")
    file.close()
    assert exchange.world.run(exchange.start)
    assert exchange.result == f"lost {LostReason.DISK_CHANGED}"
    exchange.close()
