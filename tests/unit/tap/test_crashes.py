"""Kills the tap in every call of a port, also while it recovers: the log names what changed, or says it can't (I3)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from primary_agent.tap import batches, disks, log
from primary_agent.tap import engine as engine_module
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.ports import OwnPorts
from primary_agent.tap.tracker import Tracker
from protocol.hrl import SealReason
from protocol.position import Position
from shared.nbd.backend import Mutation
from shared.tap_control import LostReason, Tracking
from tests.places import is_thorough, step
from tests.unit.tap.rig import EPOCH, KIB, OTHER_EPOCH, Images, apply, copy, make_config, replay, trim, write, zeroes
from tests.unit.tap.world import World

SIZES = (192 * KIB, 128 * KIB)
LOG_FILE = 96 * KIB


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done in several steps only where it is large is done so already where it is small."""
    for module in (batches, log, disks):
        monkeypatch.setattr(module, "MAX_PAYLOAD", 16 * KIB)
    monkeypatch.setattr(disks, "READ_BYTES", 1)
    monkeypatch.setattr(batches, "INLINE_ZEROES", 32 * KIB)
    monkeypatch.setattr(engine_module, "INLINE_ZEROES", 32 * KIB)
    monkeypatch.setattr(disks, "STEP_MIN", 16 * KIB)
    monkeypatch.setattr(disks, "STEP_MAX", 16 * KIB)
    monkeypatch.setattr(disks, "STEPS_AT_ONCE", 1)


class Story:
    """A tap's life as its client sees it: the model follows the order in which changes were handed over."""

    def __init__(self, seed: int, *, log_limit: int = 64 << 20) -> None:
        config = make_config("/vm", SIZES, log_file_bytes=LOG_FILE, log_limit_bytes=log_limit)
        self.world = World(config, seed)
        self.rng = random.Random(seed)
        self.base = self.world.images()
        self.model: Images = {index: bytearray(image) for index, image in self.base.items()}
        self.began: dict[int, bytes] | None = None
        self.cuts: dict[Position, list[dict[int, bytes]]] = {}
        """What each cut may hold: a change that was under way is wholly in, or wholly out (I2)."""
        self.compared = 0
        self.statuses: list[tuple[Tracking, LostReason | None]] = []

    async def first_life(self, ports: OwnPorts) -> None:
        """Some changes before tracking, many while it is on, cuts among them, and an orderly stop."""
        tap = await self._start(ports)
        await self._change(tap, 0, [write(0, b"before" + bytes(506))])
        await tap.begin(EPOCH)
        self.began = copy(self.model)
        for number in range(14):
            await self._change(tap, self.rng.randrange(2), self._some())
            if number % 4 == 1:
                await tap.flush(tap.disks[0])
            if number % 5 == 3:
                await self._cut(tap)
        await tap.stop()

    async def later_life(self, ports: OwnPorts) -> None:
        """A start, some changes, a cut, an orderly stop."""
        tap = await self._start(ports)
        for _ in range(4):
            await self._change(tap, self.rng.randrange(2), self._some())
        if tap.tracker.tracking is Tracking.ON:
            await self._cut(tap)
        await tap.tracker.settle()
        if tap.tracker.tracking is Tracking.MAP:
            self._compare(tap)
        await tap.stop()

    def _compare(self, tap: TapEngine) -> None:
        """I3, R28: from whichever cut the map can be used, what it leaves out is equal."""
        dirty, now = tap.tracker.maps.dirty, self.world.images()
        assert dirty is not None and dirty.is_complete(tap.tracker.epoch)
        for cut, allowed in self.cuts.items():
            if cut.segment < dirty.note.base_segment or not dirty.knows(cut.epoch, cut.segment, cut.chain):
                continue
            self.compared += 1
            images = [{index: bytearray(image) for index, image in one.items()} for one in allowed]
            for image in images:
                for index, content in now.items():
                    for offset, length in dirty.file.ranges(index):
                        image[index][offset : offset + length] = content[offset : offset + length]
            assert now in [copy(image) for image in images], f"cut {cut} differs beside the map"

    async def _start(self, ports: OwnPorts) -> TapEngine:
        tap = TapEngine(self.world.folder, self.world.config, ports)
        await tap.start()
        self.statuses.append(status_of(tap.tracker))
        return tap

    async def _change(self, tap: TapEngine, index: int, batch: list[Mutation]) -> None:
        stages = [copy(self.model)]
        done = tap.mutate(tap.disks[index], batch)
        for mutation in batch:
            apply(self.model[index], mutation)
            stages.append(copy(self.model))
        if done is not None:
            if self.rng.random() < 0.7 and tap.tracker.tracking is Tracking.ON:
                for _ in range(self.rng.randrange(4)):
                    await asyncio.sleep(0)
                await self._cut(tap, stages)
            await done
        assert [mutation.error for mutation in batch] == [0] * len(batch)

    async def _cut(self, tap: TapEngine, allowed: list[dict[int, bytes]] | None = None) -> None:
        allowed = allowed or [copy(self.model)]
        cut = await tap.cut(SealReason.COMMAND)
        self.cuts[cut.position] = allowed

    def _some(self) -> list[Mutation]:
        """A batch: small writes, neighbours, one that needs several log files, zeroes and trims, short and long."""
        rng = self.rng
        match rng.randrange(6):
            case 0:
                return [zeroes(4 * KIB * rng.randrange(8), 64 * KIB, no_hole=rng.random() < 0.5)]
            case 1:
                return [write(0, rng.randbytes(120 * KIB)), trim(512 * rng.randrange(64), 8 * KIB)]
            case 2:
                start = 512 * rng.randrange(64)
                return [write(start + 4 * KIB * n, rng.randbytes(4 * KIB)) for n in range(4)]
            case _:
                return [write(512 * rng.randrange(200), rng.randbytes(512 * rng.randrange(1, 16))) for _ in range(3)]

    def check(self) -> None:
        """Every cut that was told holds, and the log leads from where it began to what the disks hold now."""
        assert self.began is not None
        result = replay(self.world.files, self.world.config, EPOCH, self.began)
        for position, allowed in self.cuts.items():
            assert result.cuts[position] in allowed, f"I1, I2: cut {position}"
        assert copy(result.images) == self.world.images(), "I3: the log does not lead to the disks' content"
        assert copy(self.model) == self.world.images(), "what the client was told is not on the disks"

    def adopt_disks(self) -> None:
        """After a kill, what was under way may be on the disks, wholly or in parts: the client sees what is there."""
        self.model = {index: bytearray(image) for index, image in self.world.images().items()}


def status_of(tracker: Tracker) -> tuple[Tracking, LostReason | None]:
    return tracker.tracking, tracker.loss.reason if tracker.loss else None


@pytest.fixture
def story(request: pytest.FixtureRequest) -> Iterator[Story]:
    story = Story(getattr(request, "param", 0))
    yield story
    story.world.close()


def operations(seed: int) -> int:
    """How many calls of ports the first life makes."""
    story = Story(seed)
    assert story.world.run(story.first_life)
    count = story.world.process.operations
    story.check()
    story.world.close()
    return count


def test_undisturbed_story(story: Story) -> None:
    """I1, I2: cuts and log are what the client did, through orderly stops and starts."""
    assert story.world.run(story.first_life)
    story.check()
    assert len(story.cuts) >= 3
    assert story.world.run(story.later_life)
    story.check()
    assert story.statuses == [(Tracking.OFF, None), (Tracking.ON, None)]


@pytest.mark.parametrize("seed, places", [(0, 2), (1, 5), (2, 5)])
@pytest.mark.slow
def test_killed_anywhere(seed: int, places: int) -> None:
    """I3, R26: after a kill in any call, tracking goes on and the log names all that changed since it began."""
    for die_at in range(1, operations(seed), step(3 * places, all_places=places)):
        killed_at(seed, die_at)


@pytest.mark.parametrize("places", [12, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_some_places(places: int) -> None:
    """I3, R26: the quick version of the one above."""
    total = operations(7)
    for die_at in range(3, total, max(1, total // places)):
        killed_at(7, die_at)


def killed_at(seed: int, *die_at: int) -> None:
    """Live the first life and its successors, killed in these calls; then two whole later lives, and check.

    Two, for what the first one writes has to be found again.
    """
    story = Story(seed)
    try:
        assert not story.world.run(story.first_life, die_at=die_at[0])
        was_on = story.began is not None
        story.adopt_disks()
        for again in die_at[1:]:
            story.world.run(story.later_life, die_at=again)
            story.adopt_disks()
        for _ in range(2):
            assert story.world.run(story.later_life)
        if was_on:
            assert story.statuses[-1] == (Tracking.ON, None), (die_at, story.statuses)
            story.check()
        else:
            # The beginning was never answered: it may have taken place or not, but nothing in between.
            assert story.statuses[-1][1] in (None, LostReason.LOG_DAMAGED, LostReason.BEGIN_FAILED), die_at
    except BaseException as error:
        error.add_note(f"seed {seed}, killed in calls {die_at}")
        raise
    finally:
        story.world.close()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.slow
def test_killed_again_while_recovering(seed: int) -> None:
    """I3: a second and a third kill during recovery leave the same groups in doubt as the first."""
    total = operations(seed)
    rng = random.Random(seed)
    for _ in range(120 if is_thorough() else 40):
        killed_at(seed, rng.randrange(3, total), rng.randrange(3, 90), rng.randrange(3, 60))


@pytest.mark.parametrize("seed", range(4))
def test_power_loss_ends_in_resync_required(seed: int) -> None:
    """I3, R3, R16: after power loss the log goes on no more; what is in doubt is in the dirty map, from any cut on."""
    total = operations(seed)
    story = Story(seed)
    assert not story.world.run(story.first_life, die_at=total // 2 + seed)
    story.world.lose_power()
    story.adopt_disks()
    assert story.world.run(story.later_life)
    assert story.statuses[-1] == (Tracking.MAP, LostReason.UNCLEAN_STOP)
    assert story.compared > 0 or not story.cuts
    story.world.close()


def test_power_loss_after_an_orderly_stop(story: Story) -> None:
    """I3, R16: CLEAN is durable, and so is all that it promises."""
    assert story.world.run(story.first_life)
    story.world.lose_power()
    assert story.world.run(story.later_life)
    assert story.statuses[-1] == (Tracking.ON, None)
    story.check()


def test_new_epoch_after_a_kill(story: Story) -> None:
    """A second baseline begins afresh, and its log replays by itself."""

    async def second_baseline(ports: OwnPorts) -> None:
        tap = await story._start(ports)
        await tap.begin(OTHER_EPOCH)
        before = copy(story.model)
        await story._change(tap, 1, [write(0, b"x" * 4096)])
        await story._cut(tap)
        await tap.stop()
        result = replay(story.world.files, story.world.config, OTHER_EPOCH, before)
        assert copy(result.images) == copy(story.model)
        assert [position.segment for position in result.cuts] == [1, 2]

    assert not story.world.run(story.first_life, die_at=operations(0) - 30)
    story.adopt_disks()
    assert story.world.run(second_baseline)
