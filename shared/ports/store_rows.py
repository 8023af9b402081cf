"""The rows of a store: how values are encoded, and the checksum that each row has."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgpack

VERSION = 1
"""Of the store: of its tables and of what its records hold. ``store_migrating`` brings older ones forward."""
RECORD_BYTES_MAX = 16 << 20
DIGEST_BYTES = 16


def encode(value: Any) -> bytes:
    """A plain value as msgpack; raises TypeError for what is not plain, ValueError for what is too large."""
    try:
        body: bytes = msgpack.packb(value, use_bin_type=True, strict_types=True)
    except OverflowError as error:
        raise ValueError(f"a number does not fit into 64 bits: {error}") from error
    if len(body) > RECORD_BYTES_MAX:
        raise ValueError(f"a record of {len(body)} bytes is larger than {RECORD_BYTES_MAX}")
    return body


def decode(body: bytes) -> Any:
    return msgpack.unpackb(body, raw=False, strict_map_key=False)


@dataclass(slots=True)
class Summary:
    """What the rows must add up to. ``version`` repeats the header's, where a checksum covers it."""

    version: int = VERSION
    commits: int = 0
    records: int = 0
    records_digest: bytes = bytes(DIGEST_BYTES)
    first_event: int = 1
    last_event: int = 0


def record_digest(name: str, body: bytes) -> bytes:
    """Checksum of a record; the length in front keeps name and body apart."""
    encoded = name.encode()
    return blake2b(struct.pack("<I", len(encoded)) + encoded + body, digest_size=DIGEST_BYTES).digest()


def event_digest(identity: int, time: float, body: bytes) -> bytes:
    return blake2b(struct.pack("<qd", identity, time) + body, digest_size=DIGEST_BYTES).digest()


def summary_digest(body: bytes) -> bytes:
    return blake2b(b"summary" + body, digest_size=DIGEST_BYTES).digest()


def xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(DIGEST_BYTES, "big")
