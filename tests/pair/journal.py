"""Whether images of a VM's disks can be a cut: judged by nothing but what a client wrote, and when.

An image is no cut if a write is missing that was answered before one was sent that it shows, on whichever disk (I1,
I2). Only that is asked: writes that were under way at the same time may be in the cut, or not, in any combination.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tests.pair.content import MAGIC, SECTOR, content

Sents = NDArray[np.int64]
NOBODY = 0
"""Stands for the write that a sector shows, where it is as it was at the start."""
NEVER = np.iinfo(np.int64).max
CLOCK_DIGITS_NS = 1000
"""A time in seconds, as a status has it, is that exact."""


class NotACutError(AssertionError):
    """The images were never the state of the disks; the text has the proof."""


class Write(msgspec.Struct, frozen=True):
    """A line of the journal. ``sent`` and ``done`` are steps of one counter, greater than 0."""

    disk: int
    kind: str
    offset: int
    length: int
    number: int
    sent: int
    done: int
    sent_ns: int
    done_ns: int

    @property
    def sectors(self) -> slice:
        return slice(self.offset // SECTOR, (self.offset + self.length) // SECTOR)


@dataclass(frozen=True, slots=True)
class Seen:
    """One disk of an image: by sector, when the write was sent whose data it shows, and which sectors are zero."""

    sents: Sents
    zero: NDArray[np.bool_]


class Journal:
    """All writes of one client, one connection for each disk: of one disk the later one sent is the later one done."""

    def __init__(self, bases: Sequence[bytes], lines: Iterable[dict[str, Any]]) -> None:
        """``bases`` are the disks before the first write."""
        self.writes = sorted((msgspec.convert(line, Write) for line in lines), key=lambda write: write.sent)
        self._bases = [_sectors(base) for base in bases]
        self._zero_bases = [~base.any(axis=1) for base in self._bases]
        self._by_number = {write.number: write for write in self.writes}
        self._by_sent = {write.sent: write for write in self.writes}

    def judge(self, images: Sequence[bytes], sealed_time: float | None = None) -> int:
        """The ``sent`` of the newest write that the images must have. Raises NotACutError.

        With the time of the seal, the cut has to have what was answered before and nothing that was sent after.
        """
        sealed = int(sealed_time * 1e9) if sealed_time is not None else None
        seen = [self._see(disk, image) for disk, image in enumerate(images)]
        horizon = max(int(disk.sents.max()) for disk in seen)
        while True:
            # Zeroes don't tell who wrote them: they are taken for the oldest write that they can be of. Each one that
            # has to be in the cut may prove that others have to be.
            newest = horizon
            required = self._required(horizon, sealed)
            for index, disk in enumerate(seen):
                shown = np.where(disk.zero, self._oldest_zero(index, required[index]), disk.sents)
                self._compare(index, shown, required[index], horizon)
                newest = max(newest, int(shown.max()))
            if newest == horizon:
                break
            horizon = newest
        if sealed is not None and horizon and self._by_sent[horizon].sent_ns > sealed + CLOCK_DIGITS_NS:
            raise NotACutError(f"sealed at {sealed}, but {self._by_sent[horizon]} was sent after that")
        return horizon

    def _see(self, disk: int, image: bytes) -> Seen:
        """Who wrote what is there; content that nobody wrote there is no cut."""
        sectors, base = _sectors(image), self._bases[disk]
        sents = np.full(len(sectors), -1, np.int64)
        sents[(sectors == base).all(axis=1)] = NOBODY
        zero: NDArray[np.bool_] = np.logical_not(sectors.any(axis=1))
        sents[zero] = NOBODY
        marks = np.ascontiguousarray(sectors[:, :16]).view("<u8")
        marked = marks[:, 0] == int.from_bytes(MAGIC, "little")
        for number in np.unique(marks[marked, 1]).tolist():
            places = np.flatnonzero(marked & (marks[:, 1] == number))
            write = self._by_number.get(number)
            if write is None or write.disk != disk or write.kind != "data":
                raise NotACutError(f"disk {disk}, sector {places[0]}: nobody wrote number {number:#x} there")
            wrote = _sectors(content(number, write.length))
            inside = places - write.sectors.start
            if inside[0] < 0 or inside[-1] >= len(wrote) or not np.array_equal(wrote[inside], sectors[places]):
                raise NotACutError(f"disk {disk}, sectors {places[0]} to {places[-1]}: not as written by {write}")
            sents[places] = write.sent
        if (unknown := np.flatnonzero(sents < 0)).size:
            raise NotACutError(f"disk {disk}, sector {unknown[0]}: nobody wrote that")
        return Seen(sents, zero)

    def _required(self, horizon: int, sealed: int | None) -> list[Sents]:
        """By disk and sector, the newest write that was answered before the one of the horizon was sent."""
        required = [np.full(len(base), NOBODY, np.int64) for base in self._bases]
        for write in self.writes:
            if write.done < horizon or (sealed is not None and write.done_ns < sealed - CLOCK_DIGITS_NS):
                required[write.disk][write.sectors] = write.sent
        return required

    def _oldest_zero(self, disk: int, required: Sents) -> Sents:
        """By sector, the oldest write that zeroed it and was not overwritten by one that is required."""
        oldest = np.full(len(required), NEVER, np.int64)
        for write in reversed(self.writes):
            if write.disk == disk and write.kind != "data":
                part = write.sectors
                oldest[part] = np.where(required[part] <= write.sent, write.sent, oldest[part])
        oldest[self._zero_bases[disk] & (required == NOBODY)] = NOBODY
        return np.where(oldest == NEVER, -1, oldest)

    def _compare(self, disk: int, shown: Sents, required: Sents, horizon: int) -> None:
        wrong = np.flatnonzero(shown < required)
        if not wrong.size:
            return
        sector = int(wrong[0])
        if shown[sector] < NOBODY:
            raise NotACutError(f"disk {disk}, sector {sector} (and {wrong.size - 1} more): nobody zeroed that")
        old = self._by_sent.get(int(shown[sector]), "what was there at the start")
        raise NotACutError(
            f"disk {disk}, sector {sector} (and {wrong.size - 1} more) shows {old}, which was overwritten by "
            f"{self._by_sent[int(required[sector])]}; but the cut has {self._by_sent.get(horizon)}"
        )


def _sectors(data: bytes | bytearray) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(-1, SECTOR)
