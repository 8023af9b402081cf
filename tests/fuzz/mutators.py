"""Changes inputs and puts their checksums right again, so that a run gets behind the first check.

Most of the time all checksums are right, sometimes one is left wrong: both ways are worth a look.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import xxhash

from tests.fuzz.naive import number

EDGES = (0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 256, 511, 512, 4095, 4096, 4097, 65535, 65536, 1 << 20, (1 << 20) + 1)
WIDE = (*EDGES, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 46, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)

Field = tuple[int, int]
"""Offset and size of a little-endian number."""


def tweak(data: bytes, random: Random) -> bytes:
    """One small change anywhere, knowing nothing."""
    at = random.randrange(len(data) + 1)
    length = min(random.choice((1, 1, 1, 2, 4, 8, 24, 80)), len(data) - at)
    match random.randrange(6):
        case 0 if at < len(data):
            return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at] + random.randbytes(length) + data[at + length :]
        case 2:
            return data[:at] + random.randbytes(random.choice((1, 2, 4, 8))) + data[at:]
        case 3:
            return data[:at] + data[at + length :]
        case 4:
            return data[:at] + data[at : at + length] * 2 + data[at + length :]
        case _:
            size = random.choice((1, 2, 4, 8))
            edge = random.choice(WIDE) & ((1 << 8 * size) - 1)
            return data[:at] + edge.to_bytes(size, "little") + data[at + size :]


def set_field(data: bytes, field: Field, random: Random) -> bytes:
    """Another number in a field: at an edge, next to what it was, or any."""
    at, size = field
    mask = (1 << 8 * size) - 1
    old = number(data, at, size)
    value = random.choice((random.choice(WIDE), old + 1, old - 1, old ^ (1 << random.randrange(8 * size)))) & mask
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


def rearrange(pieces: list[bytes], random: Random, change: Callable[[bytes, Random], bytes]) -> list[bytes]:
    """Change, drop, double, move, cut or insert one of the pieces."""
    if not pieces:
        return [random.randbytes(random.choice((1, 32, 80)))]
    pieces = list(pieces)
    at = random.randrange(len(pieces))
    match random.randrange(9):
        case 0:
            del pieces[at]
        case 1:
            pieces.insert(random.randrange(len(pieces) + 1), pieces[at])
        case 2:
            pieces.insert(random.randrange(len(pieces)), pieces.pop(at))
        case 3:
            pieces[at] = pieces[at][: random.randrange(len(pieces[at]) + 1)]
        case 4:
            pieces.insert(at, bytes(random.choice((1, 8, 80, 96))))
        case _:
            pieces[at] = change(pieces[at], random)
    return pieces


# --- frames --------------------------------------------------------------------------------------------------------

FRAME_FIELDS: tuple[Field, ...] = ((0, 2), (2, 1), (3, 1), (4, 2), (6, 2), (8, 4), (12, 4), (16, 8))


def split_frames(data: bytes) -> list[bytes]:
    """The frames of a stream by their lengths, right or not; what follows the last is a piece of its own."""
    pieces, at = [], 0
    while len(data) - at >= 32 and data[at : at + 2] == b"VR":
        end = at + 32 + min(number(data, at + 8, 4), len(data) - at - 32)
        pieces.append(data[at:end])
        at = end
    return [*pieces, data[at:]] if at < len(data) else pieces


def fix_frame(frame: bytes) -> bytes:
    """The frame with the right check in its header."""
    if len(frame) < 32:
        return frame
    return frame[:24] + xxhash.xxh3_64(frame[:24]).intdigest().to_bytes(8, "little") + frame[32:]


def change_frame(frame: bytes, random: Random) -> bytes:
    if len(frame) < 32:
        return tweak(frame, random)
    if random.random() < 0.4:
        frame = set_field(frame, random.choice(FRAME_FIELDS), random)
    else:
        payload = tweak(frame[32:], random)
        frame = frame[:32] + payload
        if random.random() < 0.8:
            length = len(payload).to_bytes(4, "little")
            frame = frame[:8] + length + (frame[12:16] if frame[4] & 1 else length) + frame[16:]
    return fix_frame(frame) if random.random() < 0.9 else frame


def mutate_frames(data: bytes, random: Random) -> bytes:
    return b"".join(rearrange(split_frames(data), random, change_frame))


# --- records -------------------------------------------------------------------------------------------------------

RECORD_FIELDS: tuple[Field, ...] = ((0, 4), (4, 1), (5, 1), (6, 2), (8, 4), (12, 4), (32, 8), (40, 8), (48, 8))
FILE_FIELDS: tuple[Field, ...] = ((0, 8), (8, 2), (10, 2), (12, 4), (32, 8), (40, 8), (64, 8), (72, 8))
ENTRY_FIELDS: tuple[Field, ...] = ((0, 2), (2, 1), (3, 1), (4, 4), (8, 8), (16, 8))


def split_records(data: bytes) -> list[bytes]:
    """The records of a log by their lengths, right or not; what follows the last is a piece of its own."""
    pieces, at = [], 0
    while len(data) - at >= 80 and data[at : at + 4] == b"HRLR":
        end = at + 80 + min(number(data, at + 8, 4), len(data) - at - 80)
        pieces.append(data[at:end])
        at = end
    return [*pieces, data[at:]] if at < len(data) else pieces


def fix_record(record: bytes, chain: bytes) -> tuple[bytes, bytes]:
    """The record with the right check and the chain that follows ``chain``, and the chain after it."""
    if len(record) < 80:
        return record, chain
    checked = record[:56] + xxhash.xxh3_64(record[:56]).intdigest().to_bytes(8, "little")
    after = chain if record[4] == 4 else xxhash.xxh3_128(chain + checked + record[80:]).digest()
    return checked + after + record[80:], after


def change_record(record: bytes, random: Random) -> bytes:
    if len(record) < 80:
        return tweak(record, random)
    if len(record) >= 104 and random.random() < 0.4:
        rows = max(1, min(number(record, 12, 4), (len(record) - 80) // 24))
        row = 80 + 24 * random.randrange(rows)
        at, size = random.choice(ENTRY_FIELDS)
        return set_field(record, (row + at, size), random)
    if random.random() < 0.5:
        return set_field(record, random.choice(RECORD_FIELDS), random)
    record = record[:80] + tweak(record[80:], random)
    if random.random() < 0.8:
        record = record[:8] + (len(record) - 80).to_bytes(4, "little") + record[12:]
    return record


def fix_records(pieces: list[bytes], chain: bytes, random: Random) -> list[bytes]:
    """The records, each with check and chain put right, but sometimes for one, and numbered on where that helps."""
    wrong = random.randrange(len(pieces) + 1) if random.random() < 0.15 else -1
    renumber = random.random() < 0.5
    fixed = []
    segment = entry = None
    for index, piece in enumerate(pieces):
        if renumber and len(piece) >= 80 and segment is not None and entry is not None:
            number_here = segment + (piece[4] == 1)
            piece = piece[:32] + _u64(number_here) + _u64(entry) + piece[48:]
        if len(piece) >= 80:
            segment, entry = number(piece, 32, 8), number(piece, 40, 8)
            entry += number(piece, 12, 4) if piece[4] == 2 else 0
        if index != wrong:
            piece, chain = fix_record(piece, chain)
        fixed.append(piece)
    return fixed


def _u64(value: int) -> bytes:
    return (value & ((1 << 64) - 1)).to_bytes(8, "little")


def mutate_records(data: bytes, random: Random, chain: bytes) -> bytes:
    """A log that begins after ``chain``, changed."""
    pieces = rearrange(split_records(data), random, change_record)
    return b"".join(fix_records(pieces, chain, random) if random.random() < 0.9 else pieces)


def fix_file_header(header: bytes) -> bytes:
    """The header with the right checksum."""
    return header[:4080] + xxhash.xxh3_128(header[:4080]).digest()


def mutate_log_file(data: bytes, random: Random) -> bytes:
    """A log file with its header, changed."""
    if len(data) < 4096:
        return tweak(data, random)
    header, rest = data[:4096], data[4096:]
    if random.random() < 0.1:
        header = set_field(header, random.choice(FILE_FIELDS), random)
        header = fix_file_header(header) if random.random() < 0.9 else header
    elif random.random() < 0.05:
        return (header + rest)[: random.randrange(len(data))]
    else:
        rest = mutate_records(rest, random, header[80:96])
        if random.random() < 0.1:
            rest += bytes(random.choice((8, 80, 512)))
    return header + rest


# --- bundles: several pieces in one input --------------------------------------------------------------------------


def pack(pieces: list[bytes]) -> bytes:
    """Pieces, each behind its length as u24."""
    return b"".join(len(piece).to_bytes(3, "little") + piece for piece in pieces)


def unpack(data: bytes, most: int) -> list[bytes]:
    """The pieces of a bundle, at most so many; a last one that is cut off is taken as far as it goes."""
    pieces: list[bytes] = []
    at = 0
    while len(data) - at >= 3 and len(pieces) < most:
        end = at + 3 + number(data, at, 3)
        pieces.append(data[at + 3 : end])
        at = end
    return pieces
