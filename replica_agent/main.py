"""vmreplica-replica: the agent on the host that keeps the copies."""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass

from replica_agent.admin import AdminMethods
from replica_agent.agent import ReplicaAgent
from replica_agent.authorize import Grant
from replica_agent.parts import Surroundings
from shared import service
from shared.admin.methods import Method
from shared.config import AuthorizeSection, ReplicaConfig, load_config
from shared.ports import Address
from shared.ports.real import RealPorts

DEFAULT_CONFIG = "/etc/vmreplica/replica.toml"


@dataclass(frozen=True, slots=True)
class _AgentConfig:
    """The configuration in the agent's terms."""

    host: str
    runtime_dir: str
    listen: Address
    grants: tuple[Grant, ...]

    @classmethod
    def of(cls, config: ReplicaConfig) -> _AgentConfig:
        return cls(
            host=config.host,
            runtime_dir=config.runtime_dir,
            listen=Address(host=config.listen.host, port=config.listen.port, tls=True),
            grants=tuple(_grant(entry) for entry in config.authorize),
        )


def _grant(entry: AuthorizeSection) -> Grant:
    vms = None if entry.vms == ["*"] else frozenset(uuid.UUID(text).bytes for text in entry.vms)
    return Grant(entry.storage, entry.fingerprint, entry.name, vms)


class _Service:
    """The replica agent under shared.service."""

    def __init__(self, config: ReplicaConfig, real: RealPorts) -> None:
        surroundings = Surroundings(
            real.ports,
            config.host,
            "vmreplica",
            config.runtime_dir,
            reserve=config.storage.reserve_bytes,
            heartbeat=config.heartbeat_seconds,
            dead_after=config.dead_after_seconds,
        )
        self._agent = ReplicaAgent(_AgentConfig.of(config), real.ports, surroundings=surroundings)

    async def start(self) -> None:
        await self._agent.start()

    async def stop(self) -> None:
        await self._agent.stop()

    def methods(self) -> dict[str, Method]:
        return dict(AdminMethods(self._agent).table())

    async def reload(self, path: str) -> None:
        """Take over the authorization entries; connections that they no longer allow end."""
        await self._agent.reload(_AgentConfig.of(load_config(path, ReplicaConfig)))


def main() -> int:
    """Run the agent; returns its exit code."""
    return service.run("vmreplica-replica", ReplicaConfig, DEFAULT_CONFIG, _Service)


if __name__ == "__main__":
    sys.exit(main())
