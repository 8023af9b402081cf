"""Progress as a block, as single lines, and how work ends."""

from __future__ import annotations

import pytest

from shared.cli.progress import (
    PlainProgress,
    is_working,
    outcome,
    percent,
    progress_line,
    progress_lines,
    short_progress,
)
from shared.progress_status import HeldBack, ProgressStatus
from shared.status import Cause, LinkStatus, VmStatus
from tests.unit.cli.samples import NOW, healthy, replica, resynchronizing, two_disks

GIB = 1 << 30


def at(done: int, phase: str = "comparing") -> VmStatus:
    """A resync that has compared ``done`` percent."""
    progress = ProgressStatus(kind="resync", phase=phase, total_bytes=100 * GIB, done_bytes=done * GIB)
    return resynchronizing(progress=progress)


def test_what_is_held_back_for_the_guest() -> None:
    held = HeldBack(rate_bytes_per_second=38 << 20, latency_seconds=0.0021, usual_latency_seconds=0.0006)
    for told, text in (
        (held, "backs off for the guest: 38.0 MiB/s, guest latency 2.1 ms, usual 0.6 ms"),
        (HeldBack(rate_bytes_per_second=4 << 20), "backs off for the guest: 4.0 MiB/s"),
        (
            HeldBack(rate_bytes_per_second=0, measuring=True),
            "backs off for the guest: reads nothing for a moment, to measure its latency",
        ),
    ):
        vm = at(50)
        assert vm.progress is not None
        vm.progress.held_back = told
        assert f"  {text}" in progress_lines(vm, 100)
        assert progress_line(vm).endswith(f"; {text}")


def test_block() -> None:
    assert progress_lines(resynchronizing(), 100) == [
        "db  resynchronization: comparing",
        "  [███████████████░░░░░░░░░░░░░░░]  52.5 %  4.2 GiB of 8.0 GiB  400.0 MiB/s  9 s left",
        "  compared 4.0 GiB, different 1.0 GiB, sent 1.0 GiB, on the wire 700.0 MiB",
        "  saved against a full copy: 3.3 GiB (82.9 % of 4.0 GiB)",
    ]


def test_block_tells_how_fast_the_wire_is() -> None:
    progress = ProgressStatus(kind="resync", phase="comparing", wire_rate_bytes_per_second=float(3 << 20))
    lines = progress_lines(resynchronizing(progress=progress), 100)
    assert lines[2] == "  compared 0 B, different 0 B, sent 0 B, on the wire 0 B at 3.0 MiB/s"


def test_block_of_several_disks_with_trouble() -> None:
    vm = resynchronizing(
        progress=ProgressStatus(kind="initial", phase="waiting", text="The replica is full.", disks=two_disks()),
        link=LinkStatus(connected=False, last_error="Connection refused.", next_attempt_seconds=4.0),
    )
    assert progress_lines(vm, 100) == [
        "db  initial replication: waiting",
        "  [                              ]",
        "  compared 0 B, different 0 B, sent 0 B, on the wire 0 B",
        "  disk 0: 100 % compared, 64.0 KiB different, 64.0 KiB sent",
        "  disk 1: 0 % compared, 0 B different, 0 B sent",
        "  The replica is full.",
        "  not connected: Connection refused (next attempt in 4 s)",
    ]


def test_block_is_cut_to_the_terminal() -> None:
    assert all(len(line) <= 50 for line in progress_lines(resynchronizing(), 50))


def test_line() -> None:
    assert progress_line(resynchronizing()) == (
        "db: resynchronization, comparing, 52 % (4.2 GiB of 8.0 GiB), 400.0 MiB/s, 9 s left"
    )
    waiting = resynchronizing(progress=None, link=LinkStatus(last_error="refused", next_attempt_seconds=2.0))
    assert progress_line(waiting) == "db: Resynchronizing; not connected: refused (next attempt in 2 s)"


def test_cell() -> None:
    assert short_progress(None) == ""
    assert short_progress(resynchronizing().progress) == "52 % (9 s left)"
    assert short_progress(ProgressStatus(kind="merge", phase="merging")) == "merging"


def test_percent_never_passes_100() -> None:
    assert percent(ProgressStatus(kind="x", phase="x", total_bytes=10, done_bytes=11)) == 100
    assert percent(ProgressStatus(kind="x", phase="x")) is None


@pytest.mark.parametrize(
    "steps, told",
    [
        ([(0.0, 0), (0.5, 1), (1.0, 4), (1.5, 5), (2.0, 5), (2.5, 5)], [0.0, 2.0]),
        ([(0.0, 0), (1.0, 50), (2.0, 60), (3.0, 61)], [0.0, 2.0]),
        ([(0.0, 10), (30.0, 10), (59.9, 11), (60.0, 11), (100.0, 12)], [0.0, 60.0]),
        ([(0.0, 50), (5.0, 20)], [0.0, 5.0]),
    ],
    ids=["every 5 percent", "at most every 2 seconds", "once a minute in any case", "backwards too"],
)
def test_when_a_log_gets_a_line(steps: list[tuple[float, int]], told: list[float]) -> None:
    plain = PlainProgress()
    assert [now for now, done in steps if plain.line(at(done), now) is not None] == told


def test_new_phase_gets_its_line_at_once() -> None:
    plain = PlainProgress()
    assert plain.line(at(10), 0.0) is not None
    assert plain.line(at(10, "committing"), 0.1) is not None
    assert plain.line(at(10, "committing"), 0.2) is None


@pytest.mark.parametrize(
    "vm, succeeded",
    [
        (resynchronizing(), None),
        (resynchronizing(progress=None), None),
        (healthy(state="InitialReplicationInProgress", state_code=2), None),
        (healthy(), True),
        (replica(state="FailedOverWaitingCompletion", state_code=6), True),
        (healthy(state="WaitingForStartResynchronize", state_code=10, reasons=["Why."]), False),
        (healthy(state="ResynchronizeSuspended", state_code=12), False),
        (healthy(state="FailedOver", state_code=7), False),
    ],
)
def test_how_work_ends(vm: VmStatus, succeeded: bool | None) -> None:
    end = outcome(vm)
    assert (end.succeeded if end is not None else None) is succeeded
    assert is_working(vm) is (succeeded is None)


def test_problem_that_does_not_heal_ends_the_work() -> None:
    problem = Cause(code="geometry", text="Disk 0 has another size.", time=NOW, remedy="Resize it.")
    end = outcome(resynchronizing(problem=problem, reasons=[problem.text], remedy=problem.remedy))
    assert end is not None
    assert (end.succeeded, end.text, end.remedy) == (False, "Disk 0 has another size.", "Resize it.")
