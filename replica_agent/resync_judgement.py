"""What is refused of a resync at the replica: an order to begin one that makes no sense, a commit of less than all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import ProtocolError
from protocol.messages import ResyncBegin, ResyncKind
from shared.disks.hashing import HASH_NAME, KEY_BYTES

if TYPE_CHECKING:
    from replica_agent.resync import OpenResync

BLOCK_SIZES = (4096, 16 << 20)
"""The smallest and the largest block size that a primary may choose, in bytes; it must be a power of two."""


def judge_begin(body: ResyncBegin) -> None:
    """What can be said of a RESYNC_BEGIN by itself. Raises ProtocolError."""
    low, high = BLOCK_SIZES
    if body.hash != HASH_NAME:
        raise ProtocolError(f"RESYNC_BEGIN with the hash {body.hash!r}; this side has {HASH_NAME!r}", code="version")
    if not low <= body.block_size <= high or body.block_size & (body.block_size - 1):
        raise ProtocolError(f"RESYNC_BEGIN with blocks of {body.block_size} bytes")
    if len(body.key) != KEY_BYTES:
        raise ProtocolError(f"RESYNC_BEGIN with a key of {len(body.key)} bytes; it must have {KEY_BYTES}")


def judge_settled(resync: OpenResync) -> None:
    """Whether all is settled that its commit needs. Raises ProtocolError with what is missing."""
    settled, sizes = resync.differences.settled, resync.sizes
    if resync.record.kind is not ResyncKind.BOUNDED and not resync.differences.is_settled():
        raise ProtocolError(
            f"COMMIT although {resync.differences.settled_bytes} of {sum(sizes.values())} bytes are settled",
            code="state",
        )
    for index in sizes.keys() - resync.disks.sizes.keys():
        if not settled[index].covers(0, sizes[index]):
            raise ProtocolError(f"COMMIT although the added disk {index} is not wholly settled", code="state")
    for disk, ranges in resync.doubt.items():
        left = next((each for each in ranges if not settled[disk].covers(*each)), None)
        if left is not None:
            raise ProtocolError(
                f"COMMIT although {left[1]} bytes at {left[0]} of disk {disk}, which are in doubt here, "
                "are not settled",
                code="state",
            )
