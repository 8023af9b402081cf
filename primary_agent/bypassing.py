"""What a bypass of a block device leaves: a cause for a compare of whole disks, and no compare that it disturbed.

A file's times tell its tap that somebody else wrote it; a block device tells nothing. Whoever had it open for writing
may have written it at any time, up to the look that is the first not to find it open any more (I3, I10). Therefore

- it is a cause on record as soon as it is seen, for the process may be gone before the next look;
- while it lasts compares rest;
- what was compared before the look that finds it over counts for nothing: another compare begins after it. Where the
  commit was proposed already, the cause outlasts it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec

from primary_agent.export_waiting import is_exported
from primary_agent.parts import Parts
from primary_agent.record import DURING, MAX_CAUSES, ReplicationRecord
from protocol.position import NO_EPOCH
from shared.attachment import OPENED
from shared.errors import InvalidStateError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.states import PrimaryEvent
from shared.status import Cause

OPENERS_MAX = 8
"""Processes that the evidence names; their number may be larger."""
OPENERS, OVER, TOLD = "openers", "over_time", "told"
"""Evidence: who had a device open, when that was found to be over, and that a watcher had to tell it."""


def of_devices(parts: Parts, found: Sequence[Cause]) -> list[Cause]:
    """Of the ways past the tap those by which a block device may have been written."""
    connection = parts.tap.connection
    devices = {disk.path for disk in connection.status.disks if disk.block} if connection is not None else set()
    return [cause for cause in found if cause.code == OPENED and cause.evidence.get("path") in devices]


def lasting(record: ReplicationRecord) -> Cause | None:
    """The bypass on record that no look has found to be over."""
    return next(
        (each for each in record.causes if each.code == ResyncCause.BYPASSED and OVER not in each.evidence), None
    )


def rest_text(parts: Parts) -> str:
    """Why no compare may go on now; empty where none keeps it from that."""
    known = lasting(parts.replication.record)
    # Before the first baseline there are no causes on record.
    found = [known] if known is not None else of_devices(parts, parts.bypasses)
    if not found:
        return ""
    return (
        f"{found[0].text.rstrip('.')}. It goes on when a look finds that to be over; there is one each minute, and one "
        "at once by `vmreplica watch-disks --once`"
    )


async def doubt(parts: Parts, found: Sequence[Cause], *, fresh: bool, told: bool) -> None:
    """Put down what a look found (:func:`of_devices`); nothing means that what was found before is over.

    Durable when this returns. ``fresh``: the look before did not find any. ``told``: a watcher told it.
    """
    replication, clock = parts.replication, parts.surroundings.ports.clock
    while True:
        record = replication.record
        if is_exported(record):
            await _cancel(parts, found)
            return
        fields, path, events = _changes(record, found, clock.wall(), told=told)
        if "resync" in fields:
            text = f"The {replication.open_work} of {replication.vm.name} begins anew: a disk was open past its tap."
            events = [*events, (EventId.RESYNC_REQUIRED, text, {})]
        if not fields:
            break
        made = [
            replication.event(number, text, cause=ResyncCause.BYPASSED.value, data=data)
            for number, text, data in events
        ]
        cause = found[0].text if found else "nobody has the disks open past the tap any more"
        if await replication.transition(path, cause, *made, seen=record, **fields):
            break
    if fields or fresh:
        replication.replan()


Told = list[tuple[EventId, str, dict[str, Any]]]


def _changes(
    record: ReplicationRecord, found: Sequence[Cause], now: float, *, told: bool
) -> tuple[dict[str, Any], tuple[PrimaryEvent, ...], Told]:
    """What changes in the record, the transitions, and the events."""
    fields: dict[str, Any] = {}
    if record.resync is not None and record.resync.end is None:
        fields["resync"] = None
    if record.epoch == NO_EPOCH and record.proposed is None:
        # The first copy reads everything, once the way past the tap is closed.
        return fields, (), []
    known = lasting(record)
    evidence = dict(known.evidence) if known is not None else {OPENERS: []}
    if found:
        evidence[OPENERS] = _openers(evidence[OPENERS], found)
    else:
        evidence[OVER] = now
    if told:
        evidence[TOLD] = True
    if record.resync is not None and record.resync.end is not None:
        evidence[DURING] = record.resync.id.hex()
    if known is not None:
        if evidence != known.evidence:
            after = msgspec.structs.replace(known, evidence=evidence)
            fields["causes"] = [after if each is known else each for each in record.causes]
        return fields, (), []
    if not found:
        return fields, (), []
    # One that is over already is part of what this one asks for.
    others = [each for each in record.causes if each.code != ResyncCause.BYPASSED]
    if len(others) >= MAX_CAUSES:
        others = [*others[: MAX_CAUSES // 2 - 1], *others[-MAX_CAUSES // 2 :]]
    cause = Cause(code=ResyncCause.BYPASSED.value, text=found[0].text, time=now, evidence=evidence)
    # The first, for where there are too many, those in the middle go: it must not be forgotten before it is over.
    fields["causes"] = [cause, *others]
    data = {"code": cause.code, "evidence": cause.evidence}
    path = (PrimaryEvent.RESYNC_REQUIRED,) if record.epoch != NO_EPOCH else ()
    return fields, path, [(EventId.RESYNC_REQUIRED, cause.text, data)]


def _openers(known: Sequence[dict[str, Any]], found: Sequence[Cause]) -> list[dict[str, Any]]:
    """Who had a device open, each once, the first ones; with the time at which each was seen first."""
    seen = {(each["pid"], each["program"], each["path"]) for each in known}
    fresh = [
        {**each.evidence, "time": each.time}
        for each in found
        if (each.evidence["pid"], each.evidence["program"], each.evidence["path"]) not in seen
    ]
    return [*known, *fresh][:OPENERS_MAX]


async def _cancel(parts: Parts, found: Sequence[Cause]) -> None:
    """What a courier carries can't be made good on its way: the first copy has to be made again."""
    replication = parts.replication
    why = found[0].text if found else "A disk was open for writing past its tap."
    text = f"The first copy of {replication.vm.name} that was written for a courier counts no longer. {why}"
    # Somebody else may have ended it in this very moment.
    with contextlib.suppress(InvalidStateError):
        await replication.cancel(text)
    replication.replan()
    parts.link.poke.notify()
    parts.settle_progress()
