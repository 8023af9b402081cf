"""What vmreplica-replica runs: its agent under shared.service; imported by its main program."""

from __future__ import annotations

import asyncio
import contextlib
from importlib import metadata

from replica_agent.admin import AdminMethods
from replica_agent.agent import ReplicaAgent
from replica_agent.parts import Surroundings
from shared import service
from shared.admin.methods import Method
from shared.config_sections import ReplicaConfig
from shared.monitoring import Monitoring
from shared.operations import Operations
from shared.ports.real import RealPorts
from shared.status import AgentStatus, VmStatus

DEFAULT_CONFIG = "/etc/vmreplica/replica.toml"


class _Service:
    """The replica agent under shared.service."""

    def __init__(self, config: ReplicaConfig, real: RealPorts, operations: Operations) -> None:
        software = f"vmreplica {metadata.version('vmreplica')}"
        self._agent = ReplicaAgent(config, real.ports, surroundings=Surroundings.of(config, real.ports, software))
        self._agent.certificate_end = real.network.certificate_end
        volumes = self._agent.surroundings.volumes
        self._monitoring = Monitoring(real.ports, config.metrics, volumes, self._status)
        self._quotas: asyncio.Task[None] | None = None
        self._agent.arrivals = real.network.arrivals
        self._agent.sessions.on_refused = operations.refused
        self._agent.problems = lambda: [*self._monitoring.problems(), *operations.problems()]

    async def start(self) -> None:
        await self._agent.start()
        self._quotas = asyncio.get_running_loop().create_task(self._agent.sessions.quotas.run())
        await self._monitoring.start()

    async def served(self) -> None:
        """Nothing of this host is kept waiting: it listens, and a promoted VM is started by an administrator."""

    async def stop(self) -> None:
        await self._monitoring.stop()
        if self._quotas is not None:
            self._quotas.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._quotas
        await self._agent.stop()

    async def vms(self) -> list[VmStatus]:
        return await self._agent.known()

    async def _status(self) -> AgentStatus:
        return self._agent.status()

    def methods(self) -> dict[str, Method]:
        return dict(AdminMethods(self._agent).table())

    def reexamine(self) -> None:
        self._agent.reexamine()

    async def reload(self, config: ReplicaConfig) -> None:
        """Take over the authorization entries, which end connections that they no longer allow, and what VMs share."""
        await self._agent.reload(config)


def run() -> int:
    """Run the agent; returns its exit code."""
    return service.run("vmreplica-replica", ReplicaConfig, DEFAULT_CONFIG, _Service)
