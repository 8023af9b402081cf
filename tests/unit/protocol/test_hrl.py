"""The records of the log: round trips, every bit that may be wrong, and entries against a naive second decoder."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from protocol.entries import decode_table
from protocol.errors import LogError
from protocol.hrl import (
    ENTRY_BYTES,
    FILE_HEADER_BYTES,
    MAX_DISK_BYTES,
    MAX_DISKS,
    MAX_ENTRIES,
    MAX_PAYLOAD,
    MAX_RECORD,
    EntryKind,
    FileHeader,
    Geometry,
    RecordHeader,
    RecordKind,
    Seal,
    SealReason,
    Settled,
    chain_seed,
    check_chain,
    decode_entries,
    decode_file_header,
    decode_record_header,
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
from tests.vectors.logs import DISKS, EPOCH, SIZES, VM

id16 = st.binary(min_size=16, max_size=16)
u64 = st.integers(0, 2**64 - 1)
CHAIN = chain_seed(VM, EPOCH)


def record_header(
    *, magic: bytes = b"HRLR", kind: int = 2, version: int = 1, flags: int = 0, body: int = 24, count: int = 1
) -> bytes:
    """A record header with any values and a right checksum."""
    plain = struct.pack("<4sBBHII16sQQQ", magic, kind, version, flags, body, count, EPOCH, 1, 0, 0)
    return plain + struct.pack("<Q", xxhash.xxh3_64_intdigest(plain)) + bytes(16)


def reason_of(header: bytes) -> str:
    with pytest.raises(LogError) as refused:
        decode_record_header(header, at=4096)
    assert refused.value.offset == 4096
    return refused.value.reason


def test_numbers_stay() -> None:
    assert [(kind.name, int(kind)) for kind in RecordKind] == [
        ("SEGMENT", 1), ("BATCH", 2), ("SEAL", 3), ("END_OF_FILE", 4), ("SETTLED", 5),
        ("UNDO_INDEX", 6), ("UNDO_END", 7), ("UNSETTLED", 8),
    ]  # fmt: skip
    assert [(kind.name, int(kind)) for kind in EntryKind] == [("DATA", 1), ("ZERO", 2), ("DISCARD", 3)]
    assert [(reason.name, int(reason)) for reason in SealReason] == [
        ("INTERVAL", 1), ("COMMAND", 2), ("RESYNC", 3), ("SHUTDOWN", 4), ("RECOVERY", 5),
    ]  # fmt: skip


# --- file header ---------------------------------------------------------------------------------------------------

file_headers = st.builds(
    FileHeader, vm=id16, sequence=u64, capacity=u64, epoch=id16, segment=u64, entry=u64, chain=id16
)


@given(file_headers)
def test_file_header_comes_back(header: FileHeader) -> None:
    data = encode_file_header(header)
    assert len(data) == FILE_HEADER_BYTES
    assert decode_file_header(data) == decode_file_header(memoryview(bytearray(data))) == header


@given(file_headers, st.integers(0, FILE_HEADER_BYTES - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_file_header_is_an_error(header: FileHeader, at: int, change: int) -> None:
    data = bytearray(encode_file_header(header))
    data[at] ^= change
    with pytest.raises(LogError) as refused:
        decode_file_header(data)
    assert refused.value.reason == ("file-magic" if at < 8 else "file-checksum")


@pytest.mark.parametrize("size", [0, 1, 80, 4095])
def test_short_file_header_is_an_error(size: int) -> None:
    header = encode_file_header(FileHeader(VM, 1, 1, EPOCH, 0, 0, CHAIN))
    with pytest.raises(LogError) as refused:
        decode_file_header(header[:size])
    assert refused.value.reason == "short-header"


@pytest.mark.parametrize("at, value", [(8, 2), (10, 1), (12, 1)], ids=["version", "flags", "size"])
def test_file_header_of_another_version_is_named(at: int, value: int) -> None:
    data = bytearray(encode_file_header(FileHeader(VM, 1, 1, EPOCH, 0, 0, CHAIN)))
    data[at] = value
    data[-16:] = xxhash.xxh3_128_digest(bytes(data[:-16]))
    with pytest.raises(LogError) as refused:
        decode_file_header(data)
    assert refused.value.reason == "file-version"


# --- record headers ------------------------------------------------------------------------------------------------


@given(
    epoch=id16,
    segment=u64,
    entry=st.integers(0, 2**63),
    time_ns=u64,
    chain=id16,
    count=st.integers(1, MAX_ENTRIES),
    words=st.integers(0, 100),
)
def test_record_comes_back_and_chains(
    epoch: bytes, segment: int, entry: int, time_ns: int, chain: bytes, count: int, words: int
) -> None:
    pieces = [bytes(count * ENTRY_BYTES), bytes([words]) * (8 * words)]
    data, after = encode_record(RecordKind.BATCH, epoch, segment, entry, time_ns, chain, pieces, count)
    record = data + b"".join(pieces)
    header = decode_record_header(memoryview(record))
    body = count * ENTRY_BYTES + 8 * words
    assert header == RecordHeader(RecordKind.BATCH, body, count, epoch, segment, entry, time_ns, after)
    assert header.length == len(record)
    assert header.next_entry == entry + count
    assert check_chain(header, chain, record) == after != chain
    assert after == xxhash.xxh3_128_digest(chain + record[:64] + record[80:])


def test_record_is_read_from_inside_a_buffer() -> None:
    data, _ = encode_record(RecordKind.END_OF_FILE, EPOCH, 3, 9, 1, CHAIN, ())
    header = decode_record_header(b"x" * 24 + data, 24)
    assert (header.segment, header.entry, header.next_entry) == (3, 9, 9)


def test_end_of_file_record_carries_the_chain_and_does_not_advance_it() -> None:
    data, after = encode_record(RecordKind.END_OF_FILE, EPOCH, 3, 9, 1, CHAIN, ())
    assert after == CHAIN
    header = decode_record_header(data)
    assert check_chain(header, CHAIN, data) == CHAIN
    with pytest.raises(LogError, match="end-of-file"):
        check_chain(header, bytes(16), data)


@given(st.integers(0, 79), st.integers(1, 255))
def test_any_changed_byte_of_a_record_is_found(at: int, change: int) -> None:
    """P8: of the header by its own checksum, of the chain field and the body by the chain."""
    body = encode_entry(0, EntryKind.ZERO, 0, 512)
    data, _ = encode_record(RecordKind.BATCH, EPOCH, 1, 0, 1, CHAIN, [body], 1)
    for offset, reason in ((at, None), (80 + at % len(body), "chain")):
        record = bytearray(data + body)
        record[offset] ^= change
        with pytest.raises(LogError) as refused:
            check_chain(decode_record_header(record), CHAIN, record)
        expected = "magic" if offset < 4 else "header-checksum" if offset < 64 else "chain"
        assert refused.value.reason == (reason or expected)


@pytest.mark.parametrize(
    "header, reason",
    [
        (bytes(80), "end"),
        (b"\0" * 79 + b"x", "magic"),
        (record_header(magic=b"HRLX"), "magic"),
        (record_header(version=0), "version"),
        (record_header(version=2), "version"),
        (record_header(flags=1), "version"),
        (record_header(kind=0), "kind"),
        (record_header(kind=9), "kind"),
        (record_header(count=0, body=0), "length"),
        (record_header(count=0, body=24), "length"),
        (record_header(count=2, body=24), "length"),
        (record_header(count=1, body=ENTRY_BYTES + MAX_PAYLOAD + 8), "length"),
        (record_header(count=1, body=25), "length"),
        (record_header(count=MAX_ENTRIES + 1, body=(MAX_ENTRIES + 1) * ENTRY_BYTES), "length"),
        (record_header(count=1, body=2**32 - 8), "length"),
        (record_header(kind=1, count=0, body=0), "length"),
        (record_header(kind=1, count=1, body=24), "length"),
        (record_header(kind=1, count=MAX_DISKS + 1, body=32 * (MAX_DISKS + 1)), "length"),
        (record_header(kind=3, count=1, body=24), "length"),
        (record_header(kind=3, count=0, body=16), "length"),
        (record_header(kind=4, count=0, body=8), "length"),
        (record_header(kind=5, count=0, body=32), "length"),
        (record_header()[:79], "short"),
        (b"", "short"),
    ],
)
def test_record_header_that_no_writer_makes_is_refused(header: bytes, reason: str) -> None:
    assert reason_of(header) == reason


@given(st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_accepted_lengths_are_bounded(kind: int, body: int, count: int) -> None:
    try:
        header = decode_record_header(record_header(kind=kind, body=body, count=count))
    except LogError:
        return
    assert header.length <= MAX_RECORD
    assert header.length % 8 == 0


@given(st.binary(max_size=200))
def test_garbage_is_a_typed_error(garbage: bytes) -> None:
    with pytest.raises(LogError):
        decode_record_header(garbage)


# --- bodies --------------------------------------------------------------------------------------------------------


def header_of(kind: RecordKind, body: bytes, count: int = 0) -> RecordHeader:
    return RecordHeader(kind, len(body), count, EPOCH, 1, 0, 0, bytes(16))


geometries = st.lists(
    st.builds(Geometry, index=st.integers(0, 65535), size=st.integers(1, MAX_DISK_BYTES), uuid=id16),
    min_size=1,
    max_size=MAX_DISKS,
    unique_by=lambda disk: disk.index,
)


@given(geometries)
def test_segment_body_comes_back(disks: list[Geometry]) -> None:
    body = encode_segment_body(disks)
    assert decode_segment_body(header_of(RecordKind.SEGMENT, body, len(disks)), body) == tuple(disks)


@pytest.mark.parametrize(
    "body",
    [
        encode_segment_body([DISKS[0], DISKS[0]]),
        encode_segment_body([Geometry(0, 0, bytes(16))]),
        encode_segment_body([Geometry(0, MAX_DISK_BYTES + 1, bytes(16))]),
        b"\0\0\1" + encode_segment_body(DISKS)[3:],
        b"\0\0\0\0\0\0\0\1" + encode_segment_body(DISKS)[8:],
    ],
    ids=["repeated", "empty", "too-large", "reserved-16", "reserved-32"],
)
def test_wrong_segment_body_is_refused(body: bytes) -> None:
    with pytest.raises(LogError) as refused:
        decode_segment_body(header_of(RecordKind.SEGMENT, body, len(body) // 32), body)
    assert refused.value.reason == "geometry"


@given(st.sampled_from(SealReason), u64, u64)
def test_seal_body_comes_back(reason: SealReason, entries: int, size: int) -> None:
    seal = Seal(reason, entries, size)
    assert decode_seal_body(encode_seal_body(seal)) == seal


@given(st.integers(0, 7), st.integers(0, 255))
def test_wrong_seal_body_is_refused(at: int, value: int) -> None:
    body = bytearray(encode_seal_body(Seal(SealReason.COMMAND, 1, 2)))
    body[at] = value
    if value == 0 if at else value in SealReason._value2member_map_:
        assert decode_seal_body(body).entries == 1
        return
    with pytest.raises(LogError) as refused:
        decode_seal_body(body)
    assert refused.value.reason == "seal-reason"


@given(st.integers(0, 65535), u64, u64)
def test_settled_body_comes_back_or_is_out_of_any_disk(disk: int, offset: int, length: int) -> None:
    body = encode_settled_body(Settled(disk, offset, length))
    if length > 0 and offset + length <= MAX_DISK_BYTES:
        assert decode_settled_body(body) == Settled(disk, offset, length)
    else:
        with pytest.raises(LogError) as refused:
            decode_settled_body(body)
        assert refused.value.reason == "settled-range"


# --- entries -------------------------------------------------------------------------------------------------------

Entry = tuple[int, int, int, int, int, int]

any_entry = st.tuples(
    st.sampled_from([0, 3, 3, 1, 2, 4, 65535]),
    st.sampled_from([1, 1, 2, 3, 0, 4, 255]),
    st.sampled_from([0, 0, 0, 0, 1]),
    st.sampled_from([0, 512, 1024, 2**32 - 1]),
    st.sampled_from([0, 512, (1 << 20) - 512, (1 << 20), (4 << 20) - 512, 2**63, 2**64 - 512]),
    st.sampled_from([512, 512, 1024, 0, (1 << 20), (1 << 20) + 1, 2**64 - 1]),
)


def table_bytes(entries: list[Entry]) -> bytes:
    return b"".join(struct.pack("<HBBIQQ", *entry) for entry in entries)


def naive(entries: list[Entry], payload: int, sizes: dict[int, int]) -> bool:
    """The rules again, one entry at a time."""
    for disk, kind, flags, carried, offset, length in entries:
        if kind not in (1, 2, 3) or flags or carried != (length if kind == 1 else 0):
            return False
        if disk not in sizes or length == 0 or offset + length > sizes[disk]:
            return False
    return sum(entry[3] for entry in entries) == payload


@given(st.lists(any_entry, min_size=1, max_size=5), st.sampled_from([0, 0, 8]), st.booleans())
def test_entries_are_judged_as_a_naive_decoder_does(entries: list[Entry], more: int, lie: bool) -> None:
    payload = more if lie else sum(entry[3] for entry in entries)
    body = table_bytes(entries)
    length = len(body) + payload
    if naive(entries, payload, SIZES):
        table: Any = decode_table(body, len(entries), length, SIZES)
        assert table.tolist() == entries
    else:
        with pytest.raises(LogError, match="entr"):
            decode_table(body, len(entries), length, SIZES)


@pytest.mark.parametrize(
    "entry, reason",
    [
        ((0, 4, 0, 0, 0, 512), "entry-kind"),
        ((0, 2, 1, 0, 0, 512), "entry-kind"),
        ((0, 1, 0, 511, 0, 512), "entry-payload"),
        ((0, 2, 0, 512, 0, 512), "entry-payload"),
        ((1, 2, 0, 0, 0, 512), "entry-disk"),
        ((65535, 2, 0, 0, 0, 512), "entry-disk"),
        ((0, 2, 0, 0, 0, 0), "entry-range"),
        ((0, 2, 0, 0, 0, (1 << 20) + 1), "entry-range"),
        ((0, 2, 0, 0, 512, 1 << 20), "entry-range"),
        ((0, 2, 0, 0, 2**64 - 1, 2), "entry-range"),
        ((0, 2, 0, 0, 1, 2**64 - 1), "entry-range"),
    ],
)
def test_wrong_entry_is_named_by_its_reason(entry: Entry, reason: str) -> None:
    good = (0, 2, 0, 0, 0, 512)
    body = table_bytes([good, entry, good])
    length = len(body) + entry[3]
    with pytest.raises(LogError) as refused:
        decode_table(body, 3, length, SIZES, at=77)
    assert (refused.value.reason, refused.value.offset) == (reason, 77)


def test_largest_entry_of_the_largest_disk_is_accepted() -> None:
    body = table_bytes([(9, 3, 0, 0, 0, MAX_DISK_BYTES), (9, 2, 0, 0, MAX_DISK_BYTES - 1, 1)])
    assert len(decode_table(body, 2, len(body), {9: MAX_DISK_BYTES})) == 2


def test_entries_of_a_batch_are_a_view_of_its_body() -> None:
    body = bytearray(encode_entry(0, EntryKind.DATA, 512, 1024) + bytes(1024))
    header = header_of(RecordKind.BATCH, bytes(body), 1)
    table = decode_entries(header, memoryview(body), SIZES)
    assert table["offset"].tolist() == [512]
    body[8:16] = struct.pack("<Q", 2048)
    assert table["offset"].tolist() == [2048]


@pytest.mark.parametrize("missing", [1, 1024, 1040])
def test_batch_that_is_cut_off_is_refused(missing: int) -> None:
    body = encode_entry(0, EntryKind.DATA, 512, 1024) + bytes(1024)
    header = header_of(RecordKind.BATCH, body, 1)
    with pytest.raises(LogError) as refused:
        decode_entries(header, body[:-missing], SIZES)
    assert refused.value.reason == "entry-count"
