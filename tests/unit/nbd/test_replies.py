"""Replies as bytes, and block status descriptors."""

from __future__ import annotations

import struct
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shared.nbd import replies
from shared.nbd.constants import Errno
from shared.ports import Extent

COOKIE = bytes(range(8))
OTHER = bytes(range(8, 16))


def test_done_is_one_simple_reply_for_each_cookie() -> None:
    one = bytes.fromhex("67446698 00000000") + COOKIE
    two = bytes.fromhex("67446698 00000000") + OTHER
    assert replies.done([COOKIE]) == one
    assert replies.done([COOKIE, OTHER]) == one + two


def test_simple_failure() -> None:
    reply = replies.failed(COOKIE, Errno.ENOSPC, "unused", structured=False)
    assert reply == bytes.fromhex("67446698 0000001c") + COOKIE


def test_structured_failure_carries_its_text() -> None:
    reply = replies.failed(COOKIE, Errno.ESHUTDOWN, "going", structured=True)
    assert reply == (bytes.fromhex("668e33ef 0001 8001") + COOKIE + struct.pack(">IIH", 11, 108, 5) + b"going")


def test_unknown_error_numbers_travel_as_eio() -> None:
    for error in (2, 9999, -5):
        (number,) = struct.unpack_from(">I", replies.failed(COOKIE, error, "", structured=False), 4)
        assert number == Errno.EIO


def test_error_text_is_bounded_and_stays_utf8() -> None:
    reply = replies.failed(COOKIE, Errno.EIO, "ü" * 5000, structured=True)
    (length,) = struct.unpack_from(">H", reply, 24)
    assert length <= 1024
    assert reply[26:].decode() == "ü" * (length // 2)


def test_data_headers() -> None:
    assert replies.data_header(COOKIE, 512, 1024, structured=False) == bytes.fromhex("67446698 00000000") + COOKIE
    assert replies.data_header(COOKIE, 512, 1024, structured=True) == (
        bytes.fromhex("668e33ef 0001 0001") + COOKIE + struct.pack(">IQ", 1032, 512)
    )


def test_hole() -> None:
    assert replies.hole(COOKIE, 512, 1024) == (
        bytes.fromhex("668e33ef 0001 0002") + COOKIE + struct.pack(">IQI", 12, 512, 1024)
    )


def test_block_status() -> None:
    assert replies.block_status(COOKIE, [(512, 3), (1024, 0)]) == (
        bytes.fromhex("668e33ef 0001 0005") + COOKIE + struct.pack(">IIIIII", 20, 1, 512, 3, 1024, 0)
    )


def descriptors(extents: list[Extent], start: int, end: int) -> list[tuple[int, int]]:
    result: list[tuple[int, int]] = []
    replies.add_descriptors(result, extents, start, end)
    return result


def test_descriptors_follow_the_extents() -> None:
    extents = [Extent(0, 4096, hole=False), Extent(4096, 4096, hole=True), Extent(8192, 512, hole=False)]
    assert descriptors(extents, 0, 8704) == [(4096, 0), (4096, 3), (512, 0)]


def test_descriptors_join_over_two_lookups() -> None:
    result: list[tuple[int, int]] = []
    replies.add_descriptors(result, [Extent(0, 1024, hole=True)], 0, 1024)
    replies.add_descriptors(result, [Extent(1024, 512, hole=True), Extent(1536, 512, hole=False)], 1024, 2048)
    assert result == [(1536, 3), (512, 0)]


def test_partly_hole_blocks_count_as_data() -> None:
    assert descriptors([Extent(0, 100, hole=False), Extent(100, 1000, hole=True)], 0, 1536) == [
        (512, 0),
        (512, 3),
        (512, 0),
    ]


def test_nothing_known_is_data() -> None:
    assert descriptors([], 512, 2048) == [(1536, 0)]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 3000), st.booleans()), max_size=20),
    start=st.integers(0, 10),
    blocks=st.integers(1, 60),
)
def test_descriptors_cover_the_range_and_never_hide_data(
    lengths: list[tuple[int, bool]], start: int, blocks: int
) -> None:
    """Claiming a hole where data is would lose it on every copy."""
    extents = []
    position = 0
    for length, is_hole in lengths:
        extents.append(Extent(position, length, hole=is_hole))
        position += length
    begin, end = start * 512, (start + blocks) * 512
    result = descriptors(extents, begin, end)
    assert sum(length for length, _ in result) == end - begin
    assert all(length > 0 and length % 512 == 0 for length, _ in result)
    assert all(a[1] != b[1] for a, b in pairwise(result))
    position = begin
    for length, state in result:
        if state:
            for extent in extents:
                if not extent.hole:
                    assert extent.offset + extent.length <= position or extent.offset >= position + length
        position += length
