"""What the copies of one authorization entry may take: judged when a VM is made or grown, and while its data comes.

A quota counts what the files of the copies really take, so that holes are free; the sizes of their disks together must
fit into it, lest a copy be begun that can't be completed. Only what comes is refused: what was acknowledged is always
applied, and the newest point stays whole. So undo logs may go past a quota, for which the oldest points then make room.

Whoever runs the agent runs :meth:`Quotas.run`, which looks now and then how full they are, and how fast they fill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from protocol.messages import ErrorCode, Open
from replica_agent.authorize import Grant
from replica_agent.finishing import finish
from replica_agent.layout import Layout, is_pooled
from replica_agent.record import VmRecord
from replica_agent.refusals import Refusal
from shared.errors import NoSpaceError, VmreplicaError
from shared.ports import FileSystem, Ports
from shared.rates import size_text
from shared.tasks import Signal
from shared.volumes import LOOK_SECONDS, Volume

MEASURE_SECONDS = 5.0
"""What was measured counts for so long, with what was let in since; nothing is refused by it without another look."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Copy:
    """A VM's copy: its folder, its storage location, and the bytes of its disks' sizes."""

    vm: bytes
    folder: str
    storage: str
    nominal: int


@dataclass(frozen=True, slots=True)
class QuotaFigures:
    """How full an entry's quota is: bytes that may be used, bytes that are, and in how many seconds it is used up.

    ``used`` is None while nobody has looked; ``full_seconds`` where it does not fill, or that is not known.
    """

    limit: int
    used: int | None
    full_seconds: float | None


@dataclass(slots=True)
class _Usage:
    """Of one entry. ``admitted`` bytes were let in since ``measured`` were found at the monotonic time ``when``."""

    measured: int = 0
    admitted: int = 0
    when: float = float("-inf")
    room: Volume = field(default_factory=Volume)
    """What was left of the quota each time, as if it were a volume of its own."""
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Quotas:
    """The quotas of all ``grants``, the entries; ``copies_of`` are the copies that an entry's peer may replicate."""

    def __init__(
        self,
        ports: Ports,
        grants: Callable[[], Iterable[Grant]],
        copies_of: Callable[[Grant], Iterable[Copy]],
    ) -> None:
        self._ports = ports
        self._grants = grants
        self._copies_of = copies_of
        self._usages: dict[Grant, _Usage] = {}
        self._changed = Signal()

    def judge(self, grant: Grant, body: Open | VmRecord) -> None:
        """Whether a VM fits into its entry's limits. Raises Refusal where it is new or grown and does not.

        One VM is judged and made after the other, lest two fit where there is room for one.

        A limit that was lowered below what is there refuses no VM that is there.
        """
        copies = list(self._copies_of(grant))
        known = next((copy for copy in copies if copy.vm == body.vm), None)
        if known is None and grant.vms_max and len(copies) >= grant.vms_max:
            raise Refusal(
                ErrorCode.NO_SPACE,
                f"{body.name} would be one more than the {grant.vms_max} VM(s) that this host may replicate to here.",
                "Raise vms_max of its [[authorize]] entry in the replica's configuration, or remove a VM there.",
            )
        wanted = sum(disk.size for disk in body.disks)
        if not grant.quota or (known is not None and wanted <= known.nominal):
            return
        missing = sum(copy.nominal for copy in copies if copy is not known) + wanted - grant.quota
        if missing > 0:
            raise Refusal(
                ErrorCode.NO_SPACE,
                f"The disks of {body.name} do not fit into the quota of {size_text(grant.quota)} that this host has "
                f"here: {missing} bytes ({size_text(missing)}) are missing.",
                _REMEDY,
            )

    async def admit(self, grant: Grant | None, count: int) -> None:
        """Let ``count`` bytes in. Raises NoSpaceError where they would go past the quota."""
        if grant is None or not grant.quota:
            return
        usage = self._usages.setdefault(grant, _Usage())
        fresh = self._ports.clock.monotonic() - usage.when < MEASURE_SECONDS
        if not fresh or usage.measured + usage.admitted + count > grant.quota:
            await self._look(grant, usage)
        missing = usage.measured + usage.admitted + count - grant.quota
        if missing > 0:
            raise NoSpaceError(
                f"The quota of {size_text(grant.quota)} that this host has in {grant.storage} is used up: "
                f"{missing} bytes ({size_text(missing)}) are missing.",
                _REMEDY,
            )
        usage.admitted += count

    async def left(self, grants: Iterable[Grant]) -> int | None:
        """What writable exports may still take where all of these entries count them; None for any.

        What they have taken counts for themselves only: replication is never refused for it.
        """
        lefts = []
        for grant in grants:
            if grant.quota:
                usage = self._usages.setdefault(grant, _Usage())
                await self._look(grant, usage)
                folders = [copy.folder for copy in self._copies_of(grant)]
                taken = await finish(self._ports.workers.run(_measure_overlays, self._ports.files, folders))
                lefts.append(grant.quota - usage.measured - usage.admitted - taken)
        return min(lefts, default=None)

    def forget(self) -> None:
        """The entries have changed: what was measured counts no more, and those that are there still are looked at."""
        present = set(self._grants())
        for grant, usage in list(self._usages.items()):
            usage.when = float("-inf")
            if grant not in present:
                del self._usages[grant]
        self._changed.notify()

    # --- figures ---------------------------------------------------------------------------------------------------

    def figures(self, grant: Grant) -> QuotaFigures | None:
        """How full the quota of an entry is, as it was seen last; None for one without."""
        if not grant.quota:
            return None
        usage = self._usages.get(grant)
        if usage is None or usage.room.free is None:
            return QuotaFigures(grant.quota, None, None)
        return QuotaFigures(grant.quota, usage.measured + usage.admitted, usage.room.full_seconds())

    async def look(self) -> None:
        """See how full all quotas are now."""
        for grant in list(self._grants()):
            if grant.quota:
                await self._look(grant, self._usages.setdefault(grant, _Usage()))

    async def run(self) -> None:
        """Look now and then, and when the entries have changed, until cancelled."""
        while True:
            changed = self._changed.upcoming()
            await self.look()
            if not changed.is_set():
                await self._changed.wait_for(LOOK_SECONDS)

    # --- measuring -------------------------------------------------------------------------------------------------

    async def _look(self, grant: Grant, usage: _Usage) -> None:
        asked = self._ports.clock.monotonic()
        async with usage.looking:
            if usage.when > asked:
                # Somebody else has looked while we waited for our turn.
                return
            folders = [copy.folder for copy in self._copies_of(grant)]
            usage.when, before = self._ports.clock.monotonic(), usage.admitted
            usage.measured = await finish(self._ports.workers.run(_measure, self._ports.files, folders))
            # What was let in meanwhile counts beside it.
            usage.admitted -= before
            usage.room.see(grant.quota - usage.measured, usage.when)


def _measure(files: FileSystem, folders: Iterable[str]) -> int:
    """Bytes that the copies in these folders take. Blocks.

    Files that come and go meanwhile count or do not. Spare files for the log to come are not counted: it takes them
    before it asks for anything.
    """
    total = 0
    for folder in folders:
        layout = Layout(folder)
        try:
            for inner in (folder, layout.spool, layout.resyncs, layout.undo_logs, layout.definitions):
                total += sum(files.allocated(f"{inner}/{name}") for name in files.list(inner) if not is_pooled(name))
        except (VmreplicaError, OSError) as error:
            # One copy that is damaged must not stop the others of its entry.
            log.warning("a copy can't be measured for its quota", folder=folder, reason=str(error))
    return total


def _measure_overlays(files: FileSystem, folders: Iterable[str]) -> int:
    """Bytes that the writable exports of the copies in these folders take. Blocks."""
    total = 0
    for folder in folders:
        inner = Layout(folder).overlays
        try:
            total += sum(files.allocated(f"{inner}/{name}") for name in files.list(inner))
        except (VmreplicaError, OSError) as error:
            log.warning("the overlays of a copy can't be measured for its quota", folder=folder, reason=str(error))
    return total


_REMEDY = (
    "Raise quota_bytes of its [[authorize]] entry in the replica's configuration and reload the agent there, or free "
    "some: with fewer recovery points, or VMs that are removed."
)
