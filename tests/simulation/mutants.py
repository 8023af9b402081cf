"""Planted bugs: each breaks one rule of the product, and the simulation must notice it within a few hundred seeds.

A net that has never caught anything proves nothing. A mutant is a patch of the real code, or of what a port promises,
that stands for a mistake which somebody might make. Where a second defence of the product would hide it, that defence
is left out as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.simulation import mutants_cancel as cancel
from tests.simulation import mutants_failover as failover
from tests.simulation import mutants_maps as maps
from tests.simulation import mutants_planned as planned
from tests.simulation import mutants_points as points
from tests.simulation import mutants_primary as primary
from tests.simulation import mutants_replica as replica
from tests.simulation import mutants_reversing as reversing
from tests.simulation import mutants_rounds as rounds
from tests.simulation import mutants_schedule as schedule
from tests.simulation import mutants_verify as verify
from tests.simulation.hooks import replaced
from tests.simulation.mutants_kit import Patch
from tests.simulation.options import FAULTS, Options, calm
from tests.simulation.oracle import Violation


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug. ``breaks`` are the invariants and rules one of which must be seen broken.

    ``weather`` are the options under which it shows soon; all faults that it does not name stay away. ``first`` is a
    seed that found it when it was planted; the search begins there, and need not end there.
    """

    plant: Callable[[], Sequence[Patch]]
    breaks: tuple[str, ...]
    weather: dict[str, float]
    first: int = 0

    @property
    def name(self) -> str:
        return self.plant.__name__

    def options(self, seed: int) -> Options:
        """The options of a seed in this mutant's weather."""
        return calm(seed, **self.weather)

    def is_told_by(self, failure: BaseException | None) -> bool:
        """Whether this is what the bug has to be noticed by."""
        return isinstance(failure, Violation) and str(failure).startswith(tuple(f"{one}:" for one in self.breaks))

    @property
    def rule(self) -> str:
        """What it breaks, and how, in a sentence."""
        return (self.plant.__doc__ or "").split("\n\n")[0].replace("\n", " ")

    def row(self) -> str:
        """Its line in the table of docs/simulation.md."""
        broken, _, taken_out = self.rule.partition(": ")
        faults = ", ".join(name for name in self.weather if name in FAULTS or name == "promote_at") or "none"
        return f"| `{self.name}` | {broken} | {taken_out} | {faults} | {self.first} |"

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The product with that bug in it, for a while."""
        with ExitStack() as stack:
            for owner, attribute, make in self.plant():
                stack.enter_context(replaced(owner, attribute, make))
            yield


BUSY = {"write_rate": 40.0, "in_flight": 12}
TAP_KILLS = {**BUSY, "kill_tap": 1.0, "aimed": 1.0}
REPLICA_KILLS = {**BUSY, "kill_replica": 1.0, "aimed": 1.0}
REPLICA_POWER = {**BUSY, "power_replica": 0.8, "aimed": 0.5}
PRIMARY_POWER = {
    "write_rate": 15.0,
    "in_flight": 4,
    "power_primary": 0.5,
    "zeroes": 0.05,
    "pages": 128,
    "seconds": 14.0,
}
LOG_FAILURES = {"write_rate": 15.0, "in_flight": 4, "log_errors": 1.0, "zeroes": 0.05, "pages": 128, "seconds": 14.0}
RESYNCS = {**BUSY, "resyncs": 0.5}
LONG_ZEROES = {**BUSY, "zeroes": 0.6, "stalls": 0.1}
VERIFIES = {**BUSY, "verifies": 2.0, "pages": 128, "seconds": 14.0}
OVERLAYS = {"overlays": 1.0, "newest": 4, "seconds": 14.0, "interval": 1.0}
KEPT = {"newest": 4, "hourly": 5, "seconds": 14.0, "interval": 1.0}
WINDOWS = {**BUSY, "windows": 2.0, "slow": 0.3, "pages": 128, "seconds": 14.0}
ROUNDS = {**BUSY, "resyncs": 1.0, "log_errors": 2.0, "zeroes": 0.5, "pages": 128, "seconds": 14.0}
PLANNED = {"write_rate": 15.0, "in_flight": 4, "prepares": 1.0, "promote_at": 3.0, "seconds": 14.0}
IDLE_FAILOVER = {"write_rate": 4.0, "in_flight": 1, "promote_at": 3.0, "seconds": 14.0}
FAILED_OVER = {"write_rate": 40.0, "in_flight": 4, "promote_at": 1.5, "ends": 0.5, "seconds": 6.0, "pages": 32}
REVERSED = {
    "promote_at": 1.5,
    "reversals": 0.001,
    "write_rate": 4.0,
    "in_flight": 4,
    "largest": 8,
    "zeroes": 0.05,
    "seconds": 4.0,
    "pages": 256,
    "kept": 0.0,
    "again": 0.0,
    "newest": 2,
    "slow": 0.005,
}
UNDONE = {**FAILED_OVER, "undone": 1.0, "ends": 2.0}

MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant(primary.flush_nosync, ("I4",), {**BUSY, "power_primary": 0.5}),
        Mutant(primary.no_recovery_reread, ("I1",), TAP_KILLS),
        Mutant(primary.no_write_ahead, ("I1", "I12"), TAP_KILLS, first=1),
        Mutant(primary.answer_early, ("I2",), {}),
        Mutant(primary.no_turns, ("R1", "I1", "I12"), LONG_ZEROES),
        Mutant(primary.no_drain, ("R6",), {**LONG_ZEROES, "resyncs": 2.0}, first=10),
        Mutant(primary.same_boot, ("I1", "I12"), {**BUSY, "power_primary": 0.5}, first=4),
        Mutant(primary.no_witness, ("I1", "I12"), {**BUSY, "kill_tap": 0.5, "foreign_edits": 1.0}),
        Mutant(primary.lost_not_marked, ("I1", "I12"), {**TAP_KILLS, "log_errors": 0.4}),
        Mutant(primary.release_early, ("I5",), {**BUSY, "resets": 0.5, "slow": 0.1}),
        Mutant(
            primary.propose_unstored,
            ("I12",),
            {"resyncs": 2.0, "kill_primary": 2.0, "slow": 0.1, "seconds": 14.0},
            first=4,
        ),
        Mutant(primary.track_late, ("I1",), BUSY),
        Mutant(primary.commit_unsettled, ("I1", "I6"), {**RESYNCS, "stalls": 0.02}, first=1),
        Mutant(primary.run_written_later, ("I16",), RESYNCS),
        Mutant(
            cancel.cancel_after_proposal,
            ("I12",),
            {"resyncs": 2.0, "stops": 4.0, "slow": 0.1, "kill_primary": 0.3, "resets": 0.5, "seconds": 14.0},
            first=155,
        ),
        Mutant(maps.hot_nosync, ("I1", "I12"), PRIMARY_POWER, first=94),
        Mutant(maps.no_hot_regions, ("I1", "I12"), PRIMARY_POWER, first=2),
        Mutant(maps.cooled_unsynced, ("I1", "I12"), PRIMARY_POWER, first=17),
        Mutant(maps.begun_over_unsynced, ("I1", "I12"), {**PRIMARY_POWER, "calm_start": False}, first=14),
        Mutant(maps.map_forgets_log, ("I1", "I12"), LOG_FAILURES),
        Mutant(maps.map_unmarked, ("I1", "I12"), LOG_FAILURES),
        Mutant(maps.map_dropped_early, ("I1", "I12"), {**LOG_FAILURES, "log_errors": 2.0, "slow": 0.1}),
        Mutant(
            maps.stale_map, ("I1", "I12"), {**LOG_FAILURES, "resyncs": 1.5, "stops": 2.0, "log_errors": 2.0}, first=13
        ),
        Mutant(maps.small_scope, ("I1", "I12"), LOG_FAILURES),
        Mutant(maps.lease_ignored, ("I1", "I12"), PRIMARY_POWER, first=18),
        Mutant(replica.spool_nosync, ("I5",), {}),
        Mutant(replica.spool_folder_nosync, ("I5",), {}),
        Mutant(replica.ack_early, ("I5",), {}),
        Mutant(replica.base_nosync, ("I6",), REPLICA_POWER),
        Mutant(
            replica.differencing_nosync,
            ("I6",),
            {**REPLICA_POWER, "log_errors": 1.0, "seconds": 14.0, "stalls": 0.02, "crash_at_sync": 0.05},
            first=83,
        ),
        Mutant(replica.apply_unmarked, ("I6",), {**REPLICA_POWER, **REPLICA_KILLS}),
        Mutant(replica.expose_early, ("I1",), RESYNCS),
        Mutant(replica.no_overlay, ("I1", "I6"), {**RESYNCS, "power_replica": 0.5}, first=1),
        Mutant(replica.recycle_early, ("I5", "I6"), REPLICA_KILLS, first=12),
        Mutant(replica.apply_over_gap, ("I1",), {**BUSY, "resets": 2.0, "replica_errors": 2.0}, first=1),
        Mutant(
            replica.promote_applied_only,
            ("I5",),
            {
                **BUSY,
                "promote_at": 4.0,
                "full_replica": 2.0,
                "zeroes": 0.05,
                "largest": 128,
                "slow": 0.005,
                "interval": 1.0,
            },
            first=6,
        ),
        Mutant(replica.no_fence, ("I5", "I8", "I12"), IDLE_FAILOVER, first=9),
        Mutant(rounds.round_settles_all, ("I1", "I12"), ROUNDS),
        Mutant(
            rounds.unsettled_told_early,
            ("I1", "I12"),
            {**ROUNDS, "log_errors": 0.6, "kill_replica": 0.6, "zeroes": 0.05},
            first=2,
        ),
        Mutant(
            rounds.unsettled_noted_early,
            ("I1", "I12"),
            {**ROUNDS, "log_errors": 0.6, "kill_replica": 1.0, "write_rate": 15.0, "zeroes": 0.05},
            first=9,
        ),
        Mutant(rounds.round_reads_the_base, ("I1", "I12"), ROUNDS),
        Mutant(rounds.map_forgotten_early, ("I1", "I12"), {**ROUNDS, "resyncs": 0.0, "zeroes": 0.05}, first=31),
        Mutant(
            rounds.kept_empty, ("I1", "I12"), {**ROUNDS, "resyncs": 0.0, "zeroes": 0.05, "kill_primary": 1.0}, first=0
        ),
        Mutant(points.export_not_preserved, ("I1",), {**BUSY, "exports": 0.5}),
        Mutant(
            points.export_unpinned,
            ("I1",),
            {**BUSY, "exports": 1.0, "kill_replica": 0.3, "newest": 1, "hourly": 0, "seconds": 14.0, "interval": 1.0},
            first=3,
        ),
        Mutant(points.overlay_unlisted, ("I4",), {**OVERLAYS, "kill_replica": 0.6}),
        Mutant(points.overlay_unsynced, ("I4",), {**OVERLAYS, "power_replica": 0.8}, first=20),
        Mutant(points.overlay_unfilled, ("I1", "I4"), OVERLAYS),
        Mutant(points.undo_nosync, ("I6", "R25"), {**REPLICA_POWER, **KEPT}),
        Mutant(points.undo_rebuilt, ("I1", "I6"), {**REPLICA_KILLS, **KEPT}),
        Mutant(points.newer_wins, ("I1",), {**BUSY, **KEPT}),
        Mutant(points.history_over_unsaved, ("I1",), {**BUSY, **KEPT}),
        Mutant(points.thinned_unmerged, ("I1",), {**BUSY, **KEPT}),
        Mutant(schedule.window_never_ends, ("schedule",), WINDOWS, first=98),
        Mutant(schedule.rests_for_ever, ("I12",), WINDOWS),
        Mutant(schedule.gate_left_open, ("I20",), {**RESYNCS, "partitions": 0.3, "resyncs": 2.0}),
        Mutant(schedule.put_off_forgotten, ("schedule",), {**WINDOWS, "put_off": 1.0}, first=10),
        Mutant(schedule.mode_ignored, ("schedule",), WINDOWS),
        Mutant(schedule.cancelled_starts_anew, ("schedule",), {**WINDOWS, "resyncs": 1.0, "stops": 2.0}),
        Mutant(planned.refusal_forgotten, ("R43",), {**PLANNED, "kill_tap": 1.0}),
        Mutant(planned.abort_unanswered, ("R43",), {**PLANNED, "partitions": 0.3}, first=2),
        Mutant(failover.map_before_data, ("I4",), {**FAILED_OVER, "power_replica": 0.8}, first=1),
        Mutant(failover.live_map_late, ("I2",), {**FAILED_OVER, "kill_replica": 1.0}),
        Mutant(failover.block_unfilled, ("R1", "I1", "I2"), FAILED_OVER),
        Mutant(failover.point_unlayered, ("R1", "I1", "I2", "I6"), {**FAILED_OVER, "older": 1.0}, first=5),
        Mutant(
            failover.reverse_map_of_points,
            ("R41",),
            {
                **BUSY,
                "promote_at": 4.0,
                "older": 1.0,
                "ends": 1.0,
                "full_replica": 2.0,
                "zeroes": 0.05,
                "largest": 128,
                "slow": 0.005,
                "interval": 1.0,
            },
            first=8,
        ),
        Mutant(failover.reverse_map_unsynced, ("R41",), {**FAILED_OVER, "older": 1.0}, first=5),
        Mutant(failover.undo_leaves_overlay, ("R42",), UNDONE),
        Mutant(failover.undo_keeps_epoch, ("R42",), UNDONE),
        Mutant(failover.settled_uncommitted, ("I1", "I6"), {**FAILED_OVER, "kill_replica": 1.0}, first=2),
        Mutant(failover.settled_unsynced, ("I4",), {**FAILED_OVER, "power_replica": 2.0}, first=23),
        Mutant(failover.settled_unmirrored, ("I1", "I2", "R1"), {**FAILED_OVER, "pages": 128, "stalls": 0.02}),
        Mutant(failover.overlay_dropped_early, ("I1", "I2", "R1"), FAILED_OVER),
        Mutant(failover.fence_untold, ("I12",), {**FAILED_OVER, "write_rate": 4.0}),
        Mutant(reversing.former_doubts_left_out, ("I1", "I12"), {**REVERSED, "stale": 1.0}),
        Mutant(reversing.own_doubts_left_out, ("I1", "I12"), REVERSED),
        Mutant(reversing.reverse_map_ignored, ("I1", "I12"), {**REVERSED, "older": 1.0, "interval": 1.0}, first=1),
        Mutant(reversing.doubts_not_settled, ("I1", "I12"), {**REVERSED, "stale": 1.0}),
        Mutant(reversing.loser_left_out, ("I1", "I12"), {**REVERSED, "kept": 1.0}, first=1),
        Mutant(reversing.loser_not_kept, ("R41",), {**REVERSED, "stale": 1.0}),
        Mutant(reversing.hand_over_undurable, ("I6",), {**REVERSED, "reversals": 2.0}),
        Mutant(reversing.let_go_forgotten, ("I6", "I8"), {**REVERSED, "reversals": 2.0}),
        Mutant(reversing.kept_while_failed_over, ("I6",), {**REVERSED, "kept": 1.0}, first=2),
        Mutant(reversing.split_brain_unnoticed, ("I8",), {**REVERSED, "stale": 1.0}, first=1),
        Mutant(reversing.loss_untold, ("I8",), {**REVERSED, "stale": 1.0}),
        Mutant(verify.verify_unlaid, ("R46",), VERIFIES),
        Mutant(verify.verify_late_unread, ("R46",), VERIFIES),
        Mutant(verify.verify_late_trusted, ("R46",), {**VERIFIES, "slow": 0.1}),
        Mutant(replica.no_redo, ("I1", "I6"), REPLICA_KILLS),
        Mutant(replica.sync_retried, ("I4", "I5", "I6"), {**BUSY, "replica_errors": 1.0}, first=2),
        Mutant(replica.session_behind_promotion, ("I5", "I8", "I12"), IDLE_FAILOVER, first=4),
        Mutant(replica.apply_not_retried, ("I12",), {**BUSY, "full_replica": 1.0, "replica_errors": 1.0}, first=2),
    )
}
