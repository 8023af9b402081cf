"""What a recover makes of a primary's remains, its refusals, and what a kill at any of its steps leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from primary_agent.admin import with_settings
from primary_agent.agent import PrimaryAgent
from primary_agent.description import Description, keeper_of, read_description
from primary_agent.enabling import create, tap_config, tap_folder
from primary_agent.handing_over import kept_settings
from primary_agent.problems import set_problem
from primary_agent.rebuilding import Remains, conclude, plan
from primary_agent.record import (
    FenceRecord,
    PlannedRecord,
    PositionRecord,
    ReplicationRecord,
    ResyncRecord,
    ReversalRecord,
    TapPlace,
    VmRecord,
)
from primary_agent.replication import Replication
from protocol.messages import ResyncKind
from protocol.position import NO_EPOCH
from shared.config_sections import PrimaryConfig, TlsSection
from shared.errors import InvalidStateError, StoreDamagedError, UsageError, VmreplicaError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.ports import Ports
from shared.ports.clock import RealClock
from shared.ports.file_system import RealFileSystem
from shared.ports.network import RealNetwork
from shared.ports.rng import SystemRandom
from shared.ports.store import SqliteStores
from shared.ports.workers import ThreadWorkers
from shared.states import PLANNED_TOKEN, PlannedStep, ReplicationState
from shared.status import Cause
from shared.tap_config import load_config, save_config
from tests.unit.primary.test_replication import VM
from tests.unit.replica.failing import FailingFiles, Killed

EPOCH = b"e" * 16
NEXT = b"n" * 16
ORDER = {"uid": 0, "pid": 1}
IDENTITY = str(uuid.UUID(bytes=VM.vm))
CAUSE = Cause(code="chain", text="does not fit", time=1.0)
FILES = RealFileSystem()

S = ReplicationState


def open_resync(*, proposed: bool) -> ResyncRecord:
    end = PositionRecord(epoch=NEXT, segment=2, entry=5, chain=b"c" * 16)
    return ResyncRecord(
        id=b"r" * 16,
        kind=ResyncKind.RESYNC,
        epoch=NEXT,
        parent=EPOCH,
        parent_segment=3,
        started_time=1.0,
        end=end if proposed else None,
    )


def concluded(**fields: Any) -> ReplicationRecord:
    known = ReplicationRecord(**{"epoch": EPOCH, **fields})
    return conclude(Description.of(VM, known), {}, "web", 5.0)


def codes(record: ReplicationRecord) -> list[str]:
    return [cause.code for cause in record.causes]


# --- what follows from what was known --------------------------------------------------------------------------------


def test_replicating_goes_on_once_it_is_proven() -> None:
    record = concluded(state=S.REPLICATING)
    assert (record.state, record.causes, record.resync) == (S.REPLICATING, [], None)
    assert record.recovered is not None and record.recovered.code == "state_lost"


def test_required_resync_stays_required() -> None:
    record = concluded(state=S.WAITING_FOR_START_RESYNCHRONIZE, causes=[CAUSE])
    assert (record.state, record.causes) == (S.WAITING_FOR_START_RESYNCHRONIZE, [CAUSE])


@pytest.mark.parametrize("state", [S.RESYNCHRONIZING, S.INITIAL_REPLICATION_IN_PROGRESS])
def test_open_compare_is_given_up(state: ReplicationState) -> None:
    """It may have been replaced since the description was written, and nobody asked for what comes in its place."""
    record = concluded(state=state, resync=open_resync(proposed=False))
    assert (record.state, record.resync) == (S.WAITING_FOR_START_RESYNCHRONIZE, None)
    assert codes(record) == ["state_lost"]


def test_compare_whose_commit_may_have_been_sent_is_judged_by_what_the_replica_shows() -> None:
    """R33."""
    record = concluded(state=S.RESYNCHRONIZING, resync=open_resync(proposed=True), causes=[CAUSE])
    assert (record.state, record.proposed) == (S.RESYNCHRONIZING, NEXT)
    assert record.recovered is not None
    suspended = concluded(state=S.RESYNCHRONIZE_SUSPENDED, resync=open_resync(proposed=True))
    assert (suspended.state, suspended.proposed) == (S.RESYNCHRONIZE_SUSPENDED, NEXT)


@pytest.mark.parametrize("state", [S.SUSPENDED, S.RESYNCHRONIZE_SUSPENDED])
def test_suspended_stays_so(state: ReplicationState) -> None:
    assert concluded(state=state, resync=open_resync(proposed=False)).state is S.SUSPENDED


@pytest.mark.parametrize("step", [step for step in PlannedStep if step is not PlannedStep.STOPPING])
def test_planned_failover_whose_token_may_have_left_stays_prepared(step: PlannedStep) -> None:
    """R43: what is known may be one step too old, and nothing that was promised is taken back unasked."""
    planned = PlannedRecord(id=b"i" * 16, step=step, started_time=1.0, step_time=1.0)
    sent = step in PLANNED_TOKEN
    state = S.PREPARED_FOR_FAILOVER if sent else S.FAILED_OVER if step is PlannedStep.FAILED_OVER else S.REPLICATING
    record = concluded(state=state, planned=planned)
    assert record.planned is not None
    if step is PlannedStep.SENDING:
        assert record.planned.step is PlannedStep.TAKING_BACK and record.planned.token is not None
    else:
        assert record.planned.step is step
    assert (record.state is S.PREPARED_FOR_FAILOVER) == (sent or step is PlannedStep.SENDING)
    assert (record.state is S.FAILED_OVER) == (step is PlannedStep.FAILED_OVER)


def test_failed_over_stays_so() -> None:
    """I8: neither what was open nor the loss of the state sets it free."""
    record = concluded(state=S.FAILED_OVER, fenced="failed over at b", resync=open_resync(proposed=True))
    assert (record.state, record.fenced, record.resync) == (S.FAILED_OVER, "failed over at b", None)


def test_fence_and_reversal_outlive_the_state() -> None:
    """I8: resumed, and lost before a session told whether the failover was undone; R41: not compared in whole."""
    fence = FenceRecord(epoch=NEXT, parent=EPOCH, parent_segment=3, received=None, written=True, time=1.0, host="b")
    reversal = ReversalRecord(common=PositionRecord(epoch=EPOCH, segment=2, entry=5, chain=b"c" * 16), mapped=True)
    record = concluded(state=S.REPLICATING, fenced="failed over at b", fence=fence, reversal=reversal)
    assert (record.fenced, record.fence, record.reversal) == ("failed over at b", fence, reversal)


@pytest.mark.parametrize("state", list(S))
def test_nothing_replicates_without_a_proof(state: ReplicationState) -> None:
    """Whatever state a description tells, also one that no primary is ever in."""
    for fields in ({}, {"epoch": NO_EPOCH}, {"causes": [CAUSE]}, {"resync": open_resync(proposed=True)}):
        record = concluded(state=state, **fields)
        assert record.recovered is not None or "state_lost" in codes(record)
        if record.epoch == NO_EPOCH and record.resync is None:
            assert record.state is not S.REPLICATING


def test_without_a_description_everything_is_compared() -> None:
    record = conclude(None, {"description": "missing"}, "web", 5.0)
    assert (record.state, record.epoch) == (S.WAITING_FOR_START_RESYNCHRONIZE, NO_EPOCH)
    assert codes(record) == ["state_lost"]
    assert record.causes[0].evidence == {"description": "missing"}


# --- refusals --------------------------------------------------------------------------------------------------------


def remains(*, described: bool = True, configured: bool = True, config: Any = None) -> Remains:
    return Remains(
        description=Description.of(VM, ReplicationRecord(epoch=EPOCH)) if described else None,
        config=config or (tap_config(VM, "/vm", "/run") if configured else None),
        config_doubt="" if configured else "it is missing",
    )


def test_too_little_is_left() -> None:
    with pytest.raises(InvalidStateError, match="missing; configuration of the tap: it is missing") as refused:
        plan(remains(described=False, configured=False), VM.vm, "beta", 1.0)
    assert "vmreplica remove" in refused.value.remedy


def test_address_that_nobody_knows() -> None:
    left = remains(described=False)
    with pytest.raises(UsageError, match="where the replica of web is"):
        plan(left, VM.vm, "", 1.0)
    with pytest.raises(UsageError, match="is not the address"):
        plan(left, VM.vm, "beta:x", 1.0)
    record = plan(left, VM.vm, "beta:7000", 1.0)
    assert (record.replica, record.disks) == ("beta:7000", VM.disks)
    assert plan(remains(), VM.vm, "", 1.0) == VM
    assert plan(remains(), VM.vm, "gamma:1", 1.0).replica == "gamma:1"


@pytest.mark.parametrize("field, value", [("size", 1 << 21), ("path", "/srv/other.raw"), ("uuid", "0" * 32)])
def test_files_that_contradict_each_other(field: str, value: Any) -> None:
    """Neither is believed: which disk the guest runs on is not guessed."""
    config = tap_config(VM, "/vm", "/run")
    other = msgspec.structs.replace(config.disks[0], **{field: value})
    with pytest.raises(InvalidStateError, match="name different disks"):
        plan(remains(config=msgspec.structs.replace(config, disks=[other])), VM.vm, "", 1.0)
    with pytest.raises(InvalidStateError, match="names 1 disks, the configuration of its tap 2"):
        more = msgspec.structs.replace(config, disks=[config.disks[0], config.disks[0]])
        plan(remains(config=more), VM.vm, "", 1.0)


# --- the agent -------------------------------------------------------------------------------------------------------


class NoTaps:
    async def start(self, folder: str) -> None:
        raise VmreplicaError("no tap is started in this test")


class Host:
    """A primary's host with one VM, without a tap."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder = folder
        self.sockets = sockets
        """For sockets, whose paths have to be short."""
        self.files: RealFileSystem = FILES

    @property
    def vm(self) -> Path:
        return self.folder / "state" / "vms" / IDENTITY

    def ports(self, workers: ThreadWorkers) -> Ports:
        clock = RealClock()
        return Ports(
            clock=clock,
            random=SystemRandom(),
            workers=workers,
            background=workers,
            files=self.files,
            network=RealNetwork(None),
            stores=SqliteStores(clock),
            taps=NoTaps(),
        )

    async def make(self, record: VmRecord = VM) -> None:
        """The VM as an agent leaves it that replicated, with its tap's configuration."""
        self.vm.mkdir(parents=True)
        workers = ThreadWorkers(1)
        ports = self.ports(workers)
        store = await ports.stores.open(str(self.vm), create=True)
        await create(store, record, ports.clock, "enabled")
        replication = Replication(store, ports.clock)
        replication.keeper = keeper_of(ports, str(self.vm))
        await replication.update(epoch=EPOCH, state=S.REPLICATING)
        config = tap_config(record, str(self.vm), str(self.sockets / IDENTITY))
        save_config(FILES, tap_folder(config), config)
        await store.close()
        await workers.close()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[PrimaryAgent]:
        workers = ThreadWorkers(2)
        ports = self.ports(workers)
        config = PrimaryConfig(
            tls=TlsSection(ca="/unused", certificate="/unused", key="/unused"),
            host="alpha",
            state_dir=str(self.folder / "state"),
            runtime_dir=str(self.sockets),
        )
        agent = PrimaryAgent(config, ports)
        try:
            await agent.start()
            yield agent
        finally:
            await agent.stop()
            await ports.stores.close()  # type: ignore[attr-defined]
            await workers.close()


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vp-") as folder:
        yield Path(folder)


@pytest.fixture
async def host(tmp_path: Path, sockets: Path) -> Host:
    made = Host(tmp_path, sockets)
    await made.make()
    return made


def flip(host: Host) -> None:
    path = host.vm / "state.db"
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), 500):
        data[place] ^= 2
    path.write_bytes(data)


async def test_description_follows_the_records(host: Host) -> None:
    async with host.agent() as agent:
        (vm,) = agent.vms.values()
        replication = vm.parts.replication
        await replication.update(resync=open_resync(proposed=False))
        found = read_description(FILES, str(host.vm), VM.vm)
        assert found is not None and found.replication.resync == open_resync(proposed=False)
        await set_problem(replication, VmreplicaError("a problem"), EventId.COULD_NOT_REPLICATE)
        found = read_description(FILES, str(host.vm), VM.vm)
        assert found is not None and found.replication.problem is None


async def test_description_is_written_for_a_vm_of_an_older_version(host: Host) -> None:
    (host.vm / "vm.description").unlink()
    async with host.agent():
        found = read_description(FILES, str(host.vm), VM.vm)
        assert found is not None and found.replication.epoch == EPOCH


async def test_recovered_by_name(host: Host) -> None:
    flip(host)
    async with host.agent() as agent:
        (status,) = (await agent.status("web")).vms
        assert (status.state, status.uuid) == ("Error", IDENTITY)
        with pytest.raises(VmreplicaError, match="damaged"):
            agent.find("web")
        vm = await agent.recover("web", "", ORDER)
        assert agent.find(IDENTITY) is vm
        assert vm.record == VM
        (event,) = [e for e in (await agent.events("web", limit=9, after=0)).events if e["event"] == EventId.RECOVERED]
        assert (event["before"], event["after"], event["cause"]) == ("Error", "Replicating", "state_lost")
        assert event["data"] == {"uid": 0, "pid": 1, "description": "sound", "tap": "sound"}
        status = await vm.status()
        assert status.problem is not None and status.problem.code == "state_lost"
        assert not status.protected
        with pytest.raises(InvalidStateError, match="sound"):
            await agent.recover("web", "", ORDER)


async def test_damaged_vm_can_still_be_removed(host: Host) -> None:
    flip(host)
    async with host.agent() as agent:
        await agent.remove("web")
        assert not host.vm.exists()


@pytest.fixture
async def reversed_host(tmp_path: Path, sockets: Path) -> Host:
    """Its VM was promoted on it: the tap is where the replica agent made it."""
    made = Host(tmp_path, sockets)
    place = TapPlace(folder=str(tmp_path / "store" / IDENTITY / "tap"), runtime_folder=str(sockets / "r" / IDENTITY))
    await made.make(msgspec.structs.replace(VM, tap=place))
    return made


async def test_tap_of_a_reversed_vm_is_where_it_was(reversed_host: Host) -> None:
    """I14: with its state lost it is kept running there, also after a boot; removed, it is stopped and leaves room."""
    host, sockets = reversed_host, reversed_host.sockets / "r" / IDENTITY
    flip(host)
    async with host.agent() as agent:
        (damaged,) = agent.damaged.values()
        assert damaged.tap is not None
        assert damaged.tap.folder == str(host.folder / "store" / IDENTITY / "tap")
        assert damaged.tap.config.control_socket == str(sockets / "control.sock")
        assert sockets.is_dir() and not (host.vm / "tap").exists()
        await agent.remove("web")
        assert not host.vm.exists() and not sockets.exists()


@pytest.mark.parametrize("field", ["control_socket", "nbd_socket", "log_folder", "fenced"])
async def test_what_the_replica_agents_user_wrote_leads_a_damaged_vm_nowhere(reversed_host: Host, field: str) -> None:
    """T8: root would make folders there, connect to another VM's tap, and stop it when the damaged VM is removed."""
    host, place = reversed_host, reversed_host.folder / "store" / IDENTITY / "tap"
    elsewhere, config = host.sockets / "other", load_config(FILES, str(place))
    value = "not told by this agent" if field == "fenced" else str(elsewhere / "control.sock")
    save_config(FILES, str(place), msgspec.structs.replace(config, **{field: value}))
    flip(host)
    asked: list[str] = []

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readline()).decode())
        writer.close()

    elsewhere.mkdir()
    served = await asyncio.start_unix_server(other, str(elsewhere / "control.sock"))
    async with served, host.agent() as agent:
        (damaged,) = agent.damaged.values()
        assert damaged.tap is not None
        await damaged.tap.settled()
        assert damaged.tap.config == config
        await agent.remove("web")
    assert asked == []


async def test_runtime_folder_of_a_reversed_vm_is_the_replica_agents_again(reversed_host: Host) -> None:
    """This agent may have made it, as root after a boot, and the other one could put no socket there."""
    host, sockets = reversed_host, reversed_host.sockets / "r" / IDENTITY
    shutil.copytree(host.folder, host.folder.with_name("again"))
    async with host.agent() as agent:
        (sockets / "nbd.sock").touch()
        await agent.remove("web")
        assert not sockets.exists() and (host.folder / "store" / IDENTITY).exists()
    again = Host(host.folder.with_name("again"), host.sockets)
    async with again.agent() as agent:
        (sockets / "export.sock").touch()
        await agent.let_go(agent.vms[VM.vm])
        assert sockets.exists(), "an export of the replica agent is served from it already"


async def test_failed_take_over_leaves_nothing(tmp_path: Path, sockets: Path) -> None:
    """The replica agent goes on with the VM, and the same order can be given again."""
    host = Host(tmp_path, sockets)

    async def fill(folder: str) -> None:
        Path(folder).mkdir()
        (Path(folder) / "state.db").write_bytes(b"not a database" * 999)

    async with host.agent() as agent:
        for _ in range(2):
            with pytest.raises(StoreDamagedError):
                await agent.take_over(VM.vm, fill)
            assert not agent.damaged and not host.vm.exists()


def test_settings_go_with_a_hand_over_and_come_back() -> None:
    record = msgspec.structs.replace(
        VM,
        consistency="agent:/run/web.agent",
        consistency_hours=6,
        definition="file:/etc/web.xml",
        definition_files=["/var/lib/web.nvram"],
        resync_priority=3,
    )
    assert with_settings(VM, kept_settings(record)) == record


async def test_state_that_is_sound_again_is_believed(host: Host) -> None:
    shutil.copy(host.vm / "state.db", host.folder / "kept")
    flip(host)
    async with host.agent() as agent:
        shutil.copy(host.folder / "kept", host.vm / "state.db")
        vm = await agent.recover("web", "", ORDER)
        assert vm.parts.replication.record.recovered is None
        assert list(host.vm.glob("state.db.damaged-*")) == []


async def test_disks_that_another_vm_took_meanwhile(host: Host) -> None:
    flip(host)
    async with host.agent() as agent:
        other = msgspec.structs.replace(VM, name="new", vm=b"w" * 16)

        class Taken:
            record = other

        agent.vms[other.vm] = Taken()  # type: ignore[assignment]
        try:
            with pytest.raises(InvalidStateError, match="has taken /srv/web.raw"):
                await agent.recover("web", "", ORDER)
        finally:
            del agent.vms[other.vm]
        assert IDENTITY in agent.damaged


class Killing:
    """Kills at the N-th rename or sync of this process, and at every later one, while it is entered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, die_at: int) -> None:
        self._monkeypatch = monkeypatch
        self._left = die_at
        self._rename, self._fsync = os.rename, os.fsync

    def _step(self) -> None:
        self._left -= 1
        if self._left <= 0:
            raise Killed

    def rename(self, *paths: str, **folders: Any) -> None:
        self._step()
        self._rename(*paths, **folders)

    def fsync(self, descriptor: int) -> None:
        self._step()
        self._fsync(descriptor)

    @contextmanager
    def entered(self) -> Iterator[None]:
        with self._monkeypatch.context() as patch:
            patch.setattr(os, "rename", self.rename)
            patch.setattr(os, "fsync", self.fsync)
            yield


async def recovers(host: Host, killing: Killing) -> bool:
    """Whether an agent lived to the end of a recover; it is gone afterwards."""
    async with host.agent() as agent:
        with killing.entered():
            try:
                await agent.recover("web", "", ORDER)
            except Killed:
                return False
        return True


async def test_kill_at_each_operation_of_a_recover(
    tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either still damaged or recovered, and the description never says less than before."""
    whole = Host(tmp_path / "whole", sockets)
    await whole.make()
    flip(whole)
    (whole.vm / "state.db-wal").write_bytes(b"a rest of the old log")
    states, recovered, die_at = set(), False, 0
    while not recovered:
        die_at += 1
        host = Host(tmp_path / str(die_at), sockets)
        shutil.copytree(whole.folder, host.folder)
        recovered = await recovers(host, Killing(monkeypatch, die_at))
        found = read_description(FILES, str(host.vm), VM.vm)
        assert found is not None and found.replication.epoch == EPOCH
        async with host.agent() as agent:
            states.add(not agent.damaged)
            vm = agent.vms[VM.vm] if not agent.damaged else await agent.recover("web", "", ORDER)
            record = vm.parts.replication.record
            assert record.epoch == EPOCH
            assert record.recovered is not None or ResyncCause.STATE_LOST in codes(record)
            assert list(host.vm.glob("state.db.damaged-*"))
    assert states == {False, True}
    assert die_at > 8


async def test_volume_that_fails_is_no_reason_to_guess(host: Host) -> None:
    """A description that can't be read just now is not a missing one."""
    flip(host)
    host.files = files = FailingFiles()
    async with host.agent() as agent:
        files.fail_only("vm.description", "read")
        with pytest.raises(VmreplicaError, match="can't be read"):
            await agent.recover("web", "", ORDER)
        files.fail_nothing()
        assert IDENTITY in agent.damaged
        assert (await agent.recover(IDENTITY, "", ORDER)).record == VM


async def test_events_of_all_tell_whose_are_missing(host: Host) -> None:
    flip(host)
    async with host.agent() as agent:
        told = await agent.events(None, limit=9, after=0)
        (missing,) = told.missing
        assert (told.events, missing.vm, missing.uuid) == ([], "web", IDENTITY)
        assert "damaged" in missing.text
        await agent.recover("web", "", ORDER)
        told = await agent.events(None, limit=9, after=0)
        assert (told.missing, {event["vm"] for event in told.events}) == ([], {"web"})
        (vm,) = agent.vms.values()
        await vm.stop()
        (missing,) = (await agent.events(None, limit=9, after=0)).missing
        assert (missing.vm, missing.code) == ("web", "storage")
