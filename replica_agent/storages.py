"""The storage locations of a replica: one that can't be used keeps its own VMs from being served, and no others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import structlog

from shared.errors import StorageError, VmreplicaError

LOOK_SECONDS = 30.0
"""A location that can't be used is looked at again after so long."""

log = structlog.get_logger(__name__)


class Storages:
    """``find`` starts the VMs of one location; it raises OSError where that can't be used."""

    def __init__(self, find: Callable[[str], Awaitable[None]]) -> None:
        self.absent: dict[str, str] = {}
        """Those that can't be used, and why."""
        self._find = find
        self._looking: asyncio.Task[None] | None = None

    async def begin(self, storages: Sequence[str], changing: asyncio.Lock) -> None:
        """Find the VMs of all; those that can't be used now are looked at again, with ``changing`` held."""
        for storage in storages:
            try:
                await self._find(storage)
            except OSError as error:
                self.absent[storage] = _text(storage, error)
                log.error("a storage location can't be used", storage=storage, reason=str(error))
        if self.absent:
            self._looking = asyncio.get_running_loop().create_task(self._look(changing))

    async def add(self, storage: str) -> None:
        """Find the VMs of one that came by a reload. Raises StorageError."""
        try:
            await self._find(storage)
        except OSError as error:
            raise StorageError(
                _text(storage, error),
                "Where the unit may not write there yet, run `vmreplica setup replica`, and restart the service.",
            ) from error
        self.absent.pop(storage, None)

    def keep(self, storages: Sequence[str]) -> None:
        """Forget what is not configured any more."""
        self.absent = {storage: text for storage, text in self.absent.items() if storage in storages}

    def require(self, storage: str) -> None:
        """Raises StorageError where the location can't be used."""
        if storage in self.absent:
            raise StorageError(self.absent[storage], "Bring its volume back there; it is looked at again by itself.")

    def problems(self) -> list[str]:
        """What is wrong, for the agent's status."""
        return [f"{text} Its VMs are not served; it is looked at again by itself." for text in self.absent.values()]

    async def stop(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self, changing: asyncio.Lock) -> None:
        while self.absent:
            await asyncio.sleep(LOOK_SECONDS)
            for storage in list(self.absent):
                with contextlib.suppress(VmreplicaError, OSError):
                    async with changing:
                        await self._find(storage)
                        self.absent.pop(storage, None)
                        log.info("a storage location can be used again", storage=storage)


def _text(storage: str, error: OSError) -> str:
    return f"The storage {storage} can't be used: {error.strerror or error}."
