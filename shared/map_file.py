"""Map files: which regions of a VM's disks are in doubt, as durable bitmaps; the hot-region map and the dirty map.

One format serves both; they differ in the size of a region and in what their note says. ``docs/maps.md`` gives the byte
layout. A file is preallocated, so that writing it never needs space, and is written page by page with pwrite (R47).
Everything that touches the file blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum

import numpy as np
import xxhash

from protocol.hrl import MAX_DISKS, Geometry
from shared.ports import File, FileSystem

PAGE = 4096
MAGIC = b"VMRMAP\x01\n"
NOTE_SLOTS = 2
FIRST_BITMAP_PAGE = 1 + NOTE_SLOTS
PAYLOAD = PAGE - 8
BITS = PAYLOAD * 8
"""Regions of one bitmap page."""

_HEADER = struct.Struct("<8sBBH4x16s")
_DISK = struct.Struct("<I4xQ")
_NOTE = struct.Struct("<QI4x")
_CHECK = struct.Struct("<Q")
NOTE_MAX = PAGE - _NOTE.size - _CHECK.size
_EMPTY = bytes(PAYLOAD)
ANNEX_PAGES = 64
"""Pages behind the bitmaps, for a list that goes with them."""
ANNEX_MAX = ANNEX_PAGES * PAGE - 16
assert _HEADER.size + MAX_DISKS * _DISK.size <= PAYLOAD

Range = tuple[int, int]
"""Offset and length in bytes."""


class MapKind(IntEnum):
    """What a map file is for. The numbers are stable."""

    HOT = 1
    DIRTY = 2
    OVERLAY = 3


class MapDamagedError(Exception):
    """A map file is not one of this VM and these disks, or its header is damaged: it says nothing."""


class MapFile:
    """An open map file, and its bitmaps in memory.

    ``region_bits`` is the binary logarithm of a region's size in bytes. Only pages in which a bit was ever set take
    memory. Setting and clearing changes memory; :meth:`write` brings the changed pages to the page cache, where they
    survive the process, and :meth:`sync` makes them durable.
    """

    def __init__(self, file: File, kind: MapKind, vm: bytes, region_bits: int, disks: Sequence[Geometry]) -> None:
        self.path = file.path
        self.kind = kind
        self.vm = vm
        self.region_bits = region_bits
        self.disks = list(disks)
        self.note = b""
        """The newest note: bytes that mean something to whoever keeps the map."""
        self.damaged = 0
        """Pages of bitmap that were damaged when it was opened, and count as wholly set."""
        self._file = file
        self._sequence = 0
        self._first_page: dict[int, int] = {}
        self._regions: dict[int, int] = {}
        self._pages: dict[int, bytearray] = {}
        self._changed: set[int] = set()
        page = FIRST_BITMAP_PAGE
        for disk in disks:
            regions = -(-disk.size >> region_bits)
            self._first_page[disk.index] = page
            self._regions[disk.index] = regions
            page += -(-regions // BITS)
        self._annex_at = page * PAGE
        self.size = self._annex_at + ANNEX_PAGES * PAGE
        """Bytes of the file."""

    # --- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        files: FileSystem,
        path: str,
        kind: MapKind,
        vm: bytes,
        region_bits: int,
        disks: Sequence[Geometry],
        *,
        like: MapFile | None = None,
        also: Iterable[tuple[int, int, int]] = (),
    ) -> MapFile:
        """Make a map, durably, in place of whatever has that name. Raises OSError, and leaves nothing then.

        It is empty, or says all that ``like`` says of those of its disks that are among ``disks``, in regions of any
        size: the regions that a region of that one touches are set, and note and annex are the same. ``also``: more
        ranges (disk, offset, length) to be set.
        """
        part = f"{path}.part"
        files.remove(part)
        file = files.open(part, write=True, create=True, exclusive=True)
        try:
            made = cls(file, kind, vm, region_bits, disks)
            file.allocate(0, made.size)
            file.write(0, made._header())
            for disk in disks:
                known = like is not None and disk.index in like._first_page
                for offset, length in like.ranges(disk.index) if like is not None and known else ():
                    made.set_range(disk.index, offset, length)
            for index, offset, length in also:
                made.set_range(index, offset, length)
            made.write()
            if like is not None and (annex := like.read_annex()):
                made.write_annex(annex)
            for _ in range(NOTE_SLOTS):
                made.write_note(like.note if like is not None else b"")
            file.sync()
            files.rename(part, path)
            files.sync_folder(path.rpartition("/")[0])
        except BaseException:
            file.close()
            files.remove(part)
            raise
        file.path = made.path = path
        return made

    @classmethod
    def open(
        cls,
        files: FileSystem,
        path: str,
        kind: MapKind,
        vm: bytes,
        region_bits: int,
        disks: Sequence[Geometry],
        *,
        write: bool = True,
    ) -> MapFile:
        """Open and read a map. Raises MapDamagedError where it says nothing about these disks, and OSError.

        A bitmap page that is damaged, as a torn write leaves it, counts as wholly set.
        """
        file = files.open(path, write=write)
        try:
            found = cls(file, kind, vm, region_bits, disks)
            if file.size() != found.size or file.read(0, PAGE) != found._header():
                raise MapDamagedError(f"{path} is damaged, or is not about these disks")
            found._load()
        except BaseException:
            file.close()
            raise
        return found

    @staticmethod
    def disks_of(files: FileSystem, path: str, kind: MapKind, vm: bytes, region_bits: int) -> list[Geometry]:
        """Index and size of the disks that the map at ``path`` is about; their UUIDs are not on record and zero here.

        Raises MapDamagedError where it is no such map, and OSError.
        """
        file = files.open(path)
        try:
            page = file.read(0, PAGE)
        finally:
            file.close()
        if len(page) == PAGE and page == _checked(page[:PAYLOAD], 0):
            magic, found_kind, bits, count, found_vm = _HEADER.unpack_from(page)
            if (magic, found_kind, bits, found_vm) == (MAGIC, kind, region_bits, vm) and count <= MAX_DISKS:
                places = (_DISK.unpack_from(page, _HEADER.size + number * _DISK.size) for number in range(count))
                return [Geometry(index, size, bytes(16)) for index, size in places]
        raise MapDamagedError(f"{path} is damaged, or no map of this VM")

    def _header(self) -> bytes:
        plain = _HEADER.pack(MAGIC, self.kind, self.region_bits, len(self.disks), self.vm)
        plain += b"".join(_DISK.pack(disk.index, disk.size) for disk in self.disks)
        return _checked(plain.ljust(PAYLOAD, b"\0"), 0)

    def _load(self) -> None:
        notes = [_read_note(self._file.read(page * PAGE, PAGE), page) for page in range(1, FIRST_BITMAP_PAGE)]
        valid = [note for note in notes if note is not None]
        if not valid:
            raise MapDamagedError(f"{self.path} has no valid note")
        self._sequence, self.note = max(valid)
        for index in self._first_page:
            self._load_disk(index)

    def _load_disk(self, index: int) -> None:
        """Read what is allocated; a hole is an empty bitmap."""
        first, regions = self._first_page[index], self._regions[index]
        start, end = first * PAGE, (first + -(-regions // BITS)) * PAGE
        for extent in self._file.extents(start, end - start):
            if extent.hole:
                continue
            last = extent.offset + extent.length
            for offset in range(extent.offset - extent.offset % PAGE, last, PAGE):
                page = self._file.read(offset, PAGE)
                number = offset // PAGE
                if not page.strip(b"\0"):
                    continue
                if page == _checked(page[:PAYLOAD], number):
                    self._pages[number] = bytearray(page[:PAYLOAD])
                else:
                    self.damaged += 1
                    self._fill_page(index, number)

    def _fill_page(self, index: int, number: int) -> None:
        here = (number - self._first_page[index]) * BITS
        count = min(BITS, self._regions[index] - here)
        self._pages[number] = bytearray(((1 << count) - 1).to_bytes(PAYLOAD, "little"))
        self._changed.add(number)

    # --- bits -------------------------------------------------------------------------------------------------------

    def set_range(self, index: int, offset: int, length: int) -> bool:
        """Set the bits of all regions that a range of bytes touches; whether one of them was not set."""
        shift = self.region_bits
        first, last = offset >> shift, (offset + length - 1) >> shift
        base = self._first_page[index]
        changed = False
        while first <= last:
            number, bit = base + first // BITS, first % BITS
            end = min(last, first - bit + BITS - 1)
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = bytearray(PAYLOAD)
            if _set_bits(page, bit, bit + end - first):
                self._changed.add(number)
                changed = True
            first = end + 1
        return changed

    def clear(self, index: int, region: int) -> None:
        """Clear the bit of one region."""
        number, bit = self._first_page[index] + region // BITS, region % BITS
        page = self._pages.get(number)
        if page is not None and page[bit >> 3] & (1 << (bit & 7)):
            page[bit >> 3] &= ~(1 << (bit & 7))
            self._changed.add(number)

    def clear_all(self) -> None:
        """Clear every bit."""
        for page in self._pages.values():
            page[:] = _EMPTY
        self._changed.update(self._pages)

    def is_set(self, index: int, region: int) -> bool:
        page = self._pages.get(self._first_page[index] + region // BITS)
        bit = region % BITS
        return page is not None and bool(page[bit >> 3] & (1 << (bit & 7)))

    def runs(self, index: int, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """A range of bytes as runs of regions that are all set or all not: start, end (within the range), and which."""
        shift, end = self.region_bits, offset + length
        start, state = offset, False
        for region, is_set in self._changes(index, offset >> shift, (end - 1) >> shift):
            at = max(offset, region << shift)
            if at > start and is_set != state:
                yield start, at, state
                start = at
            state = is_set
        if end > start:
            yield start, end, state

    def _changes(self, index: int, first: int, last: int) -> Iterator[tuple[int, bool]]:
        """Regions from which on the bits are set, or not: the first one, and others up to ``last``."""
        base = self._first_page[index]
        while first <= last:
            bit = first % BITS
            count = min(last - first + 1, BITS - bit)
            page = self._pages.get(base + first // BITS)
            if page is None:
                yield first, False
            else:
                raw = np.frombuffer(bytes(page[bit >> 3 : (bit + count + 7) >> 3]), np.uint8)
                bits = np.unpackbits(raw, bitorder="little")[bit & 7 : (bit & 7) + count]
                yield first, bool(bits[0])
                for change in (np.flatnonzero(np.diff(bits)) + 1).tolist():
                    yield first + change, bool(bits[change])
            first += count

    def regions(self, index: int) -> Iterator[int]:
        """The numbers of the regions of a disk that are set, in order."""
        first = self._first_page[index]
        for number in sorted(self._pages):
            if first <= number < first + -(-self._regions[index] // BITS):
                base = (number - first) * BITS
                for byte, value in enumerate(self._pages[number]):
                    while value:
                        bit = (value & -value).bit_length() - 1
                        yield base + byte * 8 + bit
                        value &= value - 1

    def ranges(self, index: int) -> Iterator[Range]:
        """The set regions of a disk as few ranges of bytes, in order, clipped to the disk."""
        shift, size = self.region_bits, self._sizes[index]
        start = end = -1
        for region in self.regions(index):
            if region != end:
                if end > start:
                    yield start << shift, min(end << shift, size) - (start << shift)
                start = region
            end = region + 1
        if end > start:
            yield start << shift, min(end << shift, size) - (start << shift)

    @property
    def _sizes(self) -> dict[int, int]:
        return {disk.index: disk.size for disk in self.disks}

    def set_bytes(self) -> int:
        """Bytes of all set regions, each counted whole."""
        return sum(int.from_bytes(page, "little").bit_count() for page in self._pages.values()) << self.region_bits

    # --- the file ---------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Bring changed pages to the page cache. Raises OSError; then they still count as changed."""
        for number in sorted(self._changed):
            self._file.write(number * PAGE, _checked(bytes(self._pages[number]), number))
            self._changed.discard(number)

    def write_note(self, note: bytes) -> None:
        """Write a note, in turn into one of two slots: a torn one leaves the former in force. Raises OSError."""
        assert len(note) <= NOTE_MAX
        sequence = self._sequence + 1
        page = 1 + sequence % NOTE_SLOTS
        plain = (_NOTE.pack(sequence, len(note)) + note).ljust(PAYLOAD, b"\0")
        self._file.write(page * PAGE, _checked(plain, page))
        self._sequence, self.note = sequence, note

    def write_annex(self, content: bytes) -> None:
        """Replace the annex; torn, it reads as empty. Raises OSError."""
        assert len(content) <= ANNEX_MAX
        plain = _NOTE.pack(0, len(content))[8:] + content
        self._file.write(self._annex_at, _CHECK.pack(xxhash.xxh3_64_intdigest(plain, ANNEX_PAGES)) + plain)

    def read_annex(self) -> bytes:
        """The annex; empty where there is none, or a damaged one. Raises OSError."""
        head = self._file.read(self._annex_at, 16)
        length = int.from_bytes(head[8:12], "little")
        if length > ANNEX_MAX:
            return b""
        plain = head[8:] + self._file.read(self._annex_at + 16, length)
        return plain[8:] if head[:8] == _CHECK.pack(xxhash.xxh3_64_intdigest(plain, ANNEX_PAGES)) else b""

    def record(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Set the bits of all ranges (disk, offset, length), durably. Raises OSError."""
        for index, offset, length in ranges:
            self.set_range(index, offset, length)
        self.write()
        self.sync()

    def sync(self) -> None:
        """Make durable what was written. Raises OSError: then nothing more may be relied upon (R17)."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def _checked(payload: bytes, number: int) -> bytes:
    """A page: its payload, and the xxh3-64 of that with the page's number as seed."""
    return payload + _CHECK.pack(xxhash.xxh3_64_intdigest(payload, number))


def _read_note(page: bytes, number: int) -> tuple[int, bytes] | None:
    payload = page[:PAYLOAD]
    if len(page) < PAGE or page != _checked(payload, number):
        return None
    sequence, length = _NOTE.unpack_from(payload)
    if length > NOTE_MAX:
        return None
    return sequence, payload[_NOTE.size : _NOTE.size + length]


def _set_bits(page: bytearray, first: int, last: int) -> bool:
    """Set bits ``first`` to ``last``; whether that changed anything."""
    start, end = first >> 3, last >> 3
    if start == end:
        mask = (0xFF << (first & 7)) & (0xFF >> (7 - (last & 7)))
        changed = page[start] & mask != mask
        page[start] |= mask
        return changed
    head, tail = (0xFF << (first & 7)) & 0xFF, 0xFF >> (7 - (last & 7))
    middle = b"\xff" * (end - start - 1)
    changed = page[start] & head != head or page[end] & tail != tail or page[start + 1 : end] != middle
    page[start] |= head
    page[end] |= tail
    page[start + 1 : end] = middle
    return changed
