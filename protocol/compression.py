"""zstd for bulk payloads, bounded on both sides: one frame, one shot, a declared size, a small window."""

from __future__ import annotations

from collections.abc import Sequence

import zstandard

from protocol.errors import ProtocolError

Buffer = bytes | bytearray | memoryview

CAPABILITY = "zstd"
LEVEL = 1
MAX_WINDOW_BYTES = 2 << 20
# Smaller payloads, or ones that hardly shrink, are sent as they are.
MIN_RAW_BYTES = 4096
WORTHWHILE = 0.9
SAMPLES = 16
SAMPLE_BYTES = 1024


def compress(pieces: Sequence[Buffer], *, level: int = LEVEL) -> bytes | None:
    """The pieces, joined, as one zstd frame with its content size declared; None where that does not pay.

    Takes about 1 ms per MiB: call it in a worker.
    """
    raw = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if len(raw) < MIN_RAW_BYTES:
        return None
    packed = zstandard.ZstdCompressor(level=level, write_content_size=True).compress(raw)
    return packed if len(packed) < len(raw) * WORTHWHILE else None


def worth_compressing(pieces: Sequence[Buffer]) -> bool:
    """Whether samples of the pieces, 1 KiB from so many places, shrink enough to try it with all. Cheap."""
    lengths = [len(piece) for piece in pieces]
    step = max(1, len(pieces) // SAMPLES)
    chosen = [number for number in range(0, len(pieces), step) if lengths[number]]
    each = max(1, SAMPLES // max(1, len(chosen)))
    sample = bytearray()
    for number in chosen:
        with memoryview(pieces[number]) as view:
            for at in range(0, lengths[number], -(-lengths[number] // each)):
                sample += view[at : at + SAMPLE_BYTES]
    if not sample:
        return False
    return len(zstandard.ZstdCompressor(level=LEVEL).compress(sample)) < len(sample) * WORTHWHILE


def decompress(data: Buffer, raw_length: int) -> bytes:
    """The content of one zstd frame that must decompress to exactly ``raw_length`` bytes.

    The frame's own header must declare that size and a window of at most MAX_WINDOW_BYTES, and nothing may follow
    it, so that ``raw_length`` bytes are the most that is ever allocated. Raises ProtocolError.
    """
    try:
        parameters = zstandard.get_frame_parameters(data)
        if parameters.content_size != raw_length:
            raise ProtocolError(f"the zstd frame declares {parameters.content_size} bytes, its message {raw_length}")
        if raw_length == 0:
            # No sender compresses nothing, and the library looks at no byte behind a header that declares it.
            raise ProtocolError("the zstd frame declares 0 bytes, which nobody sends compressed")
        if parameters.window_size > MAX_WINDOW_BYTES or parameters.dict_id != 0:
            raise ProtocolError(
                f"the zstd frame needs a window of {parameters.window_size} bytes and dictionary "
                f"{parameters.dict_id}; the limits are {MAX_WINDOW_BYTES} and none"
            )
        raw: bytes = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompress(
            data, max_output_size=raw_length, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ProtocolError(f"the zstd frame is not valid: {error}") from None
    if len(raw) != raw_length:
        raise ProtocolError(f"the zstd frame holds {len(raw)} bytes, its message says {raw_length}")
    return raw
