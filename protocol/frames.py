"""Frames: the 32-byte header before every message, and the reader that turns received bytes into frames.

All integers are little-endian. ``docs/protocol.md`` describes the layout and has test vectors::

    offset size field
    0      2    magic b"VR"
    2      1    version of the frame layout, 1
    3      1    type, a MessageType
    4      2    flags; bit 0: the payload is one zstd frame
    6      2    stream, 0
    8      4    payload length in bytes, as it follows
    12     4    raw length: payload length after decompression; equal to it where bit 0 is not set
    16     8    session token; 0 up to and including WELCOME
    24     8    xxh3-64 of bytes 0..23

A header is judged before any memory is taken for the payload that it announces.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import xxhash

from protocol.errors import ProtocolError
from protocol.hrl import ENTRY_BYTES, MAX_ENTRIES, MAX_PAYLOAD, MAX_RECORD, RECORD_HEADER_BYTES
from protocol.messages import GROUP_BLOCKS, MAX_CONTROL_BODY, MAX_GROUPS, MAX_HELLO_BODY, MessageType

Buffer = bytes | bytearray | memoryview

FRAME_VERSION = 1
FRAME_MAGIC = b"VR"
FRAME_HEADER_BYTES = 32
FLAG_ZSTD = 1
MAX_FRAME_PAYLOAD = MAX_RECORD + 4096
MAX_MANIFEST_BLOCKS = 4096
MAX_DETAIL_TAGS = 65536
MANIFEST_HEADER_BYTES = 64
BLOCKS_HEADER_BYTES = 24
SEAL_RECORD_BYTES = RECORD_HEADER_BYTES + 24

# The largest payload of each type, in bytes, raw and as sent.
PAYLOAD_CAPS: dict[MessageType, int] = {
    **dict.fromkeys(MessageType, MAX_CONTROL_BODY),
    MessageType.HELLO: MAX_HELLO_BODY,
    MessageType.WELCOME: MAX_HELLO_BODY,
    MessageType.LOG: MAX_FRAME_PAYLOAD,
    MessageType.SEAL: SEAL_RECORD_BYTES,
    MessageType.MANIFEST: MANIFEST_HEADER_BYTES + MAX_GROUPS // 8 + MAX_MANIFEST_BLOCKS // 8 + MAX_MANIFEST_BLOCKS * 16,
    MessageType.DETAIL: MANIFEST_HEADER_BYTES + MAX_DETAIL_TAGS * 16,
    MessageType.BLOCKS: BLOCKS_HEADER_BYTES + MAX_ENTRIES * ENTRY_BYTES + MAX_PAYLOAD,
}
COMPRESSIBLE = frozenset({MessageType.LOG, MessageType.BLOCKS})
assert MAX_GROUPS * GROUP_BLOCKS == MAX_MANIFEST_BLOCKS
assert max(PAYLOAD_CAPS.values()) == MAX_FRAME_PAYLOAD

_HEADER = struct.Struct("<2sBBHHIIQQ")
_PLAIN = struct.Struct("<2sBBHHIIQ")
_CHECK = struct.Struct("<Q")
_PLAIN_BYTES = FRAME_HEADER_BYTES - _CHECK.size
assert _HEADER.size == FRAME_HEADER_BYTES

_STAGING_BYTES = 64 << 10
_TYPES = {int(kind): kind for kind in MessageType}


@dataclass(slots=True)
class Frame:
    """A received frame. ``payload`` belongs to the receiver; ``raw_length`` differs from its length if compressed."""

    type: MessageType
    payload: Buffer
    token: int = 0
    compressed: bool = False
    raw_length: int = 0


def encode_frame_header(kind: MessageType, length: int, token: int, *, raw_length: int | None = None) -> bytes:
    """The header of a frame whose payload has ``length`` bytes; ``raw_length`` is given where it is compressed.

    Raises ValueError where the payload is longer than its type allows.
    """
    compressed = raw_length is not None
    raw = length if raw_length is None else raw_length
    cap = PAYLOAD_CAPS[kind]
    if length > cap or raw > cap or (compressed and kind not in COMPRESSIBLE):
        raise ValueError(f"{kind.name} frame of {length} bytes ({raw} raw); at most {cap} may be sent")
    flags = FLAG_ZSTD if compressed else 0
    plain = _PLAIN.pack(FRAME_MAGIC, FRAME_VERSION, kind, flags, 0, length, raw, token)
    return plain + _CHECK.pack(xxhash.xxh3_64_intdigest(plain))


class FrameReader:
    """Turns received bytes into frames, without I/O.

    Bytes are received into the buffer that :meth:`get_buffer` returns; :meth:`buffer_updated` then returns the frames
    that are complete. A payload that did not come whole with its header is received straight into a buffer of its own.
    The first invalid header ends the stream: frames before it are still returned, :attr:`failure` says what was wrong,
    and everything after it is dropped.
    """

    __slots__ = ("_begun", "_fill", "_frame", "_payload", "_staging", "_view", "failure", "limit")

    def __init__(self, limit: int = MAX_HELLO_BODY) -> None:
        self.limit = limit
        """The largest payload of any type, in bytes: MAX_HELLO_BODY until the session is welcome."""
        self.failure: ProtocolError | None = None
        self._staging = bytearray(_STAGING_BYTES)
        self._view = memoryview(self._staging)
        self._fill = 0
        self._frame: Frame | None = None
        self._payload: memoryview = self._view[:0]
        self._begun = 0

    @property
    def begun(self) -> int:
        """Bytes received of a frame that is not complete yet: 0 between frames."""
        return self._fill if self._frame is None else FRAME_HEADER_BYTES + self._begun

    def get_buffer(self, _size_hint: int = -1) -> memoryview:
        """Where to receive next; never empty."""
        if self._frame is not None:
            return self._payload[self._begun :]
        return self._view[self._fill :]

    def buffer_updated(self, count: int) -> list[Frame]:
        """``count`` bytes were received into the buffer returned last; returns the frames complete by now."""
        if self.failure is not None:
            return []
        if self._frame is None:
            self._fill += count
            return self._parse()
        self._begun += count
        if self._begun < len(self._payload):
            return []
        frame, self._frame, self._begun = self._frame, None, 0
        self._payload = self._view[:0]
        return [frame]

    def feed(self, data: Buffer) -> list[Frame]:
        """Receive ``data`` by copying; returns the frames complete by now."""
        frames = []
        rest = memoryview(data)
        while rest and self.failure is None:
            buffer = self.get_buffer()
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            frames += self.buffer_updated(count)
            rest = rest[count:]
        return frames

    def _parse(self) -> list[Frame]:
        """Take all whole frames out of the staging buffer; what is left there is part of a header."""
        frames: list[Frame] = []
        at, fill = 0, self._fill
        while fill - at >= FRAME_HEADER_BYTES:
            try:
                frame, length = self._decode_header(at)
            except ProtocolError as error:
                self.failure = error
                at = fill
                break
            at += FRAME_HEADER_BYTES
            if fill - at < length:
                self._receive_directly(frame, length, self._view[at:fill])
                at = fill
                break
            frame.payload = bytes(self._view[at : at + length])
            frames.append(frame)
            at += length
        if at:
            self._fill = fill - at
            self._view[: self._fill] = self._view[at:fill]
        return frames

    def _receive_directly(self, frame: Frame, length: int, head: memoryview) -> None:
        # Unlike a bytearray, an array is not filled with zeroes first.
        buffer = np.empty(length, np.uint8).data
        buffer[: len(head)] = head
        frame.payload = buffer
        self._frame, self._payload, self._begun = frame, buffer, len(head)

    def _decode_header(self, at: int) -> tuple[Frame, int]:
        magic, version, kind, flags, stream, length, raw, token, check = _HEADER.unpack_from(self._staging, at)
        if magic != FRAME_MAGIC:
            raise ProtocolError(f"no frame starts here: magic {magic!r} in place of {FRAME_MAGIC!r}")
        if xxhash.xxh3_64_intdigest(self._view[at : at + _PLAIN_BYTES]) != check:
            raise ProtocolError("the frame header's checksum is wrong")
        if version != FRAME_VERSION:
            raise ProtocolError(f"frame version {version}; this program speaks {FRAME_VERSION}", code="version")
        known = _TYPES.get(kind)
        if known is None:
            raise ProtocolError(f"unknown type of message {kind}")
        if flags & ~FLAG_ZSTD or stream != 0:
            raise ProtocolError(f"{known.name} frame with flags {flags:#x}, stream {stream}; unknown ones are refused")
        compressed = flags == FLAG_ZSTD
        if compressed and known not in COMPRESSIBLE:
            raise ProtocolError(f"{known.name} frame is compressed, which its type may not be")
        if not compressed and raw != length:
            raise ProtocolError(f"{known.name} frame of {length} bytes says {raw} raw bytes but is not compressed")
        cap = min(PAYLOAD_CAPS[known], self.limit)
        if length > cap or raw > cap:
            raise ProtocolError(f"{known.name} frame of {length} bytes ({raw} raw); the limit is {cap}")
        if length == 0:
            raise ProtocolError(f"{known.name} frame without a payload")
        return Frame(known, b"", token, compressed, raw), length
