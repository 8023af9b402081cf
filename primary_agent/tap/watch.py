"""Watches the disks' files: remembers how each batch left them, and notices when somebody else wrote (I10, R27)."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from primary_agent.tap.disks import Disk
from primary_agent.tap.evidence import changes_text
from primary_agent.tap.state import StateFile
from shared.ports import Clock, FileIdentity
from shared.tap_control import DiskChange, DiskPart, LostReason

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Lose(Protocol):
    """Tells that the log does not name all changes any more: why, in words, and what of that is about disks."""

    def __call__(self, reason: LostReason, text: str, changes: Sequence[DiskChange] = ()) -> None: ...


class Watch:
    """Keeps the witness of each disk. ``lose`` is told what makes the log unfit to name all changes."""

    def __init__(self, clock: Clock, state_file: StateFile, lose: Lose) -> None:
        self._clock = clock
        self._state_file = state_file
        self._lose = lose

    def about_to_write(self, disk: Disk) -> None:
        """Note the time, so that what a slow write leaves behind can be told from somebody else's write."""
        self._write(disk, int(self._clock.wall() * 1e9))

    def saw_through(self, disk: Disk, time_ns: int) -> None:
        """The group of that time is wholly on the disk: remember the file's times as it left them."""
        try:
            identity = disk.file.identity()
        except OSError as error:
            self._lose(LostReason.DISK_FAILED, f"{disk.config.path} can't be looked at: {why(error)}")
            return
        if identity.size != disk.found_size:
            self._note_size(disk, identity)
        disk.done_ns, disk.mtime_ns, disk.ctime_ns = time_ns, identity.mtime_ns, identity.ctime_ns
        self._write(disk, time_ns)

    def _write(self, disk: Disk, before_ns: int) -> None:
        try:
            self._state_file.witness(disk.slot, disk.done_ns, before_ns, disk.mtime_ns, disk.ctime_ns)
        except OSError as error:
            self._lose(LostReason.STATE_FAILED, f"the state file can't be written: {why(error)}")

    def check_unchanged(self, disks: Iterable[Disk]) -> None:
        """Lose tracking if somebody else wrote one of the disks while they were ours.

        A change of the file's owner or mode, say, changes only its ctime, and is taken note of.
        """
        for disk in disks:
            if disk.stepping:
                continue
            try:
                identity = disk.file.identity()
            except OSError as error:
                self._lose(LostReason.DISK_FAILED, f"{disk.config.path} can't be looked at: {why(error)}")
                continue
            if identity.size != disk.found_size:
                self._note_size(disk, identity)
                continue
            if identity.mtime_ns != disk.mtime_ns:
                self._changed(
                    DiskChange(disk=disk.index, part=DiskPart.MTIME, old=disk.mtime_ns, new=identity.mtime_ns), disk
                )
            elif identity.ctime_ns != disk.ctime_ns:
                disk.ctime_ns = identity.ctime_ns
                self._write(disk, disk.done_ns)

    def look_at_sizes(self, disks: Iterable[Disk]) -> None:
        """Take note of the sizes alone, while nothing is tracked."""
        for disk in disks:
            with suppress(OSError):
                disk.found_size = disk.file.identity().size

    def _note_size(self, disk: Disk, identity: FileIdentity) -> None:
        """The disk has another size than before (R20); what lies inside the configured one goes on.

        A file's times were changed with its size, so that nothing shows that its content was not. A device that grew
        holds what it held.
        """
        before, disk.found_size = disk.found_size, identity.size
        if identity.block and min(before, identity.size) >= disk.size:
            return
        self._changed(DiskChange(disk=disk.index, part=DiskPart.SIZE, old=before, new=identity.size), disk)

    def _changed(self, change: DiskChange, disk: Disk) -> None:
        text = f"{disk.config.path} was changed under the tap: {changes_text([change])}"
        self._lose(LostReason.DISK_CHANGED, text, [change])


def why(error: OSError) -> str:
    """The operating system's reason, for a sentence."""
    return error.strerror or str(error)
