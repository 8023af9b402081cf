"""The test vectors: what each recorded file holds, and how its bytes come about from fixed values.

``scripts/make-vectors`` writes them beside this module, with ``index.json``; the tests read the recorded files, compare
what they decode to with the index, and check that these cases still make the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from protocol.bulk import Bulk, decode_blocks, decode_detail, decode_log, decode_manifest, encode_manifest
from protocol.chain import Cursor
from protocol.compression import compress
from protocol.errors import ProtocolError
from protocol.frames import FLAG_ZSTD, MAX_FRAME_PAYLOAD, FrameReader, encode_frame_header
from protocol.hrl import FILE_HEADER_BYTES
from protocol.messages import BULK_TYPES, MessageType, decode_body, encode_body
from tests.vectors.logs import OTHER_EPOCH, SIZES, LogBuilder, data, discard, pattern, small_log, zero
from tests.vectors.messages import (
    BULK_EXAMPLES,
    EXAMPLES,
    LOG,
    REVERSED_EXAMPLES,
    SEEDED_EXAMPLES,
    SET_EXAMPLES,
    TOKEN,
    long_manifest,
)

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Case:
    """One vector. ``kind`` is ``frame`` or ``hrl``; ``remade`` False where a library's version decides the bytes."""

    name: str
    kind: str
    what: str
    content: bytes
    remade: bool = True

    @property
    def file(self) -> str:
        return f"{self.name}.{'hrl' if self.kind == 'hrl' else 'bin'}"


# --- frames --------------------------------------------------------------------------------------------------------


def frame(kind: MessageType, payload: bytes, token: int = TOKEN, raw_length: int | None = None) -> bytes:
    return encode_frame_header(kind, len(payload), token, raw_length=raw_length) + payload


def forged_header(
    *, magic: bytes = b"VR", version: int = 1, kind: int = 6, flags: int = 0, stream: int = 0, length: int = 8,
    raw: int | None = None, token: int = TOKEN, check: int | None = None,
) -> bytes:  # fmt: skip
    """A frame header with any values; its checksum is right unless told."""
    plain = struct.pack(
        "<2sBBHHIIQ", magic, version, kind, flags, stream, length, length if raw is None else raw, token
    )
    return plain + struct.pack("<Q", xxhash.xxh3_64_intdigest(plain) if check is None else check)


def frame_cases() -> Iterator[Case]:
    for kind, body in EXAMPLES.items():
        token = 0 if kind in (MessageType.HELLO, MessageType.WELCOME) else TOKEN
        name = f"frame-{kind.name.lower().replace('_', '-')}"
        yield Case(name, "frame", kind.name, frame(kind, encode_body(body), token))
    for kind, body in REVERSED_EXAMPLES.items():
        name = f"frame-{kind.name.lower().replace('_', '-')}-reversed"
        yield Case(name, "frame", f"{kind.name} to a peer that knows of reversals", frame(kind, encode_body(body)))
    for kind, body in SET_EXAMPLES.items():
        name = f"frame-{kind.name.lower()}-disk-sets"
        yield Case(name, "frame", f"{kind.name} to a peer that knows of sets of disks", frame(kind, encode_body(body)))
    for kind, body in SEEDED_EXAMPLES.items():
        name = f"frame-{kind.name.lower().replace('_', '-')}-seeded"
        yield Case(name, "frame", f"{kind.name} to a peer that knows of seeds", frame(kind, encode_body(body)))
    for kind, payload in BULK_EXAMPLES.items():
        yield Case(f"frame-{kind.name.lower()}", "frame", kind.name, frame(kind, payload))
    long = b"".join(encode_manifest(long_manifest()))
    yield Case(
        "frame-manifest-groups", "frame", "MANIFEST of three groups, one equal", frame(MessageType.MANIFEST, long)
    )
    raw = squeezed_log()
    packed = compress([raw])
    assert packed is not None
    squeezed = frame(MessageType.LOG, packed, raw_length=len(raw))
    yield Case("frame-log-zstd", "frame", "a compressed LOG frame", squeezed, remade=False)
    invalid = {
        "magic": (forged_header(magic=b"vr"), "a frame header with a wrong magic"),
        "checksum": (forged_header(check=1), "a frame header whose checksum is wrong"),
        "version": (forged_header(version=2), "a frame of version 2"),
        "type": (forged_header(kind=99), "a frame of unknown type"),
        "flags": (forged_header(flags=2), "a frame with an unknown flag"),
        "stream": (forged_header(stream=1), "a frame with a stream number"),
        "too-large": (forged_header(length=65537), "a HEARTBEAT frame that is larger than any control message"),
        "huge": (forged_header(kind=16, length=0xFFFFFFFF), "a LOG frame of 4 GiB"),
        "empty": (forged_header(length=0), "a frame without a payload"),
        "raw-length": (forged_header(raw=9), "an uncompressed frame with another raw length"),
        "compressed-control": (forged_header(flags=FLAG_ZSTD), "a compressed HEARTBEAT"),
        "bomb": (forged_header(kind=16, flags=FLAG_ZSTD, raw=1 << 30), "a compressed LOG of 1 GiB raw bytes"),
    }
    for name, (content, what) in invalid.items():
        yield Case(f"frame-bad-{name}", "frame", what, content + bytes(8))


def squeezed_log() -> bytes:
    """A segment record and a batch that compress well."""
    log = LogBuilder().begin().batch(data(0, 0, pattern(8192, 15)))
    return log.record(0) + log.record(1)


def describe_frame(content: bytes) -> dict[str, Any]:
    """What a frame's bytes decode to, or the error that they end in."""
    reader = FrameReader(MAX_FRAME_PAYLOAD)
    frames = reader.feed(content)
    if reader.failure is not None:
        return {"error": reader.failure.code, "text": reader.failure.text}
    (got,) = frames
    shown: dict[str, Any] = {
        "type": got.type.name,
        "number": int(got.type),
        "token": got.token,
        "payload_bytes": len(got.payload),
        "raw_bytes": got.raw_length,
        "compressed": got.compressed,
    }
    try:
        if got.type in BULK_TYPES:
            return shown | describe_bulk(Bulk(got.type, got.payload, got.compressed, got.raw_length))
        decoded = decode_body(got.type, got.payload)
    except ProtocolError as error:
        return shown | {"error": error.code, "text": error.text}
    return shown | {"body": in_json(msgspec.to_builtins(decoded, builtin_types=(bytes,)))}


def describe_bulk(bulk: Bulk) -> dict[str, Any]:
    content = bulk.content()
    match bulk.type:
        case MessageType.MANIFEST:
            manifest = decode_manifest(content)
            return {
                "id": manifest.id.hex(),
                "key_id": manifest.key_id.hex(),
                "round": manifest.round,
                "disk": manifest.disk,
                "block_size": manifest.block_size,
                "offset": manifest.offset,
                "length": manifest.length,
                "equal": manifest.equal.tolist(),
                "holes": manifest.holes.tolist(),
                "tags": [row.tobytes().hex() for row in manifest.tags],
            }
        case MessageType.DETAIL:
            detail = decode_detail(content)
            return {
                "id": detail.id.hex(),
                "key_id": detail.key_id.hex(),
                "round": detail.round,
                "disk": detail.disk,
                "offset": detail.offset,
                "length": detail.length,
                "tags": [row.tobytes().hex() for row in detail.tags],
            }
        case MessageType.BLOCKS:
            blocks = decode_blocks(content, SIZES)
            return {
                "id": blocks.id.hex(),
                "round": blocks.round,
                "entries": [list(row) for row in blocks.table.tolist()],
                "payload_xxh3_64": xxhash.xxh3_64_hexdigest(blocks.payload),
            }
        case _:
            before = LOG.positions[0 if bulk.type is MessageType.LOG else 4]
            cursor = Cursor.at(before)
            records = decode_log(bulk.type, content, cursor)
            return {
                "records": [[each.header.kind.name, each.header.length, each.header.count] for each in records],
                "segment": cursor.segment,
                "entry": cursor.entry,
                "chain": cursor.chain.hex(),
            }


def in_json(value: Any) -> Any:
    """The value with bytes as hex."""
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {key: in_json(each) for key, each in value.items()}
        case list() | tuple():
            return [in_json(each) for each in value]
    return value


# --- log files -----------------------------------------------------------------------------------------------------


def hrl_cases() -> Iterator[Case]:
    def case(name: str, what: str, content: bytes | bytearray) -> Case:
        return Case(name, "hrl", what, bytes(content))

    clean = small_log().pad()
    yield case("log-clean", "a log file in use: two segments, the second not sealed, zeroes behind", clean.content)
    first = small_log().end_file()
    yield case("log-first-file", "a full log file: the log goes on in the next one", first.content)
    following = LogBuilder(sequence=2, after=first.position)
    following.batch(data(0, 4096, pattern(512, 8)), discard(3, 0, 4096)).seal()
    yield case("log-next-file", "the file after it: begins inside segment 2, which is sealed here", following.content)
    spool = LogBuilder().begin().batch(zero(0, 0, 1 << 20)).batch(data(3, 512, pattern(512, 10))).seal()
    yield case("spool", "a spool file: exactly one segment", spool.content)
    differing = LogBuilder(epoch=OTHER_EPOCH)
    differing.batch(data(0, 65536, pattern(512, 11)), zero(0, 131072, 65536)).settle(0, 0, 1 << 20)
    differing.batch(data(3, 0, pattern(512, 12))).settle(3, 0, 4 << 20)
    differing.unsettle(0, 65536, 131072).batch(zero(0, 65536, 65536)).settle(0, 65536, 131072)
    what = "a differencing file: differing blocks and settled ranges, one of them in two rounds"
    yield case("differencing", what, differing.content)
    yield from damaged_cases(case)


def damaged_cases(case: Any) -> Iterator[Case]:
    log = small_log()
    torn = log.content[: log.places[-1] + 300]
    yield case("log-torn", "a torn tail: the last batch is cut off", torn)
    middle = bytearray(log.content)
    middle[log.places[2] + 200] ^= 1
    yield case("log-damaged-middle", "one bit of a batch is flipped, and later records are whole", middle)
    wiped = bytearray(log.content)
    wiped[log.places[2] : log.places[3]] = bytes(log.places[3] - log.places[2])
    yield case("log-damaged-zeroes", "a batch reads as zeroes, and later records are whole", wiped)
    # A recycled file: what it held before, numbered lower, still lies behind the new records.
    old = small_log()
    fresh = LogBuilder(sequence=9, after=old.position)
    fresh.batch(data(0, 0, pattern(512, 13)))
    recycled = fresh.content + old.content[len(fresh.content) :]
    yield case("log-recycled", "a recycled file: records of its earlier life lie behind the new ones", recycled)
    other = LogBuilder(epoch=OTHER_EPOCH).begin().batch(data(0, 0, pattern(512, 14)))
    mixed = log.content[: log.places[3]] + other.content[other.places[1] :]
    yield case("log-other-epoch", "a batch of another epoch lies where the next one belongs", mixed)
    header = bytearray(log.content)
    header[100] ^= 1
    yield case("log-bad-header", "one bit of the file header is flipped", header[: FILE_HEADER_BYTES + 160])


def cases() -> list[Case]:
    """All vectors, in the order of the index."""
    return [*frame_cases(), *hrl_cases()]
