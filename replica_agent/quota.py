"""What the copies of one authorization entry may take: judged when a VM is made or grown, and while its data comes.

A quota counts what the files of the copies really take, so that holes are free; the sizes of their disks together must
fit into it, lest a copy be begun that can't be completed. Only what comes is refused: what was acknowledged is always
applied, and the newest point stays whole. So undo logs may go past a quota, for which the oldest points then make room.
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
from replica_agent.refusals import Refusal
from shared.errors import NoSpaceError, VmreplicaError
from shared.ports import FileSystem, Ports
from shared.rates import size_text

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


@dataclass(slots=True)
class _Usage:
    """Of one entry. ``admitted`` bytes were let in since ``measured`` were found at the monotonic time ``when``."""

    measured: int = 0
    admitted: int = 0
    when: float = float("-inf")
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Quotas:
    """The quotas of all entries; ``copies_of`` are the copies that an entry's peer may replicate."""

    def __init__(self, ports: Ports, copies_of: Callable[[Grant], Iterable[Copy]]) -> None:
        self._ports = ports
        self._copies_of = copies_of
        self._usages: dict[Grant, _Usage] = {}

    def judge(self, grant: Grant, body: Open) -> None:
        """Whether the VM of an OPEN fits into its entry's limits. Raises Refusal where it is new or grown and does not.

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

    def forget(self) -> None:
        """The entries have changed."""
        self._usages.clear()

    async def _look(self, grant: Grant, usage: _Usage) -> None:
        asked = self._ports.clock.monotonic()
        async with usage.looking:
            if usage.when > asked:
                # Somebody else has looked while we waited for our turn.
                return
            folders = [copy.folder for copy in self._copies_of(grant)]
            usage.when, usage.admitted = self._ports.clock.monotonic(), 0
            usage.measured = await finish(self._ports.workers.run(_measure, self._ports.files, folders))


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


_REMEDY = (
    "Raise quota_bytes of its [[authorize]] entry in the replica's configuration and reload the agent there, or free "
    "some: with fewer recovery points, or VMs that are removed."
)
