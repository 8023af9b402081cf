"""The session's decision, case by case as plain data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.hrl import Geometry
from protocol.position import NO_EPOCH, Ancestor, Position
from shared.geometry import compare_geometry
from shared.planning import (
    AwaitReverse,
    CommitConfirmed,
    Decision,
    Fenced,
    GeometryMismatch,
    GoOnWithResync,
    InitialRequired,
    NextRound,
    RestartResync,
    Resume,
    ResyncCause,
    ResyncRequired,
    SplitBrain,
    Unrelated,
    decide,
    wrote_since,
)
from shared.sides import OpenResync, PrimaryView, ReplicaView

DISK = Geometry(0, 1 << 30, b"d" * 16)
SECOND = Geometry(1, 1 << 20, b"e" * 16)
OLD, NOW, NEXT, OTHER, FORMER = (bytes([n]) * 16 for n in (1, 2, 3, 4, 5))
LINEAGE = (Ancestor(OLD, NO_EPOCH, 0), Ancestor(NOW, OLD, 5))


def at(segment: int, entry: int, epoch: bytes = NOW) -> Position:
    return Position(epoch, segment, entry, bytes([segment % 256]) * 16)


PRIMARY = PrimaryView(
    disks=(DISK, SECOND),
    epoch=NOW,
    lineage=LINEAGE,
    tracking="on",
    log_epoch=NOW,
    first_segment=10,
    log_end=at(20, 200),
    acked=at(12, 120),
)
REPLICA = ReplicaView(
    disks=(DISK, SECOND), epoch=NOW, lineage=LINEAGE, received=at(15, 150), applied=at(14, 140), host="b"
)


def cause_of(decision: Decision) -> ResyncCause:
    assert isinstance(decision, ResyncRequired), decision
    assert decision.text
    return decision.cause


def test_the_same_baseline_resumes_from_the_replicas_position() -> None:
    assert decide(PRIMARY, REPLICA) == Resume(at(15, 150))


def test_the_oldest_kept_segment_may_directly_follow_the_replicas_cut() -> None:
    """R11: contiguous means cut + 1 is the oldest kept."""
    primary = replace(PRIMARY, acked=None)
    assert decide(primary, replace(REPLICA, received=at(9, 90))) == Resume(at(9, 90))
    behind = decide(primary, replace(REPLICA, received=at(8, 80)))
    assert cause_of(behind) is ResyncCause.REPLICA_BEHIND


@pytest.mark.parametrize("received", [at(21, 200), at(20, 201), at(20, 200, OTHER)])
def test_a_position_this_primary_never_reached_means_it_was_reverted(received: Position) -> None:
    """R34."""
    decision = decide(PRIMARY, replace(REPLICA, received=received))
    assert cause_of(decision) is ResyncCause.PRIMARY_REVERTED


def test_a_replica_behind_its_own_acknowledgement_was_reverted() -> None:
    """I5: the replica's cut never goes back within an epoch."""
    decision = decide(PRIMARY, replace(REPLICA, received=at(11, 110)))
    assert cause_of(decision) is ResyncCause.REPLICA_REVERTED


@pytest.mark.parametrize(
    ("tracking", "log_epoch", "cause"),
    [
        ("lost", NOW, ResyncCause.TRACKING_LOST),
        ("off", NO_EPOCH, ResyncCause.TRACKING_OFF),
        ("on", OTHER, ResyncCause.TRACKING_OFF),
    ],
)
def test_nothing_is_resumed_without_unbroken_tracking(tracking: str, log_epoch: bytes, cause: ResyncCause) -> None:
    """I3."""
    decision = decide(replace(PRIMARY, tracking=tracking, log_epoch=log_epoch), REPLICA)
    assert cause_of(decision) is cause


def test_a_cause_on_record_is_not_forgotten_because_positions_fit() -> None:
    decision = decide(replace(PRIMARY, required=True), REPLICA)
    assert isinstance(decision, ResyncRequired)


def test_a_replica_that_asks_gets_a_resync() -> None:
    assert cause_of(decide(PRIMARY, replace(REPLICA, needs_resync=True))) is ResyncCause.REPLICA_REQUEST


def test_two_fresh_sides_need_an_initial_replication() -> None:
    fresh = PrimaryView(disks=(DISK,))
    assert decide(fresh, ReplicaView(disks=())) == InitialRequired()
    assert decide(fresh, ReplicaView(disks=(DISK,))) == InitialRequired()


def test_an_emptied_replica_needs_a_whole_resync() -> None:
    decision = decide(PRIMARY, ReplicaView(disks=()))
    assert cause_of(decision) is ResyncCause.REPLICA_EMPTY


def test_a_baseline_that_this_primary_never_made_is_unrelated() -> None:
    assert isinstance(decide(PrimaryView(disks=(DISK, SECOND)), REPLICA), Unrelated)


def test_a_lost_answer_to_a_commit_is_found_by_the_proposed_epoch() -> None:
    """R33."""
    primary = replace(PRIMARY, proposed=NEXT, resync=OpenResync(b"r" * 16, NEXT), log_epoch=NEXT, required=True)
    replica = replace(REPLICA, epoch=NEXT, lineage=(*LINEAGE, Ancestor(NEXT, NOW, 15)), received=at(3, 30, NEXT))
    assert decide(primary, replica) == CommitConfirmed(NEXT)


def test_an_initial_commit_with_a_lost_answer_is_found_as_well() -> None:
    """R33."""
    primary = PrimaryView(disks=(DISK,), proposed=NEXT, resync=OpenResync(b"r" * 16, NEXT), tracking="on")
    replica = ReplicaView(disks=(DISK,), epoch=NEXT, lineage=(Ancestor(NEXT, NO_EPOCH, 0),))
    assert decide(primary, replica) == CommitConfirmed(NEXT)


def test_an_uncommitted_proposal_goes_on_with_its_resync() -> None:
    resync = OpenResync(b"r" * 16, NEXT)
    primary = replace(PRIMARY, proposed=NEXT, resync=resync, log_epoch=NEXT, log_end=at(3, 30, NEXT))
    known = replace(REPLICA, resync=OpenResync(resync.id, NEXT, 4096))
    assert decide(primary, known) == GoOnWithResync(resync.id, NEXT, True)
    assert decide(primary, REPLICA) == GoOnWithResync(resync.id, NEXT, False)
    other = replace(REPLICA, resync=OpenResync(b"s" * 16, NEXT))
    assert decide(primary, other) == GoOnWithResync(resync.id, NEXT, False)


@pytest.mark.parametrize(("tracking", "log_epoch"), [("lost", NEXT), ("on", NOW), ("off", NEXT)])
def test_a_resync_whose_tracking_was_lost_starts_anew(tracking: str, log_epoch: bytes) -> None:
    """R10."""
    primary = replace(PRIMARY, resync=OpenResync(b"r" * 16, NEXT), tracking=tracking, log_epoch=log_epoch)
    assert isinstance(decide(primary, REPLICA), RestartResync)


def in_round(number: int, epoch: bytes, **more: Any) -> ReplicaView:
    return replace(REPLICA, resync=OpenResync(b"r" * 16, epoch, 4096, number, **more))


@pytest.mark.parametrize(("log_epoch", "held"), [(NEXT, 2), (NEXT, 1), (FORMER, 1)])
def test_a_lost_log_that_a_map_has_replaced_may_lead_to_another_round(log_epoch: bytes, held: int) -> None:
    """R32: also where this side had begun a round on record, and no more of it."""
    ours = OpenResync(b"r" * 16, NEXT, round=2, former=FORMER)
    primary = replace(PRIMARY, resync=ours, tracking="map", log_epoch=log_epoch, lost_reason="it is full")
    replica = in_round(held, NEXT if held == 2 else FORMER)
    assert replica.resync is not None
    assert decide(primary, replica) == NextRound(replica.resync, "it is full")


@pytest.mark.parametrize(
    ("tracking", "log_epoch", "replica"),
    [
        ("map", NOW, in_round(2, NEXT)),
        ("lost", NEXT, in_round(2, NEXT)),
        ("map", NEXT, REPLICA),
        ("map", NEXT, replace(REPLICA, resync=OpenResync(b"s" * 16, NEXT, 4096, 2))),
        ("map", NEXT, in_round(2, FORMER)),
        ("on", NEXT, in_round(3, NEXT)),
        ("map", NEXT, in_round(3, NEXT)),
    ],
    ids=["another log", "no map", "nothing there", "another one there", "another epoch", "ahead", "ahead in a map"],
)
def test_where_nothing_can_be_kept_it_starts_anew(tracking: str, log_epoch: bytes, replica: ReplicaView) -> None:
    ours = OpenResync(b"r" * 16, NEXT, round=2, former=FORMER)
    primary = replace(PRIMARY, resync=ours, tracking=tracking, log_epoch=log_epoch)
    assert isinstance(decide(primary, replica), RestartResync)


def test_a_round_that_the_replica_has_not_heard_of_goes_on_with_what_it_has() -> None:
    """R35: what it has settled is known, and told to be unsettled before anything counts."""
    ours = OpenResync(b"r" * 16, NEXT, round=2, former=FORMER)
    primary = replace(PRIMARY, resync=ours, log_epoch=NEXT, log_end=at(3, 30, NEXT))
    assert decide(primary, in_round(1, FORMER)) == GoOnWithResync(b"r" * 16, NEXT, True)
    assert decide(primary, in_round(2, NEXT, unsettle=True)) == GoOnWithResync(b"r" * 16, NEXT, True)


def promoted(parent_segment: int, *, flag: bool) -> ReplicaView:
    return replace(
        REPLICA, promoted=flag, epoch=NEXT, lineage=(*LINEAGE, Ancestor(NEXT, NOW, parent_segment)), resync=None
    )


@pytest.mark.parametrize("flag", [True, False])
def test_a_promoted_replica_fences_a_primary_that_stood_still(flag: bool) -> None:
    """I8: whether or not the replica says so, its history goes on from ours."""
    primary = replace(PRIMARY, acked=at(19, 200), log_end=at(20, 200))
    decision = decide(primary, promoted(19, flag=flag))
    assert isinstance(decision, Fenced)
    assert decision.epoch == NEXT
    assert "failed over at b" in decision.text


@pytest.mark.parametrize(
    "primary",
    [
        replace(PRIMARY, acked=at(19, 190), log_end=at(20, 200)),
        replace(PRIMARY, acked=at(18, 200), log_end=at(20, 200)),
        replace(PRIMARY, acked=at(19, 200), log_end=at(20, 200), tracking="lost"),
        replace(PRIMARY, acked=None),
    ],
    ids=["wrote", "promoted cut unknown here", "tracking lost", "nothing acknowledged"],
)
def test_a_promoted_replica_and_a_primary_that_went_on_are_split(primary: PrimaryView) -> None:
    """I8: what can't be proven unmoved counts as moved."""
    assert isinstance(decide(primary, promoted(19, flag=True)), SplitBrain)


def test_fencing_comes_before_an_open_resync_and_before_geometry() -> None:
    """I8: an older primary is told, whatever else it had in mind."""
    primary = replace(PRIMARY, resync=OpenResync(b"r" * 16, OTHER), log_epoch=OTHER, proposed=OTHER)
    assert isinstance(decide(primary, replace(promoted(19, flag=False), disks=(DISK,))), SplitBrain)


def test_histories_that_parted_are_split_brain_and_strangers_are_unrelated() -> None:
    """R15."""
    parted = replace(REPLICA, epoch=OTHER, lineage=(Ancestor(OLD, NO_EPOCH, 0), Ancestor(OTHER, OLD, 5)))
    assert isinstance(decide(PRIMARY, parted), SplitBrain)
    stranger = replace(REPLICA, epoch=OTHER, lineage=(Ancestor(OTHER, NO_EPOCH, 0),))
    assert isinstance(decide(PRIMARY, stranger), Unrelated)


def test_a_replica_at_an_older_baseline_was_reverted() -> None:
    replica = replace(REPLICA, epoch=OLD, lineage=LINEAGE[:1], received=at(5, 50, OLD))
    assert cause_of(decide(PRIMARY, replica)) is ResyncCause.REPLICA_REVERTED


HAD = at(19, 190)
TURNED = replace(
    PRIMARY, epoch=NEXT, lineage=(*LINEAGE, Ancestor(NEXT, NOW, 19)), tracking="map", log_epoch=NEXT, reversal=HAD
)
REVERSED = replace(REPLICA, common=HAD, needs_resync=True, causes=(("reversed", "The direction was reversed."),))


def test_a_former_primary_is_the_replica_once_it_says_so() -> None:
    """R15, R41: the cut that both have is told, and what either changed since is compared."""
    decision = decide(TURNED, REVERSED)
    assert cause_of(decision) is ResyncCause.REVERSED
    assert isinstance(decision, ResyncRequired) and str(HAD) in decision.text
    # A failover that was given up: the replica's epoch is ours again.
    assert cause_of(decide(replace(PRIMARY, tracking="map"), REVERSED)) is ResyncCause.REVERSED
    unproven = decide(TURNED, replace(REVERSED, common=None))
    assert cause_of(unproven) is ResyncCause.REVERSED
    assert isinstance(unproven, ResyncRequired) and "all is compared" in unproven.text


def test_a_former_primary_that_was_not_reversed_is_waited_for() -> None:
    """Its replica agent makes an empty copy for whoever connects; nothing is to be copied to that."""
    empty = ReplicaView(disks=REPLICA.disks)
    assert isinstance(decide(TURNED, empty), AwaitReverse)
    assert cause_of(decide(replace(TURNED, reversal=None), empty)) is ResyncCause.REPLICA_EMPTY


def test_what_only_looks_like_a_reversal_is_none() -> None:
    """I8: a stranger's word joins no histories, and disks of other sizes are compared wholly."""
    stranger = replace(REVERSED, epoch=OTHER, lineage=(Ancestor(OTHER, NO_EPOCH, 0),))
    assert isinstance(decide(TURNED, stranger), Unrelated)
    assert cause_of(decide(TURNED, replace(REVERSED, causes=()))) is ResyncCause.REPLICA_REVERTED
    grown = replace(TURNED, disks=(replace(DISK, size=DISK.size + 512), *PRIMARY.disks[1:]))
    assert cause_of(decide(grown, REVERSED)) is ResyncCause.REPLICA_REVERTED


LARGER = replace(DISK, size=DISK.size + 512)


def test_a_disk_that_grew_requires_a_compare_of_everything_and_only_growth_does() -> None:
    grown = replace(PRIMARY, disks=(LARGER, *PRIMARY.disks[1:]))
    decision = decide(grown, REPLICA)
    assert cause_of(decision) is ResyncCause.DISK_GROWN
    assert isinstance(decision, ResyncRequired)
    assert decision.evidence["changes"] == [{"disk": 0, "part": "size_bytes", "old": DISK.size, "new": DISK.size + 512}]
    # Also where one is required already: it is a cause of its own, and nothing bounds it.
    assert cause_of(decide(replace(grown, required=True), REPLICA)) is ResyncCause.DISK_GROWN
    # An open resync of the former size begins anew.
    open_resync = replace(grown, resync=OpenResync(b"r" * 16, PRIMARY.log_epoch))
    restart = decide(open_resync, REPLICA)
    assert isinstance(restart, RestartResync) and str(LARGER.size) in restart.reason
    # The other way round nothing is sent.
    assert isinstance(decide(PRIMARY, replace(REPLICA, disks=(LARGER, *REPLICA.disks[1:]))), GeometryMismatch)


THIRD = Geometry(2, 1 << 20, b"f" * 16)


@pytest.mark.parametrize("disks", [(DISK, SECOND, THIRD), (DISK,), (DISK, THIRD), (LARGER, THIRD)])
def test_a_newer_set_of_disks_requires_a_resync_and_any_other_one_is_refused(disks: tuple[Geometry, ...]) -> None:
    """I9: the replica follows what came and went at the primary, and nobody else's disks or older ones."""
    replica = replace(REPLICA, disk_set=4)
    changed = replace(PRIMARY, disks=disks, disk_set=5, tracking="map", lost_reason="disk 2 was added")
    decision = decide(changed, replica)
    assert cause_of(decision) is ResyncCause.TRACKING_LOST, "what the map names bounds it"
    assert isinstance(decision, ResyncRequired) and "disk 2 was added" in decision.text
    # With a log that goes on nothing names what the replica lacks: it was brought back to an earlier state.
    assert cause_of(decide(replace(changed, tracking="on"), replica)) is ResyncCause.DISKS_CHANGED
    # The resync is open, and the replica has not heard of it.
    open_resync = replace(changed, tracking="on", log_epoch=NEXT, resync=OpenResync(b"r" * 16, NEXT))
    assert decide(open_resync, replica) == GoOnWithResync(b"r" * 16, NEXT, known=False)
    for other in (replace(changed, disk_set=4), replace(changed, disk_set=3)):
        assert isinstance(decide(other, replica), GeometryMismatch)
    assert isinstance(decide(changed, REPLICA), GeometryMismatch), "a replica that does not know of sets"
    foreign = replace(changed, disks=(replace(DISK, uuid=b"x" * 16), *disks[1:]))
    assert isinstance(decide(foreign, replica), GeometryMismatch)
    smaller = replace(changed, disks=(replace(DISK, size=512), THIRD))
    assert isinstance(decide(smaller, replica), GeometryMismatch)
    assert isinstance(decide(replace(changed, disks=(THIRD,)), replica), GeometryMismatch), "none in common"


def test_a_disk_that_was_enlarged_by_order_requires_no_more_than_what_the_map_names() -> None:
    """The number of the set tells it from one that somebody else has enlarged; the replica's may have grown already."""
    replica = replace(REPLICA, disk_set=4)
    # In another order they are the same disks.
    enlarged = replace(PRIMARY, disks=(SECOND, LARGER), disk_set=5, tracking="map", lost_reason="disk 0 was enlarged")
    decision = decide(enlarged, replica)
    assert cause_of(decision) is ResyncCause.TRACKING_LOST
    assert isinstance(decision, ResyncRequired) and "disk 0 was enlarged" in decision.text
    assert cause_of(decide(enlarged, replace(replica, disks=(LARGER, SECOND)))) is ResyncCause.TRACKING_LOST
    assert cause_of(decide(replace(enlarged, tracking="on"), replica)) is ResyncCause.DISKS_CHANGED
    open_resync = replace(enlarged, tracking="on", log_epoch=NEXT, resync=OpenResync(b"r" * 16, NEXT))
    assert decide(open_resync, replica) == GoOnWithResync(b"r" * 16, NEXT, known=False)
    # Without a higher number nothing vouches for it, nor where the replica doesn't know of sets.
    for other in (replace(enlarged, disk_set=4), enlarged):
        assert cause_of(decide(other, replica if other is not enlarged else REPLICA)) is ResyncCause.DISK_GROWN
    turned = replace(PRIMARY, disks=PRIMARY.disks[::-1], disk_set=5)
    assert not isinstance(decide(turned, replica), ResyncRequired), "the same disks in another order have not grown"


def test_what_the_replica_found_is_our_evidence_also_beside_other_causes() -> None:
    replica = replace(REPLICA, needs_resync=True, causes=(("disk_changed", "Somebody wrote."),))
    for required in (False, True):
        decision = decide(replace(PRIMARY, required=required), replica)
        assert isinstance(decision, ResyncRequired)
        assert decision.text == "The replica asks for a resynchronization. Somebody wrote."
        assert decision.evidence["replica_causes"] == [{"code": "disk_changed", "text": "Somebody wrote."}]


def test_geometry_names_disk_and_both_sizes() -> None:
    """I9."""
    grown = replace(DISK, size=2 << 30)
    decision = decide(PRIMARY, replace(REPLICA, disks=(grown, SECOND)))
    assert isinstance(decision, GeometryMismatch)
    assert "disk 0 has 1073741824 bytes at the primary, 2147483648 bytes at the replica" in decision.text


@pytest.mark.parametrize(
    ("replica", "words"),
    [
        ((DISK,), "disk 1 (1048576 bytes) is missing at the replica"),
        ((DISK, SECOND, Geometry(2, 512, b"f" * 16)), "disk 2 (512 bytes) is only at the replica"),
        ((DISK, replace(SECOND, uuid=b"x" * 16)), "disk 1 is 65656565"),
    ],
)
def test_geometry_names_missing_surplus_and_foreign_disks(replica: tuple[Geometry, ...], words: str) -> None:
    """I9."""
    assert words in compare_geometry((DISK, SECOND), replica)


def test_wrote_since_counts_the_unknown_as_written() -> None:
    assert not wrote_since(PRIMARY, at(20, 200))
    assert wrote_since(PRIMARY, at(20, 199))
    assert wrote_since(PRIMARY, None)
    assert wrote_since(PRIMARY, at(20, 200, OTHER))


# --- a primary whose state was lost and rebuilt ----------------------------------------------------------------------

REBUILT = replace(PRIMARY, acked=None, rebuilt=True)


def test_rebuilt_primary_resumes_from_what_the_replica_tells() -> None:
    assert decide(REBUILT, REPLICA) == Resume(at(15, 150))


@pytest.mark.parametrize(
    "lineage", [(*LINEAGE, Ancestor(NEXT, NOW, 15)), (LINEAGE[0], Ancestor(NEXT, OLD, 5)), (Ancestor(NEXT, OTHER, 1),)]
)
@pytest.mark.parametrize("primary", [REBUILT, replace(REBUILT, epoch=NO_EPOCH, lineage=())], ids=["known", "none"])
def test_epoch_that_a_rebuilt_primary_does_not_know(primary: PrimaryView, lineage: tuple[Ancestor, ...]) -> None:
    """R33: whether ahead, aside or unrelated, it may be its own: a compare of everything, never a wrong "equal"."""
    replica = replace(REPLICA, epoch=NEXT, lineage=lineage, received=at(3, 30, NEXT))
    assert cause_of(decide(primary, replica)) is ResyncCause.HISTORY_LOST
    # Also where the tap tracks exactly that epoch.
    tracking = replace(primary, log_epoch=NEXT, log_end=at(20, 200, NEXT))
    assert cause_of(decide(tracking, replica)) is ResyncCause.HISTORY_LOST
    # The compare that was ordered goes on, whatever epoch it replaces.
    ordered = replace(primary, resync=OpenResync(b"r" * 16, OTHER), log_epoch=OTHER)
    assert decide(ordered, replica) == GoOnWithResync(b"r" * 16, OTHER, known=False)


def test_proposed_epoch_of_a_rebuilt_primary_is_confirmed() -> None:
    """R33: the description had it."""
    primary = replace(REBUILT, proposed=NEXT)
    replica = replace(REPLICA, epoch=NEXT, lineage=(*LINEAGE, Ancestor(NEXT, NOW, 15)))
    assert decide(primary, replica) == CommitConfirmed(NEXT)


def test_promoted_replica_fences_a_rebuilt_primary_as_well() -> None:
    """I8."""
    replica = replace(REPLICA, promoted=True, epoch=NEXT, lineage=(*LINEAGE, Ancestor(NEXT, NOW, 15)))
    assert isinstance(decide(REBUILT, replica), SplitBrain)


def test_older_baseline_is_named_also_by_a_rebuilt_primary() -> None:
    replica = replace(REPLICA, epoch=OLD, lineage=LINEAGE[:1])
    assert cause_of(decide(REBUILT, replica)) is ResyncCause.REPLICA_REVERTED
    empty = replace(REPLICA, epoch=NO_EPOCH, lineage=(), received=None)
    assert cause_of(decide(REBUILT, empty)) is ResyncCause.REPLICA_EMPTY
