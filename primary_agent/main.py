"""vmreplica-primary: the agent on the host that runs the VMs."""

from __future__ import annotations

import sys
from importlib import metadata

from primary_agent.admin import AdminMethods
from primary_agent.agent import PrimaryAgent
from primary_agent.surroundings import Surroundings
from shared import service
from shared.admin.methods import Method
from shared.config import load_config
from shared.config_sections import PrimaryConfig
from shared.monitoring import Monitoring
from shared.ports.real import RealPorts

DEFAULT_CONFIG = "/etc/vmreplica/primary.toml"


class _Service:
    """The primary agent under shared.service."""

    def __init__(self, config: PrimaryConfig, real: RealPorts) -> None:
        software = f"vmreplica {metadata.version('vmreplica')}"
        surroundings = Surroundings.of(config, real.ports, software)
        self._agent = PrimaryAgent(config, real.ports, surroundings=surroundings)
        self._agent.certificate_end = real.network.certificate_end
        volumes = self._agent.surroundings.volumes
        self._monitoring = Monitoring(real.ports, config.metrics, volumes, self._agent.status)
        self._agent.problems = self._monitoring.problems

    async def start(self) -> None:
        await self._agent.start()
        await self._monitoring.start()

    async def stop(self) -> None:
        await self._monitoring.stop()
        await self._agent.stop()

    def methods(self) -> dict[str, Method]:
        return dict(AdminMethods(self._agent).table())

    async def reload(self, path: str) -> None:
        """Nothing of this configuration but the certificates changes while running; mistakes in it are told."""
        load_config(path, PrimaryConfig)


def main() -> int:
    """Run the agent; returns its exit code."""
    return service.run("vmreplica-primary", PrimaryConfig, DEFAULT_CONFIG, _Service)


if __name__ == "__main__":
    sys.exit(main())
