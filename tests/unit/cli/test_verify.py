"""The verb verify, and a VM's last verify as text."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Any

import msgspec
import pytest

from shared.admin import verbs as admin
from shared.cli.console import Palette
from shared.cli.page import page_lines
from shared.cli.verify_text import progress_lines, result_lines, verified_text
from shared.errors import InvalidStateError
from shared.health import assessed
from shared.status import ImageStatus, VerifyRange, VerifyResult, VerifyStatus, VmStatus
from shared.verify_outcomes import DIFFERENT, EQUAL, GOOD, REPAIRED, UNDECIDED
from tests.unit.cli.conftest import CannedAgent, Command
from tests.unit.cli.samples import EPOCH, NOW, cut, healthy

MIB = 1 << 20


def result(outcome: str = "equal", **changes: Any) -> VerifyResult:
    texts = {"equal": "The replica equalled the primary at cut 17.", "different": "128 KiB of the replica differed."}
    made = VerifyResult(
        outcome=outcome,
        text=texts.get(outcome, "Not decided: The guest is too fast."),
        started_time=NOW - 11000,
        ended_time=NOW - 10800,
        epoch=EPOCH,
        cut=cut(17, 10900),
    )
    return msgspec.structs.replace(made, **changes)


def verified(last: VerifyResult | None, **changes: Any) -> VmStatus:
    return healthy(verify=VerifyStatus(last=last, **changes))


def test_last_result_and_its_age() -> None:
    text = verified_text(VerifyStatus(last=result()), NOW, UTC)
    assert text == "equal 3 h 0 min ago (cut 17 of 2030-03-17 14:45:00)"
    text = verified_text(VerifyStatus(last=result("different"), next_time=NOW + 60), NOW, UTC)
    assert text.endswith(": 128 KiB of the replica differed.; the next one 2030-03-17 17:47:40")
    assert verified_text(VerifyStatus(next_time=NOW), NOW, UTC).startswith("never; the next one")
    running = VerifyStatus(running=True, phase="comparing", done_bytes=3, total_bytes=4)
    assert verified_text(running, NOW, UTC) == "never; one is running: comparing, 75 %"


def test_page_has_it() -> None:
    lines = page_lines(verified(result()), NOW, None, Palette(False), UTC)
    assert [line for line in lines if "verified" in line] == [
        "  verified      equal 3 h 0 min ago (cut 17 of 2030-03-17 14:45:00)"
    ]
    assert not any("verified" in line for line in page_lines(verified(None), NOW, None, Palette(False), UTC))


def test_ranges_are_listed_up_to_a_number() -> None:
    ranges = [VerifyRange(disk=0, offset=65536 * at, length=65536) for at in range(30)]
    found = result("different", different=ranges, different_ranges=300)
    lines = result_lines("web", found)
    assert lines[0] == "web: 128 KiB of the replica differed."
    assert lines[1] == "  different: disk 0, 65536 bytes at 0"
    assert (len(lines), lines[-1]) == (22, "  and 280 more")


def test_running_one_is_a_bar() -> None:
    vm = verified(None, running=True, phase="reading", done_bytes=MIB, total_bytes=2 * MIB)
    assert "50.0 %" in progress_lines(vm)[1]
    assert len(progress_lines(verified(None, running=True, phase="waiting for its turn"))) == 1


@pytest.mark.parametrize(
    ("last", "health"),
    [
        (None, "Normal"),
        (result(), "Normal"),
        (result("undecided"), "Normal"),
        (result("repaired"), "Normal"),
        (result("different", epoch="f" * 32), "Normal"),
        (result("different", remedy="Repair."), "Critical"),
    ],
)
def test_replica_that_differs_is_critical_until_another_result_or_baseline(
    last: VerifyResult | None, health: str
) -> None:
    status = assessed(verified(last), NOW)
    assert status.health == health
    assert ("Repair." in status.remedy) == (health == "Critical")


# --- the verb


def ending(canned: CannedAgent, *steps: VmStatus) -> None:
    """Take one step at each look at the status from when a verify was asked for."""
    remaining = list(steps)

    def go_on(asked: int) -> None:
        if remaining and any(name == admin.VERIFY for name, _ in canned.calls):
            canned.set_vm(remaining.pop(0))

    canned.on_status = go_on


RUNNING = {"running": True, "phase": "reading", "done_bytes": 1, "total_bytes": 4}


@pytest.mark.slow
def test_verify_is_followed_to_its_result(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[verified(result("different"))])
    image = ImageStatus(disk=0, sha256="ab" * 32)
    ending(canned, verified(result("different"), **RUNNING), *[verified(result(images=[image]))] * 2)
    ran = vmreplica("verify", "web", "--repair")
    assert (ran.code, ran.err) == (0, "")
    [(method, params)] = canned.calls
    assert method == admin.VERIFY
    assert (params["repair"], params["at"], params["stop"]) == (True, "", False)
    assert ran.lines[-2:] == [
        "web: The replica equalled the primary at cut 17.",
        f"  disk 0: sha256 of its blocks {'ab' * 32}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("machine", [False, True])
@pytest.mark.parametrize("outcome", ["different", "undecided"])
def test_anything_but_equal_has_an_exit_code(vmreplica: Command, outcome: str, machine: bool) -> None:
    ranges = [VerifyRange(disk=0, offset=65536, length=65536)] if outcome == "different" else []
    last = result(outcome, different=ranges, different_ranges=len(ranges), remedy="Do something.")
    canned = vmreplica.agent(vms=[verified(None)])
    ending(canned, *[verified(last)] * 3)
    ran = vmreplica("verify", "web", *(["--json"] if machine else []))
    assert ran.code == 1
    if machine:
        assert json.loads(ran.out)["outcome"] == outcome
        return
    assert "Do something." in ran.err
    assert ("different: disk 0" in ran.out) == (outcome == "different")


@pytest.mark.slow
def test_verify_for_later_and_without_waiting(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[verified(None, next_time=NOW)])
    assert "starts 2030-03-17" in vmreplica("verify", "web", "--at", "02:00").out
    assert canned.calls[-1][1]["at"] == "02:00"
    assert vmreplica("verify", "web", "--no-wait").out.startswith("Started.")
    assert "runs any more" in vmreplica("verify", "web", "--stop").out
    assert vmreplica("verify", "web", "--stop", "--repair").code == 2


@pytest.mark.slow
def test_refused_verify_says_why(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    canned.answers[admin.VERIFY] = InvalidStateError("web is suspended.", "Resume it.")
    ran = vmreplica("verify", "web")
    assert ran.code == InvalidStateError.exit_code
    assert "Resume it." in ran.err


def test_words_of_outcomes_are_fixed() -> None:
    """They are stored and sent, and scripts read them."""
    assert (EQUAL, DIFFERENT, REPAIRED, UNDECIDED) == ("equal", "different", "repaired", "undecided")
    assert GOOD == (EQUAL, REPAIRED)
