"""The test vector of undo logs, made from fixed values; ``docs/undo-format.md`` says what it holds."""

from __future__ import annotations

import tempfile
from pathlib import Path

from protocol.position import Position
from replica_agent.undo_writer import UndoWriter
from shared.ports.file_system import RealFileSystem
from shared.undo_log import BATCH_BYTES, Link
from tests.vectors.logs import EPOCH, OTHER_EPOCH, VM

PATH = Path(__file__).parent / "merge.undo"
SIZES = {0: 1 << 20, 2: 512 << 10}
LINK = Link(
    Position(EPOCH, 7, 640, bytes(range(16))),
    Position(OTHER_EPOCH, 1, 12, bytes(range(16, 32))),
    1_750_000_000.0,
    1_750_000_300.5,
)
RANGES: list[tuple[int, int, int, bytes | None]] = [
    (0, 0, 4096, b"a"),
    (0, 8192, 16384, None),
    (0, 65536, BATCH_BYTES - 8192, b"b"),
    (0, 524288, 8192, b"c"),
    (2, 512, 512, b"d"),
]
"""Disk, offset, length, and the byte that fills it; None for a hole. The third and the fourth lie in two batches."""


def content() -> bytes:
    """The bytes of the vector, made anew."""
    with tempfile.TemporaryDirectory(prefix="vmr-") as folder:
        writer = UndoWriter(RealFileSystem(), f"{folder}/merge.undo", VM, LINK, reserve=0)
        for disk, offset, length, fill in RANGES:
            if fill is None:
                writer.hole(disk, offset, length)
            else:
                writer.room(disk, offset, length)[:] = fill * length
        writer.finish()
        return Path(f"{folder}/merge.undo").read_bytes()
