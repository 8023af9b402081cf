"""test_connection: each step on the way to a replica, and what to do about the first one that fails."""

from __future__ import annotations

from primary_agent.dialing import dial, greet
from primary_agent.surroundings import Surroundings
from protocol.errors import ProtocolError
from protocol.messages import MAX_NAME, Open, Role
from shared.admin.verbs import ConnectionReport, ConnectionStep
from shared.errors import ForbiddenError, VmreplicaError
from shared.ports import Address


async def probe(surroundings: Surroundings, address: Address) -> ConnectionReport:
    """Connect to ``address`` and see whether this host is authorized there. Changes nothing at the replica."""
    steps: list[ConnectionStep] = []
    try:
        channel, welcome = await greet(surroundings, address)
    except ForbiddenError as error:
        steps += [_passed("connect", f"{address} answers."), _failed("tls", error)]
        return ConnectionReport(ok=False, steps=steps)
    except (VmreplicaError, ProtocolError) as error:
        return ConnectionReport(ok=False, steps=[_failed("connect", error)])
    steps.append(_passed("connect", f"{address} answers."))
    steps.append(_passed("tls", f"It is {', '.join(channel.peer.names) or channel.peer.fingerprint}."))
    steps.append(_passed("hello", f"{welcome.host} runs {welcome.software}, protocol {welcome.version}."))
    await channel.close("probed")
    try:
        dialled = await dial(surroundings, address, _probe_body(surroundings))
    except (VmreplicaError, ProtocolError) as error:
        steps.append(_failed("authorization", error))
        return ConnectionReport(ok=False, steps=steps)
    steps.append(_passed("authorization", "This host may replicate there."))
    await dialled.channel.close("probed")
    return ConnectionReport(ok=True, steps=steps)


def _probe_body(surroundings: Surroundings) -> Open:
    """An OPEN that names no VM: it asks only whether this host is known."""
    return Open(role=Role.PROBE, vm=bytes(16), name=surroundings.host[:MAX_NAME] or "probe", disks=[], epoch=bytes(16))


def _passed(name: str, text: str) -> ConnectionStep:
    return ConnectionStep(name=name, ok=True, text=text)


def _failed(name: str, error: VmreplicaError | ProtocolError) -> ConnectionStep:
    remedy = error.remedy if isinstance(error, VmreplicaError) else ""
    return ConnectionStep(name=name, ok=False, text=error.text, remedy=remedy)
