"""The image of a cut, from disks that are written while they are read (R46): what to do next, and what is exact then.

No I/O: :meth:`LiveImage.steps` says what to do, one step after the other, and whoever does it feeds what was read and
the log's entries back. It rests on two facts of the tap. An entry is in the log before the disk changes, and at the
moments that a ``Follow`` goes to everything that is logged is on the disks.

Blocks are read and hashed in passes. Each pass after the first reads only what was touched since the one before
began, until that is little. Then comes the end: these blocks are kept with their content, a cut is sealed, and each
kept block is brought to the cut with the entries since its pass began, in order. A byte of it is right then if it was
read before the cut, or was written up to the cut as well where it was written between the cut and its reading. Blocks
that are touched late, after the others were kept and before the cut, are read behind the cut; where one of them was
changed there in a part that the log up to the cut does not bring, a later cut is taken.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

from primary_agent.block_map import BlockMap
from shared.disks.leaves import UNREADABLE, leaf

KEEP_FEW = 1024
"""With so many touched blocks, or fewer, another pass gains nothing."""
KEEP_MOST = 65536
"""Blocks that are kept with their content at most."""
PASSES = 40
CUTS = 8
"""Cuts that are taken at the end of one pass at most."""
SHRINKS = 0.7
"""A pass is worth it where it leaves less than this part of the blocks before."""

Buffer = bytes | bytearray | memoryview
Place = tuple[int, int]
"""Disk and block."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Go to a moment at which all that is logged is on the disks; give every entry up to it to ``logged``."""


@dataclass(frozen=True, slots=True)
class Hash:
    """Read these blocks of each disk and give their leaves to ``hashed``. The log may be followed meanwhile."""

    blocks: dict[int, BlockMap]


@dataclass(frozen=True, slots=True)
class Mark:
    """A replay begins where the log was followed to just now."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Read these blocks and give their contents to ``keep``."""

    blocks: list[Place]


@dataclass(frozen=True, slots=True)
class Cut:
    """Seal a cut; give every entry up to it to ``logged``."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Give every entry from the mark up to the cut to ``overlay``, in order."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Call ``finish``: the leaves of the kept blocks are made. What the newest cut is stays it."""


Step = Follow | Hash | Mark | Keep | Cut | Replay | Finish


class Leaves(Protocol):
    """Where the leaves of all blocks are."""

    def write(self, disk: int, first: int, leaves: Buffer) -> None: ...


class Kept(Protocol):
    """Where the contents of kept blocks are, by slots."""

    def write(self, slot: int, at: int, data: Buffer) -> None: ...

    def read(self, slot: int, length: int) -> bytes: ...


class NotSettledError(Exception):
    """The guest writes faster than the disks can be read."""


class LiveImage:
    """Makes the leaves of the blocks in ``scope`` (of whole disks for None) as of a cut to come."""

    def __init__(
        self, sizes: dict[int, int], block_size: int, leaves: Leaves, kept: Kept, scope: dict[int, BlockMap] | None
    ) -> None:
        self._sizes = sizes
        self._block_size = block_size
        self._leaves = leaves
        self._kept = kept
        self._scope = scope
        self._touched = self._empty()
        """Blocks touched since the pass that is under way began, in or out of scope."""
        self._slots: dict[Place, int] = {}
        self._unread: set[Place] = set()
        """Kept blocks that could not be read."""
        self._late: dict[Place, Parts] = {}
        """What of other blocks was written since the mark, up to the cut or to where the log was followed."""
        self._checked: dict[Place, Parts] | None = None
        """The late blocks that are being read behind the cut."""
        self._ending = False
        self._flooded = False
        self._missed = False

    # --- what to do ------------------------------------------------------------------------------------------------

    def steps(self) -> Generator[Step]:
        """What to do, each step when the one before is done. Raises NotSettledError."""
        yield Follow()
        todo = self._scope if self._scope is not None else self._empty(full=True)
        self._touched = self._empty()
        count, before = _count(todo), 0
        for _ in range(PASSES):
            if count > KEEP_FEW and (not before or count < SHRINKS * before or count > KEEP_MOST // 2):
                yield Hash(todo)
                yield Follow()
            elif (yield from self._end(todo)):
                return
            todo, self._touched = self._in_scope(self._touched), self._empty()
            before, count = count, _count(todo)
        raise NotSettledError(
            f"{count} blocks were written while {before} were read: no cut can be told from the others"
        )

    def _end(self, todo: dict[int, BlockMap]) -> Generator[Step, None, bool]:
        """Bring what is left to a cut; False where it is too much: all of it is touched then, and the log followed."""
        self._slots, self._late, self._unread = {}, {}, set()
        self._flooded, self._ending = False, True
        try:
            yield Mark()
            yield from self._keep([(disk, block) for disk, blocks in todo.items() for block in _each(blocks)])
            for _ in range(CUTS):
                yield Cut()
                if self._flooded:
                    break
                if not self._late or (yield from self._read_late()):
                    yield Replay()
                    yield Finish()
                    return True
        finally:
            self._ending = False
        for disk, blocks in todo.items():
            self._touched[disk].merge(blocks)
        yield Follow()
        return False

    def _read_late(self) -> Generator[Step, None, bool]:
        """Read behind the cut what was touched late; whether the log up to the cut makes that exact."""
        self._checked, self._late, self._missed = self._late, {}, False
        checked = self._checked
        # What was wholly written since the mark needs no reading.
        yield from self._keep([place for place in checked if not checked[place].covers(0, self._length(place))])
        for place in checked:
            self._slots.setdefault(place, len(self._slots))
        yield Follow()
        self._checked = None
        return not self._missed and not self._flooded

    def _keep(self, places: list[Place]) -> Generator[Step]:
        for place in places:
            self._slots[place] = len(self._slots)
        if places:
            yield Keep(places)

    # --- what was read -----------------------------------------------------------------------------------------------

    def hashed(self, disk: int, first: int, leaves: Buffer) -> None:
        """The leaves of blocks from ``first`` on."""
        self._leaves.write(disk, first, leaves)

    def keep(self, disk: int, block: int, content: Buffer | None) -> None:
        """The content of a block; None where it can't be read."""
        if content is None:
            self._unread.add((disk, block))
        else:
            self._kept.write(self._slots[disk, block], 0, content)

    # --- what was logged -------------------------------------------------------------------------------------------

    def logged(self, disk: int, offset: int, length: int) -> None:
        """An entry of the log, in order."""
        first, end = offset // self._block_size, -(-(offset + length) // self._block_size)
        self._touched[disk].add(first, end)
        if not self._ending or self._flooded:
            return
        if end - first + len(self._slots) + len(self._late) > KEEP_MOST:
            self._flooded = True
            return
        for place, start, stop in self._parts(disk, offset, length):
            if self._checked is not None and place in self._checked:
                # Read behind the cut: it may hold this write, which the cut does not.
                self._missed = self._missed or not self._checked[place].covers(start, stop)
            elif place not in self._slots and self._wants(place):
                self._late.setdefault(place, Parts()).add(start, stop)

    def overlay(self, disk: int, offset: int, length: int, payload: Buffer | None) -> None:
        """An entry between mark and cut, in order; ``payload`` is None for zeroes."""
        for place, start, stop in self._parts(disk, offset, length):
            slot = self._slots.get(place)
            if slot is None:
                continue
            at = place[1] * self._block_size + start - offset
            data = bytes(stop - start) if payload is None else payload[at : at + stop - start]
            self._kept.write(slot, start, data)

    def finish(self) -> None:
        """Make the leaves of the kept blocks."""
        for place, slot in self._slots.items():
            made = UNREADABLE if place in self._unread else leaf(self._kept.read(slot, self._length(place)))
            self._leaves.write(*place, made)

    # --- inner parts -----------------------------------------------------------------------------------------------

    def _parts(self, disk: int, offset: int, length: int) -> Iterator[tuple[Place, int, int]]:
        """A range as parts of blocks: the block, and start and end in it."""
        size, end = self._block_size, offset + length
        for block in range(offset // size, -(-end // size)):
            base = block * size
            yield (disk, block), max(offset, base) - base, min(end, base + size) - base

    def _length(self, place: Place) -> int:
        disk, block = place
        return min(self._block_size, self._sizes[disk] - block * self._block_size)

    def _wants(self, place: Place) -> bool:
        return self._scope is None or (place[0] in self._scope and place[1] in self._scope[place[0]])

    def _empty(self, *, full: bool = False) -> dict[int, BlockMap]:
        return {disk: BlockMap(-(-size // self._block_size), full=full) for disk, size in self._sizes.items()}

    def _in_scope(self, blocks: dict[int, BlockMap]) -> dict[int, BlockMap]:
        if self._scope is None:
            return blocks
        kept = self._empty()
        for disk in self._scope:
            for block in _each(self._scope[disk]):
                if block in blocks[disk]:
                    kept[disk].add(block, block + 1)
        return kept


class Parts:
    """Parts of one block, as ranges in order and apart."""

    __slots__ = ("ranges",)

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def add(self, start: int, stop: int) -> None:
        """Put a range to them."""
        apart = []
        for low, high in self.ranges:
            if high < start or low > stop:
                apart.append((low, high))
            else:
                start, stop = min(low, start), max(high, stop)
        self.ranges = sorted([*apart, (start, stop)])

    def covers(self, start: int, stop: int) -> bool:
        """Whether a range lies wholly in them."""
        return any(low <= start and stop <= high for low, high in self.ranges)


def _each(blocks: BlockMap) -> Iterator[int]:
    for first, end in blocks.runs():
        yield from range(first, end)


def _count(blocks: dict[int, BlockMap]) -> int:
    return sum(map(len, blocks.values()))
