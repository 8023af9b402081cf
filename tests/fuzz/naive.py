"""Second decoders of frames and log records, as docs/protocol.md and docs/hrl-format.md describe them.

Slow and plain on purpose, and without a line of the product's code: the targets compare the product with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import xxhash

# --- frames --------------------------------------------------------------------------------------------------------

CONTROL = 65536
LIMITS = {
    1: 16384, 2: 16384, 3: CONTROL, 4: CONTROL, 5: CONTROL, 6: CONTROL, 7: CONTROL, 16: 1151056, 17: 104, 18: CONTROL,
    19: CONTROL, 32: CONTROL, 33: CONTROL, 34: CONTROL, 35: 66120, 36: 1146904, 37: CONTROL, 38: CONTROL, 39: CONTROL,
    40: CONTROL, 41: CONTROL, 42: CONTROL, 43: CONTROL, 44: 1048640, 45: CONTROL, 46: CONTROL,
    **dict.fromkeys((*range(47, 58), 64, 65), CONTROL),
}  # fmt: skip
MAY_BE_COMPRESSED = (16, 36)


class PlainFrame(NamedTuple):
    """A frame as the page describes it."""

    kind: int
    token: int
    compressed: bool
    raw_length: int
    payload: bytes


def number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def read_frames(data: bytes, limit: int) -> tuple[list[PlainFrame], str, int]:
    """The whole frames, the code of the error that ends the stream ("" for none), and the bytes left over."""
    frames: list[PlainFrame] = []
    at = 0
    while len(data) - at >= 32:
        head = data[at : at + 32]
        code = judge_header(head, limit)
        if code:
            return frames, code, 0
        length = number(head, 8, 4)
        if len(data) - at - 32 < length:
            break
        payload = data[at + 32 : at + 32 + length]
        frames.append(PlainFrame(head[3], number(head, 16, 8), head[4] == 1, number(head, 12, 4), payload))
        at += 32 + length
    return frames, "", len(data) - at


def judge_header(head: bytes, limit: int) -> str:
    """The code of what is wrong with a frame's header, "" for nothing."""
    length, raw = number(head, 8, 4), number(head, 12, 4)
    compressed = head[4] & 1
    if head[:2] != b"VR" or xxhash.xxh3_64(head[:24]).intdigest() != number(head, 24, 8):
        return "protocol"
    if head[2] != 1:
        return "version"
    if head[3] not in LIMITS or number(head, 4, 2) > 1 or number(head, 6, 2):
        return "protocol"
    if compressed and head[3] not in MAY_BE_COMPRESSED:
        return "protocol"
    most = min(limit, LIMITS[head[3]])
    if not 0 < length <= most or raw > most or (not compressed and raw != length):
        return "protocol"
    return ""


# --- records -------------------------------------------------------------------------------------------------------

SEGMENT, BATCH, SEAL, END, SETTLED, UNSETTLED = 1, 2, 3, 4, 5, 8


class PlainRecord(NamedTuple):
    """A record as the page describes it; ``at`` is its offset."""

    at: int
    kind: int
    items: int
    epoch: bytes
    segment: int
    entry: int
    time: int
    chain: bytes
    body: bytes

    @property
    def end(self) -> int:
        return self.at + 80 + len(self.body)


@dataclass
class Place:
    """Where a log stands; ``inside`` None where nothing tells."""

    epoch: bytes
    segment: int
    entry: int
    chain: bytes
    inside: bool | None


def header_wrong(head: bytes) -> str:
    """The reason for which 80 bytes are no header, "" where they are one."""
    if len(head) < 80:
        return "short"
    if not any(head):
        return "end"
    if head[:4] != b"HRLR":
        return "magic"
    if xxhash.xxh3_64(head[:56]).intdigest() != number(head, 56, 8):
        return "header-checksum"
    if head[5] != 1 or head[6] or head[7]:
        return "version"
    if head[4] not in (SEGMENT, BATCH, SEAL, END, SETTLED, UNSETTLED):
        return "kind"
    body, count = number(head, 8, 4), number(head, 12, 4)
    fits = {
        SEGMENT: 1 <= count <= 64 and body == 32 * count,
        BATCH: 1 <= count <= 4096 and 24 * count <= body <= 24 * count + 1048576 and body % 8 == 0,
        SEAL: count == 0 and body == 24,
        SETTLED: count == 0 and body == 24,
        UNSETTLED: count == 0 and body == 24,
        END: count == 0 and body == 0,
    }
    return "" if fits[head[4]] else "length"


def read_record(data: bytes, at: int, end: int, place: Place) -> PlainRecord | str:
    """The next record of the log, or the reason for which it is none. ``place`` is not changed."""
    head = data[at : min(at + 80, end)]
    wrong = header_wrong(head)
    if wrong:
        return wrong
    kind, length = head[4], number(head, 8, 4)
    if at + 80 + length > end:
        return "short"
    body = data[at + 80 : at + 80 + length]
    epoch, segment, entry = head[16:32], number(head, 32, 8), number(head, 40, 8)
    if epoch != place.epoch:
        return "epoch"
    if segment != place.segment + (kind == SEGMENT):
        return "segment"
    if entry != place.entry:
        return "entry"
    order = {
        SEGMENT: place.inside is not True,
        BATCH: place.inside is not False,
        SEAL: place.inside is not False and place.segment > 0,
        SETTLED: place.segment == 0,
        UNSETTLED: place.segment == 0,
        END: True,
    }
    if not order[kind]:
        return "order"
    chain = place.chain if kind == END else xxhash.xxh3_128(place.chain + head[:64] + body).digest()
    if chain != head[64:80]:
        return "chain"
    return PlainRecord(at, kind, number(head, 12, 4), epoch, segment, entry, number(head, 48, 8), chain, body)


def step(place: Place, record: PlainRecord) -> None:
    """Stand after the record."""
    place.chain = record.chain
    place.entry += record.items if record.kind == BATCH else 0
    place.segment = record.segment
    if record.kind != END:
        place.inside = record.kind != SEAL


def read_records(data: bytes, at: int, end: int, place: Place, last: int = 0) -> tuple[list[PlainRecord], str]:
    """The records from ``at`` to ``end``, or through the first of kind ``last``, and why there are no more.

    "" where they reach ``end`` or ``last``. ``place`` stands after them.
    """
    records: list[PlainRecord] = []
    while at < end:
        record = read_record(data, at, end, place)
        if isinstance(record, str):
            return records, record
        records.append(record)
        step(place, record)
        at = record.end
        if record.kind == last:
            break
    return records, ""


def later_record(data: bytes, start: int, end: int, place: Place) -> int:
    """Offset of the first later record at or behind ``start``, -1 for none; every multiple of 8 is tried."""
    at = start + -start % 8
    while at + 80 <= end:
        if data[at : at + 4] == b"HRLR" and not header_wrong(data[at : at + 80]):
            segment, entry = number(data, at + 32, 8), number(data, at + 40, 8)
            beyond = segment > place.segment or (
                segment == place.segment and (entry > place.entry or (segment == 0 and entry == place.entry))
            )
            if data[at + 16 : at + 32] == place.epoch and beyond:
                return at
        at += 8
    return -1


def entries_wrong(body: bytes, count: int, sizes: dict[int, int]) -> str:
    """The reason for which a batch's body is not valid, "" where it is; the first wrong entry decides."""
    if len(body) < 24 * count:
        return "entry-count"
    total = 0
    for index in range(count):
        row = body[24 * index : 24 * index + 24]
        disk, kind, payload = number(row, 0, 2), row[2], number(row, 4, 4)
        offset, length = number(row, 8, 8), number(row, 16, 8)
        if kind not in (1, 2, 3) or row[3]:
            return "entry-kind"
        if payload != (length if kind == 1 else 0):
            return "entry-payload"
        if disk not in sizes:
            return "entry-disk"
        if not length or offset + length > sizes[disk]:
            return "entry-range"
        total += payload
    return "" if 24 * count + total == len(body) else "entry-count"


def file_header(data: bytes) -> tuple[str, Place | None]:
    """The reason for which a file header is not valid ("" where it is), and the place that it names."""
    if len(data) < 4096:
        return "short-header", None
    if data[:8] != b"VMRHRL\r\n":
        return "file-magic", None
    if xxhash.xxh3_128(data[:4080]).digest() != data[4080:4096]:
        return "file-checksum", None
    if number(data, 8, 2) != 1 or number(data, 10, 2) or number(data, 12, 4) != 4096:
        return "file-version", None
    return "", Place(data[48:64], number(data, 64, 8), number(data, 72, 8), data[80:96], None)
