"""A log that was tracked for a resync that was cancelled: a map that bounds the next one takes over what it knows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from primary_agent.tap.engine import TapEngine
from primary_agent.tap.ports import OwnPorts
from shared.tap_control import LostReason, Tracking
from tests.unit.tap.rig import EPOCH, KIB, OTHER_EPOCH, WarmEngine, make_config, write
from tests.unit.tap.world import World

SIZE = 256 * KIB
LOG_FILE = 64 * KIB
MAPPED, LOGGED = 0, 128 * KIB
"""Where something is written while the map tracks, and while the log of the resync does."""


@pytest.fixture
def world() -> Iterator[World]:
    world = World(make_config("/vm", (SIZE, SIZE), log_file_bytes=LOG_FILE, log_limit_bytes=8 * LOG_FILE))
    yield world
    world.close()


async def started(world: World, ports: OwnPorts) -> TapEngine:
    tap = WarmEngine(world.folder, world.config, ports)
    await tap.start()
    return tap


def put(tap: TapEngine, offset: int) -> None:
    mutation = write(offset, b"x" * 4096)
    assert tap.mutate(tap.disks[0], [mutation]) is None
    assert mutation.error == 0


async def in_doubt(tap: TapEngine) -> None:
    """Track in the dirty map, then in the log of a resync beside it, with a write in each."""
    await tap.begin(EPOCH)
    put(tap, MAPPED)
    tap.tracker.lose(LostReason.LOG_FULL, "the test")
    await tap.tracker.settle()
    await tap.begin(OTHER_EPOCH)
    put(tap, LOGGED)


def doubted(tap: TapEngine) -> list[int]:
    dirty = tap.tracker.maps.dirty
    assert dirty is not None
    assert dirty.note.epoch == EPOCH
    return [offset for offset in range(0, SIZE, 64 * KIB) if dirty.file.is_set(0, offset // (64 * KIB))]


def test_what_the_log_knew_comes_to_the_older_map(world: World) -> None:
    """R32: the next bounded compare looks at what changed before the cancelled one, and while it ran."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        await in_doubt(tap)
        assert doubted(tap) == [MAPPED]
        await tap.abandon(OTHER_EPOCH)
        await tap.tracker.settle()
        loss = tap.tracker.loss
        assert loss is not None
        assert (tap.tracker.tracking, loss.reason) == (Tracking.MAP, LostReason.ABANDONED)
        assert doubted(tap) == [MAPPED, LOGGED]
        # Asked again, and over a restart, it stays so.
        await tap.abandon(OTHER_EPOCH)
        await tap.stop()
        tap = await started(world, ports)
        dirty = tap.tracker.maps.dirty
        assert dirty is not None
        assert dirty.is_complete(OTHER_EPOCH)
        assert (tap.tracker.tracking, doubted(tap)) == (Tracking.MAP, [MAPPED, LOGGED])
        await tap.stop()

    world.run(main)


def test_a_kill_before_it_is_durable_costs_nothing(world: World) -> None:
    """R28: a process that is killed has told its state; what the map still lacks is in the log's files."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        await in_doubt(tap)
        await tap.abandon(OTHER_EPOCH)
        put(tap, 64 * KIB)

    world.run(main)

    async def after(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        await tap.tracker.settle()
        assert tap.tracker.tracking is Tracking.MAP
        assert doubted(tap) == [MAPPED, 64 * KIB, LOGGED]
        await tap.stop()

    world.run(after)


def test_without_a_map_tracking_ends(world: World) -> None:
    """A whole compare is required anyway, and a log that nobody takes would only fill the volume."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        await tap.begin(EPOCH)
        put(tap, LOGGED)
        await tap.abandon(OTHER_EPOCH)
        assert tap.tracker.is_tracked, "another epoch than that which is tracked"
        await tap.abandon(EPOCH)
        await tap.tracker.settle()
        assert not tap.tracker.is_tracked
        assert not tap.tracker.maps.in_force()
        await tap.stop()

    world.run(main)


def test_a_map_that_is_on_record_elsewhere_is_let_go(world: World) -> None:
    """R32: the next round of a resync is about what was written in this one alone, in a fresh map."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        await in_doubt(tap)
        dirty = tap.tracker.maps.dirty
        assert dirty is not None
        await tap.tracker.forget(EPOCH)
        assert dirty.in_force, "another epoch is tracked"
        await tap.tracker.forget(OTHER_EPOCH)
        assert not dirty.in_force
        assert tap.tracker.tracking is Tracking.ON
        tap.tracker.lose(LostReason.LOG_FULL, "the test")
        await tap.tracker.settle()
        assert (dirty.note.epoch, dirty.note.base_segment) == (OTHER_EPOCH, 0)
        assert [at for at in range(0, SIZE, 64 * KIB) if dirty.file.is_set(0, at // (64 * KIB))] == [LOGGED]
        await tap.tracker.forget(OTHER_EPOCH)
        assert dirty.in_force, "it has taken the log's place"
        await tap.stop()

    world.run(main)
