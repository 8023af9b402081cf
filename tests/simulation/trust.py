"""Whose the files of a simulated host are, and where its replica agent keeps copies: a hand-over is judged by both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from primary_agent import believing
from shared.errors import StorageError
from tests.simulation.constants import REPLICA_RUNTIME, STORAGE
from tests.simulation.hooks import replaced
from tests.simulation.loop import CURRENT

if TYPE_CHECKING:
    from tests.simulation.world import World


@contextmanager
def trusted(world: World) -> Iterator[None]:
    """All files of a host belong to one user, and both hosts keep copies at the same place."""

    def places(path: str) -> believing.Places:
        return believing.Places(path, (STORAGE,), REPLICA_RUNTIME)

    def size_of(path: str, _copy: str, *, folder: bool) -> int:
        process = CURRENT.get()
        assert process is not None
        (host,) = (each for each in world.hosts if process.name.endswith(f"@{each.name}"))
        if folder:
            return 0
        if path not in host.volume.entries:
            raise StorageError(f"{path} can't be used: it is not there.", "Look at what is there.")
        return host.volume.entries[path].size

    with ExitStack() as stack:
        stack.enter_context(replaced(believing, "read_places", lambda _original: places))
        stack.enter_context(replaced(believing, "require_copy", lambda _original: size_of))
        yield
