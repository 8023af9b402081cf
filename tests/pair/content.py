"""The data that the client of nbd_writer.py writes: every sector tells which write it is of. For any Python."""

from __future__ import annotations

import random
import struct

SECTOR = 512
MAGIC = b"\xf0written"
MARK = struct.Struct("<8sQ")
"""At the beginning of each sector: the magic and the number of the write."""


def content(number: int, length: int) -> bytearray:
    """The data of a write: no sector of it is like any other, of this write or of another one."""
    data = bytearray(random.Random(number).randbytes(length))
    mark = MARK.pack(MAGIC, number)
    for offset in range(0, length, SECTOR):
        data[offset : offset + MARK.size] = mark
    return data
