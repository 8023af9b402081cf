"""``failover --prepare``: as a process before agents that answer as they were told, and libvirt by its own command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.admin import verbs as admin
from shared.cli.arguments import build_parser
from shared.cli.domain_power import check_off, shut_down
from shared.cli.verbs.planned import check_options
from shared.cli.virsh import Virsh
from shared.errors import InvalidStateError, NotFoundError, UsageError
from shared.health import assessed
from shared.progress_status import ProgressStatus
from shared.status import FailoverStatus, ImageStatus, PlannedStatus, VerifyStatus, VmStatus
from tests.unit.cli.conftest import Command
from tests.unit.cli.samples import NOW, URI, UUID, cut, healthy, replica
from tests.unit.cli.test_verify import result

CHAIN = "ab" * 16


def preparing(step: str, **changes: Any) -> VmStatus:
    """A VM whose preparation is at this step."""
    plan = PlannedStatus(
        step=step, text=f"it is {step}", cut=cut(17, 0.0), chain=CHAIN, token_sent=step == "confirmed",
        holds_writes=step not in ("given up", "forced"),
    )  # fmt: skip
    prepared = step in ("promised", "confirmed", "taking back")
    progress = None if step in ("confirmed", "given up", "forced") else ProgressStatus(kind="planned", phase="sending")
    state = ("PreparedForFailover", 5) if prepared else ("Replicating", 4)
    return assessed(healthy(state=state[0], state_code=state[1], planned=plan, progress=progress, **changes), NOW)


def test_options_that_an_order_would_ignore_are_refused() -> None:
    parser = build_parser()
    for order in ("--prepare", "--undo", "--commit"):
        for given in (["--point", "applied"], ["--at", "2h"], ["--stop"]):
            with pytest.raises(UsageError, match="choose what is failed over to|ends a test"):
                check_options(parser.parse_args(["failover", "web", order, *given]))
        check_options(parser.parse_args(["failover", "web", order]))
    for given in (["--prove"], ["--prepare", "--prove", "--abort"], ["--prepare", "--prove", "--no-wait"]):
        with pytest.raises(UsageError, match="--prove"):
            check_options(parser.parse_args(["failover", "web", *given]))
    for fine in (["--point", "applied"], ["--test", "--at", "2h"], ["--test", "--stop"], ["--stop"]):
        check_options(parser.parse_args(["failover", "web", *fine]))


@pytest.mark.slow
def test_preparing_is_followed_to_the_cut_that_it_is_for_and_taken_back(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    ran = vmreplica("failover", "web", "--prepare")
    assert ran.code == 2 and "take no writes on this host any more" in ran.err and canned.calls == []
    steps = [preparing("sending"), preparing("confirmed")]
    canned.on_status = lambda asked: canned.set_vm(steps.pop(0)) if canned.calls and steps else None
    ran = vmreplica("failover", "web", "--prepare", "--yes")
    assert (ran.code, ran.err) == (0, "")
    assert canned.calls == [(admin.PREPARE_FAILOVER, {"vm": UUID})]
    assert ran.lines[0] == "web: planned failover, sending"
    assert any(line.startswith("  cut 17 of epoch") and line.endswith(f"chain {CHAIN}") for line in ran.lines)
    assert any(line.endswith("vmreplica failover web") for line in ran.lines)
    # Asked for again it is only shown: nothing is ordered twice.
    canned.calls.clear()
    assert vmreplica("failover", "web", "--prepare").code == 0 and canned.calls == []
    # Both sides' disks at the cut: the digests, or that it is not proven.
    for last, code in ((result(images=[ImageStatus(disk=0, sha256="cd" * 32)]), 0), (result("different"), 1)):
        done = preparing("confirmed", verify=VerifyStatus(last=last))
        canned.set_vm(preparing("confirmed"))
        canned.answers[admin.VERIFY] = lambda params, done=done: canned.set_vm(done)
        ran = vmreplica("failover", "web", "--prepare", "--prove")
        assert ran.code == code and [call[0] for call in canned.calls] == [admin.VERIFY], ran.err
        assert ("cd" * 32 in ran.out and "vmreplica failover web" in ran.out) == (code == 0)
        assert ("its image is not proven" in ran.err and "--prepare --abort" in ran.err) == (code == 1)
        canned.calls.clear()
    steps[:] = [preparing("given up")]
    ran = vmreplica("failover", "web", "--prepare", "--abort")
    assert (ran.code, ran.err) == (0, "")
    assert canned.calls == [(admin.ABORT_FAILOVER, {"vm": UUID, "force": False})]
    assert ran.lines[-1] == "web takes writes on this host again, and replicates on."
    ran = vmreplica("failover", "web", "--prepare", "--abort", "--force")
    assert ran.code == 2 and "split brain" in ran.err


@pytest.mark.slow
def test_preparing_that_is_given_up_says_why_and_options_have_to_fit(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    canned.on_status = lambda asked: canned.set_vm(preparing("given up")) if canned.calls else None
    ran = vmreplica("failover", "web", "--prepare", "--yes")
    assert ran.code == 4 and ran.err.splitlines()[0] == "vmreplica: it is given up"
    ran = vmreplica("failover", "web", "--abort")
    assert ran.code == 2 and "Add --prepare." in ran.err
    # A state in which it can't be is told before anybody has to decide, and before a guest is shut down.
    canned.on_status = lambda asked: None
    canned.calls.clear()
    canned.set_vm(assessed(healthy(state="FailedOver", state_code=7), NOW))
    ran = vmreplica("failover", "web", "--prepare", "--shutdown")
    assert ran.code == 4 and "is in state FailedOver: a failover can't be prepared" in ran.err and canned.calls == []


@pytest.mark.slow
def test_failover_says_whether_anything_was_lost(vmreplica: Command) -> None:
    plan = PlannedStatus(step="prepared", cut=cut(16, 0.0), chain=CHAIN, token_sent=True)
    canned = vmreplica.agent("replica", [replica(planned=plan)])
    ran = vmreplica("failover", "web")
    assert "alpha, which takes no writes of it any more" in ran.err and "nothing is lost" in ran.err
    promoted = {"state": "FailedOverWaitingCompletion", "state_code": 6, "uris": [URI]}
    done = PlannedStatus(step="failed over", cut=cut(16, 0.0), chain=CHAIN)
    kept = FailoverStatus(time=NOW, epoch="e" * 32, proven_time=NOW, removed_disks=[1])
    canned.answers[admin.FAILOVER] = lambda params: canned.set_vm(replica(**promoted, planned=done, failover=kept))
    lines = vmreplica("failover", "web", "--yes").lines
    assert "had the same SHA-256 digests (2030-03-17" in lines[2]
    assert lines[3] == "It has other disks than the newest recovery point: with 1."
    assert lines[1].startswith("A planned failover: nothing is lost, cut 16 of epoch") and lines[1].endswith(
        f"{CHAIN}."
    )
    canned.answers[admin.FAILOVER] = lambda params: canned.set_vm(replica(**promoted))
    assert vmreplica("failover", "web", "--yes").lines[1].startswith("It was not prepared at the primary")


def test_health_names_what_to_do_at_each_step() -> None:
    confirmed = preparing("confirmed", peer_host="beta", lag_seconds=9000.0)
    assert confirmed.health == "Warning"
    assert confirmed.remedy.startswith("Run `vmreplica failover web` on beta, or take it back")
    assert confirmed.summary == "Prepared for a failover: beta has everything, and the VM's disks take no writes here."
    assert not any("behind" in reason for reason in confirmed.reasons), "nothing is sent that could be late"
    forced = preparing("forced", peer_host="beta")
    assert forced.health == "Critical" and "may hold its token still" in forced.reasons[0]
    unknown = healthy()
    assert unknown.tap is not None
    unknown.tap.refused = "web is prepared for a failover to beta"
    assert assessed(unknown, NOW).health == "Critical"


class FakeHost:
    """A `virsh` of a test: tells of one domain, whose guest obeys after some looks at it."""

    def __init__(self, folder: Path, looks: int, state: str = "running") -> None:
        self.folder = folder
        (folder / "state").write_text(state)
        (folder / "looks").write_text(str(looks))
        (folder / "virsh").write_text(
            f"""#!/bin/bash
cd {folder}
shift
echo "$*" >> calls
case "$1" in
dominfo)
    if [[ "$2" != web ]]; then echo "error: failed to get domain '$2'" >&2; exit 1; fi
    if [[ -e asked ]]; then
        left=$(<looks); echo $((left - 1)) > looks
        if ((left <= 0)); then echo "shut off" > state; fi
    fi
    echo "Name:           web"; echo "State:          $(<state)" ;;
shutdown) touch asked ;;
esac
"""
        )
        (folder / "virsh").chmod(0o755)
        self.virsh = Virsh({"PATH": f"{folder}:/usr/bin:/bin"})

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


def test_running_domain_is_found_by_its_name_and_shut_down_by_asking_its_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.cli.domain_power.POLL_SECONDS", 0.01)
    host, said = FakeHost(tmp_path, looks=2), list[str]()
    with pytest.raises(InvalidStateError, match="libvirt says that the domain web is running") as told:
        check_off(host.virsh, healthy())
    assert "--shutdown" in told.value.remedy
    shut_down(host.virsh, healthy(), 60.0, said.append)
    assert said == ["The domain web is running; its guest is asked to shut down.", "The domain web is off."]
    assert host.calls.count("shutdown web") == 1
    check_off(host.virsh, healthy())
    shut_down(host.virsh, healthy(), 60.0, said.append)
    assert host.calls.count("shutdown web") == 1, "one that is off is not asked"


def test_guest_that_does_not_obey_is_told_of_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.cli.domain_power.POLL_SECONDS", 0.01)
    host = FakeHost(tmp_path, looks=1 << 20)
    with pytest.raises(InvalidStateError, match="web is still running after") as told:
        shut_down(host.virsh, healthy(), 0.05, lambda _text: None)
    assert "nothing is forced" in told.value.remedy
    assert {line.split()[0] for line in host.calls} == {"dominfo", "shutdown"}


def test_host_without_libvirt_or_such_a_domain(tmp_path: Path) -> None:
    nothing = Virsh({"PATH": str(tmp_path)})
    check_off(nothing, healthy())
    with pytest.raises(NotFoundError, match="not installed"):
        shut_down(nothing, healthy(), 1.0, lambda _text: None)
    host = FakeHost(tmp_path, looks=0)
    other = healthy(name="mail")
    check_off(host.virsh, other)
    with pytest.raises(NotFoundError, match="no domain mail"):
        shut_down(host.virsh, other, 1.0, lambda _text: None)
