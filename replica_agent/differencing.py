"""The differencing file: the blocks that a resync received, and the ranges that are settled.

It is a log of its own: segment 0 of the resync's epoch, batches of blocks and settled records. A settled record follows
the blocks of its range in one chain, so a settled record that is valid proves that they are there; one sync makes both
durable. All methods block and belong into a worker, one call at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from replica_agent.changes import gather
from replica_agent.ranges import RangeSet
from replica_agent.replay import Source
from replica_agent.space import grow, require_room, space_error
from replica_agent.spool import SyncFailedError
from replica_agent.walk import LogWalk, check_file
from shared.ports import Buffer, Clock, File, FileSystem


class DifferencingFile:
    """The differencing file at ``path`` of the resync to ``epoch``; ``settled`` has the durable ranges of each disk."""

    def __init__(
        self,
        files: FileSystem,
        clock: Clock,
        path: str,
        vm: bytes,
        epoch: bytes,
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
        self._reserve = reserve
        self._start = start_of_differences(vm, epoch)
        self._cursor = self._start.copy()
        self._offset = FILE_HEADER_BYTES
        self._space = 0
        self._file: File | None = None

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
                gather(chunk.batches(), chunk.view, self._sizes, at=chunk.at)
            except LogError:
                break
            for offset, header in chunk.records:
                if header.kind is RecordKind.SETTLED:
                    body = chunk.view[offset + HEADER : offset + header.length]
                    self._mark(decode_settled_body(body))
            self._cursor, self._offset = walk.cursor.copy(), walk.offset
        self._space = self._file.size()
        # Found in the page cache is not yet durable, and what is settled is going to be told.
        self._sync()

    def _mark(self, settled: Settled) -> None:
        ranges = self.settled.get(settled.disk)
        if ranges is not None and settled.offset + settled.length <= self._sizes[settled.disk]:
            ranges.add(settled.offset, settled.length)

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
        self._append([header, *body])
        self._cursor = Cursor(cursor.epoch, 0, cursor.entry + len(blocks.table), chain, True)

    def settle(self, ranges: Sequence[Settled]) -> None:
        """Make everything appended so far durable, and with it that these ranges need no further compare.

        Raises NoSpaceError, OSError, or SyncFailedError: then the file is void.
        """
        cursor = self._cursor
        chain, records = cursor.chain, []
        now = int(self._clock.wall() * 1e9)
        for settled in ranges:
            body = encode_settled_body(settled)
            header, chain = encode_record(RecordKind.SETTLED, cursor.epoch, 0, cursor.entry, now, chain, [body])
            records += [header, body]
        self._append(records)
        self._cursor = Cursor(cursor.epoch, 0, cursor.entry, chain, True)
        self._sync()
        for settled in ranges:
            self._mark(settled)

    def require_room(self, needed: int) -> int:
        """The bytes that may be used on the volume, at least ``needed``. Raises NoSpaceError."""
        return require_room(self._files, self.folder, needed, self._reserve)

    def _append(self, pieces: Sequence[Buffer], *, at: int | None = None) -> None:
        assert self._file is not None
        offset = self._offset if at is None else at
        end = offset + sum(map(len, pieces))
        if end > self._space:
            self._space = grow(self._files, self.folder, self._file, self._space, end, self._reserve)
        try:
            self._file.write_many(offset, pieces)
        except OSError as error:
            raise space_error(error, self.folder, end - offset) from error
        self._offset = end

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


def start_of_differences(vm: bytes, epoch: bytes) -> Cursor:
    """The cursor before the first record of a differencing file."""
    return Cursor(epoch, 0, 0, chain_seed(vm, epoch))
