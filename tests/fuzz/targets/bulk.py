"""The payloads of bulk frames: log records, manifests, blocks, and zstd around them."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterable
from random import Random
from typing import Any
from unittest import mock

import zstandard

import protocol.bulk
import protocol.chain
import protocol.compression
from protocol.bulk import (
    decode_blocks,
    decode_detail,
    decode_log,
    decode_manifest,
    encode_blocks,
    encode_detail,
    encode_manifest,
)
from protocol.chain import Cursor
from protocol.compression import compress, decompress
from protocol.errors import ProtocolError
from protocol.messages import MessageType
from tests.fuzz import naive
from tests.fuzz.mutators import ENTRY_FIELDS, mutate_records, set_field, tweak
from tests.fuzz.naive import number
from tests.fuzz.target import Plant, Target
from tests.vectors.cases import squeezed_log
from tests.vectors.logs import SIZES, pattern
from tests.vectors.messages import BULK_EXAMPLES, LOG, RESYNC, long_manifest

# --- manifests, blocks and log -------------------------------------------------------------------------------------


def manifest_wrong(data: bytes) -> bool:
    """Whether the page says that this is no MANIFEST."""
    if len(data) < 64 or number(data, 38, 2):
        return True
    size, count, offset, length = number(data, 40, 4), number(data, 44, 4), number(data, 48, 8), number(data, 56, 8)
    if not 1 <= size <= 16 << 20 or not 1 <= count <= 4096 or offset + length > 1 << 46:
        return True
    if (length + size - 1) // size != count:
        return True
    groups = (count + 63) // 64
    at = 64 + (groups + 7) // 8
    equal = int.from_bytes(data[64:at], "little")
    bitmap = int.from_bytes(data[at : at + (count + 7) // 8], "little")
    if equal >> groups or bitmap >> count:
        return True
    for block in range(count):
        if equal >> block // 64 & 1 and not bitmap >> block & 1:
            return True
    return len(data) != at + (count + 7) // 8 + 16 * (count - bitmap.bit_count())


def check_manifest(data: bytes) -> None:
    try:
        manifest = decode_manifest(data)
    except ProtocolError:
        assert manifest_wrong(data)
        return
    assert not manifest_wrong(data)
    assert b"".join(encode_manifest(manifest)) == data
    rows = manifest.by_block()
    assert rows.shape == (len(manifest.holes), 2)
    assert rows[~manifest.holes].tobytes() == manifest.tags.tobytes()
    assert not rows[manifest.holes].any()


def detail_wrong(data: bytes) -> bool:
    """Whether the page says that this is no DETAIL."""
    if len(data) < 64 or number(data, 38, 2) or number(data, 40, 4) != 4096:
        return True
    count, offset, length = number(data, 44, 4), number(data, 48, 8), number(data, 56, 8)
    return not 1 <= count <= 65536 or offset + length > 1 << 46 or len(data) != 64 + 16 * count


def check_detail(data: bytes) -> None:
    try:
        detail = decode_detail(data)
    except ProtocolError:
        assert detail_wrong(data)
        return
    assert not detail_wrong(data)
    assert b"".join(encode_detail(detail)) == data


def blocks_wrong(data: bytes) -> bool:
    """Whether the page says that this is no BLOCKS."""
    if len(data) < 24:
        return True
    count, body = number(data, 20, 4), data[24:]
    if not 1 <= count <= 4096 or not 24 * count <= len(body) <= 24 * count + (1 << 20):
        return True
    return bool(naive.entries_wrong(body, count, SIZES)) or any(body[24 * each + 2] == 3 for each in range(count))


def check_blocks(data: bytes) -> None:
    try:
        blocks = decode_blocks(data, SIZES)
    except ProtocolError:
        assert blocks_wrong(data)
        return
    assert not blocks_wrong(data)
    entries = [row.tobytes() for row in blocks.table]
    assert b"".join(encode_blocks(blocks.id, blocks.round, entries, [blocks.payload])) == data


def check_log(kind: MessageType, data: bytes, inside: bool | None) -> None:
    """A frame is followed wholly or not at all, and exactly when the records follow."""
    before = LOG.positions[4 if kind is MessageType.SEAL else 0]
    cursor = Cursor.at(before, inside=inside)
    place = naive.Place(before.epoch, before.segment, before.entry, before.chain, inside)
    expected, reason = naive.read_records(data, 0, len(data), place)
    kinds = {naive.SEAL} if kind is MessageType.SEAL else {naive.SEGMENT, naive.BATCH}
    right = not reason and expected and {record.kind for record in expected} <= kinds
    right = right and (kind is not MessageType.SEAL or len(expected) == 1)
    try:
        records = decode_log(kind, data, cursor)
    except ProtocolError as error:
        assert not right
        assert error.code in ("protocol", "gap", "chain")
        assert cursor == Cursor.at(before, inside=inside), "a frame that fails moves nothing"
        return
    assert right, reason
    assert [bytes(record.record) for record in records] == [data[each.at : each.end] for each in expected]
    assert (cursor.epoch, cursor.segment, cursor.entry, cursor.chain, cursor.inside) == (
        place.epoch,
        place.segment,
        place.entry,
        place.chain,
        place.inside,
    )


def fuzz_bulk(data: bytes) -> None:
    """Bulk payloads are taken where a second decoder takes them, and come back the same when encoded."""
    if not data:
        return
    content = data[1:]
    match data[0] % 7:
        case 0 | 1:
            check_manifest(content)
        case 6:
            check_detail(content)
        case 2 | 3:
            check_blocks(content)
        case 4:
            check_log(MessageType.LOG, content, (None, False, True)[data[0] // 7 % 3])
        case 5:
            check_log(MessageType.SEAL, content, (None, False, True)[data[0] // 7 % 3])


def seeds_bulk() -> Iterable[bytes]:
    yield b"\0" + BULK_EXAMPLES[MessageType.MANIFEST]
    yield b"\0" + b"".join(encode_manifest(long_manifest()))
    yield b"\6" + BULK_EXAMPLES[MessageType.DETAIL]
    behind = bytearray(BULK_EXAMPLES[MessageType.MANIFEST])
    behind[65] |= 1 << 6
    yield b"\0" + behind
    yield b"\2" + BULK_EXAMPLES[MessageType.BLOCKS]
    yield b"\2" + BULK_EXAMPLES[MessageType.BLOCKS] + bytes(8)
    yield b"\4" + BULK_EXAMPLES[MessageType.LOG]
    yield b"\4" + LOG.record(0)
    yield b"\5" + BULK_EXAMPLES[MessageType.SEAL]
    yield b"\2" + struct.pack("<16sII", RESYNC, 1, 4096) + bytes(24)


MANIFEST_FIELDS = ((32, 4), (36, 2), (38, 2), (40, 4), (44, 4), (48, 8), (56, 8))


def mutate_bulk(data: bytes, random: Random) -> bytes:
    if len(data) < 25:
        return tweak(data, random)
    content = data[1:]
    match data[0] % 7:
        case 0 | 1 | 6 if random.random() < 0.5 and len(content) >= 64:
            content = set_field(content, random.choice(MANIFEST_FIELDS), random)
        case 0 | 1 if random.random() < 0.5 and len(content) >= 64:
            content = resize_manifest(content, random)
        case 2 | 3 if random.random() < 0.7:
            row = 24 + 24 * random.randrange(max(1, min(number(content, 20, 4), 4096)))
            at, size = random.choice(ENTRY_FIELDS)
            content = set_field(content, (row + at, size), random)
        case 4 | 5:
            before = LOG.positions[0 if data[0] % 7 == 4 else 4]
            content = mutate_records(content, random, before.chain)
        case _:
            content = tweak(content, random)
    return data[:1] + content


def resize_manifest(data: bytes, random: Random) -> bytes:
    """Another number of blocks and holes, everything else fitting."""
    count, size = random.choice((1, 7, 8, 9, 64, 300)), random.choice((1, 512, 65536))
    groups = (count + 63) // 64
    equal = random.getrandbits(groups)
    holes = random.getrandbits(count)
    for block in range(count):
        holes |= (equal >> block // 64 & 1) << block
    head = data[:40] + struct.pack("<II", size, count) + data[48:56] + struct.pack("<Q", size * count)
    head += equal.to_bytes((groups + 7) // 8, "little")
    return head + holes.to_bytes((count + 7) // 8, "little") + bytes(16 * (count - holes.bit_count()))


def no_sum() -> Any:
    """Payload lengths need not add up."""

    def table(body: Any, count: int, length: int, sizes: dict[int, int], *, at: int = 0) -> Any:
        import numpy as np

        from protocol.entries import ENTRY_DTYPE, decode_table
        from protocol.errors import LogError

        try:
            return decode_table(body, count, length, sizes, at=at)
        except LogError as error:
            if "add up" not in error.text:
                raise
            return np.frombuffer(body, ENTRY_DTYPE, count)

    return mock.patch.object(protocol.bulk, "decode_table", table)


def tail_bits() -> Any:
    """Bits behind the last block are not looked at."""
    decode = protocol.bulk.decode_manifest

    def lax(content: bytes) -> Any:
        count = number(content, 44, 4)
        at = 64 + ((count + 63) // 64 + 7) // 8 + (count - 1) // 8
        if 0 < count <= 4096 and count % 8 and at < len(content):
            content = content[:at] + bytes([content[at] & ((1 << count % 8) - 1)]) + content[at + 1 :]
        return decode(content)

    return mock.patch.dict(globals(), decode_manifest=lax)


def half_frames() -> Any:
    """The cursor moves although the frame fails."""
    return mock.patch.object(Cursor, "copy", lambda self: self)


# --- compression ---------------------------------------------------------------------------------------------------

WINDOW_MAX = 2 << 20


def zstd_header(data: bytes) -> tuple[int, int, int] | None:
    """Content size, window and dictionary as the frame's header declares them, by RFC 8878; None for no frame."""
    if len(data) < 5 or data[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor, at = data[4], 5
    single, dictionary_bytes = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3]
    window = 0
    if not single:
        exponent, mantissa = data[at] >> 3, data[at] & 7
        window = (1 << (10 + exponent)) * (8 + mantissa) // 8
        at += 1
    dictionary = number(data, at, dictionary_bytes)
    at += dictionary_bytes
    size_bytes = (single, 2, 4, 8)[descriptor >> 6]
    size = number(data, at, size_bytes) + (256 if size_bytes == 2 else 0) if size_bytes else -1
    return size, window or size, dictionary


def fuzz_compression(data: bytes) -> None:
    """Never more than the message says comes out, takes memory, or is asked for; what is taken is one plain frame."""
    if len(data) < 3:
        return
    # Up to 16 MiB: more than any message may say, so that the frame's own word has to be believed or not.
    raw_length, packed = number(data, 0, 3), data[3:]
    tracemalloc.start()
    try:
        raw: bytes | None = decompress(packed, raw_length)
    except ProtocolError as error:
        assert error.code == "protocol"
        raw = None
    finally:
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= raw_length + (64 << 10), f"{peak} bytes were taken for a message of {raw_length}"
    if raw is None:
        return
    assert len(raw) == raw_length
    header = zstd_header(packed)
    assert header is not None
    size, window, dictionary = header
    assert size == raw_length
    assert window <= WINDOW_MAX, f"a window of {window} bytes"
    assert dictionary == 0
    slow = zstandard.ZstdDecompressor().decompressobj()
    assert slow.decompress(packed) == raw
    assert slow.eof
    assert not slow.unused_data, "bytes behind the frame were taken"
    again = compress([raw])
    assert again is None or decompress(again, len(raw)) == raw


def seeds_compression() -> Iterable[bytes]:
    for raw in (squeezed_log(), pattern(5000, 3), bytes(70_000), b"a"):
        packed = zstandard.ZstdCompressor(level=1, write_content_size=True).compress(raw)
        yield len(raw).to_bytes(3, "little") + packed
        yield (len(raw) + 1).to_bytes(3, "little") + packed
        yield len(raw).to_bytes(3, "little") + packed + packed
        yield len(raw).to_bytes(3, "little") + packed + b"\0"
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    yield (1000).to_bytes(3, "little") + unsized
    for log in (20, 22, 27):
        parameters = zstandard.ZstdCompressionParameters(window_log=log, write_content_size=True)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=3 << 20)
        wide = compressor.compress(bytes(3 << 20)) + compressor.flush()
        yield (3 << 20).to_bytes(3, "little") + wide
    bomb = zstandard.ZstdCompressor().compress(bytes(12 << 20))
    for said in (0, 1, 4096, 12 << 20):
        yield said.to_bytes(3, "little") + bomb
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"skip"
    yield (4).to_bytes(3, "little") + skippable
    yield (0).to_bytes(3, "little") + skippable


def mutate_compression(data: bytes, random: Random) -> bytes:
    """Half of the time only the frame's header and the message's word, so that the blocks stay whole."""
    if len(data) < 20 or random.random() < 0.5:
        return tweak(data, random)
    header = zstd_header(data[3:])
    if header is not None and 0 <= header[0] < 1 << 24 and random.random() < 0.5:
        return header[0].to_bytes(3, "little") + data[3:]
    at = random.randrange(3, 18)
    return data[:at] + bytes([random.choice((0, 1, 0x20, 0x60, 0xA0, 255, random.randrange(256)))]) + data[at + 1 :]


def any_window() -> Any:
    return mock.patch.object(protocol.compression, "MAX_WINDOW_BYTES", 1 << 30)


def believing() -> Any:
    """What the frame says counts, not what the message says."""

    def decompress_(data: bytes, raw_length: int) -> bytes:
        try:
            return zstandard.ZstdDecompressor().decompress(data)
        except zstandard.ZstdError as error:
            raise ProtocolError(str(error)) from None

    return mock.patch.dict(globals(), decompress=decompress_)


def extra_data() -> Any:
    """What follows the frame is ignored."""

    class Lax:
        def __init__(self, **more: Any) -> None:
            self._real = zstandard.ZstdDecompressor(**more)

        def decompress(self, data: bytes, *, max_output_size: int, allow_extra_data: bool) -> bytes:
            return self._real.decompress(data, max_output_size=max_output_size, allow_extra_data=True)

    fake = mock.Mock(
        ZstdDecompressor=Lax,
        ZstdError=zstandard.ZstdError,
        get_frame_parameters=zstandard.get_frame_parameters,
        ZstdCompressor=zstandard.ZstdCompressor,
    )
    return mock.patch.object(protocol.compression, "zstandard", fake)


def no_entry_check() -> Any:
    """A record with another number is taken as the next one."""
    follow = Cursor.follow

    def lax(self: Cursor, header: Any, record: Any, *, at: int = 0) -> None:
        self.entry = header.entry
        follow(self, header, record, at=at)

    return mock.patch.object(protocol.chain.Cursor, "follow", lax)


TARGETS = {
    "bulk": Target(
        fuzz_bulk,
        seeds_bulk,
        mutate_bulk,
        (
            Plant("no_sum", no_sum),
            Plant("tail_bits", tail_bits),
            Plant("half_frames", half_frames),
            Plant("no_entry_check", no_entry_check),
        ),
        max_bytes=8192,
    ),
    "compression": Target(
        fuzz_compression,
        seeds_compression,
        mutate_compression,
        (
            Plant("any_window", any_window),
            Plant("believing", believing),
            Plant("extra_data", extra_data),
        ),
        max_bytes=8192,
    ),
}
