"""The doctor on the way to a real replica that does not let this host in: it names the step, and what to do."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from primary_agent.probing import probe
from shared import pki
from shared.admin import verbs
from shared.cli.agents import Agent
from shared.cli.doctoring import vm_findings
from shared.cli.findings import Finding, Level
from shared.ports import Address
from shared.ports.real import RealPorts
from shared.ports.tls import TlsIdentity
from shared.status import to_plain
from tests.pair.rig import Pair
from tests.unit.cli.samples import healthy


async def problem_on_the_way(pair: Pair) -> Finding:
    """The one problem that is found between the pair's primary agent and its replica."""
    loop, address = asyncio.get_running_loop(), f"localhost:{pair.port}"

    class Asked:
        """The primary agent, which the command asks from a thread."""

        def call(self, method: str, params: dict[str, Any], timeout: float) -> Any:
            assert (method, params) == (verbs.TEST_CONNECTION, {"replica": address})
            there = Address(host="localhost", port=pair.port, tls=True)
            report = asyncio.run_coroutine_threadsafe(probe(pair.primary.surroundings, there), loop)
            return to_plain(report.result(timeout))

    status = healthy(settings={"replica": address}, folder="", tap=None, disks=[])
    findings = await asyncio.to_thread(lambda: [*vm_findings(cast(Agent, Asked()), status, {})])
    (problem,) = [each for each in findings if each.level is Level.PROBLEM and each.subject == f"way to {address}"]
    return problem


async def test_host_that_is_not_authorized(pair: Pair) -> None:
    await pair.replica.stop()
    await pair.start_replica(authorized="gamma")
    problem = await problem_on_the_way(pair)
    assert problem.text.startswith("authorization: ")
    assert problem.remedy


async def test_certificate_of_another_authority(pair: Pair) -> None:
    other = pair.folder / "other"
    pki.init_ca(other / "ca")
    pki.issue(other / "ca", ["localhost"], other / "beta")
    ca, certificate, key = (str(other / "beta" / name) for name in (pki.CA, pki.CERTIFICATE, pki.KEY))
    await pair.replica.stop()
    before, pair._ports["beta"] = pair._ports["beta"], RealPorts(TlsIdentity(ca, certificate, key), threads=2)
    await before.close()
    await pair.start_replica()
    problem = await problem_on_the_way(pair)
    assert problem.text.startswith("tls: ") and "is from a CA" in problem.text
    assert problem.remedy
