"""Watches what the VMs' disks are really attached to: once a minute, one look for all VMs of this host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import structlog

from primary_agent.agent import PrimaryAgent
from primary_agent.vm import PrimaryVm
from shared.admin.server import Client
from shared.admin.verbs import DiskUseParams
from shared.attachment import NO_CLIENT, Attachment, bypasses, paths_of, socket_of
from shared.errors import ForbiddenError
from shared.ports.disk_use import DiskUse, Usage
from shared.status import Cause

LOOK_SECONDS = 60.0
REPORT_SECONDS = 150.0
"""What a watcher that sees more told counts for so long in the place of looks of our own."""

log = structlog.get_logger(__name__)

Bypassed = Callable[[str, str, Cause], Awaitable[None]]
"""Told name and UUID of the VM, and what was found, when it was not there at the last look."""


class AttachmentWatch:
    """Of one agent. ``run`` never ends by itself."""

    def __init__(self, agent: PrimaryAgent, use: DiskUse, bypassed: Bypassed) -> None:
        self._agent = agent
        self._use = use
        self._bypassed = bypassed
        self._reported = float("-inf")
        self._alone: set[str] = set()
        """The VMs that had no client at the last look: whoever comes back to a tap takes a moment."""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if self._agent.ports.clock.monotonic() - self._reported >= REPORT_SECONDS:
                    await self.look()
            except Exception:
                log.exception("looking who uses the disks failed")

    async def look(self) -> None:
        """Look once, and have each VM's status say what was found."""
        vms = list(self._agent.vms.values())
        seen = {vm: attachment_of(vm) for vm in vms}
        disks, sockets = paths_of(list(seen.values()))
        usage = await self._agent.ports.workers.run(self._use.look, disks, sockets)
        await self._judge(seen, usage)

    async def reported(self, params: DiskUseParams, client: Client) -> None:
        """Somebody who sees all processes has looked (``vmreplica watch-disks``). Raises ForbiddenError for others."""
        if client.peer.uid not in (0, os.getuid()):
            # It is no order that belongs into a record of them, once a minute; but nobody else may say so.
            raise ForbiddenError("Only root may tell who uses the disks.", "Start the unit vmreplica-watch.")
        self._reported = self._agent.ports.clock.monotonic()
        await self._judge({vm: attachment_of(vm) for vm in self._agent.vms.values()}, params.usage)

    async def _judge(self, seen: dict[PrimaryVm, Attachment], usage: Usage) -> None:
        self._agent.unseen_processes = usage.unseen
        now = self._agent.ports.clock.wall()
        for vm, attachment in seen.items():
            # Whoever connected or left meanwhile is judged by how it is now, if that is better.
            later = attachment_of(vm)
            found = bypasses(attachment, usage, now) if later == attachment else []
            alone = any(cause.code == NO_CLIENT for cause in found)
            if alone and vm.uuid not in self._alone:
                found = []
            (self._alone.add if alone else self._alone.discard)(vm.uuid)
            known = {(cause.code, str(cause.evidence)) for cause in vm.parts.bypasses}
            vm.parts.bypasses = found
            for cause in found:
                if (cause.code, str(cause.evidence)) not in known:
                    log.error("a disk is written past its tap", vm=vm.name, reason=cause.text)
                    await self._bypassed(vm.name, vm.uuid, cause)


def attachment_of(vm: PrimaryVm) -> Attachment:
    """A VM as its tap tells it just now."""
    connection = vm.parts.tap.connection
    served = connection.status.disks if connection is not None else []
    return Attachment(
        name=vm.name,
        uuid=vm.uuid,
        disks=tuple(disk.path for disk in vm.record.disks),
        sockets=tuple(dict.fromkeys(filter(None, (socket_of(disk.uri) for disk in served)))),
        tap=connection.status.pid if connection is not None and connection.alive else None,
        clients=sum(disk.clients for disk in served),
    )
