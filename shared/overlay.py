"""An overlay: what a guest wrote since a failover, beside the disk that it was written over, which stays as it was.

The data file has the disk's size and is sparse; the block map says which of its blocks count. Between a change and the
next sync only the live map names it, so that a killed process loses nothing, and power loss never shows a block whose
data it lost. Everything here blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from protocol.hrl import Geometry
from shared.overlay_map import REMEDY, Blocks, Changed, OverlayDamagedError, OverlayMap, OverlayNote
from shared.ports import Buffer, File, FileIdentity, FileSystem


class Phase(IntEnum):
    """How far an overlay has got. The numbers are stable, and only rise."""

    OPEN = 0
    """The disk below is never written: the failover can be undone."""
    SETTLING = 1
    """The failover is committed: what lies over the disk is being copied into it."""
    SETTLED = 2
    """The disk has everything; the overlay counts no more."""


def map_path(path: str) -> str:
    """The durable block map of the overlay at ``path``."""
    return f"{path}.map"


def live_path(path: str) -> str:
    """The live block map of the overlay at ``path``."""
    return f"{path}.live"


def overlay_files(path: str) -> list[str]:
    """All files of the overlay at ``path``."""
    return [path, map_path(path), live_path(path)]


class Overlay:
    """An open overlay. One thread changes it at a time; others may read, and one more may sync."""

    def __init__(self, data: File, durable: OverlayMap, live: OverlayMap, blocks: Blocks) -> None:
        self.data = data
        self.blocks = blocks
        self.shift = durable.shift
        self.bytes = blocks.count() << durable.shift
        """Of all blocks that it has."""
        self._durable = durable
        self._live = live
        self._pending = set(blocks.pages)
        """Pages of the map that the durable one may not have."""

    @classmethod
    def create(
        cls, files: FileSystem, path: str, vm: bytes, disk: Geometry, identity: bytes, base: FileIdentity
    ) -> None:
        """Make an empty overlay over the disk file with the identity ``base``; durable but for its names.

        One that is there is replaced. Raises OSError.
        """
        for name in overlay_files(path):
            files.remove(name)
        file = files.open(path, write=True, create=True, exclusive=True)
        try:
            file.truncate(disk.size)
            file.sync()
        finally:
            file.close()
        note = OverlayNote(int(Phase.OPEN), (base.mtime_ns, base.ctime_ns))
        OverlayMap.create(files, map_path(path), vm, disk, identity, note).close()

    @classmethod
    def open(cls, files: FileSystem, path: str, vm: bytes, disk: Geometry, identity: bytes, boot: str) -> Overlay:
        """Open and lock an overlay. Raises OverlayDamagedError, DiskInUseError, StorageError, or OSError."""
        opened: list[File] = []
        try:
            try:
                data = files.open(path, write=True)
            except FileNotFoundError:
                raise OverlayDamagedError(f"The overlay {path} is missing.", REMEDY) from None
            opened.append(data)
            data.lock()
            if data.size() != disk.size:
                raise OverlayDamagedError(f"The overlay {path} has not the size of its disk.", REMEDY)
            durable = OverlayMap.open(files, map_path(path), vm, disk, identity)
            opened.append(durable.file)
            pages = durable.load()
            # Both slots of a page have to be what they read as before one of them is written again.
            durable.sync()
            live = _open_live(files, path, vm, disk, identity, boot)
            if live is None:
                live = _make_live(files, path, vm, disk, identity, boot, pages)
                opened.append(live.file)
            else:
                opened.append(live.file)
                pages = live.load()
            return cls(data, durable, live, Blocks(pages))
        except BaseException:
            for file in opened:
                file.close()
            raise

    # --- changing --------------------------------------------------------------------------------------------------

    def write(self, offset: int, buffers: Sequence[Buffer], length: int) -> None:
        """Write whole blocks (the disk's last one may be a part of one). Raises OSError; then they count as before."""
        self.data.write_many(offset, buffers)
        self._set(offset, length)

    def zero(self, offset: int, length: int, *, keep: bool) -> None:
        """Make whole blocks read as zeroes; ``keep`` their space. Raises OSError."""
        if keep:
            self.data.write_zeroes(offset, length)
        else:
            self.data.punch_hole(offset, length)
        self._set(offset, length)

    def _set(self, offset: int, length: int) -> None:
        """The data is in the page cache; the live map follows, and only then anybody sees the blocks."""
        missing = self.blocks.missing(offset >> self.shift, (offset + length - 1) >> self.shift)
        for page in missing:
            self._live.put([page])
            self.bytes += self.blocks.take([page]) << self.shift
            self._pending.add(page[0])

    # --- durability ------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make durable what was changed before: the data first, then the map that names it. Raises OSError."""
        pages: Changed = []
        for _ in range(len(self._pending)):
            number = self._pending.pop()
            # What is set from now on is named again, and what is set already has its data in the page cache.
            pages.append((number, bytes(self.blocks.pages[number])))
        self.data.sync()
        if pages:
            self._durable.put(sorted(pages))
            self._durable.sync()

    @property
    def note(self) -> OverlayNote:
        return self._durable.note

    @property
    def phase(self) -> Phase:
        return Phase(self._durable.note.phase)

    def enter(self, note: OverlayNote) -> None:
        """Write the durable map's note, durably. Not while it is synced. Raises OSError."""
        self._durable.write_note(note)
        self._durable.sync()

    def close(self) -> None:
        self.data.close()
        self._durable.close()
        self._live.close()


def _open_live(
    files: FileSystem, path: str, vm: bytes, disk: Geometry, identity: bytes, boot: str
) -> OverlayMap | None:
    """The live map, where there is one of this boot."""
    name = live_path(path)
    if not files.exists(name):
        return None
    try:
        found = OverlayMap.open(files, name, vm, disk, identity)
    except OverlayDamagedError:
        # Nothing of it is ever synced, so that power loss may leave anything.
        return None
    if found.note.boot == boot:
        return found
    found.close()
    return None


def _make_live(
    files: FileSystem, path: str, vm: bytes, disk: Geometry, identity: bytes, boot: str, pages: dict[int, bytearray]
) -> OverlayMap:
    """A live map that says what the durable one does. It has its name only once it says all of that."""
    name = live_path(path)
    made = OverlayMap.create(files, f"{name}.part", vm, disk, identity, OverlayNote(boot=boot))
    try:
        made.put(sorted((number, bytes(content)) for number, content in pages.items()))
        files.rename(f"{name}.part", name)
        files.sync_folder(name.rpartition("/")[0])
    except BaseException:
        made.close()
        raise
    made.file.path = name
    return made
