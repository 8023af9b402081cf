"""The replication log: records one after another, and whole files through every reader that there is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any
from unittest import mock

import replica_agent.walk
import shared.hrl_files
import shared.hrl_report
from protocol.chain import Cursor, body_of, follow_records
from protocol.entries import EntryKind
from protocol.errors import LogError
from protocol.hrl import (
    FileHeader,
    RecordHeader,
    RecordKind,
    chain_seed,
    decode_entries,
    decode_file_header,
    decode_seal_body,
    decode_segment_body,
    decode_settled_body,
    encode_entry,
    encode_file_header,
    encode_record,
    encode_seal_body,
    encode_segment_body,
    encode_settled_body,
)
from protocol.position import Position
from replica_agent.walk import LogWalk, find_valid
from shared.hrl_files import EndKind, RecordReader, find_later, log_file_name, scan_file
from shared.hrl_follower import LogDamagedError, LogFollower, LogGoneError
from shared.hrl_report import check, dump, record_lines, report_lines
from tests.fuzz import naive
from tests.fuzz.memory_files import MemoryFiles
from tests.fuzz.mutators import mutate_log_file, mutate_records, pack, unpack
from tests.fuzz.naive import number
from tests.fuzz.target import ROOT, Plant, Target
from tests.vectors.logs import EPOCH, SIZES, VM, LogBuilder, data, discard, pattern, small_log, zero

VECTORS = ROOT / "tests" / "vectors"
SEED = chain_seed(VM, EPOCH)
REASONS = set(
    """end short magic header-checksum version kind length epoch segment entry order chain geometry seal-reason
    settled-range entry-kind entry-payload entry-count entry-disk entry-range seal file-magic file-checksum
    file-version short-header""".split()
)
"""Every word that docs/hrl-format.md has for what ends a log."""


def is_same_place(cursor: Cursor, place: naive.Place) -> bool:
    known = (cursor.epoch, cursor.segment, cursor.entry, cursor.chain, cursor.inside)
    return known == (place.epoch, place.segment, place.entry, place.chain, place.inside)


def is_same_record(header: RecordHeader, plain: naive.PlainRecord) -> bool:
    return (
        header.kind == plain.kind
        and header.count == plain.items
        and (header.epoch, header.segment, header.entry) == (plain.epoch, plain.segment, plain.entry)
        and (header.time_ns, header.chain, header.length) == (plain.time, plain.chain, plain.end - plain.at)
    )


# --- records -------------------------------------------------------------------------------------------------------


def body_wrong(record: naive.PlainRecord) -> str:
    """The reason for which the body of a sound record is not valid, "" where it is."""
    body = record.body
    match record.kind:
        case naive.BATCH:
            return naive.entries_wrong(body, record.items, SIZES)
        case naive.SEGMENT:
            indexes = []
            for at in range(0, len(body), 32):
                size = number(body, at + 8, 8)
                if number(body, at + 2, 2) or number(body, at + 4, 4) or not 1 <= size <= 1 << 46:
                    return "geometry"
                indexes.append(number(body, at, 2))
            return "geometry" if len(set(indexes)) != len(indexes) else ""
        case naive.SEAL:
            return "" if 1 <= body[0] <= 5 and not any(body[1:8]) else "seal-reason"
        case naive.SETTLED | naive.UNSETTLED:
            offset, length = number(body, 8, 8), number(body, 16, 8)
            return "" if length and offset + length <= 1 << 46 and not any(body[2:8]) else "settled-range"
    return ""


def remade_body(header: RecordHeader, body: memoryview) -> list[bytes]:
    """The body decoded and encoded again."""
    match header.kind:
        case RecordKind.SEGMENT:
            return [encode_segment_body(decode_segment_body(header, body))]
        case RecordKind.SEAL:
            return [encode_seal_body(decode_seal_body(body))]
        case RecordKind.SETTLED | RecordKind.UNSETTLED:
            return [encode_settled_body(decode_settled_body(body))]
        case RecordKind.BATCH:
            table = decode_entries(header, body, SIZES)
            entries = [
                encode_entry(disk, EntryKind(kind), offset, length)
                for disk, kind, _flags, _payload, offset, length in table.tolist()
            ]
            return [*entries, bytes(body[24 * header.count :])]
    return []


def fuzz_hrl_records(data_: bytes) -> None:
    """The same records, place and reason as a second decoder; records encode to what they came from."""
    inside = (None, False, True)[data_[0] % 3] if data_ else None
    content = data_[1:]
    cursor = Cursor(EPOCH, 0, 0, SEED, inside)
    place = naive.Place(EPOCH, 0, 0, SEED, inside)
    expected, reason = naive.read_records(content, 0, len(content), place)
    found: list[tuple[RecordHeader, memoryview]] = []
    got = ""
    chain = SEED
    try:
        for offset, header, record in follow_records(cursor, memoryview(content)):
            assert len(found) < len(expected), "a record that is none was taken"
            assert offset == expected[len(found)].at
            found.append((header, record))
    except LogError as error:
        got = error.reason
        assert error.offset == (expected[-1].end if expected else 0)
    assert got == reason
    assert len(found) == len(expected)
    assert is_same_place(cursor, place)
    for (header, record), plain in zip(found, expected, strict=True):
        assert is_same_record(header, plain)
        wrong = body_wrong(plain)
        try:
            body = remade_body(header, body_of(record))
        except LogError as error:
            assert error.reason == wrong
            body = [plain.body]
        else:
            assert not wrong, f"a {header.kind.name} body was taken: {wrong}"
            assert b"".join(body) == plain.body
        fields = header.kind, header.epoch, header.segment, header.entry, header.time_ns, chain, body, header.count
        head, chain = encode_record(*fields)
        assert head + plain.body == record


def seeds_hrl_records() -> Iterable[bytes]:
    log = small_log()
    start = log.places[0]
    yield b"\0" + bytes(log.content[start:])
    yield b"\1" + bytes(log.content[start : log.places[4]])
    yield b"\2" + bytes(log.end_file().content[start:])
    ranges = LogBuilder().batch(data(0, 65536, pattern(512, 11)), zero(3, 131072, 65536)).settle(0, 0, 1 << 20)
    yield b"\0" + bytes(ranges.content[start:])
    wide = LogBuilder().begin().batch(*(discard(0, 512 * each, 512) for each in range(40))).seal().pad()
    yield b"\0" + bytes(wide.content[start:])
    edge = LogBuilder().begin().batch(zero(0, (1 << 20) - 512, 512)).batch(zero(0, 1 << 20, 512))
    yield b"\0" + bytes(edge.content[start:])


def mutate_hrl_records(content: bytes, random: Random) -> bytes:
    return content[:1] + mutate_records(content[1:], random, SEED)


def any_chain() -> Any:
    """A record's chain is not looked at."""
    return mock.patch("protocol.chain.check_chain", lambda header, chain, record, *, at=0: header.chain)


def any_length() -> Any:
    """Lengths and counts of a header are believed."""
    return mock.patch("protocol.hrl._valid_lengths", lambda kind, body, count: body % 8 == 0 and body < 1 << 21)


def any_order() -> Any:
    return mock.patch.object(Cursor, "_may_follow", lambda self, kind: True)


def any_flags() -> Any:
    """An entry's flags are not looked at."""
    import protocol.hrl as module

    decode = module.decode_table

    def lax(body: Any, count: int, length: int, sizes: dict[int, int], *, at: int = 0) -> Any:
        table = bytearray(body)
        for row in range(min(count, len(table) // 24)):
            table[24 * row + 3] = 0
        return decode(table, count, length, sizes, at=at)

    return mock.patch.object(module, "decode_table", lax)


def past_the_end() -> Any:
    """A range may lie behind the end of its disk."""
    import protocol.entries as module

    limits = module._disk_limits

    def wide(sizes: tuple[tuple[int, int], ...]) -> Any:
        return limits(tuple((disk, 2 * size) for disk, size in sizes))

    return mock.patch.object(module, "_disk_limits", wide)


# --- files ---------------------------------------------------------------------------------------------------------

PATH = "/log/00000001.hrl"


@contextlib.contextmanager
def windows(size: int) -> Iterator[None]:
    """Readers that take no more than so many bytes at a time, so that small files have many windows."""
    files: Any = shared.hrl_files
    walk: Any = replica_agent.walk
    before = files.WINDOW_BYTES, files.SCAN_BYTES, files.MAX_RECORD, walk.WALK_BYTES
    files.WINDOW_BYTES = files.SCAN_BYTES = files.MAX_RECORD = walk.WALK_BYTES = size
    try:
        yield
    finally:
        files.WINDOW_BYTES, files.SCAN_BYTES, files.MAX_RECORD, walk.WALK_BYTES = before


def longest(content: bytes, records: list[naive.PlainRecord]) -> int:
    """Bytes of the longest record that a reader may meet: also of one that is not valid but fits the file."""
    at = records[-1].end if records else 4096
    claimed = 80 + number(content, at + 8, 4)
    claimed = claimed if at + claimed <= len(content) else 0
    return max([claimed, 80, *(record.end - record.at for record in records)])


def expected_end(content: bytes) -> tuple[list[naive.PlainRecord], naive.Place, EndKind, str, int]:
    """What the page says of a file with a valid header: records, place, kind of the end, reason, later record."""
    _reason, place = naive.file_header(content)
    assert place is not None
    records, reason = naive.read_records(content, 4096, len(content), place, naive.END)
    at = records[-1].end if records else 4096
    if not reason:
        ended = bool(records) and records[-1].kind == naive.END
        return records, place, EndKind.END_OF_FILE if ended else EndKind.CLEAN, "", -1
    later = naive.later_record(content, at + 8, len(content), place)
    if later >= 0:
        return records, place, EndKind.DAMAGED, reason, later
    return records, place, EndKind.CLEAN if reason == "end" else EndKind.TORN, reason, -1


def check_scan(content: bytes, scan_bytes: int) -> None:
    """The scan, and the reading in runs, find what the page says."""
    records, place, kind, reason, later = expected_end(content)
    files = MemoryFiles({PATH: content})
    shared.hrl_files.SCAN_BYTES, before = scan_bytes, shared.hrl_files.SCAN_BYTES
    try:
        result = scan_file(files.open(PATH))
    finally:
        shared.hrl_files.SCAN_BYTES = before
    assert [located.offset for located in result.records] == [record.at for record in records]
    assert all(is_same_record(located.header, record) for located, record in zip(result.records, records, strict=True))
    assert (result.kind, result.reason) == (kind, reason)
    assert result.end == (records[-1].end if records else 4096)
    assert is_same_place(result.cursor, place)
    assert (result.later.offset if result.later is not None else -1) == later
    check_runs(content, records, reason)


def check_runs(content: bytes, records: list[naive.PlainRecord], reason: str) -> None:
    """Runs are the records without a gap; seals and ends stand alone."""
    file = MemoryFiles({PATH: content}).open(PATH)
    reader = RecordReader(file, Cursor.of_file(decode_file_header(content)))
    got = b""
    try:
        for run in reader.runs(len(content)):
            assert run.offset == 4096 + len(got)
            assert run.end == run.offset + len(run.data) == reader.offset
            kinds = [record.header.kind for record in run.records]
            assert len(kinds) == 1 or not {RecordKind.SEAL, RecordKind.END_OF_FILE} & set(kinds)
            assert b"".join(record.record for record in run.records) == run.data
            assert run.position == reader.cursor.position
            got += run.data
            if run.kind is RecordKind.END_OF_FILE:
                break
    except LogError as error:
        assert (error.reason, error.offset) == (reason, 4096 + len(got))
    else:
        assert not reason
    assert got == content[4096 : records[-1].end if records else 4096]


def check_walk(content: bytes) -> None:
    """A walk ends at the seal, or where the records end, and says why."""
    header = decode_file_header(content)
    _reason, place = naive.file_header(content)
    assert place is not None
    records, reason = naive.read_records(content, 4096, len(content), place, naive.SEAL)
    file = MemoryFiles({PATH: content}).open(PATH)
    walk = LogWalk(file, Cursor.of_file(header))
    got = b""
    while chunk := walk.step():
        assert chunk.at == 4096 + len(got)
        for offset, each in chunk.records:
            assert chunk.at + offset == 4096 + len(got)
            got += chunk.view[offset : offset + each.length]
    assert got == content[4096 : records[-1].end if records else 4096]
    assert (walk.stopped.reason if walk.stopped is not None else "") == reason
    assert (walk.sealed is not None) is (bool(records) and records[-1].kind == naive.SEAL)
    assert is_same_place(walk.cursor, place)
    found = find_valid(file, header.vm, Cursor.of_file(header), SIZES)
    if not any(body_wrong(record) for record in records if record.kind == naive.BATCH):
        assert (found.offset if found is not None else 4096) == 4096 + len(got)
    elif found is not None:
        # What is taken ends at a record, before the first entry that is not valid.
        good = [record.end for record in records if record.kind != naive.BATCH or not body_wrong(record)]
        assert found.offset in good
        assert found.sealed is None


def check_report(content: bytes) -> None:
    """A report is made of any file, has what it counts, and can be shown and sent."""
    files = MemoryFiles({PATH: content})
    shown: list[dict[str, Any]] = []
    report = dump(files, PATH, shown.append)
    assert report == check(files, PATH)
    assert json.loads(json.dumps([report, shown])) == [report, shown]
    assert list(report_lines(report))
    assert all(list(record_lines(record)) for record in shown)
    end = report["end"]
    assert end["reason"] is None or end["reason"] in REASONS, end["reason"]
    if report["header"] is None:
        assert report["verdict"] == "unreadable"
        return
    assert sum(report["records"].values()) == len(shown)
    assert end["offset_bytes"] == 4096 + sum(record["length_bytes_in_file"] for record in shown)
    sealed = sum(segment["sealed"] is not None for segment in report["segments"])
    assert sealed == report["records"].get("seal", 0), "a seal that does not count is shown as one"


def fuzz_hrl_files(content: bytes) -> None:
    """Reading ends at the last good record with a named reason, in all readers alike, in windows of any size."""
    reason, _place = naive.file_header(content)
    try:
        header = decode_file_header(content)
    except LogError as error:
        assert error.reason == reason
        check_report(content)
        return
    assert not reason
    assert encode_file_header(header)[:96] == content[:96]
    records = expected_end(content)[0]
    check_scan(content, 4 << 20)
    check_walk(content)
    with windows(longest(content, records)):
        check_scan(content, 88)
    _reason, place = naive.file_header(content)
    assert place is not None
    walked = naive.read_records(content, 4096, len(content), place, naive.SEAL)[0]
    with windows(longest(content, walked)):
        check_walk(content)
    check_report(content)


def seeds_hrl_files() -> Iterable[bytes]:
    yield from (path.read_bytes() for path in sorted(VECTORS.glob("*.hrl")))
    yield encode_file_header(FileHeader(VM, 1, 0, EPOCH, 0, 0, SEED))
    yield encode_file_header(FileHeader(VM, 1, 0, EPOCH, 0, 0, SEED))[:100]
    wrong = small_log()
    wrong.first_entry += 1
    yield bytes(wrong.seal().content)


def no_later() -> Any:
    """Damage in the middle is taken for a torn tail."""
    return mock.patch.object(shared.hrl_files, "find_later", lambda *_arguments: None)


def coarse_scan() -> Any:
    """Of two neighbouring windows the end of one is not looked at with the beginning of the next."""

    def find(file: Any, cursor: Cursor, offset: int, end: int) -> Any:
        size = shared.hrl_files.SCAN_BYTES // 8 * 8
        while offset + 80 <= end:
            found = find_later(file, cursor, offset, min(offset + size, end))
            if found is not None:
                return found
            offset += size
        return None

    return mock.patch.object(shared.hrl_files, "find_later", find)


def cut_short() -> Any:
    """A record that the window cuts off ends the walk."""
    step = LogWalk.step

    def broken(self: LogWalk) -> Any:
        chunk = step(self)
        if chunk is not None and self._end - self.offset > 0 and len(chunk.view) < self._end - chunk.at:
            self.stopped = LogError(self.offset, "short", "cut off")
        return chunk

    return mock.patch.object(LogWalk, "step", broken)


# --- from file to file ---------------------------------------------------------------------------------------------


def expected_log(files: list[bytes]) -> tuple[bytes, str]:
    """The records that a log's files hold in one sequence from the start of the epoch, and why there are no more.

    Why is "" for the end of the last file, "gone" for a file that is another one's or missing, else a LogError's word.
    """
    place = naive.Place(EPOCH, 0, 0, SEED, None)
    got = b""
    for sequence, content in enumerate([*files, None], 1):
        if content is None:
            return got, "gone"
        reason, header = naive.file_header(content)
        if reason or header is None:
            return got, reason
        if content[16:32] != VM:
            return got, "vm"
        if number(content, 32, 8) != sequence:
            return got, "gone"
        if sequence > 1 and (header.epoch, header.segment, header.entry, header.chain) != (
            place.epoch,
            place.segment,
            place.entry,
            place.chain,
        ):
            return got, "order"
        records, reason = naive.read_records(content, 4096, len(content), place, naive.END)
        ended = bool(records) and records[-1].kind == naive.END
        last = records[-1].at if ended else records[-1].end if records else 4096
        got += content[4096:last]
        if not ended:
            return got, reason or ("" if sequence == len(files) else "short")
    raise AssertionError("the file behind the last is none")


def fuzz_hrl_follower(data_: bytes) -> None:
    """Following a log over its files brings the records of the one sequence, then says damaged or gone, or the end.

    The input is a bundle: log files 1, 2 and 3.
    """
    contents = unpack(data_, 3)
    if not contents:
        return
    files = MemoryFiles({f"/log/{log_file_name(index)}": content for index, content in enumerate(contents, 1)})
    expected, why = expected_log(contents)
    follower = LogFollower(files, "/log", VM)
    got = b""
    try:
        follower.seek(1, 4096, Position(EPOCH, 0, 0, SEED))
        while (run := follower.read(len(contents), len(contents[-1]))) is not None:
            assert run.position == follower.position
            got += run.data
    except LogDamagedError as error:
        assert error.reason == why
    except LogGoneError:
        assert why == "gone"
    else:
        assert not why, f"the log ends here: {why}"
    finally:
        follower.close()
    assert got == expected


def three_files() -> list[bytes]:
    first = small_log().end_file()
    second = LogBuilder(sequence=2, after=first.position)
    second.batch(data(0, 4096, pattern(512, 8)), discard(3, 0, 4096)).seal().end_file()
    third = LogBuilder(sequence=3, after=second.position).begin().batch(zero(0, 0, 512)).seal()
    return [bytes(each.content) for each in (first, second, third)]


def seeds_hrl_follower() -> Iterable[bytes]:
    files = three_files()
    yield pack(files)
    yield pack(files[:2])
    yield pack(files[:1])
    yield pack([files[0], files[2]])
    yield pack([files[0][:-80], files[1]])
    yield pack([files[0], files[1][:4096], files[2]])
    yield pack([files[0], bytes(4096)])
    other = LogBuilder(vm=EPOCH, epoch=EPOCH).begin()
    yield pack([bytes(other.content)])
    # Sound by itself, but of another place in the log.
    elsewhere = LogBuilder(sequence=2, after=small_log().positions[5]).batch(zero(0, 0, 512)).end_file()
    yield pack([files[0], bytes(elsewhere.content), files[2]])


def mutate_hrl_follower(content: bytes, random: Random) -> bytes:
    pieces = unpack(content, 3)
    if not pieces:
        return pack(three_files())
    at = random.randrange(len(pieces))
    if random.random() < 0.1:
        pieces[at] = random.choice(three_files())
    pieces[at] = mutate_log_file(pieces[at], random)
    return pack(pieces)


def any_file() -> Any:
    """Whose log file it is, and which, is not looked at."""
    open_ = LogFollower._open

    def lax(self: LogFollower, sequence: int) -> Any:
        try:
            return open_(self, sequence)
        except LogGoneError:
            if self._file is None:
                raise
            return decode_file_header(self._file.read(0, 4096))

    return mock.patch.object(LogFollower, "_open", lax)


def no_end_needed() -> Any:
    """A file may end without an end-of-file record."""
    read_ = LogFollower.read

    def lax(self: LogFollower, sequence: int, offset: int) -> Any:
        try:
            return read_(self, sequence, offset)
        except LogDamagedError as error:
            if error.reason != "short":
                raise
            return None

    return mock.patch.object(LogFollower, "read", lax)


TARGETS = {
    "hrl_records": Target(
        fuzz_hrl_records,
        seeds_hrl_records,
        mutate_hrl_records,
        (
            Plant("any_chain", any_chain),
            Plant("any_length", any_length),
            Plant("any_order", any_order),
            Plant("any_flags", any_flags),
            Plant("past_the_end", past_the_end),
        ),
    ),
    "hrl_follower": Target(
        fuzz_hrl_follower,
        seeds_hrl_follower,
        mutate_hrl_follower,
        (Plant("any_file", any_file), Plant("no_end_needed", no_end_needed), Plant("any_chain", any_chain)),
        max_bytes=1 << 15,
    ),
    "hrl_files": Target(
        fuzz_hrl_files,
        seeds_hrl_files,
        mutate_log_file,
        (
            Plant("no_later", no_later),
            Plant("coarse_scan", coarse_scan),
            Plant("cut_short", cut_short),
        ),
    ),
}
