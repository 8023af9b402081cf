"""The truth: what the guest wrote, in the order in which the tap numbered it, kept apart from everything under test.

The tap's own calls tell only *when* a write was numbered and when a cut was made; what the bytes are comes from the
guest. ``images`` are the disks after all numbered writes; every cut keeps a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocol.entries import EntryKind
from shared.nbd.backend import CommandKind, Mutation
from tests.simulation.disk import SECTOR

Images = tuple[bytes, ...]
Cut = tuple[bytes, int]
"""Epoch and number of the segment that the cut sealed."""


class Violation(AssertionError):
    """The product broke an invariant; the text begins with its name."""


@dataclass(slots=True, eq=False)
class Write:
    """One change by the guest. ``payload`` is None for zeroes and discards, which read as zeroes."""

    disk: int
    kind: CommandKind
    offset: int
    length: int
    payload: bytes | None
    numbered: bool = False
    answered: bool = False
    """The guest was told that it is done."""
    flushed: bool = False
    """A flush that began after the answer was answered, or it was done with FUA: it has to survive power loss."""
    mutation: Mutation | None = None

    def content(self) -> bytes:
        return bytes(self.length) if self.payload is None else self.payload

    def sector(self, index: int) -> bytes:
        """The bytes of the disk's sector ``index``, which lies in the range."""
        if self.payload is None:
            return bytes(SECTOR)
        start = index * SECTOR - self.offset
        return self.payload[start : start + SECTOR]


class Oracle:
    """Knows what each disk, and each cut, has to hold."""

    def __init__(self, images: Sequence[bytes]) -> None:
        self.images = [bytearray(image) for image in images]
        self.base = [bytes(image) for image in images]
        """The disks at the last start of the tap; ``order`` leads from there to ``images``."""
        self.order: list[Write] = []
        self.boot_base = list(self.base)
        """The disks at the last boot of their host."""
        self.history: list[Write] = []
        """All numbered writes since then, in order."""
        self.pending: list[Write] = []
        """Submitted but not numbered yet."""
        self.submitted: dict[int, Write] = {}
        """The writes since the last start of the tap, by the identities of their mutations."""
        self.cuts: dict[Cut, Images] = {}
        self.made_at: dict[Cut, float] = {}
        self._newest: Images = ()

    # --- writes ---

    def submit(self, write: Write) -> None:
        self.pending.append(write)
        self.submitted[id(write.mutation)] = write

    def number(self, write: Write) -> None:
        """The write has its place in the order now."""
        if write.numbered:
            return
        write.numbered = True
        self.pending.remove(write)
        self.order.append(write)
        self.history.append(write)
        self.images[write.disk][write.offset : write.offset + write.length] = write.content()

    def find_by_payload(self, payload: object) -> Write | None:
        """The pending write whose own buffer this is."""
        for write in self.pending:
            if write.payload is not None and payload is write.payload:
                return write
        return None

    def find_zeroes(self, kind: EntryKind, disk: int, offset: int, length: int) -> Write | None:
        """The first pending change to zeroes of that range: one that zeroes and one that discards it may be both."""
        command = CommandKind.ZEROES if kind is EntryKind.ZERO else CommandKind.TRIM
        for write in self.pending:
            if write.kind is command and (write.disk, write.offset, write.length) == (disk, offset, length):
                return write
        return None

    def find(self, mutation: Mutation) -> Write | None:
        """The write that the guest submitted as ``mutation``."""
        return self.submitted.get(id(mutation))

    def adopt(self, disk: int, offset: int, content: bytes) -> None:
        """A range is whatever the disk says: for writes that failed."""
        self.images[disk][offset : offset + len(content)] = content

    # --- cuts ---

    def cut(self, epoch: bytes, segment: int, now: float) -> None:
        """A cut is made at this moment. Every answered write must have its number by now (I2)."""
        late = [write for write in self.pending if write.answered]
        if late:
            raise Violation(f"I2: cut {segment} leaves out {len(late)} writes that were answered before it")
        images = tuple(bytes(image) for image in self.images)
        # Most cuts of a long convergence are the same: one copy will do.
        self._newest = images = self._newest if images == self._newest else images
        self.cuts[epoch, segment] = images
        self.made_at[epoch, segment] = now

    def check_cut(self, epoch: bytes, segment: int, found: Sequence[bytes], what: str, invariant: str = "I1") -> None:
        """``found`` must be the disks at that cut, all of them, wholly."""
        truth = self.cuts.get((epoch, segment))
        if truth is None:
            raise Violation(f"{invariant}: {what} is cut {epoch.hex()[:8]}/{segment}, which was never made")
        for index, (wanted, got) in enumerate(zip(truth, found, strict=True)):
            if wanted != got:
                raise Violation(
                    f"{invariant}: {what} is not cut {epoch.hex()[:8]}/{segment}: {difference(index, wanted, got)}"
                )

    # --- crashes ---

    def killed(self, found: Sequence[bytes]) -> None:
        """The tap was killed: every answered write must be on the disks, which are the truth from here on (R26)."""
        _check_survivors(self.base, self.order, self.images, found, lambda write: write.answered, "I2")
        self._restart(found)

    def lost_power(self, found: Sequence[bytes]) -> None:
        """The disks' host lost power: every flushed write must have survived (I4)."""
        _check_survivors(self.boot_base, self.history, self.images, found, lambda write: write.flushed, "I4")
        self._restart(found)
        self.boot_base = list(self.base)
        self.history = []

    def check_served(self, found: Sequence[bytes], what: str) -> None:
        """Disks that are in use: every answered write, and of others what the tap has got to."""
        _check_survivors(self.base, self.order, self.images, found, lambda write: write.answered, f"I1: {what}")

    def edited(self, disk: int, offset: int, content: bytes, found: Sequence[bytes]) -> None:
        """Somebody else wrote to a disk that no tap holds open, and synced it."""
        for write in self.history:
            write.flushed = write.flushed or write.disk == disk
        edit = Write(disk, CommandKind.WRITE, offset, len(content), content, numbered=True, flushed=True)
        self.history.append(edit)
        self._restart(found)

    def _restart(self, found: Sequence[bytes]) -> None:
        """What was not numbered never happened."""
        self.images = [bytearray(image) for image in found]
        self.base = [bytes(image) for image in found]
        self.order = []
        self.pending = []
        self.submitted = {}

    def check_disks(self, found: Sequence[bytes], what: str, invariant: str) -> None:
        """The disks must hold exactly what was written until now."""
        for index, (wanted, got) in enumerate(zip(self.images, found, strict=True)):
            if bytes(wanted) != got:
                raise Violation(f"{invariant}: {what}: {difference(index, bytes(wanted), got)}")


def _check_survivors(
    before: Sequence[bytes],
    order: Sequence[Write],
    latest: Sequence[bytearray],
    found: Sequence[bytes],
    certain: Callable[[Write], bool],
    invariant: str,
) -> None:
    """Each sector must hold its newest certain write, or any later one that was under way.

    What programs saw right before the crash, ``latest``, is always allowed, and what most sectors hold.
    """
    doubtful = [_sectors_that_differ(wanted, got) for wanted, got in zip(latest, found, strict=True)]
    if not any(doubtful):
        return
    candidates: dict[tuple[int, int], list[Write]] = {}
    settled: set[tuple[int, int]] = set()
    for write in order:
        sure = certain(write)
        for sector in range(write.offset // SECTOR, (write.offset + write.length) // SECTOR):
            place = (write.disk, sector)
            if sure:
                candidates[place] = [write]
                settled.add(place)
            else:
                candidates.setdefault(place, []).append(write)
    for disk, (image, base) in enumerate(zip(found, before, strict=True)):
        for sector in doubtful[disk]:
            place = (disk, sector)
            got = image[sector * SECTOR : (sector + 1) * SECTOR]
            old = base[sector * SECTOR : (sector + 1) * SECTOR]
            if got == old and place not in settled:
                continue
            allowed = [write.sector(sector) for write in candidates.get(place, ())]
            if place not in settled:
                allowed.append(old)
            if got not in allowed:
                raise Violation(
                    f"{invariant}: disk {disk}, sector {sector} holds {name(got)} after the crash; "
                    f"possible are {[name(one) for one in allowed]}"
                )


def _sectors_that_differ(wanted: bytes | bytearray, got: bytes) -> list[int]:
    if wanted == got:
        return []
    return [
        start // SECTOR
        for start in range(0, len(wanted), SECTOR)
        if wanted[start : start + SECTOR] != got[start : start + SECTOR]
    ]


def name(sector: bytes) -> str:
    """A short name of a sector's content."""
    if not any(sector):
        return "zeroes"
    return f"write {int.from_bytes(sector[:8], 'little')}"


def difference(disk: int, wanted: bytes, got: bytes) -> str:
    """Where two images of a disk differ, and what is there."""
    if len(wanted) != len(got):
        return f"disk {disk} has {len(got)} bytes instead of {len(wanted)}"
    sectors = _sectors_that_differ(wanted, got)
    first = sectors[0]
    start, end = first * SECTOR, (first + 1) * SECTOR
    return (
        f"disk {disk} differs in {len(sectors)} sectors, the first is {first}: "
        f"{name(got[start:end])} instead of {name(wanted[start:end])}"
    )
