"""What planted bugs are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.simulation.disk import SimulatedFile

Patch = tuple[Any, str, Callable[[Any], Any]]
"""Owner, attribute, and what makes its replacement from the original."""


def nothing(original: Any) -> Any:
    """A synchronous step that is left out."""
    del original
    return lambda *_args, **_options: None


def nothing_async(original: Any) -> Any:
    """An asynchronous step that is left out."""
    del original

    async def skipped(*_args: Any, **_options: Any) -> None:
        return None

    return skipped


def unsynced(part: str) -> Callable[[Any], Any]:
    """Syncs of files with ``part`` in their path do nothing."""

    def make(original: Any) -> Any:
        def sync(file: SimulatedFile) -> None:
            if part in file.path:
                file.process.operation()
            else:
                original(file)

        return sync

    return make


def forever(original: Any) -> Any:
    """An asynchronous step that never ends."""
    del original

    async def waiting(*_args: Any, **_options: Any) -> None:
        await asyncio.get_running_loop().create_future()

    return waiting
