"""Frames: layout, the reader's three outcomes (frame, need more, typed error), limits, and any way of being cut up."""

from __future__ import annotations

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from protocol.frames import (
    COMPRESSIBLE,
    FRAME_HEADER_BYTES,
    MAX_FRAME_PAYLOAD,
    PAYLOAD_CAPS,
    Frame,
    FrameReader,
    encode_frame_header,
)
from protocol.messages import MAX_CONTROL_BODY, MAX_HELLO_BODY, MessageType
from tests.vectors.cases import forged_header

STAGING = 64 << 10


def encode(kind: MessageType, payload: bytes, token: int = 7, raw_length: int | None = None) -> bytes:
    return encode_frame_header(kind, len(payload), token, raw_length=raw_length) + payload


def plain(frame: Frame) -> tuple[MessageType, bytes, int, bool, int]:
    return frame.type, bytes(frame.payload), frame.token, frame.compressed, frame.raw_length


def open_reader() -> FrameReader:
    return FrameReader(MAX_FRAME_PAYLOAD)


def test_header_has_the_documented_layout() -> None:
    header = encode_frame_header(MessageType.LOG, 1000, 0x0102030405060708, raw_length=5000)
    assert len(header) == FRAME_HEADER_BYTES
    fields = struct.unpack("<2sBBHHIIQQ", header)
    assert fields[:-1] == (b"VR", 1, 16, 1, 0, 1000, 5000, 0x0102030405060708)
    assert fields[-1] == xxhash.xxh3_64_intdigest(header[:24])


frames = st.lists(
    st.tuples(
        st.sampled_from(sorted(set(MessageType) - {MessageType.SEAL})),
        st.one_of(st.binary(min_size=1, max_size=200), st.integers(1, 16 << 10).map(lambda n: bytes([n % 251]) * n)),
        st.integers(0, 2**63 - 1),
    ),
    max_size=8,
)


@given(frames, st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    wanted: list[tuple[MessageType, bytes, int]], choices: st.DataObject
) -> None:
    stream = b"".join(encode(*each) for each in wanted)
    reader = open_reader()
    got = []
    while stream:
        count = choices.draw(st.integers(1, len(stream)))
        got += reader.feed(stream[:count])
        stream = stream[count:]
    assert reader.failure is None
    assert reader.begun == 0
    assert [plain(frame)[:3] for frame in got] == wanted


def test_byte_by_byte_gives_the_same_frames() -> None:
    wanted = [(MessageType.HEARTBEAT, b"abc", 1), (MessageType.LOG, bytes(3000), 1), (MessageType.CLOSE, b"x", 1)]
    reader = open_reader()
    got: list[Frame] = []
    stream = b"".join(encode(*each) for each in wanted)
    for number in range(len(stream)):
        got += reader.feed(stream[number : number + 1])
    assert [plain(frame)[:3] for frame in got] == wanted


def test_part_of_a_frame_is_need_more_and_says_how_much_has_begun() -> None:
    stream = encode(MessageType.LOG, bytes(500))
    for count in range(1, len(stream)):
        reader = open_reader()
        assert reader.feed(stream[:count]) == []
        assert reader.failure is None
        assert reader.begun == count
        assert len(reader.get_buffer()) > 0


def test_large_payload_is_received_straight_into_its_own_buffer() -> None:
    payload = bytes(range(256)) * 4096
    stream = memoryview(encode(MessageType.LOG, payload))
    reader = open_reader()
    reader.feed(stream[: FRAME_HEADER_BYTES + 10])
    buffer = reader.get_buffer()
    assert len(buffer) == len(payload) - 10
    buffer[:] = stream[FRAME_HEADER_BYTES + 10 :]
    (frame,) = reader.buffer_updated(len(buffer))
    assert bytes(frame.payload) == payload
    buffer[0] ^= 0xFF
    assert memoryview(frame.payload)[10] == payload[10] ^ 0xFF, "the payload is the buffer received into"


def test_received_payload_is_not_touched_by_what_comes_after() -> None:
    reader = open_reader()
    (first,) = reader.feed(encode(MessageType.CLOSE, b"a" * 100))
    reader.feed(encode(MessageType.CLOSE, b"b" * 100))
    assert bytes(first.payload) == b"a" * 100


@pytest.mark.parametrize("kind", list(MessageType))
def test_largest_payload_of_each_type_is_accepted(kind: MessageType) -> None:
    reader = open_reader()
    (frame,) = reader.feed(encode(kind, bytes(PAYLOAD_CAPS[kind])))
    assert len(frame.payload) == PAYLOAD_CAPS[kind]


@pytest.mark.parametrize("kind", list(MessageType))
def test_too_large_payload_is_refused_by_its_header_alone(kind: MessageType) -> None:
    reader = open_reader()
    assert reader.feed(forged_header(kind=kind, length=PAYLOAD_CAPS[kind] + 1)) == []
    assert reader.failure is not None
    assert kind.name in str(reader.failure)


@pytest.mark.parametrize("length", [MAX_FRAME_PAYLOAD + 1, 2**31, 2**32 - 1])
def test_claimed_length_takes_no_memory(length: int) -> None:
    """A10: nothing is allocated for a length above the cap."""
    reader = open_reader()
    reader.feed(forged_header(kind=MessageType.LOG, length=length))
    assert reader.failure is not None
    assert len(reader.get_buffer()) <= STAGING


def test_before_the_welcome_every_frame_is_small() -> None:
    reader = FrameReader()
    assert len(reader.feed(encode(MessageType.HELLO, bytes(MAX_HELLO_BODY)))) == 1
    reader.feed(forged_header(kind=MessageType.ERROR, length=MAX_HELLO_BODY + 1))
    assert reader.failure is not None
    welcome = FrameReader()
    welcome.limit = MAX_FRAME_PAYLOAD
    assert len(welcome.feed(encode(MessageType.ERROR, bytes(MAX_CONTROL_BODY)))) == 1


def test_frames_before_a_bad_one_are_returned_and_everything_after_is_dropped() -> None:
    reader = open_reader()
    good = encode(MessageType.CLOSE, b"good")
    (frame,) = reader.feed(good + forged_header(kind=99) + good)
    assert bytes(frame.payload) == b"good"
    assert reader.failure is not None
    assert reader.feed(good) == []
    buffer = reader.get_buffer()
    buffer[: len(good)] = good
    assert reader.buffer_updated(len(good)) == []


@given(st.integers(0, FRAME_HEADER_BYTES - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_header_is_an_error(at: int, change: int) -> None:
    stream = bytearray(encode(MessageType.CLOSE, b"text"))
    stream[at] ^= change
    reader = open_reader()
    assert reader.feed(stream) == []
    assert reader.failure is not None


@given(st.binary(max_size=300))
def test_garbage_is_need_more_or_an_error(garbage: bytes) -> None:
    """I18: nothing but a frame comes out as a frame."""
    reader = open_reader()
    assert reader.feed(garbage) == []
    assert (reader.failure is not None) == (len(garbage) >= FRAME_HEADER_BYTES)


@given(
    st.integers(0, 255),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
def test_forged_fields_with_a_right_checksum_never_pass_the_limits(
    kind: int, flags: int, stream: int, length: int, raw: int
) -> None:
    reader = open_reader()
    reader.feed(forged_header(kind=kind, flags=flags, stream=stream, length=length, raw=raw))
    known = kind in MessageType._value2member_map_
    valid = (
        known
        and stream == 0
        and 0 < length <= PAYLOAD_CAPS[MessageType(kind)]
        and raw <= PAYLOAD_CAPS[MessageType(kind)]
        and ((flags == 0 and raw == length) or (flags == 1 and MessageType(kind) in COMPRESSIBLE))
    )
    assert (reader.failure is None) == valid


def test_compressed_frame_tells_its_raw_length() -> None:
    (frame,) = open_reader().feed(encode(MessageType.BLOCKS, bytes(10), raw_length=4096))
    assert plain(frame) == (MessageType.BLOCKS, bytes(10), 7, True, 4096)


@pytest.mark.parametrize(
    "kind, length, raw_length",
    [
        (MessageType.CLOSE, PAYLOAD_CAPS[MessageType.CLOSE] + 1, None),
        (MessageType.LOG, 10, PAYLOAD_CAPS[MessageType.LOG] + 1),
        (MessageType.HEARTBEAT, 10, 20),
        (MessageType.SEAL, 10, 20),
    ],
)
def test_sender_refuses_what_the_receiver_would(kind: MessageType, length: int, raw_length: int | None) -> None:
    with pytest.raises(ValueError, match=kind.name):
        encode_frame_header(kind, length, 0, raw_length=raw_length)
