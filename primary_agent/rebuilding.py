"""Rebuilds the database of a VM whose own is damaged or missing, from its description and its tap's configuration.

What the replica had acknowledged is not known any more. That is no reason for a compare by itself: the first session
asks the replica where it stands and the tap whether exactly that cut is in its log. Until then ``recovered`` is on
record, and whatever can't be proven ends in a compare of everything (R33, R34; ``docs/tap.md``).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from primary_agent.description import Description, read_description
from primary_agent.enabling import split_address, tap_config
from primary_agent.fencing import TEXT_MAX
from primary_agent.planned_steps import after_loss, step_of
from primary_agent.record import DiskRecord, ReplicationRecord, TapPlace, VmRecord, plain
from primary_agent.vm_folders import lodge
from protocol.position import NO_EPOCH
from shared.description import DescriptionDamagedError
from shared.errors import InvalidStateError, UsageError, VmreplicaError
from shared.events import EventId, make_event
from shared.planning import ResyncCause
from shared.ports import FileSystem, Ports
from shared.states import PLANNED_TOKEN, ReplicationState
from shared.status import Cause
from shared.tap_config import TapConfig, load_config

RECOVERABLE = frozenset({"store_damaged"})
"""Codes of errors that a rebuilt database heals; a newer version's or a busy one is not replaced."""

_S = ReplicationState


@dataclass(slots=True)
class Remains:
    """What was found in a VM's folder; the texts say why the one or the other can't be believed."""

    description: Description | None = None
    description_doubt: str = "missing"
    config: TapConfig | None = None
    config_doubt: str = ""
    tap_place: TapPlace | None = None
    """Where the tap is, if not in the VM's own folder."""

    @property
    def name(self) -> str:
        """The VM's name, or empty."""
        if self.description is not None:
            return self.description.vm.name
        return self.config.name if self.config is not None else ""

    @property
    def evidence(self) -> dict[str, object]:
        """For causes and events."""
        return {
            "description": "sound" if self.description is not None else self.description_doubt,
            "tap": "sound" if self.config is not None else self.config_doubt,
        }


def read_remains(files: FileSystem, folder: str, vm: bytes) -> Remains:
    """What is left in ``folder``. Blocks. Raises StorageError where the volume fails."""
    found = Remains()
    try:
        found.description = read_description(files, folder, vm)
    except DescriptionDamagedError as error:
        found.description_doubt = error.text
    if found.description is not None:
        found.tap_place = found.description.vm.tap
        lodge(files, found.tap_place)
    try:
        config = load_config(files, found.tap_place.folder if found.tap_place is not None else f"{folder}/tap")
        if config.vm_id != vm:
            found.config_doubt = f"it is that of VM {config.vm}"
        elif found.description is not None and found.tap_place is not None:
            found.config = _lodged(config, found.description, folder)
        else:
            found.config = config
    except VmreplicaError as error:
        found.config_doubt = error.text
    return found


def _lodged(config: TapConfig, known: Description, folder: str) -> TapConfig:
    """The configuration of a tap whose folder is the replica agent's user's, by our own record.

    He may have been taken over, and this agent is root: what it connects to, makes, stops and fences follows from
    nothing of his (docs/security.md). The disks stay those of the file, to be held against the record.
    """
    ours = tap_config(known.vm, folder, "", config.nbd_group)
    return msgspec.structs.replace(ours, disks=config.disks, fenced=known.replication.fenced[:TEXT_MAX])


async def rebuild(
    ports: Ports, folder: str, remains: Remains, vm: VmRecord, reason: str, order: dict[str, Any]
) -> None:
    """Put a rebuilt database in the place of the damaged one in ``folder``, which is kept aside. Crash-safe.

    ``reason`` is what is wrong with the old one, ``order`` who asked. Raises StorageError; nothing was changed then.
    """
    now = ports.clock.wall()
    replication = conclude(remains.description, remains.evidence, vm.name, now)
    told = make_event(
        EventId.RECOVERED,
        f"The state of {vm.name} was rebuilt from what its folder tells, since the old one was lost: {reason}",
        time=now,
        cause=ResyncCause.STATE_LOST.value,
        before=_S.ERROR.title,
        after=replication.state.title,
        data={**order, **remains.evidence},
    )
    await ports.stores.rebuild(folder, {"vm": plain(vm), "replication": plain(replication)}, [told])


def plan(remains: Remains, vm: bytes, replica: str, now: float) -> VmRecord:
    """The VM's record; ``replica`` is the address to use, or empty for the one that is known.

    Raises InvalidStateError where nothing tells the VM's disks, UsageError where nothing tells its replica.
    """
    if remains.description is not None:
        record = remains.description.vm
        _check_disks(record, remains.config)
    elif remains.config is not None:
        if not replica:
            raise UsageError(
                f"Nothing tells any more where the replica of {remains.config.name} is: its description is "
                f"{remains.description_doubt}.",
                f"Repeat it with --replica: vmreplica recover {remains.config.name} --replica HOST[:PORT]",
            )
        record = _from_tap(remains.config, vm, now)
    else:
        raise InvalidStateError(
            f"Nothing tells the disks of this VM any more. Description: {remains.description_doubt}; "
            f"configuration of the tap: {remains.config_doubt}",
            "Remove the VM with `vmreplica remove`, and enable it again; its disks stay as they are.",
        )
    if replica:
        host, port = split_address(replica)
        record = msgspec.structs.replace(record, replica_host=host, replica_port=port)
    return record


def _check_disks(record: VmRecord, config: TapConfig | None) -> None:
    """What the tap serves is what the record names, or nothing is done."""
    if config is None:
        return
    ours = [(disk.index, disk.uuid.hex(), disk.path, disk.size) for disk in record.disks]
    theirs = [(disk.index, disk.uuid, disk.path, disk.size) for disk in config.disks]
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            raise InvalidStateError(
                f"The description of {record.name} and the configuration of its tap name different disks: "
                f"{mine[2]} of {mine[3]} bytes, and {other[2]} of {other[3]}.",
                "Remove the VM with `vmreplica remove`, and enable it again; its disks stay as they are.",
            )
    if len(ours) != len(theirs):
        raise InvalidStateError(
            f"The description of {record.name} names {len(ours)} disks, the configuration of its tap {len(theirs)}.",
            "Remove the VM with `vmreplica remove`, and enable it again; its disks stay as they are.",
        )


def _from_tap(config: TapConfig, vm: bytes, now: float) -> VmRecord:
    return VmRecord(
        vm=vm,
        name=config.name,
        disks=[
            DiskRecord(
                index=disk.index,
                uuid=bytes.fromhex(disk.uuid),
                path=disk.path,
                size=disk.size,
                export=disk.export,
                larger=disk.larger_size,
            )
            for disk in config.disks
        ],
        replica_host="",
        replica_port=0,
        interval_seconds=config.interval_seconds,
        log_limit_bytes=config.log_limit_bytes,
        created_time=now,
    )


def conclude(description: Description | None, evidence: dict[str, object], name: str, now: float) -> ReplicationRecord:
    """How replication stands as far as that is known: the description may be one change older than what was lost.

    An open compare is given up, but for one whose commit may have been sent: whether it is the baseline the replica
    tells (R33). Whether to go on from the baseline is judged by the first session.
    """
    known = description.replication if description is not None else ReplicationRecord()
    record = ReplicationRecord(
        epoch=known.epoch,
        lineage=known.lineage,
        causes=known.causes,
        fenced=known.fenced,
        fence=known.fence,
        reversal=known.reversal,
        peer_host=known.peer_host,
        planned=after_loss(known.planned),
    )
    proposed = known.proposed is not None and known.state is not _S.FAILED_OVER
    if proposed:
        record.resync = known.resync
    lost = Cause(
        code=ResyncCause.STATE_LOST.value,
        text=f"The state of {name} was lost and rebuilt: what the replica has acknowledged is not known any more.",
        time=now,
        evidence=evidence,
    )
    if known.epoch != NO_EPOCH or proposed:
        record.recovered = msgspec.structs.replace(
            lost,
            remedy="The next connection to the replica tells whether its log goes on; see to the link if it does not.",
        )
    else:
        record.causes = [*record.causes, lost]
    record.state = _state_after(known, record, proposed=proposed)
    if record.state is _S.WAITING_FOR_START_RESYNCHRONIZE and not record.causes:
        given_up = msgspec.structs.replace(
            lost, text=f"The compare of {name} that was under way was given up: {lost.text}"
        )
        record.causes, record.recovered = [given_up], None
    return record


def _state_after(known: ReplicationRecord, record: ReplicationRecord, *, proposed: bool) -> ReplicationState:
    match known.state:
        case _S.FAILED_OVER:
            return _S.FAILED_OVER
        case _S.SUSPENDED | _S.RESYNCHRONIZE_SUSPENDED:
            return _S.RESYNCHRONIZE_SUSPENDED if proposed else _S.SUSPENDED
    if proposed:
        return _S.RESYNCHRONIZING
    if step_of(record.planned) in PLANNED_TOKEN:
        return _S.PREPARED_FOR_FAILOVER
    if known.state in (_S.REPLICATING, _S.PREPARED_FOR_FAILOVER) and not record.causes:
        return _S.REPLICATING
    return _S.WAITING_FOR_START_RESYNCHRONIZE


def check_unused(record: VmRecord, others: Iterable[VmRecord]) -> None:
    """Nobody took name or disks meanwhile. Raises InvalidStateError."""
    for other in others:
        paths = {disk.path for disk in other.disks}
        taken = next((disk.path for disk in record.disks if disk.path in paths), None)
        if other.name == record.name or taken is not None:
            raise InvalidStateError(
                f"The VM {other.name} has taken {taken or 'the name'} meanwhile.",
                f"Remove one of them: `vmreplica remove {uuid.UUID(bytes=record.vm)}` forgets the damaged one.",
            )
