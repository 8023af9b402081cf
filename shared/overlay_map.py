"""The block map of an overlay: which blocks of a disk the overlay has, as a bitmap that no power loss makes a liar.

A page of the bitmap has two slots that are written in turn, so that a torn one leaves what was durable before it. The
map never says more than was synced under it: pages are written only once the data that they name is durable (I4). A
second file of the same form, the live map, is written with every change: it outlives the process, not the host, and
counts only in the boot that its note names. ``docs/overlay-format.md`` gives the bytes. Everything here blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated

import msgspec
import xxhash

from protocol.hrl import Geometry
from shared.errors import StorageError
from shared.ports import File, FileSystem

PAGE = 4096
MAGIC = b"VMROVL\x01\n"
LEAST_BLOCK_BITS = 12
BLOCKS_MAX = 1 << 30
"""Blocks of a disk: larger disks have larger blocks."""

_HEADER = struct.Struct("<8sB7x16s16sQ16s")
"""Magic, block bits, VM, disk, size in bytes, identity of the overlay."""
_SLOT = struct.Struct("<Q")
_CHECK = struct.Struct("<Q")
BITMAP = PAGE - _SLOT.size - _CHECK.size
BITS = BITMAP * 8
"""Blocks of one page."""
_EMPTY = bytes(BITMAP)
_NOTE_LENGTH = struct.Struct("<I")

Run = tuple[int, int, bool]
"""First block, end (exclusive), and whether the overlay has them."""
Changed = list[tuple[int, bytes]]
"""Pages by number, as they were at one moment."""


class OverlayDamagedError(StorageError):
    """An overlay is missing, damaged, or that of another disk: what the guest wrote since the failover is in it."""

    code = "overlay_damaged"


class OverlayNote(msgspec.Struct, frozen=True, array_like=True):
    """What goes with a map.

    ``phase``: see :class:`shared.overlay.Phase`. ``base``: mtime and ctime (ns) of the disk below as the overlay was
    made, or, once it is settled, as it was left; ``told``: what stands for them then. ``boot``: of the live map, the
    boot in which it was written.
    """

    phase: int = 0
    base: tuple[int, int] = (0, 0)
    told: tuple[int, int] = (0, 0)
    boot: Annotated[str, msgspec.Meta(max_length=64)] = ""


def block_bits(size: int) -> int:
    """The binary logarithm of a block's bytes for a disk of that many bytes: 4 KiB up to 4 TiB."""
    bits = LEAST_BLOCK_BITS
    while size > BLOCKS_MAX << bits:
        bits += 1
    return bits


class OverlayMap:
    """An open map file. It keeps no bitmap of its own: :class:`Blocks` has that."""

    def __init__(self, file: File, vm: bytes, disk: Geometry, identity: bytes) -> None:
        self.file = file
        self.note = OverlayNote()
        self.shift = block_bits(disk.size)
        blocks = -(-disk.size >> self.shift)
        self.pages = -(-blocks // BITS)
        self.size = (3 + 2 * self.pages) * PAGE
        self._head = _HEADER.pack(MAGIC, self.shift, vm, disk.uuid, disk.size, identity)
        self._sequences: dict[int, int] = {}

    @classmethod
    def create(
        cls, files: FileSystem, path: str, vm: bytes, disk: Geometry, identity: bytes, note: OverlayNote
    ) -> OverlayMap:
        """Make an empty map, durably but for its name. Raises OSError.

        Its room is taken ahead, so that a full volume does not keep what was written from becoming durable.
        """
        files.remove(path)
        file = files.open(path, write=True, create=True, exclusive=True)
        try:
            made = cls(file, vm, disk, identity)
            file.allocate(0, made.size)
            made._write_page(0, made._head)
            for _ in range(2):
                made.write_note(note)
            file.sync()
        except BaseException:
            file.close()
            files.remove(path)
            raise
        return made

    @classmethod
    def open(cls, files: FileSystem, path: str, vm: bytes, disk: Geometry, identity: bytes) -> OverlayMap:
        """Open a map and read its note. Raises OverlayDamagedError, or OSError."""
        try:
            file = files.open(path, write=True)
        except FileNotFoundError:
            raise OverlayDamagedError(f"The block map {path} is missing.", REMEDY) from None
        try:
            found = cls(file, vm, disk, identity)
            if file.size() != found.size or file.read(0, PAGE) != _page(0, found._head):
                raise OverlayDamagedError(f"{path} is damaged, or is not the map of this overlay.", REMEDY)
            content = found._newest(0)
            if content is None:
                raise OverlayDamagedError(f"{path} has no valid note.", REMEDY)
            (length,) = _NOTE_LENGTH.unpack_from(content)
            try:
                found.note = msgspec.msgpack.decode(
                    content[_NOTE_LENGTH.size : _NOTE_LENGTH.size + length], type=OverlayNote, strict=True
                )
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise OverlayDamagedError(f"The note of {path} is not readable: {error}.", REMEDY) from None
        except BaseException:
            file.close()
            raise
        return found

    def load(self) -> dict[int, bytearray]:
        """The pages in which a bit is set. Raises OverlayDamagedError where a page has no valid slot, and OSError."""
        pages: dict[int, bytearray] = {}
        start = 3 * PAGE
        for extent in self.file.extents(start, self.size - start):
            if extent.hole:
                continue
            first = (extent.offset // PAGE - 3) // 2
            last = (extent.offset + extent.length - 1) // PAGE - 3
            for number in range(max(0, first), last // 2 + 1):
                if number not in pages and (content := self._newest(1 + number)) is not None and content != _EMPTY:
                    pages[number] = bytearray(content)
        return pages

    def put(self, pages: Changed) -> None:
        """Write pages, each into the older of its slots. Raises OSError."""
        for number, content in pages:
            self._write_pair(1 + number, content)

    def write_note(self, note: OverlayNote) -> None:
        """Write the note, as pages are written. Raises OSError."""
        body = msgspec.msgpack.encode(note)
        self._write_pair(0, (_NOTE_LENGTH.pack(len(body)) + body).ljust(BITMAP, b"\0"))
        self.note = note

    def sync(self) -> None:
        """Make durable what was written. Raises OSError: then nothing more may be relied upon (R17)."""
        self.file.sync()

    def close(self) -> None:
        self.file.close()

    # --- pages -----------------------------------------------------------------------------------------------------

    def _write_pair(self, pair: int, content: bytes) -> None:
        sequence = self._sequences.get(pair, 0) + 1
        self._write_page(1 + 2 * pair + sequence % 2, _SLOT.pack(sequence) + content)
        self._sequences[pair] = sequence

    def _write_page(self, number: int, plain: bytes) -> None:
        self.file.write(number * PAGE, _page(number, plain))

    def _newest(self, pair: int) -> bytes | None:
        """The newer valid slot of a pair. None where nothing was ever written. Raises OverlayDamagedError.

        A torn slot was never relied upon: the other one is what was durable before it.
        """
        best: tuple[int, bytes] | None = None
        torn = 0
        for number in (1 + 2 * pair, 2 + 2 * pair):
            page = self.file.read(number * PAGE, PAGE)
            if page == _page(number, page[: PAGE - _CHECK.size]):
                (sequence,) = _SLOT.unpack_from(page)
                best = (
                    max(best, (sequence, page[_SLOT.size : PAGE - _CHECK.size]))
                    if best
                    else (
                        sequence,
                        page[_SLOT.size : PAGE - _CHECK.size],
                    )
                )
            elif page.strip(b"\0"):
                torn += 1
        if best is None:
            if torn == 2:
                raise OverlayDamagedError(f"Both slots of a page of {self.file.path} are damaged.", REMEDY)
            return None
        self._sequences[pair] = best[0]
        return best[1]


REMEDY = (
    "What the VM wrote since the failover can't be read from it. Bring the file back, or give the failover up: "
    "`vmreplica failover VM --undo`."
)


def _page(number: int, plain: bytes) -> bytes:
    """A page: its content, and the xxh3-64 of that with the page's number as seed."""
    plain = plain.ljust(PAGE - _CHECK.size, b"\0")
    return plain + _CHECK.pack(xxhash.xxh3_64_intdigest(plain, number))


class Blocks:
    """The bitmap in memory: which blocks an overlay has. Bits are only ever set.

    A page is replaced as a whole, so that others may read while one thread sets bits.
    """

    def __init__(self, pages: dict[int, bytearray] | None = None) -> None:
        self.pages: dict[int, bytes | bytearray] = dict(pages or {})

    def count(self) -> int:
        return sum(_count(page) for page in self.pages.values())

    def missing(self, first: int, last: int) -> Changed:
        """The pages as they are once blocks ``first`` to ``last`` are set, where one of them is not set yet."""
        changed: Changed = []
        while first <= last:
            number, bit = divmod(first, BITS)
            end = min(last, first - bit + BITS - 1)
            page = self.pages.get(number, _EMPTY)
            mask = ((1 << (end - first + 1)) - 1) << bit
            low, high = bit >> 3, (bit + end - first) >> 3
            part = int.from_bytes(page[low : high + 1], "little")
            wanted = mask >> (low << 3)
            if part & wanted != wanted:
                filled = (part | wanted).to_bytes(high + 1 - low, "little")
                changed.append((number, bytes(page[:low]) + filled + bytes(page[high + 1 :])))
            first = end + 1
        return changed

    def take(self, changed: Changed) -> int:
        """From now on the pages are these; how many blocks came to them."""
        added = 0
        for number, content in changed:
            added += _count(content) - _count(self.pages.get(number, b""))
            self.pages[number] = content
        return added

    def is_set(self, block: int) -> bool:
        number, bit = divmod(block, BITS)
        page = self.pages.get(number)
        return page is not None and bool(page[bit >> 3] & (1 << (bit & 7)))

    def runs(self, first: int, last: int) -> Iterator[Run]:
        """Blocks ``first`` to ``last`` as runs of set and of clear ones, in order."""
        start, state = first, None
        for low, _, is_set in self._pieces(first, last):
            if is_set != state:
                if state is not None:
                    yield start, low, state
                start, state = low, is_set
        yield start, last + 1, bool(state)

    def _pieces(self, first: int, last: int) -> Iterator[Run]:
        while first <= last:
            number, bit = divmod(first, BITS)
            end = min(last, first - bit + BITS - 1)
            page = self.pages.get(number)
            if page is None:
                yield first, end + 1, False
            else:
                count = end - first + 1
                low = bit >> 3
                value = int.from_bytes(page[low : ((bit + count - 1) >> 3) + 1], "little") >> (bit & 7)
                yield from _runs_of(value & ((1 << count) - 1), first, count)
            first = end + 1


def _count(page: bytes | bytearray) -> int:
    return int.from_bytes(page, "little").bit_count()


def _runs_of(value: int, first: int, count: int) -> Iterator[Run]:
    """The runs of the lowest ``count`` bits, which stand for blocks from ``first`` on."""
    at = 0
    while at < count:
        is_set = bool(value & 1)
        rest = ~value if is_set else value
        length = (rest & -rest).bit_length() - 1 if rest else count - at
        length = min(length, count - at)
        yield first + at, first + at + length, is_set
        value >>= length
        at += length


def ranges_of(blocks: Blocks, shift: int, size: int) -> Iterator[tuple[int, int]]:
    """The set blocks as few ranges of bytes (offset, end), in order, clipped to the disk."""
    last = -(-size >> shift) - 1
    for number in sorted(blocks.pages):
        first = number * BITS
        for low, high, is_set in blocks.runs(first, min(last, first + BITS - 1)):
            if is_set:
                yield low << shift, min(high << shift, size)
