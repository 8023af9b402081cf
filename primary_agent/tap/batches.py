"""Batches of changes: as entries for the log, and in groups that are short enough to be performed at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protocol.entries import MAX_PAYLOAD, EntryKind, encode_entry
from shared.nbd.backend import CommandKind, Mutation
from shared.nbd.constants import Errno
from shared.ports import Buffer

INLINE_ZEROES = 16 << 20
"""Bytes without payload that one group may zero at once; more is done by workers, in steps."""


def entries_of(index: int, batch: Sequence[Mutation]) -> tuple[list[bytes], list[Buffer], list[int]]:
    """Entries, payloads, and payload bytes of each entry; what is longer than an entry may be becomes several."""
    entries: list[bytes] = []
    payloads: list[Buffer] = []
    sizes: list[int] = []
    for mutation in batch:
        payload, offset, length = mutation.payload, mutation.offset, mutation.length
        if payload is None:
            kind = EntryKind.ZERO if mutation.kind is CommandKind.ZEROES else EntryKind.DISCARD
            entries.append(encode_entry(index, kind, offset, length))
            sizes.append(0)
        elif length <= MAX_PAYLOAD:
            entries.append(encode_entry(index, EntryKind.DATA, offset, length))
            payloads.append(payload)
            sizes.append(length)
        else:
            for start in range(0, length, MAX_PAYLOAD):
                piece = payload[start : start + MAX_PAYLOAD]
                entries.append(encode_entry(index, EntryKind.DATA, offset + start, len(piece)))
                payloads.append(piece)
                sizes.append(len(piece))
    return entries, payloads, sizes


def without_slow_zeroes(batch: list[Mutation]) -> list[Mutation]:
    """The batch without requests to zero fast but keep the space, which not every file system can; they fail."""
    slow = [mutation for mutation in batch if mutation.fast and mutation.no_hole]
    for mutation in slow:
        mutation.error = Errno.ENOTSUP
    return [mutation for mutation in batch if not mutation.error] if slow else batch


def groups_of(batch: Sequence[Mutation], most: int) -> Iterator[list[Mutation]]:
    """The batch in pieces that zero no more than ``most`` bytes each; a longer zeroing stands alone."""
    group: list[Mutation] = []
    zeroes = 0
    for mutation in batch:
        size = mutation.length if mutation.payload is None else 0
        if group and zeroes + size > most:
            yield group
            group, zeroes = [], 0
        group.append(mutation)
        zeroes += size
    if group:
        yield group
