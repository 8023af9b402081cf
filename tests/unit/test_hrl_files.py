"""Reading log files: runs of verified records, torn tails told from damage, forged tails, and following a writer."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.bulk import LogRecord, decode_log
from protocol.chain import Cursor, body_of
from protocol.errors import LogError
from protocol.hrl import FILE_HEADER_BYTES, MAX_PAYLOAD, EntryKind, RecordKind, decode_entries
from protocol.messages import MessageType
from protocol.position import Position
from shared.hrl_files import (
    RUN_BYTES,
    EndKind,
    RecordReader,
    ScanResult,
    find_later,
    log_file_name,
    log_file_sequence,
    read_file_header,
    scan_file,
)
from shared.hrl_follower import LogDamagedError, LogFollower, LogGoneError
from shared.ports.file_system import RealFileSystem
from shared.ports.files import RealFile
from tests.vectors.logs import EPOCH, OTHER_EPOCH, SIZES, VM, LogBuilder, Write, data, discard, pattern, small_log, zero

FILES = RealFileSystem()
LOG = small_log()
LAST = LOG.places[-1]


def scan(folder: Path, content: bytes | bytearray) -> ScanResult:
    """What a file with this content scans to; entries are judged against the disks, too."""
    path = folder / "scanned.hrl"
    path.write_bytes(content)
    file = FILES.open(str(path))
    try:
        return scan_file(file, visit=judge)
    finally:
        file.close()


def judge(offset: int, record: LogRecord) -> None:
    if record.header.kind is RecordKind.BATCH:
        decode_entries(record.header, body_of(record.record), SIZES, at=offset)


def whole_records(length: int) -> int:
    """How many records of LOG lie wholly in its first ``length`` bytes."""
    return sum(end <= length for end in [*LOG.places[1:], len(LOG.content)])


@pytest.mark.parametrize("sequence, name", [(1, "00000001.hrl"), (99999999, "99999999.hrl")])
def test_log_files_are_named_by_their_number(sequence: int, name: str) -> None:
    assert log_file_name(sequence) == name
    assert log_file_sequence(name) == sequence


@pytest.mark.parametrize("name", ["1.hrl", "00000001.hrl.tmp", "spare-00000001.hrl", "0000000a.hrl", "100000000.hrl"])
def test_other_names_are_no_log_files(name: str) -> None:
    assert log_file_sequence(name) is None


# --- scanning ------------------------------------------------------------------------------------------------------


def test_whole_log_is_indexed(tmp_path: Path) -> None:
    result = scan(tmp_path, LOG.content)
    assert result.kind is EndKind.CLEAN
    assert [each.offset for each in result.records] == LOG.places
    assert result.end == len(LOG.content)
    assert result.position == LOG.position
    assert result.cursor.inside is True


@pytest.mark.parametrize("padding", [8, 80, 512, 4096, 100_000])
def test_zeroes_behind_the_log_are_a_clean_end(tmp_path: Path, padding: int) -> None:
    result = scan(tmp_path, LOG.content + bytes(padding))
    assert result.end == len(LOG.content)
    assert result.kind is (EndKind.TORN if padding < 80 else EndKind.CLEAN)


def test_end_of_file_record_ends_the_scan(tmp_path: Path) -> None:
    log = small_log().end_file()
    result = scan(tmp_path, log.content + small_log().content[FILE_HEADER_BYTES:])
    assert result.kind is EndKind.END_OF_FILE
    assert result.position == LOG.position
    assert result.end == len(log.content)


@pytest.mark.slow
def test_log_truncated_at_every_byte_keeps_its_valid_prefix(tmp_path: Path) -> None:
    """P7."""
    path = tmp_path / "log.hrl"
    path.write_bytes(LOG.content)
    file = FILES.open(str(path))
    for length in reversed(range(FILE_HEADER_BYTES, len(LOG.content))):
        os.truncate(path, length)
        result = scan_file(file, visit=judge)
        count = whole_records(length)
        assert len(result.records) == count
        assert result.position == LOG.positions[count]
        assert result.later is None
        at_boundary = length in (FILE_HEADER_BYTES, *LOG.places)
        assert result.kind is (EndKind.CLEAN if at_boundary else EndKind.TORN)
    file.close()


def test_log_that_reads_as_zeroes_from_any_byte_keeps_its_valid_prefix(tmp_path: Path) -> None:
    """P7: as power loss leaves it, when the size was kept and pages were not."""
    for length in range(FILE_HEADER_BYTES, len(LOG.content), 11):
        result = scan(tmp_path, LOG.content[:length].ljust(len(LOG.content), b"\0"))
        # The bytes that are lost may have been zeroes.
        assert len(result.records) >= whole_records(length)
        assert result.position == LOG.positions[len(result.records)]
        assert result.kind in (EndKind.CLEAN, EndKind.TORN)


@settings(max_examples=300)
@given(at=st.integers(FILE_HEADER_BYTES, len(LOG.content) - 1), change=st.integers(1, 255))
@pytest.mark.slow
def test_damage_is_told_from_a_torn_tail(tmp_path_factory: pytest.TempPathFactory, at: int, change: int) -> None:
    """P9: a changed byte in the middle is damage, in the last record a torn tail; never is a record made up."""
    content = bytearray(LOG.content)
    content[at] ^= change
    result = scan(tmp_path_factory.getbasetemp(), content)
    count = whole_records(at)
    assert len(result.records) == count
    assert result.position == LOG.positions[count]
    if count == len(LOG.places) - 1:
        assert result.kind is EndKind.TORN
    else:
        assert result.kind is EndKind.DAMAGED
        assert result.later is not None
        assert result.later.offset == LOG.places[count + 1]


def test_header_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    for content in (b"", LOG.content[:4095], bytes(8192), b"QFI\xfb" + bytes(8192)):
        with pytest.raises(LogError):
            scan(tmp_path, content)


def forge(**change: object) -> Callable[[bytearray], bytearray]:
    """Change fields of the header of the last record, and make its own checksum right again."""
    fields = ["magic", "kind", "version", "flags", "body", "count", "epoch", "segment", "entry", "time"]

    def apply(content: bytearray) -> bytearray:
        values = dict(zip(fields, struct.unpack_from("<4sBBHII16sQQQ", content, LAST), strict=True)) | change
        plain = struct.pack("<4sBBHII16sQQQ", *values.values())
        content[LAST : LAST + 64] = plain + struct.pack("<Q", xxhash.xxh3_64_intdigest(plain))
        return content

    return apply


def patch(at: int, value: bytes) -> Callable[[bytearray], bytearray]:
    def apply(content: bytearray) -> bytearray:
        content[LAST + at : LAST + at + len(value)] = value
        return content

    return apply


def after_seal() -> bytearray:
    log = LogBuilder().begin().seal()
    return log.batch(zero(0, 0, 512)).content


def lying_batch(*writes: Write) -> bytearray:
    """A log whose last batch is chained rightly, but holds what its disks can't take."""
    return small_log().batch(*writes).content


def recycled(after: Position) -> bytearray:
    log = LogBuilder(sequence=9, after=after).batch(zero(0, 0, 512))
    return log.content + LOG.content[len(log.content) :]


@pytest.mark.parametrize(
    "change, reason",
    [
        (patch(0, bytes(4)), "magic"),
        (patch(0, b"HRLX"), "magic"),
        (patch(5, b"\x02"), "header-checksum"),
        (forge(version=2), "version"),
        (forge(version=0), "version"),
        (forge(flags=1), "version"),
        (forge(kind=9), "kind"),
        (forge(body=0), "length"),
        (forge(body=16), "length"),
        (forge(body=528), "chain"),
        (forge(body=24 + MAX_PAYLOAD), "short"),
        (forge(body=2**32 - 8), "length"),
        (forge(count=0), "length"),
        (forge(count=2), "chain"),
        (forge(count=4097), "length"),
        (forge(epoch=OTHER_EPOCH), "epoch"),
        (forge(segment=1), "segment"),
        (forge(segment=3), "segment"),
        (forge(entry=5), "entry"),
        (forge(entry=7), "entry"),
        (forge(time=1), "chain"),
        (patch(64, bytes(16)), "chain"),
        (patch(56, bytes(8)), "header-checksum"),
        (patch(80, b"\x01"), "chain"),
        (patch(104, b"\x01"), "chain"),
        (lambda content: content[: LAST + 40], "short"),
        (lambda content: content[: LAST + 90], "short"),
    ],
    ids=[
        "zero-magic", "wrong-magic", "stale-checksum", "version-2", "version-0", "flags", "kind", "length-0",
        "length-short", "length-less", "length-past-file", "length-huge", "count-0", "count-wrong", "count-huge",
        "other-epoch", "segment-before", "segment-after", "entry-before", "entry-after", "time", "wrong-chain",
        "header-checksum", "table", "payload", "half-a-header", "half-a-body",
    ],
)  # fmt: skip
def test_forged_tail_stops_at_the_last_good_record(
    tmp_path: Path, change: Callable[[bytearray], bytearray], reason: str
) -> None:
    """P8: whatever stands behind the last good record, reading stops there and names the reason."""
    result = scan(tmp_path, change(bytearray(LOG.content)))
    assert (result.end, result.reason) == (LAST, reason)
    assert result.position == LOG.positions[-2]
    assert result.kind is EndKind.TORN
    assert result.text


@pytest.mark.parametrize(
    "content, end, reason",
    [
        (after_seal(), 2, "order"),
        (lying_batch(zero(0, 1 << 20, 512)), 7, "entry-range"),
        (lying_batch(zero(1, 0, 512)), 7, "entry-disk"),
        (lying_batch(Write(0, EntryKind.DATA, 0, b"")), 7, "entry-range"),
        (small_log().settle(0, 0, 512).content, 7, "order"),
        (LOG.content + LogBuilder(epoch=OTHER_EPOCH).begin().record(0), 7, "epoch"),
        (LOG.content + LogBuilder(after=LOG.position).begin().record(0), 7, "order"),
        (LOG.content + LOG.record(1), 7, "segment"),
        (LOG.content + LOG.record(6), 7, "entry"),
    ],
    ids=[
        "data-after-seal", "entry-out-of-disk", "unknown-disk", "empty-entry", "settled-in-log", "other-epoch",
        "segment-in-segment", "old-batch", "last-batch-again",
    ],
)  # fmt: skip
def test_sound_record_that_can_not_stand_there_stops_the_scan(
    tmp_path: Path, content: bytearray, end: int, reason: str
) -> None:
    """P8, A11."""
    result = scan(tmp_path, content)
    assert (len(result.records), result.reason) == (end, reason)
    assert result.kind is EndKind.TORN


@pytest.mark.parametrize("index", range(1, 8))
def test_old_records_of_a_recycled_file_are_no_evidence(tmp_path: Path, index: int) -> None:
    """P10: what the file held in its earlier life has lower numbers, and is neither read nor taken for later log."""
    content = recycled(LOG.positions[index]._replace(segment=3))
    result = scan(tmp_path, content)
    assert len(result.records) == 1
    assert result.kind is EndKind.TORN
    assert result.later is None


def test_old_records_of_another_epoch_are_no_evidence(tmp_path: Path) -> None:
    log = LogBuilder(epoch=OTHER_EPOCH).begin()
    result = scan(tmp_path, log.content + LOG.content[len(log.content) :])
    assert len(result.records) == 1
    assert result.kind is EndKind.TORN


def test_later_record_is_found_across_the_windows_of_the_search(tmp_path: Path) -> None:
    """The only evidence of damage may lie anywhere, also where two reads of the search meet."""
    path = tmp_path / "far.hrl"
    later = LOG.record(6)
    for distance in (8, 80, (4 << 20) - 80, (4 << 20) - 72, (4 << 20) - 8, 4 << 20, (8 << 20) - 40):
        at = FILE_HEADER_BYTES + distance
        path.write_bytes(bytes(at) + later)
        file = FILES.open(str(path))
        found = find_later(file, Cursor.at(LOG.positions[0]), FILE_HEADER_BYTES, file.size())
        assert found is not None
        assert found.offset == at
        assert find_later(file, Cursor.at(LOG.position), FILE_HEADER_BYTES, file.size()) is None
        file.close()


def test_unaligned_copy_of_a_record_is_no_evidence(tmp_path: Path) -> None:
    content = LOG.content[: LOG.places[1]] + b"garbage" + LOG.record(6)
    result = scan(tmp_path, content)
    assert result.kind is EndKind.TORN


def test_damage_in_a_differencing_file_is_seen(tmp_path: Path) -> None:
    log = LogBuilder().batch(zero(0, 0, 512)).settle(0, 0, 512).settle(0, 512, 512)
    content = bytearray(log.content)
    content[log.places[1] + 70] ^= 1
    result = scan(tmp_path, content)
    assert result.kind is EndKind.DAMAGED
    assert result.later is not None
    assert result.later.offset == log.places[2]


def test_scan_may_start_and_stop_inside_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log.hrl"
    path.write_bytes(LOG.content)
    file = FILES.open(str(path))
    result = scan_file(file, cursor=Cursor.at(LOG.positions[2]), offset=LOG.places[2], end=LOG.places[5], keep=False)
    assert result.records == []
    assert result.kind is EndKind.CLEAN
    assert result.position == LOG.positions[5]
    assert read_file_header(file).vm == VM
    file.close()


# --- runs ----------------------------------------------------------------------------------------------------------


def big_log() -> LogBuilder:
    """Some MiB in batches of different sizes, in three segments."""
    log = LogBuilder()
    for segment in range(3):
        log.begin()
        for number in range(12):
            log.batch(data(3, 512 * number, bytes([number]) * (512 << (number % 11))), discard(0, 0, 512))
        log.batch(data(3, 0, bytes([segment]) * MAX_PAYLOAD)).seal()
    return log


BIG = big_log()


def test_runs_are_frames_that_a_replica_follows(tmp_path: Path) -> None:
    """Every run is the payload of one LOG or SEAL frame; all of them are the log, byte for byte."""
    path = tmp_path / "log.hrl"
    path.write_bytes(BIG.content)
    file = FILES.open(str(path))
    reader = RecordReader(file, Cursor.of_file(read_file_header(file)))
    replica = Cursor.at(BIG.positions[0], inside=False)
    got = bytearray()
    seals = 0
    for run in reader.runs(len(BIG.content)):
        assert run.offset == FILE_HEADER_BYTES + len(got)
        decode_log(MessageType.SEAL if run.sealed else MessageType.LOG, run.data, replica)
        assert run.position == replica.position
        assert len(run.data) <= RUN_BYTES
        got += run.data
        seals += run.sealed
    assert bytes(got) == BIG.content[FILE_HEADER_BYTES:]
    assert seals == 3
    file.close()


@pytest.mark.parametrize("index", range(len(LOG.places) + 1))
def test_reading_stops_at_the_committed_end(tmp_path: Path, index: int) -> None:
    """What a writer has not committed yet is not read, whatever is there; reading goes on when it is."""
    ends = [*LOG.places, len(LOG.content)]
    path = tmp_path / "log.hrl"
    path.write_bytes(LOG.content[: ends[index]] + b"\xff" * 500)
    file = FILES.open(str(path))
    reader = RecordReader(file, Cursor.of_file(read_file_header(file)))
    assert sum(len(run.records) for run in reader.runs(ends[index])) == index
    assert reader.cursor.position == LOG.positions[index]
    assert reader.run(ends[index]) is None
    path.write_bytes(LOG.content)
    assert sum(len(run.records) for run in reader.runs(len(LOG.content))) == len(LOG.places) - index
    file.close()


def test_valid_records_come_out_before_the_error(tmp_path: Path) -> None:
    path = tmp_path / "log.hrl"
    content = bytearray(LOG.content)
    content[LOG.places[2] + 100] ^= 1
    path.write_bytes(content)
    file = FILES.open(str(path))
    reader = RecordReader(file, Cursor.of_file(read_file_header(file)))
    run = reader.run(len(content))
    assert run is not None
    assert len(run.records) == 2
    for _ in range(2):
        with pytest.raises(LogError) as error:
            reader.run(len(content))
        assert error.value.offset == LOG.places[2]
    assert reader.cursor.position == LOG.positions[2]
    file.close()


class CountingFile(RealFile):
    """A real file that counts what is read of it."""

    bytes_read = 0

    def read(self, offset: int, length: int) -> bytes:
        content = super().read(offset, length)
        self.bytes_read += len(content)
        return content


def test_many_small_segments_are_read_once(tmp_path: Path) -> None:
    """Every seal ends a run, but not what was read ahead."""
    log = LogBuilder()
    for _ in range(500):
        log.begin().batch(zero(0, 0, 512)).seal()
    path = tmp_path / "log.hrl"
    path.write_bytes(log.content)
    descriptor = os.open(path, os.O_RDONLY)
    file = CountingFile(str(path), descriptor, write=False)
    reader = RecordReader(file, Cursor.at(log.positions[0]))
    assert sum(len(run.records) for run in reader.runs(len(log.content))) == 1500
    assert file.bytes_read < 2 * len(log.content)
    file.close()


def test_what_was_read_ahead_is_read_again_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log.hrl"
    content = bytearray(LOG.content)
    content[LOG.places[5] + 70] ^= 1
    path.write_bytes(content)
    file = FILES.open(str(path))
    reader = RecordReader(file, Cursor.at(LOG.positions[0]))
    with pytest.raises(LogError):
        list(reader.runs(len(content)))
    assert reader.cursor.position == LOG.positions[5]
    path.write_bytes(LOG.content)
    assert sum(len(run.records) for run in reader.runs(len(content))) == 2
    file.close()


@pytest.mark.parametrize("missing", [1, 300, 600])
def test_committed_end_inside_or_behind_the_file_is_an_error(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "log.hrl"
    path.write_bytes(LOG.content[:-missing])
    file = FILES.open(str(path))
    reader = RecordReader(file, Cursor.at(LOG.positions[-2]), LAST)
    with pytest.raises(LogError) as error:
        reader.run(len(LOG.content))
    assert error.value.reason == "short"
    with pytest.raises(LogError, match="0 bytes left"):
        RecordReader(file, Cursor.at(LOG.position), len(LOG.content)).run(len(LOG.content) + 80)
    file.close()


# --- following -----------------------------------------------------------------------------------------------------


class Folder:
    """A log of several files on disk, as a tap leaves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: list[LogBuilder] = []

    def add(self, log: LogBuilder, *, ended: bool = True) -> LogBuilder:
        self.parts.append(log)
        if ended:
            log.end_file()
        self.file(log.sequence).write_bytes(log.content + bytes(200))
        return log

    def file(self, sequence: int) -> Path:
        return self.path / log_file_name(sequence)

    def end(self) -> tuple[int, int]:
        last = self.parts[-1]
        return last.sequence, len(last.content)

    def follower(self) -> LogFollower:
        return LogFollower(FILES, str(self.path), VM)


def three_files(path: Path) -> Folder:
    folder = Folder(path)
    first = folder.add(small_log())
    middle = LogBuilder(sequence=2, after=first.position).batch(zero(0, 0, 512)).seal()
    folder.add(middle)
    last = LogBuilder(sequence=3, after=middle.position).begin().batch(data(0, 0, pattern(512, 9)))
    folder.add(last, ended=False)
    return folder


def records_of(folder: Folder) -> bytes:
    return b"".join(
        log.record(index)
        for log in folder.parts
        for index in range(len(log.places))
        if log.record(index)[4] != RecordKind.END_OF_FILE
    )


def read_all(follower: LogFollower, end: tuple[int, int]) -> bytes:
    got = bytearray()
    while (run := follower.read(*end)) is not None:
        got += run.data
    return bytes(got)


def test_log_is_followed_across_its_files(tmp_path: Path) -> None:
    folder = three_files(tmp_path)
    follower = folder.follower()
    follower.seek(1, FILE_HEADER_BYTES, folder.parts[0].positions[0])
    assert read_all(follower, folder.end()) == records_of(folder)
    assert follower.sequence == 3
    assert follower.offset == folder.end()[1]
    assert follower.position == folder.parts[-1].position
    assert follower.read(*folder.end()) is None
    follower.close()


@pytest.mark.parametrize("part", range(3))
def test_following_starts_at_any_position(tmp_path: Path, part: int) -> None:
    folder = three_files(tmp_path)
    everything = records_of(folder)
    log = folder.parts[part]
    follower = folder.follower()
    for index, place in enumerate(log.places):
        follower.seek(log.sequence, place, log.positions[index])
        rest = read_all(follower, folder.end())
        assert rest
        assert everything.endswith(rest)
    follower.close()


def test_following_waits_at_the_committed_end_and_goes_on(tmp_path: Path) -> None:
    folder = three_files(tmp_path)
    follower = folder.follower()
    follower.seek(1, FILE_HEADER_BYTES, folder.parts[0].positions[0])
    got = b""
    for log in folder.parts:
        for end in [*log.places, len(log.content)]:
            got += read_all(follower, (log.sequence, end))
    assert got == records_of(folder)
    follower.close()


def test_wrong_start_is_damage_and_names_file_and_offset(tmp_path: Path) -> None:
    """R34: a position whose chain is not that of the log there is never read on from."""
    folder = three_files(tmp_path)
    follower = folder.follower()
    start = folder.parts[0].positions[2]
    follower.seek(1, folder.parts[0].places[2], start._replace(chain=bytes(16)))
    with pytest.raises(LogDamagedError, match=r"00000001\.hrl is damaged at offset \d+") as error:
        follower.read(*folder.end())
    assert error.value.reason == "chain"
    follower.close()


def test_damage_in_the_middle_is_never_skipped(tmp_path: Path) -> None:
    """P9: what is before it is sent, what is behind it is not."""
    folder = three_files(tmp_path)
    middle = folder.parts[1]
    content = bytearray(middle.content)
    content[middle.places[0] + 90] ^= 1
    folder.file(2).write_bytes(content)
    follower = folder.follower()
    follower.seek(1, FILE_HEADER_BYTES, folder.parts[0].positions[0])
    got = bytearray()
    with pytest.raises(LogDamagedError) as error:
        while (run := follower.read(*folder.end())) is not None:
            got += run.data
    assert bytes(got) == folder.parts[0].content[FILE_HEADER_BYTES : folder.parts[0].places[-1]]
    assert error.value.path == str(folder.file(2))
    assert error.value.offset == middle.places[0]
    follower.close()


def recycle(folder: Folder, sequence: int, number: int) -> None:
    """What the tap does to a released file: a new header in place, then a new name."""
    header = LogBuilder(sequence=number, after=folder.parts[-1].position).content
    with folder.file(sequence).open("r+b") as file:
        file.write(header)
        file.write(b"\xaa" * 2000)
    folder.file(sequence).rename(folder.file(number))


def test_recycled_file_reads_as_gone_and_not_as_damaged(tmp_path: Path) -> None:
    """R36: a reader that lost its lease sees other bytes in its open file."""
    folder = three_files(tmp_path)
    follower = folder.follower()
    follower.seek(1, folder.parts[0].places[1], folder.parts[0].positions[1])
    recycle(folder, 1, 4)
    with pytest.raises(LogGoneError, match="recycled"):
        follower.read(*folder.end())
    follower.close()


def test_freed_file_under_a_spare_name_reads_as_gone(tmp_path: Path) -> None:
    folder = three_files(tmp_path)
    follower = folder.follower()
    follower.seek(1, folder.parts[0].places[1], folder.parts[0].positions[1])
    with folder.file(1).open("r+b") as file:
        file.seek(FILE_HEADER_BYTES)
        file.write(b"\xaa" * 2000)
    folder.file(1).rename(tmp_path / "spare-00000001.hrl")
    with pytest.raises(LogGoneError):
        follower.read(*folder.end())
    follower.close()


def test_missing_next_file_is_gone(tmp_path: Path) -> None:
    folder = three_files(tmp_path)
    follower = folder.follower()
    follower.seek(1, FILE_HEADER_BYTES, folder.parts[0].positions[0])
    recycle(folder, 2, 4)
    with pytest.raises(LogGoneError, match=r"00000002\.hrl is gone"):
        read_all(follower, folder.end())
    with pytest.raises(LogGoneError):
        follower.seek(2, FILE_HEADER_BYTES, folder.parts[1].positions[0])
    follower.close()


def test_file_with_another_number_under_the_name_is_gone(tmp_path: Path) -> None:
    folder = three_files(tmp_path)
    recycle(folder, 1, 4)
    folder.file(4).rename(folder.file(1))
    with pytest.raises(LogGoneError, match="as number 4"):
        folder.follower().seek(1, FILE_HEADER_BYTES, folder.parts[0].positions[0])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(8192),
        LogBuilder(vm=EPOCH, sequence=2).content,
        LogBuilder(sequence=2).content,
        LogBuilder(sequence=2, epoch=OTHER_EPOCH).content,
    ],
    ids=["empty", "zeroes", "other-vm", "other-place", "other-epoch"],
)
def test_next_file_that_is_not_the_next_is_damage(tmp_path: Path, content: bytes) -> None:
    folder = three_files(tmp_path)
    folder.file(2).write_bytes(content)
    follower = folder.follower()
    follower.seek(1, FILE_HEADER_BYTES, folder.parts[0].positions[0])
    with pytest.raises(LogDamagedError, match=r"00000002\.hrl"):
        read_all(follower, folder.end())
    follower.close()


def test_file_without_its_end_mark_is_damage(tmp_path: Path) -> None:
    folder = three_files(tmp_path)
    first = folder.parts[0]
    folder.file(1).write_bytes(first.content[: first.places[-1]])
    follower = folder.follower()
    follower.seek(1, FILE_HEADER_BYTES, first.positions[0])
    with pytest.raises(LogDamagedError, match="end-of-file"):
        read_all(follower, folder.end())
    follower.close()


def test_no_file_stays_open(tmp_path: Path) -> None:
    folder = three_files(tmp_path)
    follower = folder.follower()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        follower.seek(1, FILE_HEADER_BYTES, folder.parts[0].positions[0])
        read_all(follower, folder.end())
    follower.close()
    follower.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
