"""The log's files: which hold log, which stand ready to be next, which may be recycled, and their limit."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from protocol.errors import LogError
from protocol.hrl import FILE_HEADER_BYTES, FileHeader
from protocol.position import Position
from shared.errors import UsageError
from shared.hrl_files import log_file_name, log_file_sequence, read_file_header
from shared.ports import File, FileSystem

READY_TARGET = 2
"""Files that stand open and allocated ahead of need, so that a batch never waits for space."""
FREE_BYTES_MAX = 4 << 30
"""Bytes of files without log that are kept for use, but no more than half of the limit; more are removed."""

_SPARE_NAME = re.compile(r"spare-(\d{8})\.hrl")


@dataclass(slots=True)
class LogFile:
    """A file that holds log: its header, and the offset in it behind which there is certainly no log."""

    header: FileHeader
    path: str
    end: int

    @property
    def sequence(self) -> int:
        return self.header.sequence

    @property
    def before(self) -> Position:
        """The position before the file's first record."""
        header = self.header
        return Position(header.epoch, header.segment, header.entry, header.chain)


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a worker does to have one more file ready: open a freed one, or make and allocate one of ``size`` bytes."""

    path: str
    make: bool
    size: int


def prepare(files: FileSystem, plan: Preparation) -> File:
    """Carry out a preparation. Blocks. Raises OSError and leaves nothing behind then."""
    if not plan.make:
        return files.open(plan.path, write=True)
    file = files.open(plan.path, write=True, create=True, exclusive=True)
    try:
        file.allocate(0, plan.size)
    except Exception:
        file.close()
        files.remove(plan.path)
        raise
    return file


class LogFiles:
    """The files of one tap's log folder.

    ``used`` holds log, oldest first; the last one is being written. ``ready`` is open and allocated, ``free`` closed
    and allocated; both keep the names they had until they are needed. Calls raise OSError; those that are made while
    the log is being written block for no longer than a system call, the others say so.
    """

    def __init__(
        self, files: FileSystem, folder: str, vm: bytes, file_bytes: int, limit: int, now: Callable[[], float]
    ) -> None:
        self.folder = folder
        self.file_bytes = file_bytes
        self.limit = limit
        self.used: deque[LogFile] = deque()
        self.ready: deque[File] = deque()
        self.free: list[str] = []
        self.superfluous: list[str] = []
        """Files for a worker to remove."""
        self.next_sequence = 1
        self.preparing = 0
        self.released = 0
        """Files at the front of ``used`` that hold nothing unacknowledged, but may be leased."""
        self.changed: Callable[[], None] = _nobody_cares
        """Called when there may be something to prepare or to remove."""
        self._files = files
        self._vm = vm
        self._now = now
        self._leases: dict[object, tuple[int, float]] = {}
        self._weak: set[object] = set()
        """Holders of leases that give way."""
        self._spares = 0

    # --- start ------------------------------------------------------------------------------------------------------

    def discover(self, epoch: bytes, first_file: int, *, durable_file: int | None = None) -> list[LogFile]:
        """Read the folder: the unbroken end of the log of ``epoch``, which began in ``first_file``; the rest is free.

        Blocks. A file that is missing ends the log towards its beginning: what lies before can't be sent any more.
        After power loss ``durable_file`` is the last one that was durable for certain (0: none). Then a file that is
        missing behind that one ends the log towards its end: it was lost, and what lies before it is still good.
        """
        self._files.make_folder(self.folder, inherited=True)
        log: list[LogFile] = []
        rest = []
        self.next_sequence = first_file
        for name in self._files.list(self.folder):
            path = self._path(name)
            if match := _SPARE_NAME.fullmatch(name):
                self._spares = max(self._spares, int(match[1]))
                rest.append(path)
            elif (sequence := log_file_sequence(name)) is not None:
                self.next_sequence = max(self.next_sequence, sequence + 1)
                file = self._read(path, epoch, sequence) if sequence >= first_file else None
                if file is None:
                    rest.append(path)
                    continue
                if log and log[-1].sequence + 1 != sequence:
                    if durable_file is not None and log[-1].sequence >= durable_file:
                        rest.append(path)
                        continue
                    rest += [before.path for before in log]
                    log.clear()
                log.append(file)
        if log and durable_file is None:
            # A file behind it was named and never begun: with its number left out, the log would seem to have a gap.
            self.next_sequence = log[-1].sequence + 1
        self.set_free(rest)
        return log

    def _read(self, path: str, epoch: bytes, sequence: int) -> LogFile | None:
        """The file, if it is this number of this epoch's log."""
        file = self._files.open(path)
        try:
            header = read_file_header(file)
        except LogError:
            return None
        finally:
            file.close()
        if (header.vm, header.epoch, header.sequence) != (self._vm, epoch, sequence):
            return None
        return LogFile(header, path, header.capacity)

    def set_free(self, paths: list[str]) -> None:
        """These files hold no log. Blocks."""
        for path in paths:
            if len(self.free) < self._keep and self._size(path) == self.file_bytes:
                # A number in a name is a place in the log; the next file of that number must not find it taken.
                spare = self._spare_path()
                self._files.rename(path, spare)
                self.free.append(spare)
            else:
                self._files.remove(path)

    def _size(self, path: str) -> int:
        file = self._files.open(path)
        try:
            return file.size()
        finally:
            file.close()

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _spare_path(self) -> str:
        self._spares += 1
        return self._path(f"spare-{self._spares:08d}.hrl")

    # --- space ------------------------------------------------------------------------------------------------------

    def set_limit(self, limit: int) -> None:
        """The bytes that they may take from now on. Raises UsageError for less than two of them."""
        if limit < (least := 2 * self.file_bytes):
            raise UsageError(f"A log limit of {limit} bytes is less than two log files.", f"Choose {least} or more.")
        self.limit = limit
        self.changed()

    @property
    def _most(self) -> int:
        """How many files the limit allows; two are needed to write at all."""
        return max(2, self.limit // self.file_bytes)

    @property
    def _keep(self) -> int:
        """How many files without log are kept: writing a new one is slower than writing an old one again."""
        return max(READY_TARGET, min(FREE_BYTES_MAX // self.file_bytes, self._most // 2))

    @property
    def count(self) -> int:
        return len(self.used) + len(self.ready) + len(self.free) + self.preparing

    @property
    def used_bytes(self) -> int:
        """Bytes of the files that hold unacknowledged log."""
        return (len(self.used) - self.released) * self.file_bytes

    def plan(self, *, needed: bool = False) -> Preparation | None:
        """What to prepare next, if anything; ``needed`` asks for a file even beyond the limit.

        Each plan is followed by ``prepared`` or ``not_prepared``.
        """
        if not needed and len(self.ready) + self.preparing >= READY_TARGET:
            return None
        if self.free:
            # The one freed last: its pages are still in memory, and few files are in use at a time.
            plan = Preparation(self.free.pop(), False, self.file_bytes)
        elif needed or self.count < self._most:
            plan = Preparation(self._spare_path(), True, self.file_bytes)
        else:
            return None
        self.preparing += 1
        return plan

    def prepared(self, file: File) -> None:
        """A plan was carried out. Where the log did not wait for it, it may have become one too many."""
        self.preparing -= 1
        self.ready.append(file)
        if self.count > self._most and len(self.ready) > 1:
            file = self.ready.pop()
            file.close()
            self.superfluous.append(file.path)

    def not_prepared(self) -> None:
        """A plan failed, or its result is not wanted any more."""
        self.preparing -= 1

    def next_file(self) -> File | None:
        """The file to write next, under the name of its number; None at the limit.

        Waits for nothing in the usual case; where the workers did not keep up, it allocates.
        """
        if not self.ready:
            self.reclaim()
            if not self.free and self._weak:
                # Whoever holds them does without: the guest's writes come first.
                self._leases = {holder: lease for holder, lease in self._leases.items() if holder not in self._weak}
                self.reclaim()
            # What a worker is preparing right now does not count: it may come too late.
            if not self.free and self.count - self.preparing >= self._most:
                return None
            plan = self.plan(needed=True)
            assert plan is not None
            self.preparing -= 1
            self.ready.append(prepare(self._files, plan))
        file = self.ready.popleft()
        path = self._path(log_file_name(self.next_sequence))
        self._files.rename(file.path, path)
        file.path = path
        self.changed()
        return file

    def begin_file(self, header: FileHeader, path: str) -> LogFile:
        """The file of ``next_sequence`` now holds the end of the log."""
        assert header.sequence == self.next_sequence
        self.next_sequence += 1
        log_file = LogFile(header, path, FILE_HEADER_BYTES)
        self.used.append(log_file)
        return log_file

    # --- release ----------------------------------------------------------------------------------------------------

    def lease(self, holder: object, from_file: int, seconds: float, *, weak: bool = False) -> None:
        """Keep files from ``from_file`` on for ``seconds``; replaces the holder's former lease (R36).

        A ``weak`` one ends at once where the log needs a file and there is none.
        """
        self._weak.discard(holder)
        if weak:
            self._weak.add(holder)
        if seconds > 0:
            self._leases[holder] = (from_file, self._now() + seconds)
        else:
            self._leases.pop(holder, None)

    def release(self, segment: int) -> None:
        """Everything up to and including ``segment`` is acknowledged as durable by the replica."""
        while self.released + 1 < len(self.used) and self.used[self.released + 1].header.segment <= segment:
            self.released += 1
        self.reclaim()

    def release_before(self, sequence: int) -> None:
        """The files before number ``sequence`` belong to no log any more."""
        self.released = sum(file.sequence < sequence for file in self.used)
        self.reclaim()

    def reclaim(self) -> None:
        """Free what is released and not leased."""
        now = self._now()
        self._leases = {holder: lease for holder, lease in self._leases.items() if lease[1] > now}
        leased_from = min((from_file for from_file, _ in self._leases.values()), default=self.next_sequence)
        while self.released and self.used[0].sequence < leased_from:
            self.released -= 1
            file = self.used.popleft()
            if len(self.free) + len(self.ready) < self._keep and file.header.capacity == self.file_bytes:
                self.free.append(file.path)
            else:
                self.superfluous.append(file.path)
        self.changed()

    def drop(self) -> None:
        """There is no log any more, and that is durable: all files become superfluous.

        Also those that are leased: removing a file keeps what its readers see, recycling would not.
        """
        self.superfluous += [file.path for file in self.used]
        self.superfluous += [file.path for file in self.ready]
        self.superfluous += self.free
        self.close()
        self.used.clear()
        self.free.clear()
        self._leases.clear()
        self.released = 0
        self.changed()

    def close(self) -> None:
        """Close the files that stand ready."""
        for file in self.ready:
            file.close()
        self.ready.clear()


def _nobody_cares() -> None:
    """What happens to a change before anybody was set to be told."""
