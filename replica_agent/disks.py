"""The replica's disk files: sparse raw files that only the apply writes, and that exports read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from protocol.hrl import Geometry
from replica_agent.changes import Write
from replica_agent.layout import Layout
from replica_agent.record import IdentityRecord
from shared.errors import StorageError
from shared.ports import File, FileSystem


class BaseDisks:
    """The open and locked disk files of one VM. All methods block: they belong into a worker."""

    def __init__(
        self,
        files: FileSystem,
        layout: Layout,
        geometry: tuple[Geometry, ...],
        growing: dict[int, int] | None = None,
        paths: dict[int, str] | None = None,
    ) -> None:
        """``growing``: the sizes that files may still have of disks that are being grown. ``paths``: where disks are
        that do not lie in the VM's folder.
        """
        self.geometry = geometry
        self._growing = growing or {}
        self.sizes = {disk.index: disk.size for disk in geometry}
        self.joining: tuple[Geometry, ...] = ()
        """Disks that an open resync adds: open as well, and part of no point. They are holes until it has committed."""
        self._files = files
        self._layout = layout
        self._paths = paths or {}
        self._open: dict[int, File] = {}
        self._touched: set[int] = set()

    @property
    def opened(self) -> bool:
        return len(self._open) == len(self.geometry) + len(self.joining)

    @property
    def touched(self) -> bool:
        """Whether anything was changed since the last sync."""
        return bool(self._touched)

    def path(self, index: int) -> str:
        return self._paths.get(index) or self._layout.disk(index)

    def create(self) -> None:
        """Make the disks, wholly holes, durably; disks that an interrupted creation left are made anew.

        Raises StorageError naming the disk.
        """
        self._create(self.geometry)

    def _create(self, disks: Sequence[Geometry]) -> None:
        for disk in disks:
            path = self.path(disk.index)
            try:
                self._files.remove(path)
                file = self._files.open(path, write=True, create=True, exclusive=True)
                try:
                    file.truncate(disk.size)
                    file.sync()
                finally:
                    file.close()
            except OSError as error:
                raise StorageError(
                    f"Disk {disk.index} of {disk.size} bytes can't be created at {path}: {error.strerror}.",
                    "Choose a storage location on a file system that takes files of this size.",
                ) from error
        self._files.sync_folder(self._layout.folder)

    def open(self) -> None:
        """Open, check and lock all disks. Raises VmreplicaError naming the disk; nothing stays open then."""
        if self.opened:
            return
        try:
            for disk in (*self.geometry, *self.joining):
                if disk.index not in self._open:
                    self._open[disk.index] = self._open_disk(disk)
        except BaseException:
            self.close()
            raise

    def _open_disk(self, disk: Geometry) -> File:
        path = self.path(disk.index)
        try:
            file = self._files.open(path, write=True)
        except OSError as error:
            raise StorageError(
                f"Disk {disk.index} can't be opened at {path}: {error.strerror}.",
                "Bring the file back, or remove the VM here and start its initial replication again.",
            ) from error
        try:
            size = file.size()
            if size != disk.size and self._growing.get(disk.index) == size:
                file.truncate(disk.size)
                file.sync()
            elif size != disk.size:
                raise StorageError(
                    f"Disk {disk.index} at {path} has {size} bytes; it must have {disk.size}.",
                    "Somebody changed the file: remove the VM here and start its initial replication again.",
                )
            file.lock()
            # For compares; whoever reads here and there is not read ahead for.
            file.expect_sequential()
        except BaseException:
            file.close()
            raise
        return file

    def resize(self, geometry: tuple[Geometry, ...]) -> None:
        """Take over larger sizes; the files get them by :meth:`open`, or :meth:`grow` where they are open."""
        self._growing = {
            disk.index: self.sizes[disk.index] for disk in geometry if disk.size > self.sizes[disk.index]
        } | self._growing
        self.geometry = geometry
        self.sizes.update({disk.index: disk.size for disk in geometry})

    def join(self, disks: Sequence[Geometry]) -> None:
        """Make and open the disks that a resync adds, in place of those of one before. Raises VmreplicaError."""
        self.leave([disk for disk in self.joining if disk not in disks])
        self._create(
            [disk for disk in disks if disk not in self.joining or not self._files.exists(self.path(disk.index))]
        )
        self.joining = tuple(disks)
        self.open()

    def leave(self, disks: Sequence[Geometry]) -> None:
        """Close and delete disks that were to be added. Raises OSError."""
        for disk in disks:
            if (file := self._open.pop(disk.index, None)) is not None:
                file.close()
            self._touched.discard(disk.index)
            self.joining = tuple(each for each in self.joining if each != disk)
            self._files.remove(self.path(disk.index))

    def settle(self, geometry: tuple[Geometry, ...]) -> None:
        """These are the disks from now on, those that joined among them; the files of others are closed and stay."""
        staying = {disk.index for disk in geometry}
        for index in [index for index in self._open if index not in staying]:
            self._open.pop(index).close()
            self._touched.discard(index)
        self.geometry, self.joining = geometry, ()
        self.sizes = {disk.index: disk.size for disk in geometry}

    def grow(self) -> None:
        """Give every file the size of its disk, durably; no file becomes smaller. Raises OSError."""
        for disk in self.geometry:
            file = self._open[disk.index]
            if file.size() < disk.size:
                file.truncate(disk.size)
                file.sync()
        self._growing.clear()

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()
        self._touched.clear()

    def file(self, index: int) -> File:
        """The open file of a disk."""
        return self._open[index]

    def read(self, index: int, offset: int, length: int) -> bytes:
        return self._open[index].read(offset, length)

    def write(self, writes: Iterable[Write]) -> None:
        """Make the changes in order. Raises OSError; what was made before stays made."""
        for disk, offset, length, pieces in writes:
            file = self._open[disk]
            self._touched.add(disk)
            if pieces is None:
                file.punch_hole(offset, length)
            elif len(pieces) == 1:
                file.write(offset, pieces[0])
            else:
                file.write_many(offset, pieces)

    def allocate(self, index: int, offset: int, length: int) -> None:
        """Take space for a range without changing what it reads as. Raises OSError ENOSPC."""
        self._touched.add(index)
        self._open[index].allocate(offset, length)

    def sync(self) -> None:
        """Make all changes since the last sync durable.

        Raises OSError; trying again proves nothing then, unless all of it is written again before (R17).
        """
        for index in sorted(self._touched):
            self._open[index].sync()
        self._touched.clear()

    def sync_all(self) -> None:
        """Make durable whatever the files read as, whoever wrote it, an earlier process as well. Raises OSError."""
        self._touched.update(self._open)
        self.sync()

    def identities(self) -> list[IdentityRecord]:
        return [IdentityRecord.of(index, self._open[index].identity()) for index in sorted(self.sizes)]

    def remove(self) -> None:
        """Close and delete the files."""
        self.close()
        for disk in self.geometry:
            self._files.remove(self.path(disk.index))


def foreign_changes(
    recorded: list[IdentityRecord] | None,
    found: list[IdentityRecord],
    *,
    same_boot: bool,
    growing: Collection[int] = (),
) -> list[str]:
    """What says that somebody else changed the disks since ``recorded`` was taken (I10); empty if nothing does.

    Within one boot every field must be the same. After another boot a time may have gone back, since times need not
    be durable with the content, but it can't have gone forward. The times of disks that are ``growing`` were set by us.
    """
    evidence = []
    before = {disk.index: disk for disk in recorded or []}
    for disk in found:
        old = before.get(disk.index)
        if old is None:
            continue
        if disk.inode != old.inode:
            evidence.append(f"disk {disk.index} is another file (inode {disk.inode}, before {old.inode})")
        elif disk.index in growing:
            continue
        elif disk.mtime_ns > old.mtime_ns or (same_boot and disk.mtime_ns != old.mtime_ns):
            evidence.append(f"disk {disk.index} was written at {disk.mtime_ns} ns, last by us at {old.mtime_ns} ns")
        elif same_boot and disk.ctime_ns != old.ctime_ns:
            evidence.append(f"disk {disk.index} was changed at {disk.ctime_ns} ns, last by us at {old.ctime_ns} ns")
    return evidence
