"""What an export means for everything else at the primary: what waits for its import, and what is refused meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from primary_agent.conclusions import Replan
from primary_agent.parts import Parts
from primary_agent.record import ReplicationRecord
from primary_agent.replication import Replication
from protocol.messages import SEED
from shared.errors import InvalidStateError
from shared.events import EventId
from shared.sides import ReplicaView
from shared.tap_control import TapStatus, Tracking


def is_tracked(status: TapStatus, epoch: bytes) -> bool:
    """Whether log or dirty map name all that was written since the tracking of ``epoch`` began."""
    if status.epoch != epoch.hex():
        return False
    if status.tracking is Tracking.ON:
        return True
    doubt = status.doubt
    return (
        status.tracking is Tracking.MAP
        and doubt is not None
        and (doubt.base_epoch != epoch.hex() or doubt.base_segment == 0)
    )


def is_exported(record: ReplicationRecord) -> bool:
    """Whether a first copy is being written for a courier, or is on its way."""
    return record.export is not None or (record.resync is not None and bool(record.resync.exported))


async def until_brought(
    replication: Replication, replica: ReplicaView, drop_stray: Callable[[], Awaitable[None]]
) -> None:
    """Returns where the replica has imported what was exported, or nothing was; else waits for that.

    Raises Replan when something else is to be done then.
    """
    record = replication.record
    if not is_exported(record):
        return
    held, resync = replica.resync, record.resync
    if held is not None and resync is not None and held.id == resync.id:
        text = f"The replica has imported the first copy of {replication.vm.name}: what was written since is sent."
        told = replication.event(EventId.IMPORTED, text, cause="export")
        await replication.change_resync(msgspec.structs.replace(resync, exported=""), told)
        return
    if held is not None:
        text = (
            f"The replica has another first copy of {replication.vm.name} than was exported here last: it has to "
            "import that one."
        )
        await replication.note(replication.event(EventId.IMPORT_FAILED, text, cause="other_export"))
        await drop_stray()
    while is_exported(replication.record):
        await replication.changed.wait()
    raise Replan("the session is planned anew")


def refuse_export(replication: Replication) -> None:
    """Raises InvalidStateError while a first copy is, or waits to be, on its way by courier."""
    record = replication.record
    if not is_exported(record):
        return
    folder = record.export.folder if record.export is not None else ""
    text = f"is being exported to {folder}" if folder else "was exported, and waits for its import at the replica"
    name = replication.vm.name
    raise InvalidStateError(
        f"The first copy of {name} {text}.",
        f"To make it another way: `vmreplica stop {name}` ends that; then `vmreplica initial {name}`, which uses what "
        "has arrived there as a seed.",
    )


def require_seed(parts: Parts) -> None:
    """Raises InvalidStateError unless the replica says that it has a seed."""
    dialled, name = parts.link.dialled, parts.replication.vm.name
    if dialled is not None and dialled.opened.seeded is True:
        return
    if dialled is not None and SEED not in dialled.channel.session.capabilities:
        text = "does not tell whether it has a seed: its version is older than this one"
    else:
        text = "has no seed: nothing was imported there"
    raise InvalidStateError(
        f"The replica of {name} {text}.",
        f"Run `vmreplica import {name} --seed PATH` at the replica's host. Without a seed: `vmreplica initial {name}`.",
    )


def export_text(record: ReplicationRecord) -> str:
    """For what a first copy by courier waits, in a sentence; empty where there is none, or it is being written."""
    if record.resync is None or not record.resync.exported:
        return ""
    return (
        f"The first copy is complete in {record.resync.exported}. The replica waits for it: bring the folder to its "
        "host, and run `vmreplica import` with it there. All that is written meanwhile is tracked."
    )
