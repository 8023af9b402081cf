"""Compression: what shrinks comes back, and a frame that lies about its size costs nothing."""

from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from protocol.compression import MAX_WINDOW_BYTES, MIN_RAW_BYTES, compress, decompress
from protocol.errors import ProtocolError
from protocol.frames import MAX_FRAME_PAYLOAD

RAW = b"sixteen bytes or" * 4096


def packed(raw: bytes = RAW) -> bytes:
    result = compress([raw])
    assert result is not None
    return result


@given(st.lists(st.integers(0, 255).map(lambda byte: bytes([byte]) * 3000), min_size=2, max_size=20))
def test_pieces_come_back_joined(pieces: list[bytes]) -> None:
    result = compress(pieces)
    assert result is not None
    joined = b"".join(pieces)
    assert decompress(result, len(joined)) == joined


def test_largest_payload_comes_back() -> None:
    raw = bytes(MAX_FRAME_PAYLOAD)
    assert decompress(packed(raw), len(raw)) == raw


def test_what_does_not_shrink_is_left_alone() -> None:
    assert compress([random.Random(1).randbytes(100_000)]) is None
    assert compress([bytes(MIN_RAW_BYTES - 1)]) is None


def test_views_are_taken_as_they_are() -> None:
    assert decompress(memoryview(packed()), len(RAW)) == RAW
    assert compress([memoryview(RAW)]) == packed()


@pytest.mark.parametrize("raw_length", [0, len(RAW) - 1, len(RAW) + 1, 2**32 - 1])
def test_other_raw_length_than_declared_is_refused(raw_length: int) -> None:
    with pytest.raises(ProtocolError, match="declares"):
        decompress(packed(), raw_length)


def test_frame_of_nothing_is_refused() -> None:
    """The library would take any bytes behind a header that declares 0 bytes."""
    empty = zstandard.ZstdCompressor(write_content_size=True).compress(b"")
    for data in (empty, empty[:-3] + b"garbage"):
        with pytest.raises(ProtocolError, match="0 bytes"):
            decompress(data, 0)


def test_frame_without_a_declared_size_is_refused() -> None:
    data = zstandard.ZstdCompressor(write_content_size=False).compress(RAW)
    with pytest.raises(ProtocolError, match="declares"):
        decompress(data, len(RAW))


def test_bomb_that_understates_its_size_is_refused() -> None:
    """A13: a gigabyte that claims to be 64 KiB is neither decompressed nor allocated."""
    bomb = bytearray(zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20)))
    parameters = zstandard.get_frame_parameters(bytes(bomb))
    assert parameters.content_size == 64 << 20
    size = bomb.index((64 << 20).to_bytes(4, "little"))
    bomb[size : size + 4] = (65536).to_bytes(4, "little")
    with pytest.raises(ProtocolError):
        decompress(bytes(bomb), 65536)


def test_large_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(
        window_log=24, write_content_size=True, format=zstandard.FORMAT_ZSTD1
    )
    raw = random.Random(2).randbytes(4096) * 5000
    data = zstandard.ZstdCompressor(compression_params=parameters).compress(raw)
    assert zstandard.get_frame_parameters(data).window_size > MAX_WINDOW_BYTES
    with pytest.raises(ProtocolError, match="window"):
        decompress(data, len(raw))


def test_dictionary_is_refused() -> None:
    words = zstandard.ZstdCompressionDict(b"sixteen bytes or" * 100, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    trained = zstandard.train_dictionary(4096, [random.Random(n).randbytes(64) + RAW[:256] for n in range(500)])
    assert trained.dict_id() != words.dict_id()
    data = zstandard.ZstdCompressor(dict_data=trained).compress(RAW)
    with pytest.raises(ProtocolError, match="dictionary"):
        decompress(data, len(RAW))


def test_bytes_behind_the_frame_are_refused() -> None:
    with pytest.raises(ProtocolError, match="not valid"):
        decompress(packed() + b"x", len(RAW))


def test_truncated_frame_is_refused_at_every_byte() -> None:
    data = packed()
    for count in range(len(data)):
        with pytest.raises(ProtocolError):
            decompress(data[:count], len(RAW))


@given(st.data())
def test_changed_bytes_are_an_error_or_bounded(choices: st.DataObject) -> None:
    data = bytearray(packed())
    for _ in range(choices.draw(st.integers(1, 4))):
        data[choices.draw(st.integers(0, len(data) - 1))] ^= choices.draw(st.integers(1, 255))
    try:
        raw = decompress(bytes(data), len(RAW))
    except ProtocolError:
        return
    assert len(raw) == len(RAW)


@given(st.binary(max_size=100), st.integers(0, 2**32 - 1))
def test_garbage_is_a_typed_error(garbage: bytes, raw_length: int) -> None:
    with pytest.raises(ProtocolError):
        decompress(garbage, raw_length)
