"""A tap that takes no writes: an order that outlives its process, since a failover that was prepared has to hold (R43).

The order is a file in the tap's folder. While it is there, clients that connect get their disks read-only, changes of
any other client fail with EPERM, and no cuts follow the one that comes after the last write.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import structlog

from primary_agent.tap.ports import TapPorts
from primary_agent.tap.watch import why
from shared.errors import InvalidStateError, StorageError
from shared.nbd.constants import Errno
from shared.ports import FileSystem
from shared.rates import Ration
from shared.replacing import replace_file
from shared.tap_config import REFUSED_NAME
from shared.tap_control import Refused

if TYPE_CHECKING:
    from primary_agent.tap.engine import TapEngine
    from primary_agent.tap.log import Cut
    from primary_agent.tap.tracker import Tracker
    from shared.nbd.backend import Mutation

MAX_BYTES = 4096
TOLD_AT_ONCE, TOLD_PER_SECOND = 5, 0.1
"""Lines in the log about clients that want to write."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class WriteGate:
    """Whether the tap whose ``folder`` this is takes writes."""

    ports: TapPorts
    folder: str
    refused: Refused | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _ration: Ration = field(init=False)

    def __post_init__(self) -> None:
        self._ration = Ration(TOLD_AT_ONCE, TOLD_PER_SECOND, self.ports.clock.monotonic())

    @property
    def _path(self) -> str:
        return f"{self.folder}/{REFUSED_NAME}"

    def load(self, tracker: Tracker) -> None:
        """What an order before this start said. Blocks. One that can't be read counts: nobody has taken it back."""
        self.refused = _read(self.ports.files, self._path)
        tracker.resting = self.refused is not None

    def refuse(self, batch: list[Mutation], *, stopping: bool) -> None:
        """None of these changes happens; ``stopping``: since the tap is about to end."""
        for mutation in batch:
            mutation.error = Errno.ESHUTDOWN if stopping else Errno.EPERM
        if not stopping:
            self.tell("a write is refused")

    async def close(self, engine: TapEngine, identity: str, text: str) -> None:
        """Take no writes from now on. Raises StorageError where that can't be made durable; nothing has changed then.

        No await comes before the first step, so that whoever saw that no client is connected sees no other one write.
        """
        before, self.refused = self.refused, Refused(id=identity, text=text, time=self.ports.clock.wall())
        engine.tracker.resting = True
        async with self._turn:
            try:
                await self.ports.workers.run(
                    replace_file, self.ports.files, self._path, msgspec.json.encode(self.refused)
                )
            except (OSError, StorageError) as error:
                self.refused = before
                engine.tracker.resting = before is not None
                raise StorageError(
                    f"That no writes are taken can't be made durable: {_reason(error)}.", "Check the tap's folder."
                ) from error
            await engine.quiet()
        _log.info("writes are refused from now on", reason=text)

    async def open(self, engine: TapEngine, identity: str) -> None:
        """Take writes again. Raises InvalidStateError for another order than the one in force, or StorageError."""
        async with self._turn:
            if self.refused is None:
                return
            if self.refused.id != identity:
                raise InvalidStateError(
                    f"Writes are refused by the order {self.refused.id or '(not readable)'}, not by {identity}.",
                    "Name the order that the status tells.",
                )
            try:
                await self.ports.workers.run(_remove, self.ports.files, self._path)
            except OSError as error:
                raise StorageError(
                    f"The order to refuse writes can't be taken back: {why(error)}.", "Check the tap's folder."
                ) from error
            self.refused = None
            engine.tracker.resting = False
        _log.info("writes are taken again")

    def tell(self, what: str) -> None:
        """A line in the log about ``what`` was refused, unless there were many lately."""
        if self.refused is not None and self._ration.take(self.ports.clock.monotonic()):
            _log.warning(what, reason=self.refused.text)


def standing_cut(engine: TapEngine) -> Cut | None:
    """The newest cut, where nothing was written since and writes are refused: another one would say the same."""
    tracker = engine.tracker
    tracker.watch.check_unchanged(engine.disks)
    log, cut = tracker.log, tracker.newest_cut
    if engine.gate.refused is None or log is None or cut is None or not log.segment_is_empty:
        return None
    return cut if cut.position.segment == log.segment - 1 else None


def _read(files: FileSystem, path: str) -> Refused | None:
    try:
        if not files.exists(path):
            return None
        file = files.open(path)
        try:
            return msgspec.json.decode(file.read(0, MAX_BYTES), type=Refused)
        finally:
            file.close()
    except (OSError, StorageError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return Refused(id="", text=f"{path} can't be read: {error}", time=0.0)


def _remove(files: FileSystem, path: str) -> None:
    files.remove(path)
    files.sync_folder(path.rpartition("/")[0])


def _reason(error: OSError | StorageError) -> str:
    return why(error) if isinstance(error, OSError) else error.text
