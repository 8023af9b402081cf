"""Crash states of a tap: a life on the simulated disk is recorded, and recovery is run on every state of it.

``python -m tests.faults.tap_states --seeds 20 --limit 12 --samples 256`` is the long run; it prints what it did.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from primary_agent.tap.engine import TapEngine
from primary_agent.tap.ports import OwnPorts
from shared.nbd.backend import Mutation
from tests.faults.crash_states import PAGE, Recording, State, Window
from tests.simulation.disk import Inode, SimulatedFile, SimulatedFileSystem, Volume
from tests.simulation.hooks import replaced
from tests.simulation.mutants_kit import Patch
from tests.unit.tap.life import Life, small_maps


@dataclass(frozen=True, slots=True)
class Facts:
    """What the client and the agent were told at some moment."""

    now: float
    cuts: dict[Any, Any]
    began: dict[bytes, Any]
    released: set[bytes]
    epochs: int
    flushed: bytes | None
    since: list[tuple[int, int]]


class ToldLife(Life):
    """A life that remembers what was flushed on its first disk, and what was written there since."""

    flushed: bytes | None = None
    since: list[tuple[int, int]] = []  # noqa: RUF012 - replaced, never changed

    async def start(self, ports: OwnPorts) -> TapEngine:
        tap = await super().start(ports)
        flush = tap.flush

        async def remembering(disk: Any) -> int:
            error = int(await flush(disk))
            if not error and disk.index == 0:
                self.flushed, self.since = bytes(self.model[0]), []
            return error

        tap.flush = remembering  # type: ignore[method-assign]
        return tap

    async def change(self, tap: TapEngine, index: int, batch: list[Mutation]) -> None:
        if index == 0:
            self.since = [*self.since, *((one.offset, one.length) for one in batch)]
        await super().change(tap, index, batch)

    def facts(self) -> Facts:
        return Facts(
            self.world.loop.now, dict(self.cuts), dict(self.began), set(self.released), self.epochs,
            self.flushed, list(self.since),
        )  # fmt: skip

    def restore(self, facts: Facts) -> None:
        self.world.loop.now = facts.now + 0.5
        self.cuts, self.began = dict(facts.cuts), dict(facts.began)
        self.released, self.epochs = set(facts.released), facts.epochs
        self.flushed, self.since = facts.flushed, list(facts.since)

    def check_flushed(self) -> None:
        """I4: outside of what was written since, the disk is what it was at the flush."""
        if self.flushed is None:
            return
        now, then = bytearray(self.world.images()[0]), bytearray(self.flushed)
        for offset, length in self.since:
            now[offset : offset + length] = then[offset : offset + length] = bytes(length)
        assert now == then, "I4: what was flushed is not there"


def record(seed: int) -> list[Window]:
    """A whole life; its windows."""
    life = ToldLife(seed)
    recording = Recording(life.facts)
    volume = life.world.volume
    for inode in volume.entries.values():
        _begin(recording, inode)
    recording.names = {path: inode.number for path, inode in volume.durable_entries.items()}
    with _recorded(recording, volume):
        assert life.world.run(life.whole)
        recording.end_window("the end")
    life.world.close()
    return recording.windows


def _begin(recording: Recording, inode: Inode) -> None:
    file = recording.file(inode.number)
    file.durable = dict(inode.durable)
    file.size = file.durable_size = inode.size
    file.stamp = file.durable_stamp = inode.mtime_ns


@contextmanager
def _recorded(recording: Recording, volume: Volume) -> Iterator[None]:
    """Everything that is done to the files of a volume goes into the recording, too."""
    change, sync, sync_folder = volume.change, Inode.sync, volume.sync_folder
    with pytest.MonkeyPatch.context() as patch:

        def wrote(file: SimulatedFile, pages: Any = ()) -> None:
            inode = file.inode
            contents = {page: inode.read(page * PAGE, PAGE) for page in pages}
            recording.wrote(inode.number, contents, inode.size, inode.mtime_ns)

        for name in ("_changed", "allocate", "truncate"):
            original = getattr(SimulatedFile, name)

            def recorded(file: SimulatedFile, *arguments: Any, _original: Any = original, _name: str = name) -> None:
                before = file.inode.size
                _original(file, *arguments)
                if _name == "_changed":
                    wrote(file, arguments[0])
                elif _name == "truncate" and arguments[0] < before:
                    # What lies behind a new end is gone, and reads as zeroes when the file grows again.
                    wrote(file, range(arguments[0] // PAGE, (before - 1) // PAGE + 1))
                else:
                    wrote(file)

            patch.setattr(SimulatedFile, name, recorded)

        def synced(inode: Inode) -> None:
            sync(inode)
            recording.synced(inode.number)

        def changed(names: Any) -> None:
            change(names)
            recording.named({path: inode.number if inode is not None else None for path, inode in names.items()})

        def synced_folder(path: str) -> None:
            sync_folder(path)
            recording.synced_folder(path)

        patch.setattr(Inode, "sync", synced)
        volume.change = changed  # type: ignore[method-assign]
        volume.sync_folder = synced_folder  # type: ignore[method-assign]
        volume.on_sync = lambda _process, path: recording.end_window(path)
        yield


def rebuild(life: ToldLife, window: Window, state: State) -> None:
    """Make the world what the state says, after another boot."""
    life.restore(window.facts)
    volume = life.world.volume
    inodes = {}
    for number in state.names.values():
        pages, size, stamp = state.files.get(number, ({}, 0, 0))
        inode = inodes[number] = Inode(number)
        inode.durable = dict(pages)
        inode.data = bytearray(state.content(number)) if number in state.files else bytearray()
        inode.size = inode.durable_size = size
        inode.mtime_ns = inode.durable_mtime_ns = stamp
        inode.allocated = set(range(-(-size // PAGE)))
    volume.entries = {path: inodes[number] for path, number in state.names.items()}
    volume.durable_entries = dict(volume.entries)
    volume.folders = {folder for path in [*state.names, f"{life.world.config.log_folder}/x"] for folder in _above(path)}
    volume.pending.clear()
    volume.numbers = max(window.files, default=0) + 100
    life.world.files = SimulatedFileSystem(volume, life.world.process)
    life.world.boots += 1


def _above(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(2, len(parts) + 1)]


@dataclass(slots=True)
class Tally:
    """What a run did."""

    states: int = 0
    windows: int = 0
    bounded: int = 0
    """States from which a bounded compare was possible."""
    outcomes: Counter[str] = field(default_factory=Counter)


def check_state(seed: int, window: Window, state: State, tally: Tally) -> None:
    """I3, I4, R28: recovery on this state concludes nothing that is not so. Raises AssertionError."""
    life = ToldLife(seed)
    try:
        rebuild(life, window, state)
        life.check_flushed()
        life.adopt_disks()
        assert life.world.run(life.later)
        tally.states += 1
        tally.bounded += life.provable > 0
        tracking, reason = life.seen[-1]
        tally.outcomes[f"{tracking.value} {reason.value if reason else ''}".strip()] += 1
    except BaseException as error:
        error.add_note(f"seed {seed}, window at {window.at}, {state.text}")
        raise
    finally:
        life.world.close()


def check_seed(seed: int, *, limit: int, samples: int, stride: int = 1, patches: Sequence[Patch] = ()) -> Tally:
    """Every ``stride``-th state of a life, over all windows; ``patches`` are bugs planted while it is lived."""
    rng, tally = random.Random(seed), Tally()
    with small_maps():
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(replaced(*patch))
            windows = record(seed)
        tally.windows = len(windows)
        states = ((window, state) for window in windows for state in window.states(rng, limit=limit, samples=samples))
        for number, (window, state) in enumerate(states):
            if number % stride == 0:
                check_state(seed, window, state, tally)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in (("first", 0), ("seeds", 5), ("limit", 8), ("samples", 64), ("stride", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    began = time.monotonic()
    gc.freeze()
    for seed in range(options.first, options.first + options.seeds):
        tally = check_seed(seed, limit=options.limit, samples=options.samples, stride=options.stride)
        print(f"seed {seed}: {tally} {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
