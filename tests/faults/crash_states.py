"""Crash states: every file system that power loss could leave of a recorded run, enumerated or sampled.

What is recorded are pages written, syncs, and names. A window ends at each sync: what is not synced at its end is
pending. Its states are

- *prefixes*: everything up to the n-th write since the last window is there, nothing of what follows,
- *subsets*: of each pending page either nothing or all is there; all subsets of up to ``limit`` pages, else samples, in
  which any version that the page had since its sync may be there, or two of them torn at a sector,
- *names*: of the pending creations, renames and removals only the first n are there.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

PAGE = 4096
SECTOR = 512
ZERO_PAGE = bytes(PAGE)

Pages = dict[int, bytes]
Names = dict[str, int | None]


@dataclass(slots=True)
class Content:
    """One file: what would survive, and what was written since. ``stamp`` is the time of its last change."""

    durable: Pages = field(default_factory=dict)
    durable_size: int = 0
    durable_stamp: int = 0
    size: int = 0
    stamp: int = 0
    pending: list[tuple[int, int, bytes]] = field(default_factory=list)
    """Number of the write, page and its content then."""

    def copy(self) -> Content:
        return Content(
            dict(self.durable), self.durable_size, self.durable_stamp, self.size, self.stamp, list(self.pending)
        )

    def sync(self) -> None:
        for _, page, content in self.pending:
            self.durable[page] = content
        self.pending.clear()
        self.durable_size, self.durable_stamp = self.size, self.stamp


@dataclass(frozen=True, slots=True)
class State:
    """A file system after power loss: names and, by their numbers, files as pages, size and stamp."""

    names: dict[str, int]
    files: dict[int, tuple[Pages, int, int]]
    text: str
    """Which state of its window it is."""

    def content(self, number: int) -> bytes:
        pages, size, _ = self.files[number]
        last = max(pages, default=-1)
        data = b"".join(pages.get(page, ZERO_PAGE).ljust(PAGE, b"\0") for page in range(last + 1))
        return data[:size].ljust(size, b"\0")


@dataclass(slots=True)
class Window:
    """What was durable and what was pending at a sync; ``facts`` are what the story knew then."""

    files: dict[int, Content]
    names: dict[str, int]
    pending_names: list[Names]
    since: int
    """The first write of this window."""
    at: str
    facts: Any

    def states(self, rng: random.Random, *, limit: int, samples: int) -> Iterator[State]:
        """Its states, each once."""
        seen: set[int] = set()
        for state in self._all(rng, limit, samples):
            pages = ((number, *sorted(file[0].items()), *file[1:]) for number, file in sorted(state.files.items()))
            key = hash((*sorted(state.names.items()), *pages))
            if key not in seen:
                seen.add(key)
                yield state

    def _all(self, rng: random.Random, limit: int, samples: int) -> Iterator[State]:
        count = len(self.pending_names)
        pending = sorted({(n, page) for n, file in self.files.items() for _, page, _ in file.pending})
        writes = sorted({write for file in self.files.values() for write, _, _ in file.pending if write >= self.since})
        for write in writes:
            yield self._state(_up_to(write), count, True, f"prefix up to {write}")
        for names in range(count + 1):
            for kept in (True, False):
                text = f"{names} names, {'all' if kept else 'nothing'} kept"
                yield self._state(_all_or_nothing(kept), names, kept, text)
        if len(pending) <= limit:
            for kept_pages in itertools.product((False, True), repeat=len(pending)):
                chosen = {page for page, is_kept in zip(pending, kept_pages, strict=True) if is_kept}
                yield self._state(_only(chosen), count, rng.random() < 0.5, f"kept {sorted(chosen)}")
            return
        for sample in range(samples):
            yield self._sample(rng, sample)

    def _state(self, keeps: Keeps, names: int, sized: bool, text: str) -> State:
        files = {}
        for number, file in self.files.items():
            pages = dict(file.durable)
            changed = False
            for write, page, content in file.pending:
                if keeps(number, page, write):
                    pages[page] = content
                    changed = True
            files[number] = self._file(file, pages, changed, sized)
        return State(self._names(names), files, text)

    def _sample(self, rng: random.Random, number: int) -> State:
        """Some version of each page, or parts of two."""
        files = {}
        for inode, file in self.files.items():
            pages = dict(file.durable)
            versions: dict[int, list[bytes]] = {}
            for _, page, content in file.pending:
                versions.setdefault(page, [file.durable.get(page, ZERO_PAGE)]).append(content)
            changed = False
            for page, contents in versions.items():
                chosen = rng.choice((contents[0], contents[-1], rng.choice(contents)))
                if rng.random() < 0.15:
                    torn = SECTOR * rng.randrange(1, PAGE // SECTOR)
                    chosen = contents[-1].ljust(PAGE, b"\0")[:torn] + chosen.ljust(PAGE, b"\0")[torn:]
                changed = changed or chosen != contents[0]
                pages[page] = chosen
            files[inode] = self._file(file, pages, changed, rng.random() < 0.5)
        return State(self._names(rng.randint(0, len(self.pending_names))), files, f"sample {number}")

    @staticmethod
    def _file(file: Content, pages: Pages, changed: bool, sized: bool) -> tuple[Pages, int, int]:
        size = file.size if sized else file.durable_size
        pages = {page: content for page, content in pages.items() if page * PAGE < size}
        return pages, size, file.stamp if changed else file.durable_stamp

    def _names(self, count: int) -> dict[str, int]:
        names = dict(self.names)
        for change in self.pending_names[:count]:
            for path, number in change.items():
                if number is None:
                    names.pop(path, None)
                else:
                    names[path] = number
        return names


Keeps = Callable[[int, int, int], bool]
"""Whether a write stays, by its file, its page and its number."""


def _up_to(last: int) -> Keeps:
    return lambda _file, _page, write: write <= last


def _all_or_nothing(kept: bool) -> Keeps:
    return lambda _file, _page, _write: kept


def _only(chosen: set[tuple[int, int]]) -> Keeps:
    return lambda file, page, _write: (file, page) in chosen


class Recording:
    """What a run does to its files, window by window. ``facts`` says what the story knows at the end of a window."""

    def __init__(self, facts: Callable[[], Any]) -> None:
        self.files: dict[int, Content] = {}
        self.names: dict[str, int] = {}
        """As they would survive."""
        self.pending_names: list[Names] = []
        self.windows: list[Window] = []
        self.lock = threading.RLock()
        self._facts = facts
        self._writes = 0
        self._since = 0

    def file(self, number: int) -> Content:
        return self.files.setdefault(number, Content())

    def wrote(self, number: int, pages: dict[int, bytes], size: int, stamp: int) -> None:
        """These pages of a file are as given now, and so is its size."""
        with self.lock:
            self._writes += 1
            file = self.file(number)
            file.pending += [(self._writes, page, content) for page, content in pages.items()]
            file.size, file.stamp = size, stamp

    def synced(self, number: int) -> None:
        with self.lock:
            self.file(number).sync()

    def named(self, change: Names) -> None:
        with self.lock:
            self.pending_names.append(change)

    def synced_folder(self, folder: str) -> None:
        """Changes of names in that folder are durable, and what happened to the same names before."""
        with self.lock:
            wanted: set[str] = set()
            settled, left = [], []
            for change in reversed(self.pending_names):
                if any(name in wanted or name.rpartition("/")[0] == folder.rstrip("/") for name in change):
                    wanted.update(change)
                    settled.append(change)
                else:
                    left.append(change)
            for change in reversed(settled):
                for path, number in change.items():
                    if number is None:
                        self.names.pop(path, None)
                    else:
                        self.names[path] = number
            self.pending_names = left[::-1]

    def end_window(self, at: str) -> None:
        """Call right before a sync takes place, and at the end."""
        with self.lock:
            files = {number: file.copy() for number, file in self.files.items()}
            window = Window(files, dict(self.names), list(self.pending_names), self._since + 1, at, self._facts())
            self.windows.append(window)
            self._since = self._writes
