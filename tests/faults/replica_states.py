"""Crash states of a replica: baselines and streaming on real files are recorded, and an agent is started on each state.

Spool segments, differencing file, disks and names go through the files' port and are enumerated page by page. The store
is SQLite's, past that port: of it the last committed version is taken. That SQLite keeps its promise when pages of its
files are lost is tried with real processes (``test_power_cut.py``).

``python -m tests.faults.replica_states --limit 10 --samples 64 --stride 1`` is the long run.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import gc
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.ports import Buffer, FileIdentity
from tests.faults.crash_states import PAGE, Recording, State, Window
from tests.unit.replica.failing import FailingFile, FailingFiles
from tests.unit.replica.rig import Certificates, World, make_certificates
from tests.unit.replica.test_crashes import Story, check_after_death, run_until_death

STORE = "state.db"


class RecordingFiles(FailingFiles):
    """Real files with numbers and times of their own, which outlive being copied; changes go into a recording."""

    def __init__(self, root: Path, recording: Recording | None = None) -> None:
        super().__init__()
        self.root = str(root)
        self.recording = recording
        self.numbers: dict[str, int] = {}
        self.stamps: dict[int, int] = {}
        self.lies_about = ""
        """Syncs of files with this in their path are left out: a planted bug."""
        self._last = 1000
        self._clock = 1_700_000_000_000_000_000

    def adopt(self, state: State) -> None:
        """Begin with the files of this state."""
        self.numbers = {self.root + path: number for path, number in state.names.items()}
        self.stamps = {number: state.files[number][2] for number in state.names.values() if number in state.files}
        self._last = max([1000, *self.numbers.values()])
        self._clock = max([self._clock, *self.stamps.values()])

    def tick(self) -> int:
        self._clock += 1_000_000
        return self._clock

    def short(self, path: str) -> str:
        return path.removeprefix(self.root)

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> Any:
        made = create and not super().exists(path)
        inner = super().open(path, write=write, create=create, exclusive=exclusive)
        if path not in self.numbers:
            self._last += 1
            self.numbers[path] = self._last
            self.stamps[self._last] = self.tick()
        if made and self.recording is not None:
            self.recording.named({self.short(path): self.numbers[path]})
        return RecordingFile(self, inner, self.numbers[path])

    def rename(self, source: str, target: str) -> None:
        super().rename(source, target)
        number = self.numbers.pop(source)
        self.numbers[target] = number
        if self.recording is not None:
            self.recording.named({self.short(source): None, self.short(target): number})

    def remove(self, path: str) -> None:
        super().remove(path)
        if self.numbers.pop(path, None) is not None and self.recording is not None:
            self.recording.named({self.short(path): None})

    def sync_folder(self, path: str) -> None:
        if self.recording is not None:
            self.recording.end_window(self.short(path))
        super().sync_folder(path)
        if self.recording is not None and not (self.lies_about and path.endswith(self.lies_about)):
            self.recording.synced_folder(self.short(path))

    def step(self, operation: str, path: str) -> None:
        super().step(operation, path)
        if operation in ("commit", "committed") and self.recording is not None:
            # The transaction is durable once it is committed, so what is pending then can be lost under it.
            self.recording.end_window(operation)


class RecordingFile(FailingFile):
    """One of them."""

    def __init__(self, files: RecordingFiles, inner: FailingFile, number: int) -> None:
        super().__init__(files, inner._inner)
        self.recorder = files
        self.number = number

    def _record(self, offset: int, length: int) -> None:
        stamp = self.recorder.stamps[self.number] = self.recorder.tick()
        recording = self.recorder.recording
        if recording is None:
            return
        with recording.lock:
            pages = range(offset // PAGE, (offset + length - 1) // PAGE + 1) if length else range(0)
            contents = {page: self._inner.read(page * PAGE, PAGE) for page in pages}
            recording.wrote(self.number, contents, self._inner.size(), stamp)

    def write(self, offset: int, data: Buffer) -> None:
        super().write(offset, data)
        self._record(offset, memoryview(data).nbytes)

    def write_many(self, offset: int, buffers: Sequence[Buffer]) -> None:
        super().write_many(offset, buffers)
        self._record(offset, sum(memoryview(buffer).nbytes for buffer in buffers))

    def punch_hole(self, offset: int, length: int) -> None:
        super().punch_hole(offset, length)
        self._record(offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        super().write_zeroes(offset, length)
        self._record(offset, length)

    def allocate(self, offset: int, length: int) -> None:
        super().allocate(offset, length)
        self._record(offset, 0)

    def truncate(self, size: int) -> None:
        before = self._inner.size()
        super().truncate(size)
        self._record(size, max(0, before - size))

    def sync(self) -> None:
        recording = self.recorder.recording
        if recording is not None:
            recording.end_window(self.recorder.short(self.path))
        super().sync()
        lies = self.recorder.lies_about
        if recording is not None and not (lies and lies in self.path):
            recording.synced(self.number)

    def identity(self) -> FileIdentity:
        real = super().identity()
        stamp = self.recorder.stamps[self.number]
        return FileIdentity(1, self.number, real.size, stamp, stamp)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the primary knew at some moment, and the store's last version."""

    story: Story
    points: int
    stores: dict[str, bytes]
    folders: frozenset[str]


def stores_below(root: Path) -> dict[str, bytes]:
    """The files of every store as a kill at this moment would leave them: SQLite makes the last commit of them."""
    paths = [path for part in ("-wal", "") for path in root.rglob(f"{STORE}{part}")]
    # The log of writes first: what moves from it into the other file meanwhile is then in both.
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


async def record(folder: Path, certificates: Certificates, seed: int, *, lies_about: str = "") -> list[Window]:
    """Two baselines with cuts after each; the windows."""
    world, story = World(folder, certificates), Story.begin(seed)

    def facts() -> Facts:
        known = copy.copy(story)
        known.proposed = dict(story.proposed)
        folders = frozenset(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir())
        return Facts(known, len(world.points), stores_below(folder), folders)

    recording = Recording(facts)
    files = RecordingFiles(folder, recording)
    files.lies_about = lies_about
    assert not await run_until_death(world, story.go_on, None, files)
    recording.end_window("the end")
    assert story.done
    return recording.windows


async def check_state(folder: Path, certificates: Certificates, window: Window, state: State) -> None:
    """I1, I5, I6, I7: an agent that starts there holds one whole cut, none older than what was acknowledged."""
    facts: Facts = window.facts
    for name in sorted(facts.folders):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in facts.stores.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    for path, number in state.names.items():
        if number in state.files and Path(folder, path[1:]).parent.is_dir():
            Path(folder, path[1:]).write_bytes(state.content(number))
            Path(folder, path[1:]).chmod(0o600)
    world = World(folder, certificates, boot="another boot")
    files = RecordingFiles(folder)
    files.adopt(state)
    try:
        await check_after_death(world, facts.story, files)
    except BaseException as error:
        error.add_note(f"window at {window.at}, {state.text}")
        raise


async def check_seed(
    folder: Path,
    certificates: Certificates,
    seed: int,
    *,
    limit: int,
    samples: int,
    stride: int = 1,
    lies_about: str = "",
) -> int:
    """Every ``stride``-th state, over all windows; how many were checked."""
    rng, checked = random.Random(seed), 0
    windows = await record(folder / "run", certificates, seed, lies_about=lies_about)
    states = ((window, state) for window in windows for state in window.states(rng, limit=limit, samples=samples))
    for number, (window, state) in enumerate(states):
        if number % stride == 0:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                await check_state(Path(scratch), certificates, window, state)
            checked += 1
    return checked


async def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in (("first", 0), ("seeds", 1), ("limit", 6), ("samples", 16), ("stride", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    began = time.monotonic()
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="vmr-states-", dir="/dev/shm") as folder:
        certificates = make_certificates(Path(folder) / "pki")
        for seed in range(options.first, options.first + options.seeds):
            (Path(folder) / str(seed)).mkdir()
            count = await check_seed(
                Path(folder) / str(seed), certificates, seed,
                limit=options.limit, samples=options.samples, stride=options.stride,
            )  # fmt: skip
            print(f"seed {seed}: {count} states, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
    sys.exit(0)
