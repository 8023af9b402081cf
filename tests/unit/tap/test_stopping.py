"""Orders that meet a stop: whatever comes first, the log that stays is whole, and the next start takes it up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from primary_agent.tap.engine import TapEngine
from primary_agent.tap.ports import OwnPorts
from protocol.hrl import FILE_HEADER_BYTES, SealReason
from protocol.position import Position
from shared.errors import InvalidStateError
from shared.hrl_follower import LogFollower
from shared.tap_control import Tracking
from tests.unit.tap.rig import EPOCH, KIB, OTHER_EPOCH, WarmEngine, make_config
from tests.unit.tap.world import World

MOMENTS = 24
"""An order comes at one of so many moments after the stop has begun."""
STEP = 0.0004
"""Between two of them, in virtual seconds; a call of a worker takes up to ten."""

Order = Callable[[TapEngine], Awaitable[object]]


def make_world(seed: int) -> World:
    return World(make_config("/vm", (64 * KIB,), log_file_bytes=64 * KIB, log_limit_bytes=512 * KIB), seed)


def stop_with(world: World, order: Order, after: float) -> bool:
    """Give an order so long after a stop has begun; whether it was refused. The log must be whole afterwards."""
    refused = False

    async def main(ports: OwnPorts) -> None:
        nonlocal refused
        tap = WarmEngine(world.folder, world.config, ports)
        await tap.start()
        await tap.begin(EPOCH)
        stop = asyncio.ensure_future(tap.stop())
        await asyncio.sleep(after)
        try:
            await order(tap)
        except InvalidStateError:
            refused = True
        await stop

    async def again(ports: OwnPorts) -> None:
        tap = WarmEngine(world.folder, world.config, ports)
        await tap.start()
        assert tap.tracker.tracking is Tracking.ON
        cut = await tap.cut(SealReason.INTERVAL)
        log = tap.tracker.log
        assert log is not None
        first = tap.tracker.files.used[0]
        follower = LogFollower(ports.files, world.config.log_folder, world.config.vm_id)
        header = first.header
        start = Position(header.epoch, header.segment, header.entry, header.chain)
        follower.seek(first.sequence, FILE_HEADER_BYTES, start)
        # Raises LogDamagedError where what the stop left is not a whole log.
        while follower.read(cut.file, cut.offset) is not None:
            pass
        assert follower.position == cut.position
        follower.close()
        await tap.stop()

    assert world.run(main)
    assert world.run(again)
    return refused


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(lambda tap: tap.begin(OTHER_EPOCH), id="begin"),
        pytest.param(lambda tap: tap.cut(SealReason.RESYNC), id="cut"),
    ],
)
def test_order_that_meets_a_stop_leaves_a_whole_log(order: Order) -> None:
    """What a stop has sealed stays sealed: a begin or a cut comes before that, or is refused."""
    refused = []
    for moment in range(MOMENTS):
        world = make_world(moment)
        try:
            refused.append(stop_with(world, order, STEP * moment))
        finally:
            world.close()
    assert any(refused)
