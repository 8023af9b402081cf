"""Room for what clients write to writable exports: only what replication and its history can spare.

A volume that gets full is felt by these clients first: their writes end with ENOSPC while there still is a distance to
what replication needs. A quota holds for them as for replication, and is never used up for it by them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from replica_agent.finishing import finish
from shared.errors import NoSpaceError
from shared.forecasts import ROOM_BYTES
from shared.ports import Ports
from shared.rates import size_text

DISTANCE_BYTES = 4 * ROOM_BYTES
"""Free space beside the reserve that overlays leave alone: older points make room only when less is left."""
FRESH_SECONDS = 1.0


@dataclass(slots=True)
class _Volume:
    """What may be used of a volume: ``left`` as of the monotonic time ``when``, less what was let in since."""

    left: int = 0
    when: float = float("-inf")
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)


async def _no_quota(vm: bytes) -> int | None:
    return None


@dataclass(slots=True)
class OverlayRoom:
    """The room of all writable exports of an agent; ``quota`` tells what a VM's entries leave (None: any)."""

    ports: Ports
    quota: Callable[[bytes], Awaitable[int | None]] = _no_quota
    _volumes: dict[tuple[str, bytes], _Volume] = field(default_factory=dict)

    async def admit(self, vm: bytes, folder: str, count: int, reserve: int) -> None:
        """Let ``count`` bytes be written below ``folder``. Raises NoSpaceError."""
        if not count:
            return
        volume = self._volumes.setdefault((folder.rpartition("/")[0], vm), _Volume())
        fresh = self.ports.clock.monotonic() - volume.when < FRESH_SECONDS
        if not fresh or count > volume.left:
            await self._look(volume, vm, folder, reserve)
        if count > volume.left:
            missing = count - max(volume.left, 0)
            raise NoSpaceError(
                f"Writable exports have no more room on the volume of {folder}: {missing} bytes "
                f"({size_text(missing)}) are missing, and replication needs what is left.",
                "Free space there, raise the quota, or end exports with `vmreplica unexport`.",
            )
        volume.left -= count

    async def _look(self, volume: _Volume, vm: bytes, folder: str, reserve: int) -> None:
        asked = self.ports.clock.monotonic()
        async with volume.looking:
            if volume.when > asked:
                # Somebody else has looked while we waited for our turn.
                return
            free = await finish(self.ports.workers.run(self.ports.files.free_space, folder))
            quota = await self.quota(vm)
            left = free - reserve - DISTANCE_BYTES
            volume.left = left if quota is None else min(left, quota)
            volume.when = self.ports.clock.monotonic()
