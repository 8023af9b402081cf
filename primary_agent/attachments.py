"""Watches what the VMs' disks are really attached to: once a minute, one look for all VMs of this host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import structlog

from primary_agent.agent import PrimaryAgent
from primary_agent.bypassing import TOLD, doubt, lasting, of_devices
from primary_agent.vm import PrimaryVm
from shared.admin.server import Client
from shared.admin.verbs import DiskUseParams
from shared.attachment import NO_CLIENT, OPENED, Attachment, bypasses, paths_of, socket_of
from shared.errors import ForbiddenError, VmreplicaError
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
        self._taps: dict[str, int | None] = {}
        """The process of each VM's tap at the last look. One that came since was not known to whoever looked."""
        self._opened: dict[str, list[Cause]] = {}
        """Who had block devices of a VM open past its tap, until a look finds that to be over."""
        self._told: set[str] = set()
        """The VMs of whose bypass a watcher told: less is seen from here, so that only a watcher can find it over."""

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
        await self._judge(seen, usage, told=False)

    async def reported(self, params: DiskUseParams, client: Client) -> None:
        """Somebody who sees all processes has looked (``vmreplica watch-disks``). Raises ForbiddenError for others."""
        if client.peer.uid not in (0, os.getuid()):
            # It is no order that belongs into a record of them, once a minute; but nobody else may say so.
            raise ForbiddenError("Only root may tell who uses the disks.", "Start the unit vmreplica-watch.")
        self._reported = self._agent.ports.clock.monotonic()
        await self._judge({vm: attachment_of(vm) for vm in self._agent.vms.values()}, params.usage, told=True)

    async def _judge(self, seen: dict[PrimaryVm, Attachment], usage: Usage, *, told: bool) -> None:
        self._agent.unseen_processes = usage.unseen
        for vm, attachment in seen.items():
            if vm.failure is not None or vm.parts.handed_over is not None:
                vm.parts.bypasses = []
                continue
            try:
                await self._judge_vm(vm, attachment, usage, told=told)
            except VmreplicaError as error:
                log.error("who uses the disks can't be put on record", vm=vm.name, reason=str(error))

    async def _judge_vm(self, vm: PrimaryVm, attachment: Attachment, usage: Usage, *, told: bool) -> None:
        found, later = bypasses(attachment, usage, self._agent.ports.clock.wall()), attachment_of(vm)
        if later != attachment:
            # Whoever connected or left meanwhile is judged by how it is now, if that is better.
            found = [cause for cause in found if cause.code == OPENED and later.tap == attachment.tap]
        alone = any(cause.code == NO_CLIENT for cause in found)
        if alone and vm.uuid not in self._alone:
            found = []
        (self._alone.add if alone else self._alone.discard)(vm.uuid)
        before = vm.parts.bypasses
        opened, opened_before = of_devices(vm.parts, found), self._opened.get(vm.uuid, [])
        same_tap = later.tap is not None and self._taps.get(vm.uuid) == attachment.tap == later.tap
        self._taps[vm.uuid] = later.tap
        known = lasting(vm.parts.replication.record)
        needs_watcher = vm.uuid in self._told or (known is not None and bool(known.evidence.get(TOLD)))
        over = not opened and same_tap and (told or not needs_watcher)
        self._opened[vm.uuid] = opened if opened or over else opened_before
        if not opened and not over:
            found = [*found, *opened_before]
        vm.parts.bypasses = found
        if opened:
            if told:
                self._told.add(vm.uuid)
            await doubt(vm.parts, opened, fresh=not opened_before, told=told)
        elif over and (opened_before or known is not None):
            self._told.discard(vm.uuid)
            await doubt(vm.parts, [], fresh=True, told=False)
        seen_before = {(cause.code, str(cause.evidence)) for cause in before}
        for cause in found:
            if (cause.code, str(cause.evidence)) not in seen_before:
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
