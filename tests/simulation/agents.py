"""The agents of a simulated host, configured alike wherever they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from primary_agent.agent import PrimaryAgent
from primary_agent.surroundings import Surroundings
from replica_agent.agent import ReplicaAgent
from shared.config_sections import (
    AuthorizeSection,
    ListenSection,
    PointsSection,
    PrimaryConfig,
    ReplicaConfig,
    StorageSection,
    TlsSection,
)
from shared.ports import Ports
from tests.simulation.constants import DEAD_AFTER, HEARTBEAT, PRIMARY_STATE, REPLICA_RUNTIME, RESERVE, STORAGE

if TYPE_CHECKING:
    from tests.simulation.options import Options


def primary_agent_of(ports: Ports, host: str) -> PrimaryAgent:
    """Not started yet."""
    tls = TlsSection(ca="/ca", certificate="/certificate", key="/key")
    config = PrimaryConfig(host=host, tls=tls, state_dir=PRIMARY_STATE, runtime_dir="/run/primary")
    surroundings = Surroundings(ports, host, "simulation", heartbeat=HEARTBEAT, dead_after=DEAD_AFTER)
    return PrimaryAgent(config, ports, surroundings=surroundings)


def replica_agent_of(ports: Ports, options: Options, host: str, listen: ListenSection, peer: str) -> ReplicaAgent:
    """Not started yet; the host ``peer`` may replicate there."""
    config = ReplicaConfig(
        tls=TlsSection(ca="/", certificate="/", key="/"),
        host=host,
        runtime_dir=REPLICA_RUNTIME,
        listen=listen,
        storage=StorageSection(reserve_bytes=RESERVE),
        authorize=[AuthorizeSection(storage=STORAGE, vms=["*"], fingerprint=peer * 64)],
        heartbeat_seconds=HEARTBEAT,
        dead_after_seconds=DEAD_AFTER,
        points=PointsSection(newest=options.newest, hourly=options.hourly, daily=int(options.daily)),
    )
    return ReplicaAgent(config, ports)
