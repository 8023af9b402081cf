"""Bugs to plant in the replica agent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import replica_agent.parts
import replica_agent.vm
from protocol.bulk import Bulk
from protocol.hrl import decode_record_header
from protocol.messages import MessageType, Received, WirePosition
from protocol.position import Position
from replica_agent.apply import Applier
from replica_agent.control import Control
from replica_agent.differencing import DifferencingFile
from replica_agent.disks import BaseDisks
from replica_agent.groups import Group
from replica_agent.promotion import Promotion
from replica_agent.record import PositionRecord
from replica_agent.vm import ReplicaVm
from tests.simulation.disk import SimulatedFile, SimulatedFileSystem
from tests.simulation.mutants_kit import Patch, forever, nothing, nothing_async, unsynced


def spool_nosync() -> Sequence[Patch]:
    """I5: received is told although the segment is only in the page cache."""
    return [(SimulatedFile, "sync", unsynced("/spool/"))]


def spool_folder_nosync() -> Sequence[Patch]:
    """I5: received is told although the new segment's name is not durable."""

    def make(original: Any) -> Any:
        def sync_folder(files: SimulatedFileSystem, path: str) -> None:
            if path.endswith("/spool"):
                files.process.operation()
            else:
                original(files, path)

        return sync_folder

    return [(SimulatedFileSystem, "sync_folder", make)]


def ack_early() -> Sequence[Patch]:
    """I5: received is told when the seal arrives, before anything is stored."""

    def make(original: Any) -> Any:
        async def receive(control: Control) -> None:
            channel = control.channel
            take = channel.receive

            async def receive_and_tell() -> Any:
                message = await take()
                if isinstance(message, Bulk) and message.type is MessageType.SEAL:
                    header = decode_record_header(message.content())
                    position = Position(header.epoch, header.segment, header.next_entry, header.chain)
                    channel.send(Received(position=WirePosition.of(position)))
                return message

            channel.receive = receive_and_tell  # type: ignore[method-assign]
            await original(control)

        return receive

    return [(Control, "_receive", make)]


def base_nosync() -> Sequence[Patch]:
    """I6: a point is declared although the disks that hold it are not synced."""
    return [(BaseDisks, "sync", nothing)]


def differencing_nosync() -> Sequence[Patch]:
    """R9: a resync commits although its differencing file is not durable."""
    return [(DifferencingFile, "_sync", nothing)]


def apply_unmarked() -> Sequence[Patch]:
    """I6: the disks are changed while the newest point is still said to be the one before."""

    def make(original: Any) -> Any:
        async def apply(applier: Applier, group: Group) -> None:
            if group.merge is None and applier.ledger.replication.applying is None:
                # In memory only, so that the step which says it durably is left out.
                applier.ledger.replication.applying = PositionRecord.of(group.target)
            await original(applier, group)

        return apply

    return [(Applier, "_apply", make)]


def expose_early() -> Sequence[Patch]:
    """R7: the merge leaves out what was written during the compare."""

    def make(original: Any) -> Any:
        def sources(group: Group) -> Any:
            found = original.fget(group)
            return found[: len(group.merge.sources)] if group.merge is not None and group.merge.sources else found

        return property(sources)

    return [(Group, "sources", make)]


def no_overlay() -> Sequence[Patch]:
    """R8: a resync writes its blocks straight into the disks."""

    def make(original: Any) -> Any:
        def resync(**fields: Any) -> Any:
            opened = original(**fields)
            opened.in_place = True
            return opened

        return resync

    return [(replica_agent.parts, "OpenResync", make)]


def recycle_early() -> Sequence[Patch]:
    """I6: the spool is given back before the disks that it leads to are durable."""
    groups: dict[int, Group] = {}

    def make_apply(original: Any) -> Any:
        async def apply(applier: Applier, group: Group) -> None:
            groups[id(applier)] = group
            await original(applier, group)

        return apply

    def make_sync(original: Any) -> Any:
        def sync(applier: Applier) -> None:
            assert applier.spool is not None
            applier._give_back(applier.spool, groups[id(applier)])
            original(applier)

        return sync

    return [(Applier, "_apply", make_apply), (Applier, "_sync", make_sync)]


def apply_over_gap() -> Sequence[Patch]:
    """I11: a segment is taken and applied although the one before it could not be."""

    def make(_original: Any) -> Any:
        def spool(control: Control) -> Any:
            parts = control._parts
            return parts.resync.tracked if parts.resync is not None else parts.applier.spool

        return spool

    return [(Applier, "_follows", lambda _original: lambda _applier, _segment: True), (Control, "_spool", make)]


def promote_applied_only() -> Sequence[Patch]:
    """I5: a failover forgets what was acknowledged and not applied yet."""

    def make(original: Any) -> Any:
        def newest_cut(promotion: Promotion) -> Position:
            applier = promotion.parts.applier
            if not applier.turn.locked() and applier.spool is not None:
                applier.spool.segments.clear()
            cut: Position = original(promotion)
            return cut

        return newest_cut

    return [(Promotion, "_newest_cut", make)]


def no_fence() -> Sequence[Patch]:
    """I8: the replica serves its old primary although it was promoted."""
    return [(ReplicaVm, "judge", nothing), (ReplicaVm, "_end_sessions_for_failover", nothing_async)]


def no_redo() -> Sequence[Patch]:
    """I6: an apply that a crash interrupted is not done again."""

    def make(original: Any) -> Any:
        async def recover(parts: Any) -> None:
            if parts.ledger.replication.applying is not None and parts.ledger.resync is None:
                async with parts.ledger.transaction() as draft:
                    draft.replication.applied = draft.replication.applying
                    draft.replication.applying = None
            await original(parts)

        return recover

    return [(replica_agent.vm, "recover", make)]


def sync_retried() -> Sequence[Patch]:
    """R17: a sync that failed is tried again, and believed."""

    def make(original: Any) -> Any:
        def sync(file: SimulatedFile) -> None:
            try:
                original(file)
            except OSError:
                original(file)

        return sync

    return [(SimulatedFile, "sync", make)]


def session_behind_promotion() -> Sequence[Patch]:
    """I8: a session may begin while a failover is being decided, which takes a while, and goes on behind it."""

    def make(original: Any) -> Any:
        async def decide(promotion: Promotion, point: Position | None = None) -> bool:
            end_sessions = promotion.end_sessions

            async def end_and_linger() -> None:
                await end_sessions()
                await asyncio.sleep(2)

            if not isinstance(promotion.deciding, _OpenDoor):
                promotion.deciding, promotion.end_sessions = _OpenDoor(), end_and_linger
            decided: bool = await original(promotion, point)
            return decided

        return decide

    return [(Promotion, "decide", make)]


class _OpenDoor(asyncio.Lock):
    """A lock that nobody sees locked."""

    def locked(self) -> bool:
        return False


def apply_not_retried() -> Sequence[Patch]:
    """I12: what could not be applied, for want of room or after a failover, is not tried again."""
    return [(Applier, "_wait", forever)]
