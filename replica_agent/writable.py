"""One disk of a writable export: what its clients write lies in a file over the recovery point, block by block.

A block is the point's until something of it is written; then all of it lies in the overlay. Which blocks do is on
record twice: in ``.live``, written right after the data, which is right after any end of the process within this boot;
and in ``.map``, synced with each FLUSH after the data, which is right after power loss as well. See
docs/replica-store.md.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from protocol.hrl import Geometry
from replica_agent.finishing import finish
from replica_agent.layers import PointReader
from replica_agent.record import ExportRecord
from shared.errors import NoSpaceError
from shared.map_file import MapDamagedError, MapFile, MapKind
from shared.nbd.backend import CommandKind, Mutation, errno_of
from shared.nbd.constants import Errno
from shared.ports import Extent, File, Ports

BLOCK_BITS = 12
BLOCKS_MAX = 1 << 28
"""Blocks of a disk, at most, so that a map has at most 32 MiB: the blocks of larger disks are larger."""

Admit = Callable[[int], Awaitable[None]]
"""Lets so many bytes be written; raises NoSpaceError."""


class OverlayLostError(Exception):
    """What was written can't be told from what was not, or is gone."""


def block_bits(size: int) -> int:
    """The binary logarithm of the size of the blocks of a disk of ``size`` bytes."""
    bits = BLOCK_BITS
    while size >> bits > BLOCKS_MAX:
        bits += 1
    return bits


def overlay_paths(raw: str) -> tuple[str, str, str]:
    """The file with the data, and its two maps."""
    stem = raw.removesuffix(".raw")
    return raw, f"{stem}.map", f"{stem}.live"


@dataclass(slots=True)
class OverlayFiles:
    """The open files of one disk's overlay."""

    data: File
    durable: MapFile
    """Of blocks whose data is durable, once it is synced itself."""
    live: MapFile

    def close(self) -> None:
        for file in (self.data, self.durable, self.live):
            file.close()


def create_overlay(ports: Ports, raw: str, vm: bytes, record: ExportRecord, index: int, size: int) -> OverlayFiles:
    """Make an empty overlay, durably; nothing is left of it where that fails. Blocks. Raises OSError."""
    files, disks, bits = ports.files, [Geometry(index, size, bytes(16))], block_bits(size)
    path, durable_path, live_path = overlay_paths(raw)
    opened: list[File | MapFile] = []
    try:
        data = files.open(path, write=True, create=True, exclusive=True)
        opened.append(data)
        data.truncate(size)
        data.sync()
        durable = MapFile.create(files, durable_path, MapKind.OVERLAY, vm, bits, disks)
        opened.append(durable)
        live = MapFile.create(files, live_path, MapKind.OVERLAY, vm, bits, disks)
        opened.append(live)
        durable.write_note(_note(record))
        durable.sync()
        live.write_note(_note(record, ports.clock.boot_id()))
    except BaseException:
        for file in opened:
            file.close()
        remove_overlay(ports, raw)
        raise
    return OverlayFiles(data, durable, live)


def open_overlay(ports: Ports, raw: str, vm: bytes, record: ExportRecord, index: int, size: int) -> OverlayFiles:
    """Open an overlay with what was written, after whatever ended the agent. Blocks.

    Raises OverlayLostError where that can't be told any more, OSError where it can't be read.
    """
    files, disks, bits = ports.files, [Geometry(index, size, bytes(16))], block_bits(size)
    path, durable_path, live_path = overlay_paths(raw)
    if not all(files.exists(each) for each in (path, durable_path, live_path)):
        raise OverlayLostError(f"What was written to disk {index} is gone: its files are missing.")
    opened: list[File | MapFile] = []
    try:
        data = files.open(path, write=True)
        opened.append(data)
        if data.size() != size:
            raise OverlayLostError(f"What was written to disk {index} is not whole: its file has another size.")
        durable = _open_map(ports, durable_path, vm, bits, disks)
        opened.append(durable)
        if durable.note != _note(record):
            raise OverlayLostError(f"What was written to disk {index} can't be told: {durable_path} is another's.")
        _require_sound(durable)
        live = _live(ports, live_path, vm, bits, disks, record, durable)
        opened.append(live)
    except BaseException:
        for file in opened:
            file.close()
        raise
    return OverlayFiles(data, durable, live)


def _live(
    ports: Ports, path: str, vm: bytes, bits: int, disks: list[Geometry], record: ExportRecord, durable: MapFile
) -> MapFile:
    """The map of what was written in this boot; after another one that of what was durable, under this one's name."""
    note, found = _note(record, ports.clock.boot_id()), _open_map(ports, path, vm, bits, disks)
    if found.note != note:
        # Of another boot: power loss may have left anything in it.
        found.close()
        live = MapFile.create(ports.files, path, MapKind.OVERLAY, vm, bits, disks, like=durable)
        live.write_note(note)
        return live
    _require_sound(found)
    # Of the process before it is not known what was synced: the next FLUSH syncs everything.
    for offset, length in found.ranges(disks[0].index):
        durable.set_range(disks[0].index, offset, length)
    return found


def _open_map(ports: Ports, path: str, vm: bytes, bits: int, disks: list[Geometry]) -> MapFile:
    """Raises OverlayLostError, OSError."""
    try:
        return MapFile.open(ports.files, path, MapKind.OVERLAY, vm, bits, disks)
    except MapDamagedError as error:
        raise OverlayLostError(f"What was written to the export can't be told any more: {error}") from error


def _require_sound(found: MapFile) -> None:
    """A damaged page counts as wholly set, which here would be the overlay's holes in the place of the point."""
    if found.damaged:
        found.close()
        raise OverlayLostError(f"What was written to the export can't be told any more: {found.path} is damaged.")


def _note(record: ExportRecord, boot: str = "") -> bytes:
    """Which export, and point, an overlay belongs to; and for the live map, the boot in which it is right."""
    at = record.position
    return f"{record.id} {at.epoch.hex()} {at.segment} {at.entry} {at.chain.hex()} {boot}".encode()


def remove_overlay(ports: Ports, raw: str) -> None:
    """Delete the files of an overlay. Blocks. Raises OSError."""
    for path in overlay_paths(raw):
        ports.files.remove(path)
        ports.files.remove(f"{path}.part")


class WritableDisk:
    """One disk of a writable export as the NBD server takes it (shared.nbd.backend.ExportBackend)."""

    read_only = False

    def __init__(
        self,
        ports: Ports,
        point: PointReader,
        index: int,
        size: int,
        name: str,
        description: str,
        files: OverlayFiles,
        admit: Admit,
    ) -> None:
        """``admit`` is asked before anything takes room on the volume."""
        self.name = name
        self.size = size
        self.description = description
        self.written_bytes = 0
        """What the overlay takes on the volume, as of the last change."""
        self.full = False
        """Whether the last write found no room."""
        self._ports = ports
        self._point = point
        self._index = index
        self._files = files
        self._admit = admit
        self._block = 1 << files.live.region_bits
        self._turn = asyncio.Lock()
        """One change, or FLUSH, after the other."""
        self._failed = False
        """A sync failed: what clients were told durable may not be (R17)."""

    # --- reading ---------------------------------------------------------------------------------------------------

    def read_cached(self, offset: int, length: int) -> bytes | None:
        runs = list(self._files.live.runs(self._index, offset, length))
        if len(runs) != 1:
            return None
        if runs[0][2]:
            if self._point.failed:
                raise OSError(errno.EIO, self._point.failed)
            return self._files.data.read_cached(offset, length)
        return self._point.read_cached(self._index, offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        return await self._ports.workers.run(self._read, offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        """Blocks. Raises OSError."""
        if self._point.failed:
            raise OSError(errno.EIO, self._point.failed)
        parts = []
        for start, end, written in list(self._files.live.runs(self._index, offset, length)):
            source = self._files.data.read if written else self._read_point
            data = source(start, end - start)
            if len(data) != end - start:
                raise OSError(errno.EIO, f"disk {self._index} is shorter than it was")
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_point(self, offset: int, length: int) -> bytes:
        return self._point.read(self._index, offset, length)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._ports.workers.run(self._extents, offset, length)

    def _extents(self, offset: int, length: int) -> list[Extent]:
        """Blocks. Raises OSError."""
        found: list[Extent] = []
        for start, end, written in list(self._files.live.runs(self._index, offset, length)):
            if written:
                found += self._files.data.extents(start, end - start)
            else:
                found += self._point.extents(self._index, start, end - start)
        return found

    async def cache(self, offset: int, length: int) -> None:
        await self._ports.workers.run(self._read, offset, min(length, 1 << 20))

    # --- changing --------------------------------------------------------------------------------------------------

    def mutate(self, batch: list[Mutation]) -> Awaitable[None] | None:
        return self._mutate(batch)

    async def _mutate(self, batch: list[Mutation]) -> None:
        async with self._turn:
            error = await self._let_in(batch)
            wanted = [mutation for mutation in batch if not (error and self._room(mutation))]
            for mutation in batch:
                mutation.error = 0 if mutation in wanted else error
            await finish(self._ports.workers.run(self._perform, wanted))
            if any(mutation.fua and not mutation.error for mutation in wanted):
                failure = await finish(self._ports.workers.run(self._sync))
                for mutation in wanted:
                    mutation.error = mutation.error or (failure if mutation.fua else 0)

    async def _let_in(self, batch: list[Mutation]) -> int:
        """An Errno where there is no room on the volume for what the batch may take."""
        try:
            await self._admit(sum(self._room(mutation) for mutation in batch))
        except NoSpaceError:
            self.full = True
            return Errno.ENOSPC
        except OSError as failure:
            return errno_of(failure)
        self.full = False
        return 0

    def _room(self, mutation: Mutation) -> int:
        """Bytes that it takes at most: zeroes need none, but of a block that is changed in part the rest is copied."""
        takes = mutation.length if mutation.kind is CommandKind.WRITE or mutation.no_hole else 0
        ends = (mutation.offset, mutation.offset + mutation.length)
        return takes + sum(self._block for end in ends if end % self._block)

    def _perform(self, batch: list[Mutation]) -> None:
        """Blocks."""
        changed = False
        for mutation in batch:
            try:
                changed = self._change(mutation) or changed
            except OSError as error:
                mutation.error = errno_of(error)
        if changed:
            try:
                self._files.live.write()
            except OSError as error:
                for mutation in batch:
                    mutation.error = mutation.error or errno_of(error)
        self.written_bytes = self._ports.files.allocated(self._files.data.path)

    def _change(self, mutation: Mutation) -> bool:
        """Blocks. Whether blocks are in the overlay now that were not. Raises OSError."""
        if self._failed:
            raise OSError(errno.EIO, "a sync of what was written failed")
        if self._point.failed:
            raise OSError(errno.EIO, self._point.failed)
        start, end, data = mutation.offset, mutation.offset + mutation.length, self._files.data
        if start == end:
            return False
        self._fill(start, end)
        if mutation.kind is CommandKind.WRITE:
            assert mutation.payload is not None
            data.write(start, mutation.payload)
        elif mutation.no_hole and mutation.kind is CommandKind.ZEROES:
            data.write_zeroes(start, mutation.length)
        else:
            data.punch_hole(start, mutation.length)
        # A block is the overlay's only when all of it is there.
        changed = self._files.live.set_range(self._index, start, mutation.length)
        self._files.durable.set_range(self._index, start, mutation.length)
        return changed

    def _fill(self, start: int, end: int) -> None:
        """Copy from the point what lies beside the range in its first and its last block. Blocks. Raises OSError."""
        for block in dict.fromkeys((start // self._block, (end - 1) // self._block)):
            first, last = block * self._block, min((block + 1) * self._block, self.size)
            if (start <= first and last <= end) or self._files.live.is_set(self._index, block):
                continue
            content = self._read_point(first, last - first)
            if start > first:
                self._files.data.write(first, content[: start - first])
            if end < last:
                self._files.data.write(end, content[end - first :])

    async def flush(self) -> int:
        async with self._turn:
            return await finish(self._ports.workers.run(self._sync))

    def _sync(self) -> int:
        """Blocks. The data is durable before the map that has it read; an Errno."""
        if self._failed or self._point.failed:
            return Errno.EIO
        try:
            self._files.data.sync()
            self._files.durable.write()
            self._files.durable.sync()
        except OSError as error:
            self._failed = True
            return errno_of(error)
        return 0

    async def close(self) -> None:
        """Make durable what can be, and close the files: nobody is connected any more."""
        async with self._turn:
            await finish(self._ports.workers.run(self._close))

    def _close(self) -> None:
        self._sync()
        self._files.close()
