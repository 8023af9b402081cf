"""The table of all VMs and its notes, line by line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cli.console import WIDTH_MIN, Palette
from shared.cli.render import status_lines
from shared.status import AgentStatus, LinkStatus, VmStatus
from tests.unit.cli.samples import NOW, agent, healthy, replica, resynchronizing

PLAIN = Palette(False)
REQUIRED = "Resynchronization is required for the virtual machine mail."


def required(**changes: object) -> VmStatus:
    """A VM that waits for its administrator."""
    return healthy(
        **{
            "name": "mail",
            "state": "WaitingForStartResynchronize",
            "state_code": 10,
            "health": "Critical",
            "protected": False,
            "lag_seconds": 4000.0,
            "reasons": [REQUIRED, "Another reason."],
            "remedy": "Run `vmreplica resume mail --resynchronize`.",
            "link": LinkStatus(connected=False, since_time=NOW - 300, last_error="refused", peer="beta:7443"),
            **changes,
        }
    )


def both() -> list[AgentStatus]:
    return [agent(vms=[required(), healthy(), resynchronizing()]), agent("replica", [replica()])]


def test_healthy_vm_is_one_line() -> None:
    assert status_lines([agent()], None, PLAIN) == [
        "VM   ROLE     STATE        HEALTH  PROTECTED  BEHIND  LINK",
        "web  primary  Replicating  Normal  yes        2.1 s   up (0.4 ms)",
    ]


def test_both_agents_with_a_note_for_each_vm_that_is_not_fine() -> None:
    assert status_lines(both(), None, PLAIN) == [
        "VM    ROLE     STATE                         HEALTH    PROTECTED  BEHIND     LINK            PROGRESS",
        "db    primary  Resynchronizing               Warning   no         5 min 3 s  up (0.4 ms)     52 % (9 s left)",
        "mail  primary  WaitingForStartResynchronize  Critical  no         1 h 6 min  down 5 min 0 s",
        "web   primary  Replicating                   Normal    yes        2.1 s      up (0.4 ms)",
        "web   replica  Replicating                   Normal    yes        2.1 s      up (0.4 ms)",
        "",
        "db: A resynchronization is not complete; the replica keeps its older recovery point until then.",
        f"mail: {REQUIRED} Run `vmreplica resume mail --resynchronize`.",
    ]


def test_narrow_terminal_shows_what_matters_most() -> None:
    assert status_lines(both(), 80, PLAIN) == [
        "VM    ROLE     STATE             HEALTH    PROTECTED  BEHIND     PROGRESS",
        "db    primary  Resynchronizing   Warning   no         5 min 3 s  52 % (9 s left)",
        "mail  primary  WaitingForStart…  Critical  no         1 h 6 min",
        "web   primary  Replicating       Normal    yes        2.1 s",
        "web   replica  Replicating       Normal    yes        2.1 s",
        "",
        "db: A resynchronization is not complete; the replica keeps its older recovery",
        "    point until then.",
        "mail: Resynchronization is required for the virtual machine mail. Run `vmreplica",
        "    resume mail --resynchronize`.",
    ]


@given(st.integers(WIDTH_MIN, 200), st.text("abcdefgh-", min_size=1, max_size=60))
def test_table_fits_any_terminal(width: int, name: str) -> None:
    lines = status_lines([agent(vms=[required(name=name), resynchronizing()])], width, PLAIN)
    assert all(len(line) <= width for line in lines[:3])


def test_colours_do_not_move_the_columns() -> None:
    coloured = status_lines(both(), None, Palette(True))
    assert "\x1b[1;31mCritical\x1b[0m" in coloured[2]
    assert "\x1b[33mno       \x1b[0m" in coloured[2]
    assert "\x1b[32mNormal  \x1b[0m" in coloured[3]
    for code in ("\x1b[1;31m", "\x1b[33m", "\x1b[32m", "\x1b[1m", "\x1b[0m"):
        coloured = [line.replace(code, "") for line in coloured]
    assert coloured == status_lines(both(), None, PLAIN)


def test_unprotected_vm_in_normal_health_gets_its_summary() -> None:
    vm = healthy(protected=False, summary="Not protected: the replica holds everything up to 4 min ago.")
    assert status_lines([agent(vms=[vm])], None, PLAIN)[2:] == [
        "",
        "web: Not protected: the replica holds everything up to 4 min ago.",
    ]


def test_note_says_which_role_where_both_agents_have_the_vm() -> None:
    late = healthy(health="Warning", reasons=["Late."])
    full = replica(health="Critical", reasons=["Full."], remedy="Grow it.")
    lines = status_lines([agent(vms=[late]), agent("replica", [full])], None, PLAIN)
    assert lines[-2:] == ["web (primary): Late.", "web (replica): Full. Grow it."]


def test_failed_over_vm_makes_no_claim_of_protection() -> None:
    vm = replica(state="FailedOverWaitingCompletion", state_code=6, health="Warning", protected=False)
    assert status_lines([agent("replica", [vm])], None, PLAIN)[:2] == [
        "VM   ROLE     STATE                        HEALTH   LINK",
        "web  replica  FailedOverWaitingCompletion  Warning  up (0.4 ms)",
    ]


@pytest.mark.parametrize(
    "left, words",
    [
        (40 * 86400, None),
        (3 * 86400, "in 3 d 0 h: no session will be possible then. Renew it with `vmreplica pki renew`"),
        (-1, "ran out on"),
    ],
)
def test_certificate_that_runs_out_is_told_early(left: float, words: str | None) -> None:
    lines = status_lines([agent(certificate_not_after_time=NOW + left)], None, PLAIN)
    if words is None:
        assert len(lines) == 2
    else:
        assert lines[3].startswith("primary agent: The certificate of this host (alpha) r")
        assert words in lines[3]


def test_problem_of_an_agent_is_told() -> None:
    lines = status_lines([agent(problems=["A folder could not be read."])], None, PLAIN)
    assert lines[2:] == ["", "primary agent: A folder could not be read."]


def test_no_vm_tells_how_to_begin() -> None:
    assert status_lines([agent(vms=[])], None, PLAIN) == [
        "No VM is replicated on this host.",
        "  Put one under replication: vmreplica enable NAME --disk PATH --replica HOST",
    ]
    assert "on its own host" in status_lines([agent("replica", [])], None, PLAIN)[1]
