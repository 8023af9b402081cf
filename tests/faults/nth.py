"""Fail the N-th operation, once and for good: the loop that every durable path goes through.

``for failure in every_failure(...)`` yields N = 1, 2, ... until nothing fails any more, first with one operation that
fails and then with all from the N-th on. The failure is a callable of operation and path that gives an errno, or 0: it
fits ``tests.simulation.disk.Volume.fault`` and ``tests.unit.replica.failing.FailingFiles.fault``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Matches = Callable[[str, str], bool]


@dataclass(slots=True)
class NthFailure:
    """The N-th matching operation fails, and if ``persistent`` all that follow until it is ``lifted``."""

    number: int
    persistent: bool
    matches: Matches
    error: int = errno.EIO
    seen: int = 0
    hits: int = 0
    lifted: bool = False
    what: str = ""
    """The first operation that failed, and the path."""

    def __call__(self, operation: str, path: str) -> int:
        if self.lifted or not self.matches(operation, path):
            return 0
        self.seen += 1
        if self.seen == self.number or (self.persistent and self.seen > self.number):
            self.hits += 1
            self.what = self.what or f"{operation} {path}"
            return self.error
        return 0

    def __str__(self) -> str:
        return f"{self.what or 'nothing'} failed, number {self.number}, {'for good' if self.persistent else 'once'}"


def every_failure(
    matches: Matches, *, error: int = errno.EIO, first: int = 1, stride: int = 1, most: int = 100_000
) -> Iterator[NthFailure]:
    """A failure at each ``stride``-th operation, transient and persistent; ends each round when one was not met.

    ``most`` bounds a loop that never ends: AssertionError.
    """
    for persistent in (False, True):
        for number in range(first, most, stride):
            failure = NthFailure(number, persistent, matches, error)
            try:
                yield failure
            except BaseException as raised:
                raised.add_note(str(failure))
                raise
            if not failure.hits:
                break
        else:
            raise AssertionError(f"operation {most} still failed")


def on(*operations: str, path: str = "") -> Matches:
    """Matches these operations (all, if none) on paths that contain ``path``."""
    return lambda operation, where: (not operations or operation in operations) and path in where
