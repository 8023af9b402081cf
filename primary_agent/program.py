"""What vmreplica-primary runs: its agent under shared.service; imported by its main program."""

from __future__ import annotations

import asyncio
from importlib import metadata

from primary_agent.admin import AdminMethods
from primary_agent.agent import PrimaryAgent
from primary_agent.attachments import AttachmentWatch
from primary_agent.surroundings import Surroundings
from shared import service
from shared.admin import verbs
from shared.admin.methods import Method
from shared.config_sections import PrimaryConfig
from shared.monitoring import Monitoring
from shared.operations import Operations
from shared.ports.disk_use import ProcDiskUse
from shared.ports.real import RealPorts
from shared.status import VmStatus

DEFAULT_CONFIG = "/etc/vmreplica/primary.toml"


class _Service:
    """The primary agent under shared.service."""

    def __init__(self, config: PrimaryConfig, real: RealPorts, operations: Operations) -> None:
        software = f"vmreplica {metadata.version('vmreplica')}"
        surroundings = Surroundings.of(config, real.ports, software)
        self._agent = PrimaryAgent(config, real.ports, surroundings=surroundings)
        self._agent.certificate_end = real.network.certificate_end
        volumes = self._agent.surroundings.volumes
        self._monitoring = Monitoring(real.ports, config.metrics, volumes, self._agent.status)
        self._watch = AttachmentWatch(self._agent, ProcDiskUse(), operations.bypassed)
        self._watching: asyncio.Task[None] | None = None
        self._agent.problems = lambda: [*self._monitoring.problems(), *operations.problems()]

    async def start(self) -> None:
        await self._agent.start()
        await self._monitoring.start()
        self._watching = asyncio.create_task(self._watch.run())

    async def served(self) -> None:
        await self._agent.served()

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._monitoring.stop()
        await self._agent.stop()

    async def vms(self) -> list[VmStatus]:
        return await self._agent.known()

    def methods(self) -> dict[str, Method]:
        table = AdminMethods(self._agent).table()
        table.add(verbs.DISK_USE, verbs.DiskUseParams, self._watch.reported)
        return dict(table)

    def reexamine(self) -> None:
        self._agent.reexamine()

    async def reload(self, config: PrimaryConfig) -> None:
        """Take over what all VMs share: the rules of resyncs, caps on rates, deadlines.

        With other certificates what was refused is tried again at once.
        """
        self._agent.reload(config)
        self._agent.try_again()


def run() -> int:
    """Run the agent; returns its exit code."""
    return service.run("vmreplica-primary", PrimaryConfig, DEFAULT_CONFIG, _Service)
