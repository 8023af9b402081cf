"""What the primary refuses or is refused: named, told once, without leftovers, and healed when the reason is gone."""

from __future__ import annotations

import os
from functools import partial

import msgspec
import pytest

from primary_agent.admin import with_settings
from primary_agent.enabling import split_address
from primary_agent.probing import probe
from shared.admin.verbs import EnableParams
from shared.errors import InvalidStateError, UsageError, VmreplicaError
from shared.events import EventId
from shared.ports import Address
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair


def address(pair: Pair) -> Address:
    host, port = split_address(f"localhost:{pair.port}")
    return Address(host=host, port=port, tls=True)


def _tried_since(pair: Pair, attempts: int) -> bool:
    return pair.vm.parts.link.attempts > attempts


async def test_a_disk_that_is_in_use_is_refused_and_nothing_stays(pair: Pair) -> None:
    await pair.enable(MIB)
    other = pair.folder / "same.raw"
    os.link(pair.disk(0), other)
    wanted = EnableParams(name="other", disks=[str(other)], replica=f"localhost:{pair.port}")
    with pytest.raises(VmreplicaError, match="in use") as refused:
        await pair.primary.enable(wanted)
    assert refused.value.code == "disk_in_use"
    assert [vm.name for vm in pair.primary.vms.values()] == ["web"]
    assert len(list((pair.folder / "state" / "vms").iterdir())) == 1
    # The other disk's VM was not disturbed.
    await pair.healthy()


async def test_an_unauthorized_primary_is_told_once_and_goes_on_when_it_is_authorized(pair: Pair) -> None:
    """I19, I12."""
    await pair.enable(MIB)
    await pair.healthy()
    await pair.replica.stop()
    await pair.start_replica(authorized="somebody")
    pair.vm.parts.link.poke.notify()
    await pair.until("the refusal", lambda: pair.vm.parts.replication.record.problem)
    for _ in range(2):
        attempts = pair.vm.parts.link.attempts
        pair.vm.parts.link.poke.notify()
        await pair.until("another attempt", partial(_tried_since, pair, attempts))
    status = await pair.vm.status()
    assert status.health == "Critical"
    assert status.problem is not None
    assert (status.problem.code, status.link.retryable) == ("unauthorized", False)
    assert "[[authorize]]" in status.remedy
    assert len(await pair.events(EventId.SUSPENDED_NOT_RECOVERABLE)) == 1
    with pytest.raises(InvalidStateError, match="not authorized"):
        await pair.vm.initial()
    report = await probe(pair.primary.surroundings, address(pair))
    assert [(step.name, step.ok) for step in report.steps][-1] == ("authorization", False)
    await pair.replica.stop()
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.healthy()
    # That the problem is solved is put on record a moment after the link is well.
    await pair.until("the end of the problem", lambda: pair.vm.parts.replication.record.problem is None)
    await pair.vm.initial()
    await pair.state(ReplicationState.REPLICATING)


async def test_the_connection_is_probed_step_by_step(pair: Pair) -> None:
    report = await probe(pair.primary.surroundings, address(pair))
    assert report.ok
    assert [step.name for step in report.steps] == ["connect", "tls", "hello", "authorization"]
    assert pair.replica.vms == {}
    await pair.replica.stop()
    report = await probe(pair.primary.surroundings, address(pair))
    assert not report.ok
    (step,) = report.steps
    assert (step.name, step.ok) == ("connect", False)
    assert step.remedy
    await pair.start_replica()


async def test_another_vm_of_the_same_uuid_is_refused(pair: Pair) -> None:
    """I9: disks are told by their identity, not by their place."""
    await pair.replicate(MIB, uuid="11111111-2222-4333-8444-555555555555")
    await pair.primary.remove("web")
    await pair.enable(MIB, uuid="11111111-2222-4333-8444-555555555555")
    await pair.until("the refusal", lambda: pair.vm.parts.replication.record.problem)
    status = await pair.vm.status()
    assert status.problem is not None
    assert status.problem.code == "geometry"
    assert "disk 0 is" in status.problem.text
    assert pair.copy.has_baseline


async def test_settings_reach_the_running_tap_and_one_that_is_started_later(pair: Pair) -> None:
    """R44: the tap owns the interval."""
    await pair.enable(MIB)
    record = with_settings(pair.vm.record, {"interval_seconds": 2.0})
    await pair.vm.set(record, {"interval_seconds": 2.0})
    assert pair.vm.record == record
    assert (await pair.vm.parts.tap.refresh()).interval == 2.0
    await pair.kill_tap()
    assert (await pair.vm.parts.tap.refresh()).interval == 2.0
    (event,) = await pair.events(EventId.SETTINGS)
    assert "interval_seconds = 2.0" in event["text"]
    too_small = msgspec.structs.replace(record, log_limit_bytes=1)
    with pytest.raises(UsageError):
        await pair.vm.set(too_small, {"log_limit_bytes": 1})
    assert pair.vm.record == record
