"""When a fence lifts by itself: only where nothing but an undo at the replica explains what the replica tells."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from primary_agent.record import FenceRecord, PositionRecord, ReplicationRecord, ResyncRecord
from primary_agent.unfencing import is_undone
from protocol.hrl import Geometry
from protocol.messages import ResyncKind
from protocol.position import Ancestor, Position
from shared.planning import Decision, ResyncCause, decide
from shared.sides import PrimaryView, ReplicaView
from shared.states import ReplicationState
from shared.status import Cause

OLD, EPOCH, PROMOTED, PROPOSED = (letter * 16 for letter in (b"o", b"e", b"p", b"n"))
DISKS = (Geometry(0, 1 << 20, b"d" * 16),)
CUT, LATER = Position(EPOCH, 4, 40, b"c" * 16), Position(EPOCH, 6, 60, b"l" * 16)
LINEAGE = (Ancestor(EPOCH, OLD, 3),)

PRIMARY = PrimaryView(
    disks=DISKS, epoch=EPOCH, lineage=LINEAGE, tracking="on", log_epoch=EPOCH, first_segment=1, log_end=LATER, acked=CUT
)
REPLICA = ReplicaView(disks=DISKS, epoch=EPOCH, lineage=LINEAGE, received=CUT, cut=CUT, applied=CUT, host="beta")
FENCE = FenceRecord(
    epoch=PROMOTED, parent=EPOCH, parent_segment=4, received=PositionRecord.of(CUT), written=True, time=1.0, host="beta"
)
RECORD = ReplicationRecord(state=ReplicationState.FAILED_OVER, epoch=EPOCH, fenced="failed over at beta", fence=FENCE)


def judged(replica: dict[str, Any], primary: dict[str, Any], record: dict[str, Any]) -> tuple[bool, Decision]:
    ours = msgspec.structs.replace(RECORD, **record)
    view = ReplicaView(**{name: getattr(REPLICA, name) for name in REPLICA.__slots__} | replica)
    decision = decide(PrimaryView(**{name: getattr(PRIMARY, name) for name in PRIMARY.__slots__} | primary), view)
    return is_undone(ours, view, decision), decision


def asking(code: ResyncCause) -> dict[str, Any]:
    return {"needs_resync": True, "causes": ((code.value, "found"),)}


def proposed() -> ResyncRecord:
    end = PositionRecord.of(Position(PROPOSED, 2, 9, b"x" * 16))
    return ResyncRecord(
        id=b"r" * 16, epoch=PROPOSED, kind=ResyncKind.RESYNC, parent=EPOCH, parent_segment=4, started_time=0.0, end=end
    )


END = Position(PROPOSED, 2, 9, b"x" * 16)
HEARD = {"epoch": PROPOSED, "lineage": (*LINEAGE, Ancestor(PROPOSED, EPOCH, 4)), "received": END}
UNHEARD = {"resync": proposed(), "fence": msgspec.structs.replace(FENCE, received=PositionRecord.of(END))}
BEHIND = {"received": Position(EPOCH, 3, 30, b"b" * 16)}


@pytest.mark.parametrize(
    ("replica", "primary", "record"),
    [
        ({}, {}, {}),
        ({}, {"log_end": CUT}, {}),
        ({}, {"tracking": "map", "lost_reason": "The log was full."}, {}),
        ({}, {"required": True}, {"causes": [Cause(code="chain", text="as before", time=1.0)]}),
        (asking(ResyncCause.REPLICA_DAMAGED), {}, {}),
        ({}, {}, {"fence": None}),
        ({}, {}, {"fence": msgspec.structs.replace(FENCE, received=None)}),
        (HEARD, {"proposed": PROPOSED}, UNHEARD),
    ],
    ids=[
        "log",
        "nothing written",
        "log overrun",
        "resync required",
        "asked for a resync",
        "told by an older version",
        "not known what was received",
        "commit unheard",
    ],
)
def test_lifts(replica: dict[str, Any], primary: dict[str, Any], record: dict[str, Any]) -> None:
    lifts, decision = judged(replica, primary, record)
    assert lifts, decision


@pytest.mark.parametrize(
    ("replica", "primary", "record"),
    [
        ({"promoted": True}, {}, {}),
        ({"epoch": PROMOTED, "lineage": (*LINEAGE, Ancestor(PROMOTED, EPOCH, 4))}, {}, {}),
        ({"epoch": PROMOTED, "lineage": (Ancestor(PROMOTED, OLD, 3),)}, {}, {}),
        ({"epoch": OLD, "lineage": ()}, {}, {}),
        ({"epoch": bytes(16), "lineage": (), "received": None, "cut": None, "applied": None}, {}, {}),
        (asking(ResyncCause.REVERSED) | {"common": CUT}, {}, {}),
        (asking(ResyncCause.REVERSED), {}, {}),
        (asking(ResyncCause.STATE_LOST), {}, {}),
        (BEHIND, {}, {}),
        (BEHIND, {"tracking": "map", "lost_reason": "The log was full."}, {}),
        (BEHIND, {"required": True}, {"causes": [Cause(code="chain", text="as before", time=1.0)]}),
        (BEHIND | asking(ResyncCause.REPLICA_DAMAGED), {}, {}),
        ({"received": None}, {"tracking": "map"}, {}),
        ({"host": "gamma"}, {}, {}),
        (HEARD | asking(ResyncCause.STATE_LOST), {"proposed": PROPOSED}, UNHEARD),
        ({"received": Position(EPOCH, 9, 90, b"b" * 16)}, {}, {}),
        ({"disks": (Geometry(0, 1 << 20, b"o" * 16),)}, {}, {}),
        ({}, {"rebuilt": True}, {"recovered": Cause(code="state_lost", text="lost", time=1.0)}),
    ],
    ids=[
        "still promoted", "history goes on", "another history", "older baseline", "removed", "given up for this side",
        "given up, no common cut", "replica lost its state", "replica brought back", "brought back, log overrun here",
        "brought back, resync required here", "brought back and damaged", "tells no position", "another host",
        "replica lost its state, commit unheard", "this side brought back",
        "other disks", "this side rebuilt",
    ],
)  # fmt: skip
def test_waits_for_an_administrator(replica: dict[str, Any], primary: dict[str, Any], record: dict[str, Any]) -> None:
    lifts, decision = judged(replica, primary, record)
    assert not lifts, decision
