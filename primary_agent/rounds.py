"""Rounds of a resync: it goes on under its id when the log of its epoch is lost and the dirty map names the writes.

The log of a round is bounded (R32). Past its limit, or after a failure, the tap's dirty map has what was written
since the round began. The next round tracks in a fresh log, under another epoch, beside that map; the replica
keeps what it has received and takes back what was settled of the map's ranges; only they, and what was not settled yet,
are compared.

The order is the safety: the round is on record before the tap begins its epoch, and the map stays in force until the
replica has told that what is in it is unsettled there, durably. A crash in between finds the map, and tells it again.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from primary_agent.parts import Parts
from primary_agent.record import ResyncRecord
from primary_agent.scope import completed
from primary_agent.tap_link import Connection, TapLink
from protocol.messages import MAX_SETTLED_RUNS, ResyncKind, Run, Unsettle
from shared.events import EventId
from shared.map_file import Range
from shared.rates import size_text
from shared.sides import OpenResync
from shared.tap_control import TapStatus, Tracking


async def another_round(parts: Parts, held: OpenResync, reason: str) -> ResyncRecord | None:
    """The open resync in another round, durably, after its log was lost for ``reason`` (R32).

    None where nothing proves what was written since: that it starts anew is on record then. Raises what the tap raises.
    """
    replication = parts.replication
    resync, status = replication.record.resync, await completed(parts.tap)
    if resync is None or status.epoch is None or not is_covered(status, resync, held):
        await replication.tell_restart(reason)
        return None
    random = parts.surroundings.ports.random
    fresh = next_round(resync, bytes.fromhex(status.epoch), random.bytes(16))
    text = round_text(replication.vm.name, replication.open_work, fresh, status)
    cause = status.lost.reason.value if status.lost is not None else ""
    data = {"round": fresh.round, "bytes": status.doubt.bytes if status.doubt is not None else 0}
    await replication.change_resync(fresh, replication.event(EventId.RESYNC_ROUND, text, cause=cause, data=data))
    return fresh


def is_covered(status: TapStatus, resync: ResyncRecord, held: OpenResync) -> bool:
    """Whether the dirty map names all that may have changed in what the replica has settled as it ``held`` the resync.

    A map that was in force when the lost log began goes on from there: it names what changed before as well. A fresh
    one names what was written since the log's beginning, and the replica must have heard of all that came before.
    """
    doubt = status.doubt
    if status.tracking is not Tracking.MAP or status.epoch is None or doubt is None or not doubt.complete:
        return False
    lost, base = bytes.fromhex(status.epoch), bytes.fromhex(doubt.base_epoch)
    if lost not in (resync.epoch, resync.former):
        return False
    if resync.kind is ResyncKind.BOUNDED and not resync.kept_round:
        # What bounds it has to be in the same map.
        return base == resync.parent
    if base != lost:
        return True
    number = resync.round if lost == resync.epoch else resync.round - 1
    return doubt.base_segment == 0 and held.round == number and not held.unsettle


def next_round(resync: ResyncRecord, lost: bytes, epoch: bytes) -> ResyncRecord:
    """The resync in another round, under ``epoch``, after the log of the epoch ``lost`` was.

    A round that was on record and never begun at the tap is begun under this epoch in its stead.
    """
    if lost != resync.epoch:
        return msgspec.structs.replace(resync, epoch=epoch, end=None)
    return msgspec.structs.replace(resync, epoch=epoch, end=None, round=resync.round + 1, former=resync.epoch)


def round_text(name: str, what: str, resync: ResyncRecord, status: TapStatus) -> str:
    """Why another round follows, and how much of it is compared again."""
    reason = status.lost.text if status.lost is not None else "its log was lost"
    size = size_text(status.doubt.bytes if status.doubt is not None else 0)
    return (
        f"The {what} of {name} goes on in round {resync.round}, since writes are not tracked in its log any more: "
        f"{reason}. {size} that changed meanwhile are compared again; what else is settled stays so."
    )


def unsettle_messages(resync: ResyncRecord, scope: dict[int, list[Range]]) -> Iterator[Unsettle]:
    """What tells the replica that these ranges are not settled: at least one message, the last of them marked."""
    runs = [Run(disk=disk, offset=at, length=length) for disk, ranges in scope.items() for at, length in ranges]
    for start in range(0, max(1, len(runs)), MAX_SETTLED_RUNS):
        end = start + MAX_SETTLED_RUNS
        yield Unsettle(id=resync.id, round=resync.round, ranges=runs[start:end], last=end >= len(runs))


async def forget_map(tap: TapLink, connection: Connection, resync: ResyncRecord) -> None:
    """Have the tap let go of a map whose ranges the replica has taken back, so that the next round is short.

    Not of the one that bounds the resync: a cancel has to find that again, until a late round has kept it. Any other is
    compared wholly after a cancel. Raises what the tap raises.
    """
    if not resync.bounded_by_map and connection.status.doubt is not None:
        await connection.client.forget(resync.epoch)
        await tap.refresh()
