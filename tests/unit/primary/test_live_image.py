"""The image of a cut from disks that change while they are read: exact in every interleaving, or no image (R46)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import pytest

from primary_agent import live_image
from primary_agent.block_map import BlockMap
from primary_agent.live_image import Cut, Finish, Follow, Hash, Keep, LiveImage, Mark, NotSettledError, Replay
from shared.disks.leaves import LEAF_BYTES, UNREADABLE, leaf

BLOCK = 8
SIZES = {0: 7 * BLOCK + 3, 4: 5 * BLOCK}


@dataclass
class Entry:
    """A write: ``payload`` None for zeroes."""

    disk: int
    offset: int
    length: int
    payload: bytes | None


class Memory:
    """Leaves and kept contents in memory."""

    def __init__(self) -> None:
        self.leaves = {disk: bytearray(-(-size // BLOCK) * LEAF_BYTES) for disk, size in SIZES.items()}
        self.slots: dict[int, bytearray] = {}

    def write(self, disk: int, first: int, leaves: bytes | bytearray | memoryview) -> None:
        self.leaves[disk][first * LEAF_BYTES : first * LEAF_BYTES + len(leaves)] = leaves


class Slots:
    def __init__(self) -> None:
        self.slots: dict[int, bytearray] = {}

    def write(self, slot: int, at: int, data: bytes | bytearray | memoryview) -> None:
        self.slots.setdefault(slot, bytearray(BLOCK))[at : at + len(data)] = data

    def read(self, slot: int, length: int) -> bytes:
        return bytes(self.slots.setdefault(slot, bytearray(BLOCK))[:length])


@dataclass
class World:
    """A guest with a tap: its log, its disks, which follow the log, and the truth at each cut.

    A long zeroing is logged at once and comes to the disk piece by piece; nothing else is written meanwhile.
    """

    rng: random.Random
    busy: float
    hot: int
    bad: set[tuple[int, int]] = field(default_factory=set)
    log: list[Entry] = field(default_factory=list)
    pending: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.disks = {disk: bytearray(self.rng.randbytes(size)) for disk, size in SIZES.items()}
        self.model = {disk: bytearray(content) for disk, content in self.disks.items()}

    def run(self) -> None:
        """The guest has its turn, now and then."""
        while self.rng.random() < self.busy:
            if self.pending:
                disk, at = self.pending.pop()
                self.disks[disk][at] = 0
                continue
            disk = self.rng.choice(list(SIZES))
            size = SIZES[disk]
            offset = self.rng.randrange(min(size, self.hot) if self.rng.random() < 0.7 else size)
            length = min(self.rng.choice((1, 2, 3, BLOCK, 2 * BLOCK)), size - offset)
            payload = None if self.rng.random() < 0.3 else self.rng.randbytes(length)
            self.log.append(Entry(disk, offset, length, payload))
            self.model[disk][offset : offset + length] = payload or bytes(length)
            if payload is None and self.rng.random() < 0.5:
                self.pending = [(disk, at) for at in range(offset, offset + length)]
                self.rng.shuffle(self.pending)
            else:
                self.disks[disk][offset : offset + length] = payload or bytes(length)

    def settle(self) -> None:
        while self.pending:
            disk, at = self.pending.pop()
            self.disks[disk][at] = 0

    def read(self, disk: int, block: int) -> bytes | None:
        """Byte for byte, with the guest at work between them."""
        if (disk, block) in self.bad:
            return None
        found = bytearray()
        for at in range(block * BLOCK, min((block + 1) * BLOCK, SIZES[disk])):
            self.run()
            found.append(self.disks[disk][at])
        return bytes(found)


@dataclass
class Outcome:
    """What came out: the leaves, and the truth at the cut."""

    leaves: dict[int, bytearray]
    truth: dict[int, bytes]
    cuts: int
    late: bool


def build(
    world: World, scope: dict[int, BlockMap] | None = None, kind: Callable[..., LiveImage] = LiveImage
) -> Outcome:
    memory, slots = Memory(), Slots()
    image = kind(SIZES, BLOCK, memory, slots, scope)
    followed = mark = cut = cuts = 0
    truth: dict[int, bytes] = {}
    late = False

    def follow() -> None:
        nonlocal followed
        for entry in world.log[followed:]:
            image.logged(entry.disk, entry.offset, entry.length)
        followed = len(world.log)

    for step in image.steps():
        world.run()
        match step:
            case Follow():
                world.settle()
                follow()
            case Hash(blocks):
                for disk, chosen in blocks.items():
                    for first, end in chosen.pieces(2):
                        read = [world.read(disk, block) for block in range(first, end)]
                        image.hashed(disk, first, b"".join(UNREADABLE if b is None else leaf(b) for b in read))
                        if world.rng.random() < 0.2:
                            follow()
            case Mark():
                mark = followed
            case Keep(blocks):
                late = late or cuts > 0
                for disk, block in blocks:
                    image.keep(disk, block, world.read(disk, block))
            case Cut():
                cut, cuts = len(world.log), cuts + 1
                truth = {disk: bytes(content) for disk, content in world.model.items()}
                follow()
            case Replay():
                for entry in world.log[mark:cut]:
                    image.overlay(entry.disk, entry.offset, entry.length, entry.payload)
            case Finish():
                image.finish()
    return Outcome(memory.leaves, truth, cuts, late)


def blocks_of(outcome: Outcome) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Disk, block, the leaf that was made, and that of the truth."""
    for disk, size in SIZES.items():
        for block in range(-(-size // BLOCK)):
            made = bytes(outcome.leaves[disk][block * LEAF_BYTES : (block + 1) * LEAF_BYTES])
            yield disk, block, made, leaf(outcome.truth[disk][block * BLOCK : (block + 1) * BLOCK])


def world_of(seed: int) -> World:
    rng = random.Random(seed)
    return World(rng, rng.choice((0.0, 0.02, 0.05, 0.1, 0.2)), rng.choice((4, BLOCK, 40)))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few blocks are kept, so that there are passes."""
    monkeypatch.setattr(live_image, "KEEP_FEW", 3)


def wrong(kind: Callable[..., LiveImage], seeds: range) -> tuple[int, int, int]:
    """In how many seeds a leaf is not that of the cut; how many took several cuts, and how many had late blocks."""
    found = several = late = 0
    for seed in seeds:
        try:
            outcome = build(world_of(seed), kind=kind)
        except NotSettledError:
            continue
        found += any(made != true for _, _, made, true in blocks_of(outcome))
        several += outcome.cuts > 1
        late += outcome.late
    return found, several, late


@pytest.mark.usefixtures("passes")
def test_every_leaf_is_that_of_the_cut() -> None:
    found, several, late = wrong(LiveImage, range(1500))
    assert found == 0
    # The interesting ways were gone.
    assert several > 20
    assert late > 50


def test_disks_that_are_kept_whole_are_exact_too() -> None:
    assert wrong(LiveImage, range(500))[0] == 0


@pytest.mark.usefixtures("passes")
def test_scope_is_exact_and_nothing_else_is_touched() -> None:
    for seed in range(500):
        world = world_of(seed)
        scope = {disk: BlockMap(-(-size // BLOCK)) for disk, size in SIZES.items()}
        for _ in range(world.rng.randrange(1, 4)):
            disk = world.rng.choice(list(SIZES))
            block = world.rng.randrange(scope[disk].blocks)
            scope[disk].add(block, block + 1)
        outcome = build(world, scope)
        for disk, block, made, true in blocks_of(outcome):
            assert made == (true if block in scope[disk] else bytes(LEAF_BYTES)), (seed, disk, block)


@pytest.mark.usefixtures("passes")
def test_unreadable_block_never_has_a_leaf_of_content() -> None:
    for seed in range(300):
        world = world_of(seed)
        world.bad = {(0, 2), (4, 0)}
        for disk, block, made, true in blocks_of(build(world)):
            # One that the guest has wholly rewritten since is known without being read.
            assert made in ((UNREADABLE, true) if (disk, block) in world.bad else (true,)), (seed, disk, block)


@pytest.mark.usefixtures("passes")
def test_flood_at_the_end_costs_a_pass_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_image, "KEEP_MOST", 5)
    assert wrong(LiveImage, range(400))[0] == 0


def test_guest_that_is_too_fast_is_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_image, "KEEP_FEW", 0)
    monkeypatch.setattr(live_image, "KEEP_MOST", 2)
    with pytest.raises(NotSettledError, match="blocks were written"):
        build(World(random.Random(1), 0.9, 60))


# --- what the test is worth: each rule that is left out is found ---------------------------------------------------


class Unordered(LiveImage):
    """The entries are not laid over in order."""

    def finish(self) -> None:
        for entry in reversed(self.seen):
            super().overlay(*entry)
        super().finish()

    def overlay(self, disk: int, offset: int, length: int, payload: bytes | bytearray | memoryview | None) -> None:
        self.seen.append((disk, offset, length, payload))

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # as it came
        self.seen: list[tuple[int, int, int, bytes | bytearray | memoryview | None]] = []


class Trusting(LiveImage):
    """What a late block holds from behind the cut is not looked at."""

    def _read_late(self) -> Generator[live_image.Step, None, bool]:
        yield from super()._read_late()
        self._late = {}
        return True


class Unlaid(LiveImage):
    """Kept blocks stay as they were read."""

    def overlay(self, disk: int, offset: int, length: int, payload: bytes | bytearray | memoryview | None) -> None:
        pass


class Unlate(LiveImage):
    """Blocks that are touched late are not read."""

    def logged(self, disk: int, offset: int, length: int) -> None:
        super().logged(disk, offset, length)
        self._late = {}


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("kind", [Unordered, Trusting, Unlaid, Unlate])
def test_rule_that_is_left_out_is_found(kind: Callable[..., LiveImage]) -> None:
    assert any(wrong(kind, range(seed, seed + 50))[0] for seed in range(0, 3000, 50))


# --- block maps ----------------------------------------------------------------------------------------------------


def test_block_map_is_a_set() -> None:
    rng = random.Random(5)
    for _ in range(300):
        blocks = rng.choice((1, 7, 8, 9, 100, 1000))
        ours, model = BlockMap(blocks), set[int]()
        for _ in range(rng.randrange(6)):
            first = rng.randrange(blocks)
            end = rng.randrange(first, blocks + 3)
            ours.add(first, end)
            model |= set(range(first, min(end, blocks)))
        assert {block for first, end in ours.runs() for block in range(first, end)} == model
        assert len(ours) == len(model)
        assert all((block in ours) == (block in model) for block in range(blocks))
        runs = list(ours.runs())
        assert all(end < first for (_, end), (first, _) in itertools.pairwise(runs))
        cut = list(ours.pieces(8))
        assert {block for first, end in cut for block in range(first, end)} == model
        assert all(first // 8 == (end - 1) // 8 for first, end in cut)


def test_block_map_of_many_chunks() -> None:
    ours = BlockMap(3_000_000)
    ours.add(500_000, 1_100_000)
    ours.add(2_999_999, 3_000_000)
    assert list(ours.runs()) == [(500_000, 1_100_000), (2_999_999, 3_000_000)]
    assert len(BlockMap(3_000_000, full=True)) == 3_000_000
