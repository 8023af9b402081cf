"""Every state that failovers bring about: what each side tells of it, and a remedy that works as it is typed."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from shared.admin.audit import describe
from shared.cli.agents import Agent, judge_together, put_into
from shared.cli.arguments import build_parser
from shared.cli.console import Palette
from shared.cli.page import page_lines
from shared.failover_status import FailoverStatus, PlannedStatus, TestFailoverStatus
from shared.guest_status import ConsistencyStatus, DefinitionStatus
from shared.health import assessed
from shared.point_status import PointProof
from shared.states import PlannedStep, ReplicationState
from shared.status import Cause, ExportStatus, TapStatus, VmStatus, to_plain
from tests.unit.cli.samples import NOW, URI, agent, cut, healthy, replica

S = ReplicationState


def at(role: str, state: ReplicationState, **fields: Any) -> VmStatus:
    build = healthy if role == "primary" else replica
    told: dict[str, Any] = {"exports": [], "state": state.title, "state_code": int(state), "lag_seconds": 2.0, **fields}
    return assessed(build(**told), NOW)


def failover(**fields: Any) -> FailoverStatus:
    return FailoverStatus(time=NOW - 60, epoch="e", cut=cut(16, 31.0), **fields)


def cause(code: str = "x") -> Cause:
    return Cause(code=code, text="It is so.", time=NOW, remedy="Do it.")


def export(**fields: Any) -> ExportStatus:
    return ExportStatus(id="0a0b0c0d", uris=[URI], cut=cut(15, 61.0), **fields)


TEST = TestFailoverStatus(name="web-test", export="0a0b0c0d", point="0123/15", cut=cut(15, 61.0), started_time=NOW)

# what is so: role, state, what the status has; health, a word of the reasons, a word of the remedy, of the page
STATES: dict[str, tuple[str, ReplicationState, dict[str, Any], str, str, str, str]] = {
    "failed over, not committed": (
        "replica", S.FAILED_OVER_WAITING_COMPLETION,
        {"failover": failover(undoable=True, layered=True, written_bytes=9)},
        "Warning", "not replicated to another one", "failover web --commit", "not committed; 9 B written since",
    ),
    "committed, and settling": (
        "replica", S.FAILED_OVER, {"failover": failover(layered=True, settled_bytes=1 << 20, settling_bytes=4 << 20)},
        "Warning", "not replicated to another one", "reverse web` here and there",
        "1.0 MiB of about 4.0 MiB has settled",
    ),
    "settling is stuck": (
        "replica", S.FAILED_OVER, {"failover": failover(layered=True, trouble="no space")},
        "Critical", "can't settle in the disks: no space", "Check their volume", "committed;",
    ),
    "committed": (
        "replica", S.FAILED_OVER, {"failover": failover(committed_time=NOW)},
        "Warning", "not replicated to another one", "When alpha can be reached, run `vmreplica reverse web`",
        "to cut 16; kept for good",
    ),
    "being undone": (
        "replica", S.FAILED_OVER_WAITING_COMPLETION, {"failover": failover(layered=True, undoing=True)},
        "Warning", "is being undone", "events web", "being undone",
    ),
    "prepared": (
        "primary", S.PREPARED_FOR_FAILOVER,
        {"planned": PlannedStatus(step=PlannedStep.CONFIRMED, text="All is there.")},
        "Warning", "takes no writes here", "failover web --prepare --abort", "confirmed: All is there.",
    ),
    "prepared, at the replica": (
        "replica", S.REPLICATING,
        {"planned": PlannedStatus(step="prepared", text="alpha takes none.", token_sent=True)},
        "Warning", "prepared for a failover to this host", "Run `vmreplica failover web` here", "prepared: alpha",
    ),
    "aborted by force": (
        "primary", S.REPLICATING, {"planned": PlannedStatus(step=PlannedStep.FORCED, text="Forced.")},
        "Critical", "aborted by force", "test-connection beta:7443", "forced: Forced.",
    ),
    "no writes are taken, and nothing says why": (
        "primary", S.REPLICATING, {"tap": TapStatus(running=True, tracking="on", refused="prepared")},
        "Critical", "takes no writes", "--prepare --abort", "",
    ),
    "fenced": (
        "primary", S.FAILED_OVER, {"fenced": "It was failed over at beta."},
        "Critical", "failed over at beta", "reverse web` on both hosts", "fenced",
    ),
    "split brain": (
        "primary", S.FAILED_OVER, {"fenced": "It was failed over at beta.", "split_brain": True},
        "Critical", "failed over at beta", "resolve web --keep primary` on beta", "fenced",
    ),
    "resumed after a failover, and no answer yet": (
        "primary", S.REPLICATING, {"fenced": "It was failed over at beta."},
        "Warning", "was resumed after a failover to beta", "test-connection beta:7443",
        "Not protected: beta has not answered",
    ),
    "handed over, and not taken": (
        "primary", S.FAILED_OVER, {"handed_over": True, "fenced": "It was failed over at beta."},
        "Critical", "has not taken it yet", "reverse web` again", "",
    ),
    "handed over to the primary agent": (
        "replica", S.FAILED_OVER, {"handed_over": True}, "Normal", "", "", "Handed over",
    ),
    "a reversal waits for the other host": (
        "replica", S.WAITING_FOR_START_RESYNCHRONIZE, {"causes": [cause("reversed")]},
        "Critical", "Resynchronization is required", "reverse web` on alpha as well", "It is so.",
    ),
    "test failover": ("replica", S.REPLICATING, {"test_failover": TEST}, "Normal", "", "", "web-test, point 0123/15"),
    "test failover that fails": (
        "replica", S.REPLICATING, {"test_failover": TEST, "exports": [export(test=True, error="gone")]},
        "Warning", "The test failover of web can't be read: gone", "failover web --test --stop", "",
    ),
    "export without room": (
        "replica", S.REPLICATING, {"exports": [export(writable=True, full=True, written_bytes=9)]},
        "Warning", "The export 0a0b0c0d of web finds no room", "unexport web 0a0b0c0d", "finds no room for more",
    ),
    "a point is wrong": (
        "replica", S.REPLICATING, {"wrong_point": cause("point_wrong")}, "Critical", "It is so.", "Do it.", "",
    ),
    "a point was read": (
        "replica", S.REPLICATING,
        {"proof": PointProof(point="0123/15", cut=cut(15, 61.0), started_time=NOW, outcome="proven", text="Right.")},
        "Normal", "", "", "point 0123/15, proven: Right.",
    ),
    "a seed waits": (
        "replica", S.READY_FOR_INITIAL_REPLICATION, {"baseline": False, "seeded": True, "lag_seconds": None},
        "Warning", "Initial replication has not been completed", "initial web --use-seed` on alpha", "imported",
    ),
    "a first copy is on its way": (
        "primary", S.INITIAL_REPLICATION_IN_PROGRESS,
        {
            "baseline": False, "export_folder": "/media/web", "export_complete": True,
            "waiting": "It waits for its import.",
        },
        "Warning", "It waits for its import.", "", "/media/web, complete",
    ),
    "freezing fails": (
        "primary", S.REPLICATING,
        {"consistency": ConsistencyStatus(setting="libvirt:web", failure=cause(), failures_since_start={"late": 1})},
        "Warning", "is only crash-consistent: It is so.", "Do it.", "failed once of 1",
    ),
    "the guest is frozen": (
        "primary", S.REPLICATING, {"consistency": ConsistencyStatus(setting="libvirt:web", frozen_since=NOW - 90)},
        "Critical", "is not thawed yet", "Thaw it from inside", "libvirt:web, by order only",
    ),
    "the definition is refused": (
        "primary", S.REPLICATING, {"definition": DefinitionStatus(failure=cause())},
        "Warning", "does not go with its cuts: It is so.", "Do it.", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", STATES)
def test_state_reason_remedy_and_page(what: str) -> None:
    role, state, fields, health, reason, remedy, shown = STATES[what]
    status = at(role, state, **fields)
    assert status.health == health, status.reasons
    assert any(reason in each for each in status.reasons) or not (reason or status.reasons)
    assert remedy in status.remedy and bool(remedy) == bool(status.remedy)
    assert any(shown in line for line in page_lines(status, NOW, None, Palette(False)))


def commands(text: str) -> list[str]:
    return re.findall(r"`vmreplica ([^`]+)`", text)


@pytest.mark.parametrize("what", STATES)
def test_what_the_remedy_says_to_type_can_be_typed(what: str) -> None:
    role, state, fields, *_ = STATES[what]
    for command in commands(at(role, state, **fields).remedy):
        build_parser().parse_args(shlex.split(command))


def test_both_agents_together_tell_of_a_reversal_that_stopped_half_way() -> None:
    given = at("replica", S.FAILED_OVER, handed_over=True)
    judge_together([agent("replica", [given])])
    assert given.health == "Normal", "who asks the replica agent alone can't know"
    judge_together([agent(vms=[healthy()]), agent("replica", [given])])
    assert given.health == "Normal"
    judge_together([agent(vms=[]), agent("replica", [given])])
    assert given.health == "Critical" and "nothing protects it" in given.summary
    assert commands(given.remedy) == ["reverse web"]
    raw = to_plain(agent("replica", [at("replica", S.FAILED_OVER, handed_over=True)]))
    connection: Any = None
    put_into(Agent(connection, agent("replica", [given]), raw))
    told = raw["vms"][0]
    assert (told["health"], told["summary"], told["reasons"]) == ("Critical", given.summary, given.reasons)
    assert told["remedies"] == given.remedies != []


def test_the_record_of_orders_has_them() -> None:
    before = describe(at("replica", S.REPLICATING, test_failover=TEST))
    assert (before["test_failover"], before["failover"], before["handed_over"]) == ("0123/15", "", False)
    fields = {"undoable": "undoable", "undoing": "being undone", "layered": "committed"}
    for field, told in fields.items():
        assert describe(at("replica", S.FAILED_OVER, failover=failover(**{field: True})))["failover"] == told
    assert describe(at("primary", S.FAILED_OVER, split_brain=True))["split_brain"] is True
    prepared = at("primary", S.PREPARED_FOR_FAILOVER, planned=PlannedStatus(step="confirmed"))
    assert describe(prepared)["planned"] == "confirmed"
