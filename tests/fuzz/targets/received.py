"""What a replica receives and stores of the log: spool files found at a start, frames taken, differencing files."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, tzinfo
from random import Random
from typing import Any
from unittest import mock

import replica_agent.differencing
import replica_agent.spool
import replica_agent.walk
from protocol.bulk import Bulk, decode_blocks
from protocol.errors import LogError, ProtocolError
from protocol.hrl import FILE_HEADER_BYTES, Settled, chain_seed
from protocol.messages import MessageType
from protocol.position import Position
from replica_agent.differencing import DifferencingFile
from replica_agent.layout import Layout
from replica_agent.pool import SpoolPool
from replica_agent.spool import Spool
from tests.fuzz import naive
from tests.fuzz.memory_files import MemoryFiles
from tests.fuzz.mutators import mutate_log_file, mutate_records, pack, tweak, unpack
from tests.fuzz.target import Plant, Target
from tests.fuzz.targets.logs import any_chain, body_wrong, past_the_end
from tests.vectors.logs import DISKS, EPOCH, OTHER_EPOCH, SIZES, VM, LogBuilder, data, pattern, small_log, zero
from tests.vectors.messages import BULK_EXAMPLES

START = Position(EPOCH, 0, 0, chain_seed(VM, EPOCH))
LAYOUT = Layout("/vm")
SEGMENTS = 3
"""Spool files of one input at most."""


def whole_segment(content: bytes, place: naive.Place) -> tuple[list[naive.PlainRecord], bool]:
    """The records of a spool file that a replica may take, and whether the last is the seal. ``place`` moves."""
    reason, header = naive.file_header(content)
    if reason or header is None or content[16:32] != VM:
        return [], False
    if (header.epoch, header.segment, header.entry, header.chain) != (
        place.epoch,
        place.segment,
        place.entry,
        place.chain,
    ):
        return [], False
    records, _reason = naive.read_records(content, FILE_HEADER_BYTES, len(content), place, naive.SEAL)
    return records, bool(records) and records[-1].kind == naive.SEAL


def start_place() -> naive.Place:
    return naive.Place(EPOCH, 0, 0, START.chain, False)


def new_spool(files: MemoryFiles) -> Spool:
    pool = SpoolPool(files, LAYOUT)
    pool.load()
    spool = Spool(files, LAYOUT, VM, DISKS, START, pool)
    spool.load()
    return spool


# --- found at a start ----------------------------------------------------------------------------------------------


def fuzz_spool(content: bytes) -> None:
    """What is taken over is a prefix of what a second decoder finds valid; loading again finds the same.

    The input is a bundle: the files of segments 1, 2 and 3.
    """
    pieces = unpack(content, SEGMENTS)
    files = MemoryFiles({LAYOUT.segment(EPOCH, index): piece for index, piece in enumerate(pieces, 1)})
    spool = new_spool(files)
    first = (spool.position, spool.received, [segment.end for segment in spool.segments])
    place = start_place()
    allowed, cuts = {(START.segment, START.entry, START.chain)}, [START]
    for piece in pieces:
        records, sealed = whole_segment(piece, place)
        at = naive.Place(EPOCH, place.segment, place.entry, place.chain, None)
        for record in records:
            at = naive.Place(record.epoch, record.segment, 0, record.chain, None)
            number_after = record.entry + (record.items if record.kind == naive.BATCH else 0)
            allowed.add((at.segment, number_after, at.chain))
        if not sealed or any(body_wrong(record) for record in records if record.kind == naive.BATCH):
            break
        place.inside = False
        cuts.append(Position(EPOCH, records[-1].segment, place.entry, place.chain))
    # Whatever has a batch that is not valid ends where it ends: but never behind a cut that is none.
    assert spool.position[1:] in allowed, "the spool stands where its files do not lead"
    assert spool.received in cuts, "a cut that is none counts as received"
    assert spool.received == cuts[len(spool.segments)]
    assert spool.received.segment == len(spool.segments)
    spool.close()
    again = new_spool(files)
    assert (again.position, again.received, [segment.end for segment in again.segments]) == first
    take_next(again, files)


def take_next(spool: Spool, files: MemoryFiles) -> None:
    """A spool that has found anything goes on: the open segment is started over, sealed, and received."""
    log = LogBuilder(after=spool.received).begin().batch(data(0, 0, pattern(512, 1))).seal()
    number = spool.received.segment + 1
    assert spool.take(Bulk(MessageType.LOG, log.record(0) + log.record(1), False, 0)) is None
    assert spool.take(Bulk(MessageType.SEAL, log.record(2), False, 0)) == log.position
    assert spool.segments[-1].end == log.position
    stored = files.content[LAYOUT.segment(EPOCH, number)]
    assert stored[FILE_HEADER_BYTES : spool.segments[-1].length] == log.content[FILE_HEADER_BYTES:]
    spool.close()
    loaded = new_spool(files)
    assert loaded.received == log.position
    loaded.close()


def one_segment(after: Position, *, seal: bool = True, content: int = 512) -> LogBuilder:
    log = LogBuilder(after=after, sequence=after.segment + 1).begin()
    # A spool file has the number of its segment as sequence, and one segment.
    log.batch(data(0, 0, pattern(content, 1)), zero(3, 4096, 8192)).batch(data(3, 512, pattern(512, after.segment)))
    return log.seal() if seal else log


def seeds_spool() -> Iterable[bytes]:
    first = one_segment(START)
    second = one_segment(first.position)
    third = one_segment(second.position, seal=False)
    files = [bytes(each.content) for each in (first, second, third)]
    yield pack(files)
    yield pack(files[:1])
    yield pack([files[0], files[1][:-100], files[2]])
    yield pack([files[0] + bytes(100), files[1] + files[0][4096:]])
    yield pack([files[1], files[0]])
    bad = LogBuilder().begin().batch(zero(9, 0, 512)).seal()
    yield pack([bytes(bad.content), files[1]])
    yield pack([bytes(LogBuilder().begin().batch(zero(0, 0, 512)).end_file().seal().content)])


def mutate_spool(content: bytes, random: Random) -> bytes:
    pieces = unpack(content, SEGMENTS)
    if not pieces:
        return tweak(content, random)
    at = random.randrange(len(pieces))
    pieces[at] = mutate_log_file(pieces[at], random)
    if random.random() < 0.1:
        pieces.pop(random.randrange(len(pieces)))
    return pack(pieces)


def file_unchecked() -> Any:
    """Whose file it is, and where it goes on, is not looked at."""
    return mock.patch.object(replica_agent.walk, "check_file", lambda *_arguments: None)


def unsealed_received() -> Any:
    """A segment without its seal counts as received."""
    find = replica_agent.walk.find_valid

    def broken(*arguments: Any) -> Any:
        found = find(*arguments)
        if found is not None and found.sealed is None:
            header = mock.Mock(time_ns=0)
            return replica_agent.walk.ValidPart(found.cursor, found.offset, header)
        return found

    return mock.patch.object(replica_agent.spool, "find_valid", broken)


# --- frames taken --------------------------------------------------------------------------------------------------


class SpoolModel:
    """What a spool holds after some frames, as docs/protocol.md says it."""

    def __init__(self) -> None:
        self.place = start_place()
        self.start = start_place()
        self.cuts = [START]
        self.content = b""
        """The records of the segment that is open."""
        self.seen = {START}
        """Every position behind a record that was taken."""

    def take(self, kind: MessageType, payload: bytes) -> bool:
        """Whether the frame is to be taken or, stale, to be ignored; what it changes is done then."""
        head = payload[:80]
        if naive.header_wrong(head) or head[16:32] != EPOCH:
            return False
        segment = naive.number(head, 32, 8)
        if segment <= self.cuts[-1].segment:
            return kind is not MessageType.SEAL or self.knows(head)
        restarts = bool(self.content) and head[4] == naive.SEGMENT and segment == self.cuts[-1].segment + 1
        base = self.start if restarts else self.place
        place = naive.Place(base.epoch, base.segment, base.entry, base.chain, base.inside)
        records, reason = naive.read_records(payload, 0, len(payload), place)
        kinds = {naive.SEAL} if kind is MessageType.SEAL else {naive.SEGMENT, naive.BATCH}
        if reason or not records or not {record.kind for record in records} <= kinds:
            return False
        if kind is MessageType.SEAL and len(records) > 1:
            return False
        if any(body_wrong(record) or not self.fits(record) for record in records):
            return False
        if kind is MessageType.LOG and sum(record.kind == naive.SEGMENT for record in records) > 1:
            return False
        self.content = payload if restarts or not self.content else self.content + payload
        self.place = place
        for record in records:
            after = record.entry + (record.items if record.kind == naive.BATCH else 0)
            self.seen.add(Position(EPOCH, record.segment, after, record.chain))
        if records[-1].kind == naive.SEAL:
            self.cuts.append(Position(EPOCH, place.segment, place.entry, place.chain))
            self.content = b""
            self.start = naive.Place(EPOCH, place.segment, place.entry, place.chain, False)
        return True

    def fits(self, record: naive.PlainRecord) -> bool:
        if record.kind == naive.SEGMENT:
            rows = sorted(record.body[at : at + 32] for at in range(0, len(record.body), 32))
            return rows == sorted(
                disk.index.to_bytes(8, "little") + disk.size.to_bytes(8, "little") + disk.uuid for disk in DISKS
            )
        if record.kind == naive.SEAL:
            return naive.number(record.body, 8, 8) == record.entry - self.start.entry
        return True

    def knows(self, head: bytes) -> bool:
        """Whether a stale seal is the one that was received."""
        segment, entry = naive.number(head, 32, 8), naive.number(head, 40, 8)
        known = {cut.segment: cut for cut in self.cuts[1:]}.get(segment)
        # A cut before the oldest that the spool has is not known any more, and so is acknowledged.
        return known is None or (known.entry, known.chain) == (entry, head[64:80])


def fuzz_spool_frames(content: bytes) -> None:
    """A frame is taken exactly when it is the next piece, wholly or not at all, and lies in the file as it came.

    The input is a bundle of frames: the first byte of each says whether it is a SEAL.
    """
    files = MemoryFiles()
    spool = new_spool(files)
    model = SpoolModel()
    for piece in unpack(content, 12):
        if not piece:
            continue
        kind = MessageType.SEAL if piece[0] & 1 else MessageType.LOG
        right = model.take(kind, piece[1:])
        try:
            spool.take(Bulk(kind, piece[1:], False, len(piece) - 1))
        except ProtocolError:
            assert not right, "the next piece of the log was refused"
        else:
            assert right, "what is not the next piece of the log was taken"
        place = model.place
        assert spool.position == (place.epoch, place.segment, place.entry, place.chain)
        assert spool.received == model.cuts[-1]
        assert [segment.end for segment in spool.segments] == model.cuts[1:]
    if model.content:
        stored = files.content[LAYOUT.segment(EPOCH, model.cuts[-1].segment + 1)]
        assert stored[FILE_HEADER_BYTES:].startswith(model.content)
    spool.close()
    found = new_spool(files).position
    # A segment that was started over may have records of its first life behind it that follow in the same chain.
    assert found == spool.position or (found in model.seen and found.entry > spool.position.entry), (
        "taken, not found again"
    )


def frames_of(log: LogBuilder) -> list[bytes]:
    """The log as frames, a record each."""
    return [bytes([log.record(index)[4] == naive.SEAL]) + log.record(index) for index in range(len(log.places))]


def seeds_spool_frames() -> Iterable[bytes]:
    log = small_log()
    frames = frames_of(log)
    yield pack(frames)
    yield pack([frames[0], b"\0" + b"".join(frame[1:] for frame in frames[:4]), *frames[4:]])
    yield pack([*frames[:5], *frames[:5]])
    yield pack([*frames[:3], frames[0], *frames[1:6]])
    other = LogBuilder(epoch=OTHER_EPOCH).begin()
    yield pack([*frames[:2], *frames_of(other)])
    wrong = LogBuilder().begin().batch(zero(0, 0, 512))
    wrong.first_entry += 1
    yield pack(frames_of(wrong.seal()))
    yield pack(frames_of(LogBuilder(disks=DISKS[:1]).begin().batch(zero(0, 0, 512)).seal()))
    yield pack(frames_of(LogBuilder().begin().batch(zero(5, 0, 512)).seal()))
    yield pack(frames_of(LogBuilder().begin().batch(zero(0, (1 << 20) - 512, 512)).batch(zero(0, 1 << 20, 512)).seal()))
    twice = LogBuilder().begin().batch(zero(0, 0, 512)).seal()
    changed = LogBuilder().begin().batch(zero(0, 512, 512)).seal()
    yield pack([*frames_of(twice), frames_of(changed)[2]])


def mutate_spool_frames(content: bytes, random: Random) -> bytes:
    """The records of all frames are changed as one log, and parted again."""
    pieces = unpack(content, 12)
    if not pieces or random.random() < 0.1:
        return tweak(content, random)
    if random.random() < 0.3:
        at = random.randrange(len(pieces))
        pieces.insert(random.randrange(len(pieces) + 1), pieces.pop(at) if random.random() < 0.5 else pieces[at])
        return pack(pieces[:12])
    at = random.randrange(len(pieces))
    before = b"".join(piece[1:] for piece in pieces[:at])
    changed = mutate_records(before + b"".join(piece[1:] for piece in pieces[at:]), random, START.chain)
    sizes = [len(piece) - 1 for piece in pieces]
    kinds = [piece[:1] or b"\0" for piece in pieces]
    out, start = [], 0
    for kind, size in zip(kinds, sizes, strict=True):
        out.append(kind + changed[start : start + max(size, 0)])
        start += max(size, 0)
    return pack([*out, b"\0" + changed[start:]] if start < len(changed) else out)


def any_seal() -> Any:
    return mock.patch.object(Spool, "_judge_seal", lambda *_arguments: None)


def any_disks() -> Any:
    return mock.patch.object(Spool, "_judge_geometry", lambda *_arguments: None)


def half_taken() -> Any:
    """A frame is written before it is judged."""
    judge = Spool._judge

    def late(self: Spool, records: Any, view: Any) -> None:
        self._cursor.entry += 1
        judge(self, records, view)
        self._cursor.entry -= 1

    return mock.patch.object(Spool, "_judge", late)


# --- differencing files --------------------------------------------------------------------------------------------

DIFFERENCES = "/vm/resync/it.hrl"


class StillClock:
    """A clock that stands."""

    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 1.0

    def boot_id(self) -> str:
        return "boot"

    def zone(self) -> tzinfo:
        return UTC


def opened(files: MemoryFiles) -> DifferencingFile:
    return DifferencingFile(files, StillClock(), DIFFERENCES, VM, EPOCH, SIZES)


def settled_of(records: list[naive.PlainRecord]) -> dict[int, set[int]]:
    """The sectors of each disk that records say are settled, of the ranges that lie inside the disk."""
    settled: dict[int, set[int]] = {disk: set() for disk in SIZES}
    for record in records:
        if record.kind not in (naive.SETTLED, naive.UNSETTLED) or body_wrong(record):
            continue
        disk, offset, length = (naive.number(record.body, at, size) for at, size in ((0, 2), (8, 8), (16, 8)))
        if record.kind == naive.UNSETTLED:
            gone = range(offset, offset + length)
            if disk in settled:
                settled[disk] = {place for place in settled[disk] if place not in gone}
        elif offset + length <= SIZES.get(disk, 0):
            settled[disk] |= {offset, offset + length - 1}
    return settled


def fuzz_differencing(content: bytes) -> None:
    """Loading takes a valid prefix or refuses the file; it goes on from there, and is found the same again."""
    files = MemoryFiles({DIFFERENCES: content})
    found = opened(files)
    place = naive.Place(EPOCH, 0, 0, START.chain, None)
    reason, header = naive.file_header(content)
    mine = header is not None and content[16:32] == VM
    mine = mine and header == naive.Place(EPOCH, 0, 0, START.chain, None)
    try:
        found.load()
    except LogError as error:
        assert error.reason in (reason or "settled-range", "file-vm", "file-place", "settled-range")
        assert not mine or error.reason == "settled-range"
        return
    assert mine, "a file of another log was taken over"
    records, _reason = naive.read_records(content, FILE_HEADER_BYTES, len(content), place)
    ends = [FILE_HEADER_BYTES, *(record.end for record in records)]
    assert found.length in ends, "the file is taken up to the middle of a record"
    taken = [record for record in records if record.end <= found.length]
    assert not any(body_wrong(record) for record in taken if record.kind == naive.BATCH)
    if not any(body_wrong(record) for record in records):
        assert len(taken) == len(records)
    for disk, places in settled_of(taken).items():
        assert all(found.settled[disk].covers(at, 1) for at in places)
        assert found.settled[disk].bytes <= SIZES[disk]
        assert places or not found.settled[disk].bytes or any(r.kind == naive.UNSETTLED for r in taken)
    blocks = decode_blocks(BULK_EXAMPLES[MessageType.BLOCKS], SIZES)
    found.append(blocks)
    found.settle([Settled(0, 0, 1 << 20), Settled(3, 0, 4 << 20)])
    assert found.is_settled()
    found.unsettle([Settled(0, 4096, 512)], last=False)
    assert not found.is_settled()
    found.settle([Settled(0, 4096, 512)])
    length, position = found.length, found.source.end
    found.close()
    again = opened(files)
    again.load()
    assert again.is_settled(), "what was settled is not found again"
    assert (again.length, again.source.end) == (length, position)


def seeds_differencing() -> Iterable[bytes]:
    log = LogBuilder()
    log.batch(data(0, 65536, pattern(512, 11)), zero(0, 131072, 65536)).settle(0, 0, 1 << 19)
    log.batch(data(3, 0, pattern(512, 12))).settle(3, 0, 4 << 20)
    yield bytes(log.content)
    yield bytes(log.content[:-30])
    yield bytes(log.content[:4096])
    yield bytes(LogBuilder().settle(0, 0, 1 << 19).unsettle(0, 4096, 4096).unsettle(9, 0, 512).content)
    yield bytes(log.settle(3, 0, 8 << 20).settle(9, 0, 512).batch(zero(9, 0, 512)).settle(0, 512, 512).content)
    yield bytes(LogBuilder(epoch=OTHER_EPOCH).batch(zero(0, 0, 512)).content)
    yield bytes(LogBuilder().batch(zero(0, 0, 512)).begin().seal().content)


def any_range() -> Any:
    """A settled range may lie outside its disk."""

    def mark(self: DifferencingFile, settled: Settled) -> None:
        if settled.disk in self.settled:
            self.settled[settled.disk].add(settled.offset, settled.length)

    return mock.patch.object(DifferencingFile, "_mark", mark)


def other_log() -> Any:
    return mock.patch.object(replica_agent.differencing, "check_file", lambda *_arguments: None)


def entries_unjudged() -> Any:
    return mock.patch.object(replica_agent.differencing, "gather", lambda *_arguments, **_more: None)


TARGETS = {
    "spool": Target(
        fuzz_spool,
        seeds_spool,
        mutate_spool,
        (
            Plant("file_unchecked", file_unchecked),
            Plant("unsealed_received", unsealed_received),
            Plant("any_chain", any_chain),
        ),
        max_bytes=1 << 15,
    ),
    "spool_frames": Target(
        fuzz_spool_frames,
        seeds_spool_frames,
        mutate_spool_frames,
        (
            Plant("any_seal", any_seal),
            Plant("any_disks", any_disks),
            Plant("past_the_end", past_the_end),
            Plant("half_taken", half_taken),
        ),
    ),
    "differencing": Target(
        fuzz_differencing,
        seeds_differencing,
        mutate_log_file,
        (
            Plant("any_range", any_range),
            Plant("other_log", other_log),
            Plant("entries_unjudged", entries_unjudged),
        ),
    ),
}
