"""What comes with many VMs: all want their sessions at once, one status tells of all, and descriptors are many."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys

import msgspec
import pytest

from primary_agent.dialing import dial
from primary_agent.dialing_queue import DialingQueue
from protocol.messages import Open, Role
from shared.ports import Address
from tests.pair.hosts import MIB, ROOT
from tests.pair.rig import Pair

MANY = 150


async def test_replica_that_comes_back_gets_all_sessions_at_the_first_attempt(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More dial at once than the replica takes: in turn none is refused; without turns some would be."""
    # Limits by the number of VMs are another matter: here there are links of many, and no VM.
    accepting = pair.replica.sessions
    monkeypatch.setattr(accepting, "_limits", msgspec.structs.replace(accepting._limits, extra_sessions=2 * MANY))
    surroundings, address = pair.primary.surroundings, Address(host="localhost", port=pair.port, tls=True)
    body = Open(role=Role.PROBE, vm=bytes(16), name="many", disks=[], epoch=bytes(16))

    async def one(queue: DialingQueue) -> None:
        async with queue.turn(address):
            dialled = await dial(surroundings, address, body)
        await dialled.channel.close("asked")

    async with asyncio.timeout(60):
        refused = [
            error
            for error in await asyncio.gather(*(one(DialingQueue(MANY)) for _ in range(MANY)), return_exceptions=True)
            if error is not None
        ]
        told = await asyncio.gather(*(one(surroundings.dialing) for _ in range(MANY)), return_exceptions=True)
    assert told == [None] * MANY
    assert refused, "the machine is so fast that the replica's cap was not reached: raise MANY"


async def test_status_of_many_vms_wakes_no_taps(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tap is asked for a status of few VMs, and of one; for one of many what it told last is taken."""
    await pair.enable(MIB)
    await pair.healthy()
    connection = pair.vm.parts.tap.require()
    for most, name, asks in ((0, None, False), (0, "web", True), (1, None, True)):
        monkeypatch.setattr("primary_agent.agent.TAPS_ASKED_MAX", most)
        before = connection.refreshed = pair.primary.ports.clock.monotonic() - 1.0
        (told,) = (await pair.primary.status(name)).vms
        assert told.tap is not None and told.tap.running
        assert (connection.refreshed > before) is asks


def test_agents_take_the_descriptors_that_they_may_have() -> None:
    """A shell's soft limit is not where the number of VMs ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = "from shared.ports.kernel import allow_descriptors; print(allow_descriptors())"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)),
    )  # fmt: skip
    assert int(result.stdout) == hard


def test_the_command_loads_no_codecs() -> None:
    """``status`` is asked often and by hand: numpy alone would take half of its time."""
    script = "import sys, shared.cli.main, shared.cli.verbs.reading; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "xxhash", "asyncio", "uvloop", "protocol.hrl"} & set(loaded)
