"""Tests of a reload: all of it is judged before any of it is in force."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from shared.config_sections import ReplicaConfig, TlsSection
from shared.errors import StorageError, UsageError
from shared.ports.network import RealNetwork
from shared.ports.real import RealPorts
from shared.service import Service, take_over
from tests.unit.ports.authority import Authority


class Agent:
    """Takes over a configuration, or refuses it; notes what was in force of the certificates meanwhile."""

    def __init__(self, network: RealNetwork) -> None:
        self.network = network
        self.refusal: Exception | None = None
        self.seen: list[str] = []

    async def reload(self, config: ReplicaConfig) -> None:
        self.seen.append(own(self.network))
        if self.refusal is not None:
            raise self.refusal


def own(network: RealNetwork) -> str:
    """The name in the certificate that is in force."""
    return next(each.subject for each in network.trust.credentials() if each.what == "own")


async def test_certificates_stay_where_the_rest_of_a_reload_is_refused(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    first, second = ca.issue("first"), ca.issue("second")
    config = ReplicaConfig(tls=TlsSection(ca=first.ca, certificate=first.certificate, key=first.key), host="beta")
    real = RealPorts(first, threads=1)
    agent = Agent(real.network)
    service = cast(Service, agent)
    try:
        os.replace(second.certificate, first.certificate)
        os.replace(second.key, first.key)
        agent.refusal = StorageError("The storage /mnt/b can't be used.")
        with pytest.raises(StorageError):
            await take_over(real, service, config)
        assert own(real.network) == "first"
        agent.refusal = None
        await take_over(real, service, config)
        assert own(real.network) == "second"
        # The other way round: nothing of the rest is taken over with files that can't be used.
        Path(first.key).write_text("half of a key")
        told = len(agent.seen)
        with pytest.raises(UsageError):
            await take_over(real, service, config)
        assert (own(real.network), len(agent.seen)) == ("second", told)
    finally:
        await real.close()
