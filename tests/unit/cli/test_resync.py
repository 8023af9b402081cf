"""The verbs of ``resync``: plan, show, history and watch, as people and as machines read them."""

from __future__ import annotations

import json
from datetime import UTC

import msgspec

from shared.admin import verbs as admin
from shared.cli.console import Palette
from shared.cli.progress import progress_lines
from shared.cli.resync_text import history_lines, plan_lines, report_lines
from shared.cli.strip import strip_text
from shared.progress_status import DiskProgress, ProgressStatus, StripStatus
from shared.resync_runs import (
    COMMITTED,
    Forecast,
    Interruption,
    ResyncPlan,
    ResyncReport,
    Run,
    RunDisk,
    RunHistory,
    RunStep,
)
from shared.status import Cause, to_plain
from tests.unit.cli.conftest import Command
from tests.unit.cli.samples import NOW, OTHER_UUID, healthy, resynchronizing

MIB = 1 << 20
PLAIN = Palette(False)
FORECAST = Forecast(
    kind="resync", scope_bytes=8 << 30, read_bytes=4 << 30, different_bytes=40 * MIB, wire_bytes=41 * MIB,
    least_wire_bytes=MIB, most_wire_bytes=(4 << 30) + MIB, seconds=12.0, basis=["Half of it are holes.", "Rates."],
)  # fmt: skip


def a_run(**changes: object) -> Run:
    run = Run(
        number=7,
        id="a",
        epoch="b",
        kind="resync",
        started_time=NOW - 60,
        started_by="the administrator asked for it",
        causes=[Cause(code="gap", text="A cut is missing.", time=NOW - 90)],
        steps=[
            RunStep(name="sizes checked", time=NOW - 60),
            RunStep(name="compare begun", time=NOW - 59, disk=0, data={"first_block": 0, "last_block": 131071}),
            RunStep(
                name="compare ended",
                time=NOW - 40,
                disk=0,
                data={"blocks_compared": 131072, "blocks_sent": 512, "seconds": 14.0, "result": "success"},
            ),
        ],
        disks=[RunDisk(index=0, scope_bytes=8 << 30, compared_bytes=8 << 30, hole_bytes=4 << 30,
                       different_bytes=32 * MIB, sent_bytes=32 * MIB, settled_bytes=8 << 30)],
        wire_bytes=35 * MIB,
        active_seconds=15.0,
        compare_seconds=14.0,
        interruptions=[Interruption(time=NOW - 50, reason="the link was lost", resumed_time=NOW - 45)],
        interruption_count=1,
        forecast=FORECAST,
        result=COMMITTED,
        ended_time=NOW - 30,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(run, name, value)
    return run


def test_plan() -> None:
    plan = ResyncPlan(
        required=True, forecast=FORECAST, disk_bytes=8 << 30, obstacle="The link is down.", remedy="Look at it.",
        starts="An administrator starts it.",
    )  # fmt: skip
    assert plan_lines("db", plan, None) == [
        "db  resynchronization, required",
        "  compares       8.0 GiB of the disks' 8.0 GiB",
        "  reads          4.0 GiB here, and about as much at the replica",
        "  differs        40.0 MiB expected",
        "  on the wire    41.0 MiB expected; 1.0 MiB if nothing differs, 4.0 GiB if everything does",
        "  takes          about 12 s",
        "  may start now  no: The link is down. Look at it.",
        "  starts         An administrator starts it.",
        "  This rests on:",
        "  - Half of it are holes.",
        "  - Rates.",
    ]
    assert all(len(line) <= 60 for line in plan_lines("db", plan, 60))


def test_plan_with_a_sample_tells_how_sure_it_is() -> None:
    sampled = msgspec.structs.replace(
        FORECAST, different_low_bytes=28 * MIB, different_high_bytes=56 * MIB, wire_low_bytes=29 * MIB,
        wire_high_bytes=57 * MIB, seconds_low=11.0, seconds_high=14.0,
    )  # fmt: skip
    lines = plan_lines("db", ResyncPlan(forecast=sampled, may_start=True), None)
    assert "  differs        40.0 MiB expected; with 90 % certainty 28.0 MiB to 56.0 MiB" in lines
    assert "  takes          about 12 s; with 90 % certainty 11 s to 14 s" in lines
    assert any(line.endswith("everything does; with 90 % certainty 29.0 MiB to 57.0 MiB") for line in lines)


def test_show_with_an_open_run() -> None:
    report = ResyncReport(
        state="Resynchronizing",
        required=True,
        causes=[Cause(code="gap", text="A cut is missing.", time=NOW - 90, evidence={"expected": 5, "found": 7})],
        scope="whole disks",
        scope_bytes=8 << 30,
        disk_bytes=8 << 30,
        run=a_run(result="", ended_time=None),
        progress=resynchronizing().progress,
    )
    lines = report_lines("db", report, None, UTC)
    assert lines[:4] == [
        "db  Resynchronizing",
        "  A resynchronization is required:",
        "    2030-03-17 17:45:10  gap: A cut is missing.",
        "      evidence: expected 5, found 7",
    ]
    assert "  It compares whole disks: 8.0 GiB of 8.0 GiB." in lines
    assert "    2030-03-17 17:46:00  compare ended, disk 0: 131072 blocks compared, 512 sent in 14 s, success" in lines
    assert "    2030-03-17 17:45:50  the link was lost; goes on: 2030-03-17 17:45:55" in lines
    assert "  forecast and so far: read 4.0 GiB / 4.0 GiB, wire 41.0 MiB / 35.0 MiB, time 12 s / 15 s" in lines
    assert lines[-1] == "  now  comparing"


def test_show_names_each_disk_that_changed_with_its_old_and_new_value() -> None:
    changes = [
        {"disk": 0, "path": "/vm/a.raw", "part": "size_bytes", "old": 4194304, "new": 4194816},
        {"disk": 1, "path": "/b.raw", "part": "mtime_ns", "old": 1899999999000000001, "new": 1899999999000000010},
        {"disk": 2, "path": "", "part": "inode", "old": 7, "new": 8},
    ]
    evidence = {"reason": "disk_changed", "time": NOW - 90, "bounded": False, "changes": changes}
    asked = {"received": "5", "replica_causes": [{"code": "spool_damaged", "text": "It is torn."}]}
    causes = [
        Cause(code="tracking_lost", text="They differ.", time=NOW - 90, evidence=evidence),
        Cause(code="replica_request", text="It asks.", time=NOW - 80, evidence=asked),
        Cause(code="tracking_lost", text="Full.", time=NOW - 70, evidence={"doubt_bytes": 3 * MIB, "bounded": True}),
    ]
    lines = report_lines("db", ResyncReport(state="Waiting", required=True, causes=causes), None, UTC)
    assert lines[2:] == [
        "    2030-03-17 17:45:10  tracking_lost: They differ.",
        "      evidence: reason disk_changed, time 2030-03-17 17:45:10, bounded no",
        "      evidence: disk 0, /vm/a.raw: size was 4194304 bytes, is 4194816 bytes",
        "      evidence: disk 1, /b.raw: mtime was 2030-03-17T17:46:39.000000001Z, is 2030-03-17T17:46:39.000000010Z",
        "      evidence: disk 2: inode was 7, is 8",
        "    2030-03-17 17:45:20  replica_request: It asks.",
        "      evidence: received 5",
        "      evidence: replica causes: spool_damaged: It is torn.",
        "    2030-03-17 17:45:30  tracking_lost: Full.",
        "      evidence: doubt 3.0 MiB, bounded yes",
    ]


def test_more_rounds_than_one_are_told() -> None:
    lines = report_lines("db", ResyncReport(state="Replicating", last=a_run(rounds=3)), None, UTC)
    assert "  3 rounds: its log was lost, and what was written since was compared again" in lines
    progress = ProgressStatus(kind="resync", phase="comparing", round=3)
    assert progress_lines(resynchronizing(progress=progress), 70)[0].endswith("comparing, round 3")


def test_show_when_nothing_is_required() -> None:
    lines = report_lines("db", ResyncReport(state="Replicating", last=a_run()), None, UTC)
    assert lines[:4] == ["db  Replicating", "  No resynchronization is required.", "", "The last run"]
    assert lines[-1] == "  committed 2030-03-17 17:46:10"


def test_history() -> None:
    lines = history_lines("db", [a_run(), a_run(number=6, causes=[], forecast=None, result="")], UTC)
    assert [line.split() for line in lines[1:]] == [
        "RUN WHEN KIND CAUSE COMPARED DIFFERENT SENT WIRE (PLAN) TIME (PLAN) RESULT".split(),
        "7 2030-03-17 17:45:40 resync gap 8.0 GiB 32.0 MiB 32.0 MiB 35.0 MiB (41.0 MiB) 15 s (12 s) committed".split(),
        "6 2030-03-17 17:45:40 resync - 8.0 GiB 32.0 MiB 32.0 MiB 35.0 MiB - 15 s - open".split(),
    ]
    assert history_lines("db", []) == ["db has had no resynchronization and no initial replication yet."]


def strip(**parts: list[int]) -> StripStatus:
    """Six cells of 100 bytes; what is not given is 0."""
    kinds = ("equal", "different", "sent", "settled", "outside")
    return StripStatus(cell_bytes=100, **{kind: parts.get(kind, [0] * 6) for kind in kinds})


def test_strip_shows_every_kind() -> None:
    shown = strip(
        equal=[100, 99, 0, 0, 0, 0],
        different=[0, 1, 0, 0, 0, 0],
        sent=[0, 0, 5, 0, 0, 0],
        settled=[0, 0, 0, 80, 0, 0],
        outside=[0, 0, 0, 20, 100, 0],
    )
    assert strip_text(shown, 80, PLAIN) == "━◆▲■ ·"
    # Two cells in one column: a difference is never lost in what is equal.
    assert strip_text(shown, 3, PLAIN) == "◆▲·"
    assert len(strip_text(shown, 1, PLAIN)) == 1
    assert strip_text(strip(equal=[100] * 6), 6, Palette(True)) == "\x1b[32m━━━━━━\x1b[0m"


def test_live_view_has_the_strips() -> None:
    progress = ProgressStatus(
        kind="resync", phase="comparing", total_bytes=600, done_bytes=300,
        disks=[DiskProgress(index=0, total_bytes=600, compared_bytes=300, strip=strip(equal=[100] * 3 + [0] * 3))],
    )  # fmt: skip
    lines = progress_lines(resynchronizing(progress=progress), 70)
    assert "round" not in lines[0]
    assert lines[-2] == "  disk 0  ━━━···"
    assert lines[-1].startswith("          ━ equal")
    assert all(len(line) <= 70 for line in lines)


def test_verbs_ask_the_primary(vmreplica: Command) -> None:
    agent = vmreplica.agent("primary", [healthy()])
    plan = ResyncPlan(forecast=FORECAST, may_start=True, starts="An administrator starts it.")
    agent.answers = {
        admin.RESYNC_PLAN: to_plain(plan),
        admin.RESYNC_SHOW: to_plain(ResyncReport(state="Replicating", last=a_run())),
        admin.RESYNC_HISTORY: to_plain(RunHistory(runs=[a_run()])),
    }
    name = healthy().name
    ran = vmreplica("resync", "plan", name, "--sample")
    assert (ran.code, ran.lines[0]) == (0, f"{name}  resynchronization, not required")
    assert agent.calls[-1] == (admin.RESYNC_PLAN, {"vm": healthy().uuid, "sample": True, "blocks": 512})
    assert vmreplica("resync", "show", name).lines[0] == f"{name}  Replicating"
    assert "committed" in vmreplica("resync", "history", name, "--limit", "3").out
    assert agent.calls[-1] == (admin.RESYNC_HISTORY, {"vm": healthy().uuid, "limit": 3})
    for verb, key, value in (
        ("plan", "may_start", True),
        ("show", "state", "Replicating"),
        ("history", "runs", [to_plain(a_run())]),
    ):
        told = json.loads(vmreplica("resync", verb, name, "--json").out)
        assert (told["name"], told[key]) == (name, value)
    assert vmreplica("resync", "watch", name).lines == [f"{name} is not being resynchronized. {healthy().summary}"]


def test_watch_for_machines_tells_each_change_once(vmreplica: Command) -> None:
    agent = vmreplica.agent("primary", [resynchronizing()])

    def ends(asked: int) -> None:
        if asked > 4:
            agent.set_vm(healthy(name="db", uuid=OTHER_UUID))

    agent.on_status = ends
    ran = vmreplica("resync", "watch", "db", "--json")
    told = [json.loads(line) for line in ran.lines]
    assert ran.code == 0
    assert [(line["state"], line["outcome"] is None) for line in told] == [
        ("Resynchronizing", True),
        ("Replicating", False),
    ]
    assert told[0]["progress"]["compared_bytes"] == 4 << 30
    assert told[1]["outcome"]["succeeded"] is True
