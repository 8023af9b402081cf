"""Encodes replies of the transmission phase: simple ones, or structured ones once they were negotiated."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from shared.nbd.constants import (
    ALLOCATION_CONTEXT_ID,
    MAXIMUM_ERROR_TEXT,
    MINIMUM_BLOCK,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    BlockState,
    Chunk,
    ChunkFlag,
    Errno,
)
from shared.ports import Extent

SIMPLE = Struct(">II8s")
"""Magic, error, cookie (16 bytes)."""
CHUNK = Struct(">IHH8sI")
"""Magic, flags, type, cookie, length of the payload (20 bytes)."""
_DATA_CHUNK = Struct(">IHH8sIQ")
"""A chunk header and the offset that begins an OFFSET_DATA payload (28 bytes)."""
_HOLE_CHUNK = Struct(">IHH8sIQI")
_ERROR_CHUNK = Struct(">IHH8sIIH")
_STATUS_CHUNK = Struct(">IHH8sII")

_SIMPLE_PREFIX = Struct(">II").pack(SIMPLE_REPLY_MAGIC, 0)

_FLAG_DONE = int(ChunkFlag.DONE)
_TYPE_DATA = int(Chunk.OFFSET_DATA)
_KNOWN_ERRORS = frozenset(int(number) for number in Errno if number)

MAXIMUM_DESCRIPTORS = 8192
"""Block status descriptors in one reply (64 KiB); a client asks again for the rest."""

_HOLE = int(BlockState.HOLE | BlockState.ZERO)


def done(cookies: Sequence[bytes]) -> bytes:
    """Success without data for at least one request, each known by its cookie: one join for a whole batch.

    Always simple replies, which remain valid for everything but READ and BLOCK_STATUS: clients receive a structured
    reply in two steps, and that costs them more than an eighth of their small writes.
    """
    return _SIMPLE_PREFIX + _SIMPLE_PREFIX.join(cookies)


def failed(cookie: bytes, error: int, text: str, *, structured: bool) -> bytes:
    """A refused or failed request. ``text`` is for people and only structured replies carry it."""
    # A number that the protocol doesn't know would end the connection on the client's side.
    number = error if error in _KNOWN_ERRORS else int(Errno.EIO)
    if not structured:
        return SIMPLE.pack(SIMPLE_REPLY_MAGIC, number, cookie)
    message = text.encode("utf-8", "replace")[:MAXIMUM_ERROR_TEXT].decode("utf-8", "ignore").encode()
    length = 6 + len(message)
    header = _ERROR_CHUNK.pack(STRUCTURED_REPLY_MAGIC, _FLAG_DONE, Chunk.ERROR, cookie, length, number, len(message))
    return header + message


def data_header(cookie: bytes, offset: int, length: int, *, structured: bool) -> bytes:
    """What goes before the ``length`` bytes of a successful READ."""
    if structured:
        return _DATA_CHUNK.pack(STRUCTURED_REPLY_MAGIC, _FLAG_DONE, _TYPE_DATA, cookie, length + 8, offset)
    return _SIMPLE_PREFIX + cookie


def hole(cookie: bytes, offset: int, length: int) -> bytes:
    """The whole answer to a READ of a range that reads as zeroes; only for structured replies."""
    return _HOLE_CHUNK.pack(STRUCTURED_REPLY_MAGIC, _FLAG_DONE, Chunk.OFFSET_HOLE, cookie, 12, offset, length)


def block_status(cookie: bytes, descriptors: Sequence[tuple[int, int]]) -> bytes:
    """The answer to BLOCK_STATUS; each descriptor is a length and its ``BlockState``."""
    numbers = [number for descriptor in descriptors for number in descriptor]
    header = _STATUS_CHUNK.pack(
        STRUCTURED_REPLY_MAGIC,
        _FLAG_DONE,
        Chunk.BLOCK_STATUS,
        cookie,
        4 + 4 * len(numbers),
        ALLOCATION_CONTEXT_ID,
    )
    return header + Struct(f">{len(numbers)}I").pack(*numbers)


def add_descriptors(descriptors: list[tuple[int, int]], extents: Sequence[Extent], start: int, end: int) -> None:
    """Append the range ``start`` to ``end`` (multiples of 512) to the descriptors, joining equal neighbours.

    Holes shrink to whole blocks of 512 bytes, and what no extent mentions counts as data: claiming data is always
    right. Every length stays below 4 GiB because a request's length does.
    """
    position = start
    for extent in extents:
        if not extent.hole:
            continue
        hole_start = max(position, -(-extent.offset // MINIMUM_BLOCK) * MINIMUM_BLOCK)
        hole_end = min(end, (extent.offset + extent.length) // MINIMUM_BLOCK * MINIMUM_BLOCK)
        if hole_start >= hole_end:
            continue
        _add(descriptors, hole_start - position, 0)
        _add(descriptors, hole_end - hole_start, _HOLE)
        position = hole_end
    _add(descriptors, end - position, 0)


def _add(descriptors: list[tuple[int, int]], length: int, state: int) -> None:
    if length == 0:
        return
    if descriptors and descriptors[-1][1] == state:
        length += descriptors.pop()[0]
    descriptors.append((length, state))
