"""Brings a replica right where a verify found that it differs: the tap logs these ranges again.

What is logged is what the disks hold at that moment, in the order of the guest's writes, so that streaming and apply
heal the replica by the ordinary way, and never with anything older than what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from primary_agent.block_map import BlockMap
from primary_agent.pacing import Pacer
from primary_agent.parts import Parts
from primary_agent.undecided import UndecidedError
from protocol.messages import BLOCK_SIZE
from shared.errors import NoSpaceError
from shared.map_file import Range
from shared.rates import size_text
from shared.tap_control import RELOG_BYTES_MAX, RELOG_RANGES_MAX

REPAIR_BYTES_MAX = 4 << 30
"""More than that is no repair: a resync is cheaper."""
PENDING_BYTES_MAX = 64 << 20
"""So much of the log may wait for the replica while more is added to it."""
POLL_SECONDS = 0.2
WAIT_SECONDS = 600.0
"""So long it may take until the replica has taken enough of it."""


def check_size(scope: dict[int, BlockMap]) -> None:
    """Raises UndecidedError where that is too much to be repaired."""
    size = sum(map(len, scope.values())) * BLOCK_SIZE
    if size > REPAIR_BYTES_MAX:
        raise UndecidedError(
            f"{size_text(size)} differ, which is too much to be repaired.",
            "Resynchronize the VM: `vmreplica resume VM --resynchronize`.",
        )


async def repair(parts: Parts, scope: dict[int, BlockMap], pacer: Pacer) -> int:
    """Have the tap log the blocks in ``scope`` again; the bytes. Raises VmreplicaError where it can't."""
    sizes = {disk.index: disk.size for disk in parts.replication.vm.disks}
    total = 0
    for disk, ranges in _batches(scope, sizes):
        size = sum(length for _, length in ranges)
        await pacer.wire(size)
        await _relog(parts, disk, ranges)
        total += size
    return total


async def _relog(parts: Parts, disk: int, ranges: list[Range]) -> None:
    clock = parts.surroundings.ports.clock
    until = clock.monotonic() + WAIT_SECONDS
    while True:
        if parts.pending_bytes() <= PENDING_BYTES_MAX:
            try:
                await parts.tap.require().client.relog(disk, ranges)
                return
            except NoSpaceError as error:
                if clock.monotonic() > until:
                    raise UndecidedError(error.text, error.remedy) from error
        elif clock.monotonic() > until:
            raise UndecidedError("The replica does not take the log fast enough for a repair.")
        await asyncio.sleep(POLL_SECONDS)


def _batches(scope: dict[int, BlockMap], sizes: dict[int, int]) -> Iterator[tuple[int, list[Range]]]:
    """What one call takes at a time: ranges of one disk."""
    for disk in sorted(scope):
        batch: list[Range] = []
        held = 0
        for first, end in scope[disk].pieces(RELOG_BYTES_MAX // BLOCK_SIZE):
            length = min(end * BLOCK_SIZE, sizes[disk]) - first * BLOCK_SIZE
            if batch and (held + length > RELOG_BYTES_MAX or len(batch) == RELOG_RANGES_MAX):
                yield disk, batch
                batch, held = [], 0
            batch.append((first * BLOCK_SIZE, length))
            held += length
        if batch:
            yield disk, batch
