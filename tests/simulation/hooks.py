"""Observes the product from within: when a write gets its number, a cut is made, something is acknowledged or released.

The calls are wrapped for the time of one run and otherwise do what they always do. What is observed is only *that* and
*when* something happened; what the bytes have to be is the oracle's own knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np

from primary_agent.replication import Replication
from primary_agent.streaming import CutLedger
from primary_agent.tap.disks import Disk
from primary_agent.tap.log import LogWriter
from primary_agent.tap.tracker import Tracker
from protocol.entries import ENTRY_DTYPE, EntryKind
from protocol.messages import Body, ManifestRequest, Received
from protocol.position import Position
from shared.channel import Channel
from shared.nbd.backend import Mutation
from shared.ports import Buffer
from tests.simulation.loop import CURRENT, Process


class Observer(Protocol):
    """Who looks on. ``process`` is the one in which it happened."""

    def entry_logged(
        self, process: Process, kind: EntryKind, disk: int, offset: int, length: int, payload: Buffer | None
    ) -> None:
        """A write got its place in the log; ``payload`` is the very buffer that was logged, None for zeroes."""

    def disk_written(self, process: Process, mutation: Mutation) -> None:
        """A change is about to be made to its disk."""

    def cut_made(self, process: Process, epoch: bytes, segment: int) -> None:
        """A segment is about to be sealed: every write numbered until now is in the cut, none after."""

    def epoch_begun(self, process: Process, epoch: bytes) -> None:
        """The log of an epoch is about to begin."""

    def acknowledged(self, process: Process, position: Position) -> None:
        """The primary took note that the replica has this cut."""

    def adopted(self, process: Process, end: Position) -> None:
        """The primary took note that a commit is durable at the replica."""

    def released(self, process: Process, epoch: bytes, segment: int) -> None:
        """The tap was told that it may forget this segment."""

    def asking(self, process: Process, question: ManifestRequest) -> None:
        """A compare is about to ask for tags of a range."""

    def acknowledging(self, process: Process, position: Position) -> None:
        """The replica is about to tell the primary that it has this cut."""


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute of a class or module with what ``make`` returns for the original, for a while.

    The original is None where the class has no such attribute itself.
    """
    original = vars(owner).get(name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Let ``observer`` look on for a while."""

    def here() -> Process:
        process = CURRENT.get()
        assert process is not None
        return process

    def append(original: Any) -> Any:
        def wrapped(
            log: LogWriter, entries: list[bytes], payloads: list[Buffer], sizes: list[int], time_ns: int
        ) -> None:
            original(log, entries, payloads, sizes, time_ns)
            table = np.frombuffer(b"".join(entries), ENTRY_DTYPE)
            buffers = iter(payloads)
            process = here()
            for disk, kind, offset, length in table[["disk", "kind", "offset", "length"]].tolist():
                payload = next(buffers) if kind == EntryKind.DATA else None
                observer.entry_logged(process, EntryKind(kind), disk, offset, length, payload)

        return wrapped

    def cut(original: Any) -> Any:
        def wrapped(log: LogWriter, *args: Any, **options: Any) -> Any:
            observer.cut_made(here(), log.epoch, log.segment)
            return original(log, *args, **options)

        return wrapped

    def begin(original: Any) -> Any:
        def wrapped(owner: Any, files: Any, clock: Any, vm: bytes, disks: Any, epoch: bytes) -> Any:
            observer.epoch_begun(here(), epoch)
            return original.__func__(owner, files, clock, vm, disks, epoch)

        return classmethod(wrapped)

    def write(original: Any) -> Any:
        def wrapped(disk: Disk, batch: Any, *args: Any) -> Any:
            for mutation in batch:
                observer.disk_written(here(), mutation)
            return original(disk, batch, *args)

        return wrapped

    def zero(original: Any) -> Any:
        def wrapped(disk: Disk, mutation: Mutation, offset: int, length: int) -> Any:
            observer.disk_written(here(), mutation)
            return original(disk, mutation, offset, length)

        return wrapped

    def acknowledge(original: Any) -> Any:
        def wrapped(ledger: CutLedger, position: Position) -> Any:
            newly = original(ledger, position)
            observer.acknowledged(here(), position)
            return newly

        return wrapped

    def adopt(original: Any) -> Any:
        async def wrapped(replication: Replication, *args: Any) -> Any:
            end = await original(replication, *args)
            observer.adopted(here(), end)
            return end

        return wrapped

    def release(original: Any) -> Any:
        def wrapped(tracker: Tracker, epoch: bytes, segment: int) -> Any:
            original(tracker, epoch, segment)
            observer.released(here(), epoch, segment)

        return wrapped

    def send(original: Any) -> Any:
        def wrapped(channel: Channel, body: Body) -> None:
            if isinstance(body, Received):
                observer.acknowledging(here(), body.position.position())
            if isinstance(body, ManifestRequest):
                observer.asking(here(), body)
            original(channel, body)

        return wrapped

    wrappers = [
        (LogWriter, "append", append),
        (LogWriter, "cut", cut),
        (LogWriter, "begin", begin),
        (Disk, "write", write),
        (Disk, "zero", zero),
        (CutLedger, "acknowledge", acknowledge),
        (Replication, "adopt", adopt),
        (Tracker, "release", release),
        (Channel, "send", send),
    ]
    with ExitStack() as stack:
        for owner, name, make in wrappers:
            stack.enter_context(replaced(owner, name, make))
        yield
