"""When a lost log leads to another round of a resync, and which one (R32)."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from primary_agent.record import PositionRecord, ResyncRecord
from primary_agent.rounds import is_covered, next_round, round_text, unsettle_messages
from protocol.messages import MAX_SETTLED_RUNS, ResyncKind, Run
from protocol.position import NO_EPOCH
from shared.sides import OpenResync
from shared.tap_control import Doubt, LogUsage, Lost, LostReason, TapStatus, Tracking

ID, PARENT, FORMER, NOW, FRESH = (bytes([number]) * 16 for number in range(1, 6))
RESYNC = ResyncRecord(
    id=ID, kind=ResyncKind.RESYNC, epoch=NOW, parent=PARENT, parent_segment=3, started_time=1.0, round=2, former=FORMER
)
BOUNDED = msgspec.structs.replace(RESYNC, kind=ResyncKind.BOUNDED)
KEPT = msgspec.structs.replace(BOUNDED, kept_round=2)
HELD = OpenResync(ID, NOW, 4096, 2)
BEFORE = OpenResync(ID, FORMER, 4096, 1)


def status(base: bytes, segment: int = 0, *, lost: bytes = NOW, tracking: Tracking = Tracking.MAP) -> TapStatus:
    doubt = Doubt(
        base_epoch=base.hex(), base_segment=segment, end_segment=9, complete=True, catch_up=False, bytes=3 << 20
    )
    return TapStatus(
        vm="", name="", pid=1, version="", boot_id="", tracking=tracking, position=None, sealed=None, first_segment=0,
        lost=Lost(reason=LostReason.LOG_FULL, text="the log is full", time=1.0), epoch=lost.hex(),
        log=LogUsage(used=0, limit=0, files=0, file_bytes=0, folder=""), disks=[], interval=1.0, nbd_uri="",
        writes=0, bytes_written=0, last_write_time=None, doubt=doubt, hot_bytes=0, hot_regions=0, hot_region_bytes=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "resync", "held"),
    [
        (status(NOW), RESYNC, HELD),
        (status(FORMER), RESYNC, HELD),
        (status(FORMER), RESYNC, replace(HELD, unsettle=True)),
        (status(FORMER), RESYNC, BEFORE),
        (status(PARENT, 7), RESYNC, HELD),
        (status(FORMER, lost=FORMER), RESYNC, BEFORE),
        (status(PARENT, 7), BOUNDED, HELD),
        (status(PARENT, 7), BOUNDED, BEFORE),
        (status(NOW), KEPT, HELD),
        (status(PARENT, 7), KEPT, HELD),
    ],
    ids=[
        "fresh", "older", "untold", "unheard", "from before all", "not begun", "bounded", "bounded, unheard",
        "bounds are kept", "kept, and not forgotten",
    ],
)  # fmt: skip
def test_the_map_covers_what_was_written(found: TapStatus, resync: ResyncRecord, held: OpenResync) -> None:
    assert is_covered(found, resync, held)


@pytest.mark.parametrize(
    ("found", "resync", "held"),
    [
        (status(NOW, tracking=Tracking.LOST), RESYNC, HELD),
        (status(NOW, tracking=Tracking.ON), RESYNC, HELD),
        (status(NOW, 1), RESYNC, HELD),
        (status(NOW), RESYNC, replace(HELD, unsettle=True)),
        (status(NOW), RESYNC, BEFORE),
        (status(FORMER, lost=FORMER), RESYNC, HELD),
        (status(FRESH, lost=FRESH), RESYNC, HELD),
        (status(NOW), BOUNDED, HELD),
        (status(FORMER), BOUNDED, HELD),
        (status(NOW), KEPT, replace(HELD, unsettle=True)),
        (status(NOW), KEPT, BEFORE),
        (msgspec.structs.replace(status(NOW), doubt=None), RESYNC, HELD),
    ],
    ids=[
        "lost", "log", "begins late", "fresh but untold", "fresh but unheard", "ahead", "another log",
        "bounds are gone", "bounds of another", "kept but untold", "kept but unheard", "no map",
    ],
)  # fmt: skip
def test_the_map_may_lack_something(found: TapStatus, resync: ResyncRecord, held: OpenResync) -> None:
    assert not is_covered(found, resync, held)


def test_the_next_round_keeps_what_the_resync_is() -> None:
    """The baseline's parent stays that of the first round: nothing stood at the epochs between."""
    proposed = PositionRecord(epoch=NOW, segment=4, entry=5, chain=bytes(16))
    fresh = next_round(msgspec.structs.replace(RESYNC, end=proposed), NOW, FRESH)
    assert fresh == msgspec.structs.replace(RESYNC, round=3, epoch=FRESH, former=NOW, end=None)
    assert next_round(RESYNC, FORMER, FRESH) == msgspec.structs.replace(RESYNC, epoch=FRESH), "it was never begun"
    assert RESYNC.former != NO_EPOCH


def test_it_is_told_why_and_how_much() -> None:
    text = round_text("web", "resynchronization", RESYNC, status(NOW))
    assert "in round 2" in text
    assert "the log is full" in text
    assert "3.0 MiB" in text


@pytest.mark.parametrize("count", [0, 1, MAX_SETTLED_RUNS, MAX_SETTLED_RUNS + 1])
def test_everything_is_told_and_the_end_is_marked(count: int) -> None:
    ranges = [(2 * number << 16, 1 << 16) for number in range(count)]
    told = list(unsettle_messages(RESYNC, {3: ranges, 5: []}))
    assert [message.last for message in told] == [False] * (len(told) - 1) + [True]
    assert {(message.id, message.round) for message in told} == {(ID, 2)}
    assert [run for message in told for run in message.ranges] == [
        Run(disk=3, offset=offset, length=length) for offset, length in ranges
    ]
