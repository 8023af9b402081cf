"""The differencing file: the blocks that a resync received, and the ranges that are settled, through all its rounds.

It is a log of its own: segment 0, with the resync's id in the place of the epoch, of batches of blocks, settled and
unsettled records. A settled record follows the blocks of its range in one chain, so a settled record that is valid
proves that they are there; one sync makes both durable. An unsettled one takes back what was written since (R32). All
methods block and belong into a worker, one call at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocol.bulk import Blocks
from protocol.chain import Cursor
from protocol.errors import LogError
from protocol.hrl import (
    FILE_HEADER_BYTES,
    FileHeader,
    RecordKind,
    Settled,
    chain_seed,
    decode_settled_body,
    encode_file_header,
    encode_record,
    encode_settled_body,
)
from protocol.hrl import RECORD_HEADER_BYTES as HEADER
from replica_agent.blocks_index import BlocksIndex
from replica_agent.changes import Changes, gather
from replica_agent.overlay import OverlaidDisk
from replica_agent.ranges import RangeSet
from replica_agent.replay import Source
from replica_agent.space import grow, require_room, space_error
from replica_agent.spool import SyncFailedError
from replica_agent.walk import LogWalk, check_file
from shared.ports import Buffer, Clock, File, FileSystem, ReadableFile

WRITE_BEHIND_BYTES = 4 << 20
"""So much is gathered before the disk begins to write it, while more is being received."""


class DifferencingFile:
    """The differencing file at ``path`` of the resync ``identity``; ``settled``: the ranges of each disk that are."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        path: str,
        vm: bytes,
        identity: bytes,
        sizes: dict[int, int],
        *,
        reserve: int = 0,
    ) -> None:
        self.path = path
        self.settled = {index: RangeSet() for index in sizes}
        self._files = files
        self._clock = clock
        self._vm = vm
        self._sizes = sizes
        self.reserve = reserve
        self._start = start_of_differences(vm, identity)
        self._cursor = self._start.copy()
        self._offset = FILE_HEADER_BYTES
        self._space = 0
        self._behind = 0
        """Up to there it is on its way to the disk."""
        self._file: File | None = None
        self._index = {index: BlocksIndex(size) for index, size in sizes.items()}

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def source(self) -> Source:
        """The file as it stands now, to be replayed."""
        return Source(self.path, self._start, self._cursor.position, self._offset)

    @property
    def settled_bytes(self) -> int:
        return sum(ranges.bytes for ranges in self.settled.values())

    @property
    def length(self) -> int:
        return self._offset

    def is_settled(self) -> bool:
        """Whether all of every disk is."""
        return all(self.settled[index].covers(0, size) for index, size in self._sizes.items())

    def create(self) -> None:
        """Make the file, durably. Raises OSError or NoSpaceError."""
        self._files.make_folder(self.folder)
        self._files.remove(self.path)
        self._file = self._files.open(self.path, write=True, create=True, exclusive=True)
        cursor = self._cursor
        header = FileHeader(self._vm, 0, 0, cursor.epoch, cursor.segment, cursor.entry, cursor.chain)
        self._append([encode_file_header(header)], at=0)
        self._sync()
        self._files.sync_folder(self.folder)

    def load(self) -> None:
        """Take over what is there: the valid records, up to a torn tail. Raises LogError or OSError if it is no
        differencing file of this resync.
        """
        self._file = self._files.open(self.path, write=True)
        check_file(self._file, self._vm, self._cursor)
        walk = LogWalk(self._file, self._cursor.copy())
        while chunk := walk.step():
            try:
                changes = gather(chunk.batches(), chunk.view, self._sizes, at=chunk.at)
            except LogError:
                break
            self._add(changes, chunk.at)
            for offset, header in chunk.records:
                body = chunk.view[offset + HEADER : offset + header.length]
                if header.kind is RecordKind.SETTLED:
                    self._mark(decode_settled_body(body))
                elif header.kind is RecordKind.UNSETTLED:
                    self._unmark(decode_settled_body(body))
            self._cursor, self._offset = walk.cursor.copy(), walk.offset
        self._space, self._behind = self._file.size(), self._offset
        # Found in the page cache is not yet durable, and what is settled is going to be told.
        self._sync()

    def _mark(self, settled: Settled) -> None:
        ranges = self.settled.get(settled.disk)
        if ranges is not None and settled.offset + settled.length <= self._sizes[settled.disk]:
            ranges.add(settled.offset, settled.length)

    def _unmark(self, unsettled: Settled) -> None:
        ranges = self.settled.get(unsettled.disk)
        if ranges is not None:
            ranges.remove(unsettled.offset, unsettled.length)

    # --- reading ---------------------------------------------------------------------------------------------------

    def over(self, disk: int, base: ReadableFile) -> ReadableFile:
        """The disk's file as it will read once all that was received is merged. May be read while more is added."""
        index = self._index[disk]
        if self._file is None or not len(index):
            return base
        return OverlaidDisk(base, self._file, index.find)

    def _add(self, changes: Changes, at: int) -> None:
        """Blocks that lie in the file; ``at`` is where the buffer of ``changes`` begins there."""
        for disk in np.unique(changes.table["disk"]).tolist():
            rows = changes.table["disk"] == disk
            self._index[disk].add(changes.table[rows], changes.at[rows] + at)

    # --- writing ---------------------------------------------------------------------------------------------------

    def append(self, blocks: Blocks) -> None:
        """Add differing blocks. Raises NoSpaceError or OSError; then nothing was added."""
        body: list[Buffer] = [blocks.table.tobytes(), blocks.payload]
        cursor = self._cursor
        header, chain = encode_record(
            RecordKind.BATCH,
            cursor.epoch,
            0,
            cursor.entry,
            int(self._clock.wall() * 1e9),
            cursor.chain,
            body,
            len(blocks.table),
        )
        at = self._offset + HEADER + blocks.table.nbytes
        self._append([header, *body])
        self._cursor = Cursor(cursor.epoch, 0, cursor.entry + len(blocks.table), chain, True)
        payload = blocks.table["payload"].astype(np.int64)
        self._add(Changes(blocks.table, np.cumsum(payload) - payload, blocks.payload), at)

    def settle(self, ranges: Sequence[Settled]) -> None:
        """Make everything appended so far durable, and with it that these ranges need no further compare.

        Raises NoSpaceError, OSError, or SyncFailedError: then the file is void.
        """
        self._note(RecordKind.SETTLED, ranges)
        self._sync()
        for settled in ranges:
            self._mark(settled)

    def unsettle(self, ranges: Sequence[Settled], *, last: bool) -> None:
        """Ranges that are not settled any more; with the ``last`` of them all are so durably.

        Raises NoSpaceError, OSError, or SyncFailedError: then the file is void.
        """
        self._note(RecordKind.UNSETTLED, ranges)
        for unsettled in ranges:
            self._unmark(unsettled)
        if last:
            self._sync()

    def _note(self, kind: RecordKind, ranges: Sequence[Settled]) -> None:
        cursor = self._cursor
        chain, records = cursor.chain, []
        now = int(self._clock.wall() * 1e9)
        for settled in ranges:
            body = encode_settled_body(settled)
            header, chain = encode_record(kind, cursor.epoch, 0, cursor.entry, now, chain, [body])
            records += [header, body]
        self._append(records)
        self._cursor = Cursor(cursor.epoch, 0, cursor.entry, chain, True)

    def require_room(self, needed: int) -> int:
        """The bytes that may be used on the volume, at least ``needed``. Raises NoSpaceError."""
        return require_room(self._files, self.folder, needed, self.reserve)

    def _append(self, pieces: Sequence[Buffer], *, at: int | None = None) -> None:
        assert self._file is not None
        offset = self._offset if at is None else at
        end = offset + sum(map(len, pieces))
        if end > self._space:
            self._space = grow(self._files, self.folder, self._file, self._space, end, self.reserve)
        try:
            self._file.write_many(offset, pieces)
        except OSError as error:
            raise space_error(error, self.folder, end - offset) from error
        self._offset = end
        if end - self._behind >= WRITE_BEHIND_BYTES:
            self._file.write_behind(self._behind, end - self._behind)
            self._behind = end

    def _sync(self) -> None:
        assert self._file is not None
        try:
            self._file.sync()
        except OSError as error:
            raise SyncFailedError(
                f"Syncing {self.path} failed: {error.strerror}. What was received of the resynchronization is void.",
                "Check the volume; the resynchronization starts anew.",
            ) from error

    def trim(self) -> None:
        """Give space back that was taken ahead. Raises OSError."""
        assert self._file is not None
        self._file.truncate(self._offset)
        self._space = self._offset

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Close and delete it."""
        self.close()
        self._files.remove(self.path)


def start_of_differences(vm: bytes, identity: bytes) -> Cursor:
    """The cursor before the first record of the differencing file of a resync, whatever round it is in."""
    return Cursor(identity, 0, 0, chain_seed(vm, identity))
