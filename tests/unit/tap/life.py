"""A tap's life through all that the maps are for, and what a bounded compare must find afterwards (I3, R28)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from primary_agent.tap import hot_regions, start
from primary_agent.tap.dirty_map import Force
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.ports import OwnPorts
from protocol.hrl import SealReason
from protocol.position import Position
from shared.nbd.backend import Mutation
from shared.tap_config import TapConfig
from shared.tap_control import LostReason, Tracking
from tests.unit.tap.rig import KIB, Images, apply, copy, make_config, replay, trim, write, zeroes
from tests.unit.tap.world import World

SIZES = (256 * KIB, 128 * KIB)
LOG_FILE = 64 * KIB
LOG_LIMIT = 5 * LOG_FILE
BLOCK_BITS = 12
REGION_BITS = 14
HOT_LIMIT = 10
CHECKPOINT_SECONDS = 0.05


@contextmanager
def small_maps() -> Iterator[None]:
    """Blocks of 4 KiB, regions of 16 KiB, few of them hot, and cooled soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "DIRTY_BLOCK_BITS", BLOCK_BITS)
        patch.setattr(TapConfig, "hot_region_bits", property(lambda _config: REGION_BITS))
        patch.setattr(hot_regions, "CHECKPOINT_SECONDS", CHECKPOINT_SECONDS)
        patch.setattr(hot_regions, "LEASE_SECONDS", 2.0)
        patch.setattr(hot_regions, "TOUCHED", 2)
        yield


def epoch_of(number: int) -> bytes:
    return bytes([number]) * 16


class Life:
    """One VM, the cuts that were told, and which of them a replica may stand at."""

    def __init__(self, seed: int, *, hot_limit: int = HOT_LIMIT) -> None:
        config = make_config("/vm", SIZES, log_file_bytes=LOG_FILE, log_limit_bytes=LOG_LIMIT, hot_regions=hot_limit)
        self.world = World(config, seed)
        self.rng = random.Random(seed)
        self.model: Images = {index: bytearray(image) for index, image in self.world.images().items()}
        self.cuts: dict[Position, dict[int, bytes]] = {}
        """Every cut that was told, with what it holds."""
        self.began: dict[bytes, dict[int, bytes]] = {}
        self.released: set[bytes] = set()
        self.seen: list[tuple[Tracking, LostReason | None]] = []
        """Tracking at each start, and why it is not on."""
        self.bounded: list[Position] = []
        self.provable = 0
        """How many cuts a bounded compare was possible from, at the last check."""
        self.epochs = 0

    # --- lives ------------------------------------------------------------------------------------------------------

    async def start(self, ports: OwnPorts) -> TapEngine:
        tap = TapEngine(self.world.folder, self.world.config, ports)
        await tap.start()
        loss = tap.tracker.loss
        self.seen.append((tap.tracker.tracking, loss.reason if loss else None))
        return tap

    async def whole(self, ports: OwnPorts) -> None:
        """A baseline, the log full, a resync that is overtaken by another, a commit, an orderly stop."""
        tap = await self.start(ports)
        await self.change(tap, 0, [write(0, b"before" + bytes(506))])
        await self.begin(tap)
        await self.some(tap, 6)
        await self.overflow(tap)
        await self.some(tap, 3)
        await tap.tracker.settle()
        await self.some(tap, 4)
        await self.begin(tap)
        await self.some(tap, 5)
        if self.rng.random() < 0.7:
            await self.overflow(tap)
            await self.some(tap, 2)
            await tap.tracker.settle()
            await self.begin(tap)
            await self.some(tap, 3)
        cut = await self.cut(tap)
        self.released.add(cut.epoch)
        tap.tracker.release(cut.epoch, cut.segment)
        await self.some(tap, 4)
        await tap.stop()

    async def later(self, ports: OwnPorts) -> None:
        """A start, the check, some changes, and the check again."""
        tap = await self.start(ports)
        await tap.tracker.settle()
        self.check(tap)
        await self.some(tap, 4)
        # It may have become full.
        await tap.tracker.settle()
        self.check(tap)
        await tap.stop()

    async def begin(self, tap: TapEngine) -> None:
        self.epochs += 1
        epoch = epoch_of(self.epochs)
        await tap.begin(epoch)
        # One at a time: nothing is under way here.
        self.began[epoch] = copy(self.model)

    async def some(self, tap: TapEngine, count: int) -> None:
        """Changes, with flushes, cuts and pauses in which regions cool."""
        for number in range(count):
            await self.change(tap, self.rng.randrange(len(SIZES)), self._batch())
            if self.rng.random() < 0.3:
                await tap.flush(tap.disks[0])
            if number % 3 == 1 and tap.tracker.tracking is Tracking.ON:
                await self.cut(tap)
            if self.rng.random() < 0.5:
                await asyncio.sleep(CHECKPOINT_SECONDS * self.rng.choice((0.5, 1.1, 3)))

    async def overflow(self, tap: TapEngine) -> None:
        """Write until the log is full."""
        for _ in range(40):
            if tap.tracker.tracking is not Tracking.ON:
                return
            await self.change(tap, 0, [write(4 * KIB * self.rng.randrange(48), self.rng.randbytes(16 * KIB))])
        raise AssertionError("the log does not fill")

    async def change(self, tap: TapEngine, index: int, batch: list[Mutation]) -> None:
        done = tap.mutate(tap.disks[index], batch)
        if done is not None:
            await done
        for mutation in batch:
            assert mutation.error == 0, "I14: tracking costs the guest nothing"
            apply(self.model[index], mutation)

    async def cut(self, tap: TapEngine) -> Position:
        position = (await tap.cut(SealReason.COMMAND)).position
        self.cuts[position] = copy(self.model)
        return position

    def _batch(self) -> list[Mutation]:
        rng = self.rng
        match rng.randrange(6):
            case 0:
                return [zeroes(4 * KIB * rng.randrange(8), 32 * KIB, no_hole=rng.random() < 0.5)]
            case 1:
                return [trim(512 * rng.randrange(64), 8 * KIB), write(100 * KIB, rng.randbytes(20 * KIB))]
            case _:
                return [write(512 * rng.randrange(240), rng.randbytes(512 * rng.randrange(1, 12))) for _ in range(2)]

    # --- what must be true ------------------------------------------------------------------------------------------

    def adopt_disks(self) -> None:
        """After a kill, what was under way may be on the disks, wholly or in parts: the client sees what is there."""
        self.model = {index: bytearray(image) for index, image in self.world.images().items()}

    def check(self, tap: TapEngine) -> None:
        """I3: what differs from any cut that a bounded compare starts from is in the map; the log names the rest."""
        tracker, dirty = tap.tracker, tap.tracker.maps.dirty
        assert copy(self.model) == self.world.images()
        base = self.began.get(tracker.epoch)
        if tracker.tracking is Tracking.ON and tracker.epoch not in self.released and base is not None:
            result = replay(self.world.files, self.world.config, tracker.epoch, base)
            assert copy(result.images) == self.world.images(), "I3: the log does not lead to the disks' content"
        self.provable = 0
        self.bounded = []
        if dirty is None or not dirty.in_force or tracker.tracking is Tracking.LOST:
            return
        assert dirty.note.force is Force.COMPLETE
        now = self.world.images()
        if tracker.tracking is Tracking.ON:
            if base is None:
                # The beginning was not answered; what was changed since is in the log.
                return
            now = base
        for cut, image in self.cuts.items():
            if not dirty.note.base_segment <= cut.segment <= dirty.note.end_segment:
                continue
            if dirty.knows(cut.epoch, cut.segment, cut.chain):
                self.provable += 1
                self.bounded.append(cut)
                for index, content in now.items():
                    compared = bytearray(image[index])
                    for offset, length in dirty.file.ranges(index):
                        compared[offset : offset + length] = content[offset : offset + length]
                    assert bytes(compared) == content, f"R28: disk {index} differs from cut {cut} beside the map"
