"""The open resync (or initial replication) at the replica: what it has received, and what is settled.

Until its commit nothing of it touches the newest point: blocks go to the differencing file, the log of its epoch to a
spool that nobody applies (R8). Only an initial replication writes blocks in place, since there is no point to protect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from protocol.bulk import (
    Blocks,
    Bulk,
    block_count,
    decode_blocks,
    group_count,
)
from protocol.entries import EntryKind
from protocol.errors import ProtocolError
from protocol.frames import MAX_DETAIL_TAGS, MAX_MANIFEST_BLOCKS
from protocol.hrl import Geometry, Settled
from protocol.messages import (
    DETAIL_BYTES,
    MAX_SETTLED_RUNS,
    TYPE_OF,
    DetailRequest,
    Holes,
    HolesRequest,
    ManifestRequest,
    Question,
    RangeDone,
    ResyncBegin,
    ResyncReady,
    ResyncState,
    Run,
    Unsettle,
)
from protocol.position import Position
from replica_agent.answers import MAX_HOLES, Answers, asked_blocks
from replica_agent.changes import Changes, plan_writes
from replica_agent.differencing import DifferencingFile
from replica_agent.disks import BaseDisks
from replica_agent.ranges import RangeSet
from replica_agent.record import ResyncRecord
from replica_agent.replay import Source
from replica_agent.resync_judgement import judge_settled
from replica_agent.spool import Spool, SyncFailedError
from shared.disks.hashing import DIGEST_BYTES, RangeHasher
from shared.map_file import Range
from shared.ports import Ports

MAX_PENDING_RANGES = 256
"""Ranges whose manifest was asked for and that are not done; a sound primary has far fewer."""
MAX_SETTLED_MESSAGES = 256
"""Settled ranges are told in so many messages at most; then those that save most."""


@dataclass(slots=True)
class Key:
    """The hash key of the session that the resync goes on in (I15)."""

    id: bytes
    hasher: RangeHasher
    block_size: int


@dataclass(slots=True)
class OpenResync:
    """A resync that has begun and not committed. Methods that block belong into a worker, one at a time."""

    ports: Ports
    record: ResyncRecord
    disks: BaseDisks
    differences: DifferencingFile
    tracked: Spool
    in_place: bool
    reread: bool
    """What can be read of the disks is not to be trusted: every block is told to differ."""
    geometry: tuple[Geometry, ...]
    """The disks that it compares: the present ones, or those that its commit brings."""
    key: Key | None = None
    pending: dict[tuple[int, int, int], bool] = field(default_factory=dict)
    """The ranges (disk, offset, length) whose manifest was asked for in this session and that are not done; True once
    the manifest was sent.
    """
    received_bytes: int = 0
    unreadable: list[str] = field(default_factory=list)
    """Ranges that could not be read, not yet told to anybody."""
    doubt: dict[int, list[Range]] = field(default_factory=dict)
    """After a reversal, of a bounded resync: where the disks may not be as the cut that both sides have (R41)."""
    sizes: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = {disk.index: disk.size for disk in self.geometry}

    @property
    def answers(self) -> Answers:
        """Answers the questions of this session. Raises ProtocolError outside of one."""
        if self.key is None:
            raise ProtocolError("a question outside a resynchronization", code="state")
        return Answers(
            self.ports.random,
            self.disks,
            self.differences,
            self.key.hasher,
            self.key.block_size,
            self.reread,
            self.unreadable,
        )

    @property
    def state(self) -> ResyncState:
        record = self.record
        return ResyncState(
            id=record.id,
            kind=record.kind,
            epoch=record.epoch,
            round=record.round,
            settled_bytes=self.differences.settled_bytes,
            unsettle=record.unsettle,
        )

    def is_continued_by(self, body: ResyncBegin) -> bool:
        record = self.record
        return (record.id, record.epoch, record.round) == (body.id, body.epoch, body.round)

    def is_followed_by(self, body: ResyncBegin) -> bool:
        """Whether that is a later round of this resync: under another epoch, and what is settled stays (R32)."""
        record = self.record
        same = (record.id, record.kind, record.parent, record.parent_segment)
        later = body.round > record.round and body.epoch != record.epoch
        return later and same == (body.id, body.kind, body.parent, body.parent_segment)

    # --- a session -------------------------------------------------------------------------------------------------

    def enter(self, body: ResyncBegin) -> list[ResyncReady]:
        """Go on in a session with the key that it brought; what the primary is told."""
        self.key = Key(body.key_id, RangeHasher(body.key, body.block_size), body.block_size)
        self.pending.clear()
        return self.ready()

    def ready(self) -> list[ResyncReady]:
        """What is settled, in as many messages as that takes. Raises ProtocolError outside of a session."""
        if self.key is None:
            raise ProtocolError("a message of a resynchronization that was not begun in this session", code="state")
        record, key, unsettle = self.record, self.key.id, self.record.unsettle
        parts = [[]] if unsettle else list(_told(self.differences.settled))
        doubts = [] if unsettle else list(_told_doubt(self.doubt))
        return [
            ResyncReady(id=record.id, round=record.round, key_id=key, settled=[], more=True, unsettle=False, doubt=part)
            for part in doubts
        ] + [
            ResyncReady(
                id=record.id,
                round=record.round,
                key_id=key,
                settled=part,
                more=part is not parts[-1],
                unsettle=unsettle,
            )
            for part in parts
        ]

    # --- rounds ----------------------------------------------------------------------------------------------------

    def accept_unsettle(self, body: Unsettle) -> list[Settled]:
        """Judge what is told of earlier rounds. Raises ProtocolError."""
        key = self._require_key(body.id, body.round)
        if not self.record.unsettle:
            raise ProtocolError("UNSETTLE in a round that has heard all of it", code="state")
        for run in body.ranges:
            self._judge_range(run.disk, run.offset, run.length, key.block_size)
        return [Settled(run.disk, run.offset, run.length) for run in body.ranges]

    def leave(self) -> None:
        """The session ended: its key is void."""
        self.key = None
        self.pending.clear()

    # --- questions -------------------------------------------------------------------------------------------------

    def accept(self, request: ManifestRequest) -> None:
        """Judge a request, and expect its range's blocks from now on (R23). Raises ProtocolError."""
        key = self._key_of(request)
        self._judge_range(request.disk, request.offset, request.length, key.block_size)
        self._judge_round()
        count = block_count(request.length, key.block_size)
        if count > MAX_MANIFEST_BLOCKS:
            raise ProtocolError(f"MANIFEST_REQUEST for more than {MAX_MANIFEST_BLOCKS} blocks")
        if len(request.digests) not in (0, DIGEST_BYTES * group_count(count)):
            raise ProtocolError(f"MANIFEST_REQUEST for {count} blocks with {len(request.digests)} bytes of digests")
        if len(self.pending) >= MAX_PENDING_RANGES:
            raise ProtocolError(f"more than {MAX_PENDING_RANGES} ranges are asked for and not done")
        self.pending[request.disk, request.offset, request.length] = False

    def accept_detail(self, request: DetailRequest) -> None:
        """Judge a question about blocks of a range whose manifest was sent (R23). Raises ProtocolError."""
        key = self._key_of(request)
        if not self.pending.get((request.disk, request.offset, request.length), False):
            raise ProtocolError(
                f"DETAIL_REQUEST for {request.length} bytes at {request.offset} of disk {request.disk}, "
                "which is not being compared"
            )
        if key.block_size <= DETAIL_BYTES:
            raise ProtocolError(f"DETAIL_REQUEST in blocks of {key.block_size} bytes, which have no smaller ones")
        asked = asked_blocks(request, key.block_size)
        tags = sum(-(-length // DETAIL_BYTES) for _, length in asked)
        if not 0 < tags <= MAX_DETAIL_TAGS:
            raise ProtocolError(f"DETAIL_REQUEST for {tags} tags; 1 to {MAX_DETAIL_TAGS} are allowed")

    def accept_holes(self, request: HolesRequest) -> None:
        """Judge a question about holes (R23). Raises ProtocolError."""
        key = self._key_of(request)
        self._judge_range(request.disk, request.offset, request.length, key.block_size)
        self._judge_round()
        if len(self.pending) >= MAX_PENDING_RANGES + MAX_HOLES:
            raise ProtocolError("too many holes are told and not done")

    def answered(self, request: ManifestRequest) -> None:
        """The manifest of the range was sent."""
        place = (request.disk, request.offset, request.length)
        if place in self.pending:
            self.pending[place] = True

    def told(self, answer: Holes) -> None:
        """The answer was sent: what lies between its data runs is equal, and expected to be done."""
        at = answer.offset
        end = Run(disk=answer.disk, offset=answer.offset + answer.length, length=0)
        for run in [*answer.data, end]:
            if run.offset > at:
                self.pending[answer.disk, at, run.offset - at] = True
            at = run.offset + run.length

    def _judge_round(self) -> None:
        if self.record.unsettle:
            raise ProtocolError("a question before it was told what was written since the last round", code="state")

    def _judge_range(self, disk: int, offset: int, length: int, block_size: int) -> None:
        size = self.sizes.get(disk)
        if size is None:
            raise ProtocolError(f"disk {disk} is asked for, which the VM does not have")
        end = offset + length
        if length == 0 or offset % block_size or end > size or (end % block_size and end != size):
            raise ProtocolError(
                f"a range of {length} bytes at {offset} of disk {disk} ({size} bytes) is no run of blocks"
            )

    # --- blocks ----------------------------------------------------------------------------------------------------

    def take(self, items: Sequence[Bulk | RangeDone]) -> list[Settled]:
        """Store blocks in order; returns the ranges that became settled, durably. Blocks.

        Raises ProtocolError, NoSpaceError, SyncFailedError or OSError; what was settled before stays so.
        """
        done: list[Settled] = []
        for item in items:
            if isinstance(item, RangeDone):
                done.append(self._done(item))
            else:
                self._store(decode_blocks(item.content(), self.sizes))
        if done:
            if self.in_place:
                self._sync_disks()
            self.differences.settle(done)
            for settled in done:
                self.pending.pop((settled.disk, settled.offset, settled.length), None)
        return done

    def _done(self, item: RangeDone) -> Settled:
        self._require_key(item.id, item.round)
        if not self.pending.get((item.disk, item.offset, item.length), False):
            raise ProtocolError(
                f"RANGE_DONE for {item.length} bytes at {item.offset} of disk {item.disk}, which was not compared"
            )
        return Settled(item.disk, item.offset, item.length)

    def _store(self, blocks: Blocks) -> None:
        self._require_key(blocks.id, blocks.round)
        self._judge_blocks(blocks)
        self.received_bytes += int(blocks.table["length"].sum())
        if not self.in_place:
            self.differences.append(blocks)
            return
        payload = blocks.table["payload"].astype(np.int64)
        self.differences.require_room(int(payload.sum()))
        changes = Changes(blocks.table, np.cumsum(payload) - payload, blocks.payload)
        self.disks.write(plan_writes(changes))

    def _judge_blocks(self, blocks: Blocks) -> None:
        """Every block lies in a range that is being compared. Raises ProtocolError."""
        table = blocks.table
        starts = table["offset"].astype(np.int64)
        ends = starts + table["length"].astype(np.int64)
        allowed = np.zeros(len(table), bool)
        for disk, offset, length in list(self.pending):
            allowed |= (table["disk"] == disk) & (starts >= offset) & (ends <= offset + length)
        if not allowed.all():
            first = int(np.flatnonzero(~allowed)[0])
            raise ProtocolError(
                f"BLOCKS with {ends[first] - starts[first]} bytes at {starts[first]} of disk {table['disk'][first]}, "
                "which is not being compared"
            )
        if (table["kind"] == EntryKind.DISCARD).any():
            raise ProtocolError("BLOCKS with a discard")

    def _sync_disks(self) -> None:
        try:
            self.disks.sync()
        except OSError as error:
            raise SyncFailedError(
                f"Syncing the disks failed: {error.strerror}. What was received of them is void.",
                "Check the volume; the initial replication starts anew.",
            ) from error

    def _key_of(self, question: Question) -> Key:
        key = self._require_key(question.id, question.round)
        if question.key_id != key.id:
            name = TYPE_OF[type(question)].name
            raise ProtocolError(f"{name} with another key than this session's", code="stale")
        return key

    def _require_key(self, identity: bytes, number: int) -> Key:
        if self.key is None:
            raise ProtocolError("a message of a resynchronization that was not begun in this session", code="state")
        if (identity, number) != (self.record.id, self.record.round):
            raise ProtocolError("a message of another resynchronization or round", code="stale")
        return self.key

    # --- commit ----------------------------------------------------------------------------------------------------

    def judge_commit(self, end: Position) -> None:
        """Whether everything up to ``end`` is here, durably (I7). Raises ProtocolError with what is missing."""
        if end.epoch != self.record.epoch:
            raise ProtocolError("COMMIT with an end in another epoch", code="chain")
        self._judge_round()
        if self.pending:
            raise ProtocolError(f"COMMIT although {len(self.pending)} ranges are not settled", code="state")
        judge_settled(self)
        if all(segment.end != end for segment in self.tracked.segments):
            raise ProtocolError(f"COMMIT to {end}, but {self.tracked.received} is received", code="gap")

    def sources(self) -> tuple[Source, ...]:
        """What is merged before the tracked segments."""
        return () if self.in_place else (self.differences.source,)

    def close(self) -> None:
        """Close all files. Blocks."""
        self.differences.close()
        self.tracked.close()

    def drop(self) -> None:
        """Delete everything that was received (I7), with the disks that were to be added. Blocks."""
        self.drop_received()
        self.disks.leave(self.disks.joining)

    def drop_received(self) -> None:
        """The same, but the disks stay: another resync adds them. Blocks."""
        self.differences.remove()
        self.tracked.drop()


def _told(settled: dict[int, RangeSet]) -> Iterator[list[Run]]:
    """The settled ranges in lists of which each fits a message, at least one; too many: the longest of them."""
    runs = [
        Run(disk=index, offset=start, length=end - start) for index, ranges in settled.items() for start, end in ranges
    ]
    if len(runs) > MAX_SETTLED_MESSAGES * MAX_SETTLED_RUNS:
        longest = sorted(runs, key=lambda run: -run.length)[: MAX_SETTLED_MESSAGES * MAX_SETTLED_RUNS]
        runs = sorted(longest, key=lambda run: (run.disk, run.offset))
    for at in range(0, max(1, len(runs)), MAX_SETTLED_RUNS):
        yield runs[at : at + MAX_SETTLED_RUNS]


def _told_doubt(doubt: dict[int, list[Range]]) -> Iterator[list[Run]]:
    """The ranges in doubt in lists of which each fits a message; none where there are none."""
    runs = [Run(disk=disk, offset=at, length=length) for disk, ranges in doubt.items() for at, length in ranges]
    for at in range(0, len(runs), MAX_SETTLED_RUNS):
        yield runs[at : at + MAX_SETTLED_RUNS]
