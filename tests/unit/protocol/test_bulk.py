"""Bulk bodies: logs, manifests and blocks come back as they went in, and anything else is refused as a whole."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.bulk import (
    MAX_BLOCK_BYTES,
    Manifest,
    block_count,
    decode_blocks,
    decode_detail,
    decode_log,
    decode_manifest,
    encode_blocks,
    encode_blocks_entry,
    encode_detail,
    encode_manifest,
    group_count,
)
from protocol.chain import Cursor
from protocol.errors import ProtocolError
from protocol.frames import MAX_DETAIL_TAGS, MAX_MANIFEST_BLOCKS, PAYLOAD_CAPS, Buffer
from protocol.hrl import MAX_DISK_BYTES, MAX_ENTRIES, MAX_PAYLOAD, EntryKind, encode_entry
from protocol.messages import GROUP_BLOCKS, MessageType
from tests.vectors.logs import EPOCH, OTHER_EPOCH, SIZES, LogBuilder, small_log, zero
from tests.vectors.messages import BULK_EXAMPLES, KEY_ID, RESYNC, detail, manifest

LOG = small_log()
LOG_FRAME = BULK_EXAMPLES[MessageType.LOG]
SEAL_FRAME = BULK_EXAMPLES[MessageType.SEAL]
BUFFERS: list[Callable[[bytes], Buffer]] = [bytes, bytearray, lambda raw: np.frombuffer(raw, np.uint8).data]


# --- log -----------------------------------------------------------------------------------------------------------


def start() -> Cursor:
    return Cursor.at(LOG.positions[0], inside=False)


def refused(kind: MessageType, content: bytes, cursor: Cursor) -> str:
    before = cursor.copy()
    with pytest.raises(ProtocolError, match=kind.name) as error:
        decode_log(kind, content, cursor)
    assert cursor == before, "a refused frame moves nothing"
    return error.value.code


@pytest.mark.parametrize("buffer", BUFFERS)
def test_log_frame_is_followed(buffer: Callable[[bytes], Buffer]) -> None:
    cursor = start()
    records = decode_log(MessageType.LOG, buffer(LOG_FRAME), cursor)
    assert [bytes(each.record) for each in records] == [LOG.record(0), LOG.record(1), LOG.record(2)]
    assert cursor.position == LOG.positions[3]
    decode_log(MessageType.LOG, LOG.record(3), cursor)
    (seal,) = decode_log(MessageType.SEAL, buffer(SEAL_FRAME), cursor)
    assert bytes(seal.record) == LOG.record(4)
    assert cursor.position == LOG.positions[5]
    assert cursor.inside is False


@pytest.mark.parametrize(
    "kind, content, at, code",
    [
        (MessageType.LOG, b"", 0, "protocol"),
        (MessageType.SEAL, b"", 4, "protocol"),
        (MessageType.LOG, bytes(80), 0, "protocol"),
        (MessageType.LOG, LOG.record(4), 4, "protocol"),
        (MessageType.LOG, LOG.record(3) + LOG.record(4), 3, "protocol"),
        (MessageType.SEAL, LOG.record(3), 3, "protocol"),
        (MessageType.SEAL, LOG.record(4) + LOG.record(5), 4, "protocol"),
        (MessageType.LOG, LogBuilder(after=LOG.positions[2]).end_file().record(0), 2, "protocol"),
        (MessageType.LOG, LogBuilder().settle(0, 0, 512).record(0), 0, "protocol"),
        (MessageType.LOG, LOG.record(1), 0, "gap"),
        (MessageType.LOG, LOG.record(2), 1, "gap"),
        (MessageType.LOG, LOG.record(5), 0, "gap"),
        (MessageType.LOG, LOG.record(0), 5, "gap"),
        (MessageType.LOG, LogBuilder(epoch=OTHER_EPOCH).begin().record(0), 0, "chain"),
        (MessageType.LOG, LogBuilder(vm=EPOCH).begin().record(0), 0, "chain"),
    ],
    ids=[
        "empty-log", "empty-seal", "zeroes", "seal-as-log", "seal-at-end", "log-as-seal", "two-in-seal",
        "end-of-file", "settled", "gap-of-segment", "gap-of-entry", "later-segment", "older-segment", "other-epoch",
        "other-history",
    ],
)  # fmt: skip
def test_frame_that_is_not_the_next_piece_is_refused(kind: MessageType, content: bytes, at: int, code: str) -> None:
    assert refused(kind, content, Cursor.at(LOG.positions[at])) == code


def test_truncated_log_frame_is_refused_at_every_byte() -> None:
    lengths = {len(LOG.record(0)), len(LOG.record(0) + LOG.record(1)), len(LOG_FRAME)}
    for length in range(len(LOG_FRAME)):
        if length not in lengths:
            assert refused(MessageType.LOG, LOG_FRAME[:length], start()) == "protocol"


@given(st.integers(0, len(LOG_FRAME) - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_log_frame_refuses_all_of_it(at: int, change: int) -> None:
    """N1, I18: nothing of a frame is taken where a part of it is wrong."""
    content = bytearray(LOG_FRAME)
    content[at] ^= change
    refused(MessageType.LOG, bytes(content), start())


# --- manifests -----------------------------------------------------------------------------------------------------


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    block_size = draw(st.sampled_from([512, 4096, 65536]))
    count = draw(st.integers(1, 140))
    last = draw(st.integers(1, block_size))
    equal = np.array(draw(st.lists(st.booleans(), min_size=group_count(count), max_size=group_count(count))), bool)
    holes = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    holes |= np.repeat(equal, GROUP_BLOCKS)[:count]
    tagged = count - int(holes.sum())
    tags = np.frombuffer(draw(st.binary(min_size=16 * tagged, max_size=16 * tagged)), np.uint8).reshape(-1, 16)
    return Manifest(
        draw(st.binary(min_size=16, max_size=16)),
        draw(st.binary(min_size=16, max_size=16)),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(0, 65535)),
        block_size,
        draw(st.integers(0, 1 << 40)),
        (count - 1) * block_size + last,
        holes,
        tags,
        equal,
    )


def plain(each: Manifest) -> tuple[object, ...]:
    names = ("id", "key_id", "round", "disk", "block_size", "offset", "length")
    return (*(getattr(each, name) for name in names), each.equal.tolist(), each.holes.tolist(), each.tags.tolist())


@given(manifests(), st.sampled_from(BUFFERS))
def test_manifest_comes_back(each: Manifest, buffer: Callable[[bytes], Buffer]) -> None:
    assert plain(decode_manifest(buffer(b"".join(encode_manifest(each))))) == plain(each)


@given(manifests())
def test_tags_by_block_are_zero_for_holes(each: Manifest) -> None:
    table = each.by_block()
    tags = iter(each.tags.tolist())
    for row, hole in zip(table, each.holes.tolist(), strict=True):
        expected = bytes(16) if hole else bytes(next(tags))
        assert row.astype("<u8").tobytes() == expected


def test_largest_manifest_fits_its_frame() -> None:
    count = MAX_MANIFEST_BLOCKS
    tags = np.zeros((count, 16), np.uint8)
    largest = Manifest(RESYNC, KEY_ID, 1, 0, 65536, 0, count * 65536, np.zeros(count, bool), tags, np.zeros(64, bool))
    payload = b"".join(encode_manifest(largest))
    assert len(payload) == PAYLOAD_CAPS[MessageType.MANIFEST]
    assert decode_manifest(payload).tags.shape == (count, 16)
    with pytest.raises(ValueError, match="4097 blocks"):
        encode_manifest(replace(largest, length=count * 65536 + 1))


@pytest.mark.parametrize(
    "change",
    [
        {"holes": np.zeros(4, bool)},
        {"equal": np.zeros(2, bool)},
        {"equal": np.array([True])},
        {"tags": np.zeros((2, 16), np.uint8)},
        {"tags": np.zeros((4, 16), np.uint8)},
    ],
)
def test_manifest_that_does_not_add_up_is_not_sent(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="manifest"):
        encode_manifest(replace(manifest(), **change))  # type: ignore[arg-type]


def manifest_bytes(at: int = 0, value: bytes = b"") -> bytes:
    content = bytearray(b"".join(encode_manifest(manifest())))
    content[at : at + len(value)] = value
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        manifest_bytes()[:63],
        manifest_bytes()[:64],
        manifest_bytes()[:65],
        manifest_bytes()[:-1],
        manifest_bytes()[:-16],
        manifest_bytes() + bytes(16),
        manifest_bytes(38, b"\1"),
        manifest_bytes(40, struct.pack("<I", 0)),
        manifest_bytes(40, struct.pack("<I", MAX_BLOCK_BYTES + 1)),
        manifest_bytes(40, struct.pack("<I", 32768)),
        manifest_bytes(44, struct.pack("<I", 0)),
        manifest_bytes(44, struct.pack("<I", 4)),
        manifest_bytes(44, struct.pack("<I", MAX_MANIFEST_BLOCKS + 1)),
        manifest_bytes(44, struct.pack("<I", 2**32 - 1)),
        manifest_bytes(48, struct.pack("<Q", 2**63)),
        manifest_bytes(48, struct.pack("<Q", MAX_DISK_BYTES)),
        manifest_bytes(56, struct.pack("<Q", 0)),
        manifest_bytes(56, struct.pack("<Q", 2**64 - 1)),
        manifest_bytes(65, b"\x32"),
        manifest_bytes(65, b"\x02"),
        manifest_bytes(64, b"\x01"),
        manifest_bytes(64, b"\x02"),
    ],
    ids=[
        "empty", "short-header", "no-groups", "no-bitmap", "byte-short", "tag-short", "tag-more", "reserved",
        "block-zero",
        "block-huge", "block-other", "count-zero", "count-less", "count-more", "count-huge", "offset-huge",
        "offset-end", "length-zero", "length-huge", "bit-behind", "hole-less", "tag-in-equal", "group-behind",
    ],
)  # fmt: skip
def test_wrong_manifest_is_refused_as_a_whole(content: bytes) -> None:
    """A12."""
    with pytest.raises(ProtocolError, match="MANIFEST"):
        decode_manifest(content)


@given(st.data())
def test_changed_manifest_is_a_manifest_or_a_typed_error(choices: st.DataObject) -> None:
    content = bytearray(manifest_bytes())
    for _ in range(choices.draw(st.integers(1, 3))):
        content[choices.draw(st.integers(0, 66))] = choices.draw(st.integers(0, 255))
    try:
        got = decode_manifest(content)
    except ProtocolError:
        return
    assert b"".join(encode_manifest(got)) == content


@given(st.binary(max_size=200))
def test_garbage_is_no_manifest_and_no_detail(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_manifest(garbage)
    with pytest.raises(ProtocolError):
        decode_detail(garbage)


@given(st.integers(1, 300), st.sampled_from(BUFFERS))
def test_detail_comes_back(count: int, buffer: Callable[[bytes], Buffer]) -> None:
    tags = np.frombuffer(bytes(range(16)) * count, np.uint8).reshape(-1, 16)
    got = decode_detail(buffer(b"".join(encode_detail(replace(detail(), tags=tags)))))
    assert got.tags.tolist() == tags.tolist()
    assert replace(got, tags=tags) == replace(detail(), tags=tags)


def test_largest_detail_fits_its_frame() -> None:
    tags = np.zeros((MAX_DETAIL_TAGS, 16), np.uint8)
    payload = b"".join(encode_detail(replace(detail(), tags=tags)))
    assert len(payload) == PAYLOAD_CAPS[MessageType.DETAIL]
    for wrong in (np.zeros((MAX_DETAIL_TAGS + 1, 16), np.uint8), np.zeros((0, 16), np.uint8)):
        with pytest.raises(ValueError, match="tags"):
            encode_detail(replace(detail(), tags=wrong))


def detail_bytes(at: int = 0, value: bytes = b"") -> bytes:
    content = bytearray(b"".join(encode_detail(detail())))
    content[at : at + len(value)] = value
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        detail_bytes()[:63],
        detail_bytes()[:-1],
        detail_bytes() + bytes(16),
        detail_bytes(38, b"\1"),
        detail_bytes(40, struct.pack("<I", 65536)),
        detail_bytes(44, struct.pack("<I", 0)),
        detail_bytes(44, struct.pack("<I", MAX_DETAIL_TAGS + 1)),
        detail_bytes(48, struct.pack("<Q", 2**63)),
        detail_bytes(56, struct.pack("<Q", 2**64 - 1)),
    ],
    ids=["short-header", "byte-short", "tag-more", "reserved", "size", "none", "many", "offset-huge", "length-huge"],
)
def test_wrong_detail_is_refused_as_a_whole(content: bytes) -> None:
    """A12."""
    with pytest.raises(ProtocolError, match="DETAIL"):
        decode_detail(content)


@pytest.mark.parametrize("length, blocks", [(1, 1), (65536, 1), (65537, 2), (4096 * 65536, 4096)])
def test_last_block_may_be_short(length: int, blocks: int) -> None:
    assert block_count(length, 65536) == blocks


# --- blocks --------------------------------------------------------------------------------------------------------

block = st.tuples(st.sampled_from([0, 3]), st.integers(0, 100), st.integers(1, 8), st.booleans())


@given(st.lists(block, min_size=1, max_size=20), st.sampled_from(BUFFERS))
def test_blocks_come_back(blocks: list[tuple[int, int, int, bool]], buffer: Callable[[bytes], Buffer]) -> None:
    entries, payloads = [], []
    for number, (disk, offset, length, is_zero) in enumerate(blocks):
        entries.append(encode_blocks_entry(disk, offset * 512, length * 512, zero=is_zero))
        if not is_zero:
            payloads.append(bytes([number]) * (length * 512))
    got = decode_blocks(buffer(b"".join(encode_blocks(RESYNC, 7, entries, payloads))), SIZES)
    assert (got.id, got.round) == (RESYNC, 7)
    assert [(row["disk"], row["offset"] // 512, row["length"] // 512) for row in got.table] == [
        each[:3] for each in blocks
    ]
    assert (got.table["kind"] == EntryKind.ZERO).tolist() == [each[3] for each in blocks]
    assert bytes(got.payload) == b"".join(payloads)


def blocks_bytes(*entries: bytes, payload: int = 0, count: int | None = None) -> bytes:
    header = struct.pack("<16sII", RESYNC, 1, len(entries) if count is None else count)
    return header + b"".join(entries) + bytes(payload)


ONE = encode_blocks_entry(0, 0, 512, zero=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        blocks_bytes(ONE, payload=512)[:23],
        blocks_bytes(count=0),
        blocks_bytes(ONE, payload=511),
        blocks_bytes(ONE, payload=513),
        blocks_bytes(ONE, payload=512, count=2),
        blocks_bytes(ONE, ONE, payload=512, count=1),
        blocks_bytes(count=2**32 - 1),
        blocks_bytes(*[ONE] * (MAX_ENTRIES + 1), payload=512 * (MAX_ENTRIES + 1)),
        blocks_bytes(encode_entry(0, EntryKind.DISCARD, 0, 512)),
        blocks_bytes(encode_blocks_entry(1, 0, 512, zero=True)),
        blocks_bytes(encode_blocks_entry(0, 1 << 20, 512, zero=True)),
        blocks_bytes(encode_blocks_entry(0, 2**63, 512, zero=True)),
        blocks_bytes(encode_blocks_entry(0, 0, 0, zero=True)),
        blocks_bytes(encode_blocks_entry(3, 0, MAX_PAYLOAD, zero=False), ONE, payload=MAX_PAYLOAD + 512),
    ],
    ids=[
        "empty", "short-header", "none", "payload-short", "payload-more", "table-short", "table-more", "count-huge",
        "too-many", "discard", "unknown-disk", "past-the-end", "offset-huge", "empty-range", "payload-large",
    ],
)  # fmt: skip
def test_wrong_blocks_are_refused_as_a_whole(content: bytes) -> None:
    with pytest.raises(ProtocolError, match="BLOCKS"):
        decode_blocks(content, SIZES)


@given(st.binary(max_size=200))
def test_garbage_is_no_blocks(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_blocks(garbage, SIZES)


@pytest.mark.parametrize("count", [0, MAX_ENTRIES + 1])
def test_number_of_blocks_is_checked_by_the_sender(count: int) -> None:
    with pytest.raises(ValueError, match="BLOCKS"):
        encode_blocks(RESYNC, 1, [ONE] * count, [])


def test_largest_blocks_fit_their_frame() -> None:
    size = MAX_PAYLOAD // MAX_ENTRIES
    entries = [encode_blocks_entry(3, number * size, size, zero=False) for number in range(MAX_ENTRIES)]
    content = b"".join(encode_blocks(RESYNC, 1, entries, [bytes(MAX_PAYLOAD)]))
    assert len(content) == PAYLOAD_CAPS[MessageType.BLOCKS]
    assert len(decode_blocks(content, SIZES).payload) == MAX_PAYLOAD


def test_zero_blocks_need_no_payload() -> None:
    got = decode_blocks(blocks_bytes(encode_blocks_entry(3, 0, 4 << 20, zero=True)), SIZES)
    assert len(got.payload) == 0
    assert zero(3, 0, 4 << 20).length == int(got.table["length"][0])
