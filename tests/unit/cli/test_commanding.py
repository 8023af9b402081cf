"""Verbs that change something, as processes before agents that answer as they were told."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any

import msgspec
import pytest

from shared.admin import verbs as admin
from shared.errors import InvalidStateError, NoSpaceError
from shared.point_status import ImageProof, PointProof, PointsStatus, PointStatus
from shared.progress_status import ProgressStatus
from shared.status import Cause, FailoverStatus, LinkStatus, TestFailoverStatus, VmStatus, to_plain
from tests.unit.cli.conftest import WAIT, CannedAgent, Command
from tests.unit.cli.samples import NOW, URI, UUID, agent, cut, healthy, replica

pytestmark = pytest.mark.slow

GIB = 1 << 30


def copying(done: int, kind: str = "initial", **changes: Any) -> VmStatus:
    """A VM of which ``done`` percent are copied."""
    progress = ProgressStatus(kind=kind, phase="comparing", total_bytes=100 * GIB, done_bytes=done * GIB)
    state, code = ("InitialReplicationInProgress", 2) if kind == "initial" else ("Resynchronizing", 11)
    return healthy(**{"state": state, "state_code": code, "progress": progress, "protected": False, **changes})


def ready() -> VmStatus:
    return healthy(state="ReadyForInitialReplication", state_code=1, health="Warning", protected=False)


def working(canned: CannedAgent, *steps: VmStatus) -> None:
    """Take one step at each look at the status, beginning when work is asked for."""
    remaining = list(steps)

    def go_on(asked: int) -> None:
        if remaining and any(name in (admin.INITIAL, admin.RESUME) for name, _ in canned.calls):
            canned.set_vm(remaining.pop(0))

    canned.on_status = go_on


# --- enable, set, suspend, resume, remove


def test_enable_passes_everything_on_and_tells_how_to_attach(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    ran = vmreplica(
        "enable", "web", "--disk", "web.raw,export=root", "--disk", "/images/data.raw", "--replica", "beta:7443",
        "--interval", "30s", "--log-limit", "10GiB", "--uuid", UUID, "--exclude", "swap.raw",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    [(method, params)] = canned.calls
    assert method == admin.ENABLE
    assert params == {
        "name": "web",
        "disks": [
            {"path": f"{vmreplica.folder}/web.raw", "export": "root"},
            {"path": "/images/data.raw", "export": ""},
        ],
        "replica": "beta:7443",
        "interval_seconds": 30.0,
        "log_limit_bytes": 10 << 30,
        "hot_region_bytes": None,
        "hot_regions": None,
        "block_device_policy": "compare",
        "uuid": UUID,
        "exclude": (f"{vmreplica.folder}/swap.raw",),
    }
    assert ran.lines[0] == "web is enabled: a cut every 30 s, to beta:7443."
    assert f"  {URI}" in ran.lines
    assert any("-blockdev driver=nbd,node-name=replicated0," in line for line in ran.lines)
    assert "<host transport='unix'" in ran.out
    assert ran.lines[-1].endswith("vmreplica initial web")


def test_enable_as_json_is_the_status_of_the_vm(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    ran = vmreplica("enable", "web", "--disk", "/a", "--replica", "beta", "--json")
    assert json.loads(ran.out) == to_plain(healthy())
    [(_, params)] = canned.calls
    assert (params["interval_seconds"], params["log_limit_bytes"], params["uuid"]) == (300.0, None, None)


def test_error_of_the_agent_is_two_lines_and_its_exit_code(vmreplica: Command) -> None:
    full = NoSpaceError("/var has no room for the log: 3 GiB are missing.", "Free some.")
    vmreplica.agent().answers[admin.ENABLE] = full
    ran = vmreplica("enable", "web", "--disk", "/a", "--replica", "beta")
    assert (ran.code, ran.out) == (9, "")
    assert ran.err.splitlines() == ["vmreplica: /var has no room for the log: 3 GiB are missing.", "  Free some."]


def test_verb_of_the_primary_needs_its_agent(vmreplica: Command) -> None:
    vmreplica.agent("replica", [replica()])
    ran = vmreplica("enable", "web", "--disk", "/a", "--replica", "beta")
    assert ran.code == 5
    assert "This needs the primary agent, and here only the replica agent answers." in ran.err


def test_set(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    ran = vmreplica("set", "web", "interval=1m", "log-limit=1GiB")
    assert ran.code == 0
    settings = {"interval_seconds": 60.0, "log_limit_bytes": 1 << 30}
    assert canned.calls == [(admin.SET, {"vm": UUID, "settings": settings})]
    assert ran.lines[0] == "web  primary"


def test_set_of_nothing_prints_the_settings(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    ran = vmreplica("set", "web")
    assert (ran.code, ran.lines[0], canned.calls) == (0, "web  primary", [])
    ran = vmreplica("set", "web", "--json")
    (vm,) = json.loads(ran.out)["vms"]
    assert (vm["uuid"], vm["settings"]["log_limit_bytes"], vm["pending"]) == (UUID, 10 << 30, [])


def test_settings_of_enabling_are_sent_where_they_are_given(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    options = ["--block-device-policy", "trust", "--hot-region-size", "1MiB", "--hot-regions", "8192"]
    vmreplica("enable", "web", "--disk", "/dev/vg/web", "--replica", "beta", *options)
    ((_, params),) = canned.calls
    given = {"block_device_policy": "trust", "hot_region_bytes": 1 << 20, "hot_regions": 8192}
    assert params == params | given


def test_suspend_goes_to_the_primary_unless_told_otherwise(vmreplica: Command) -> None:
    primary = vmreplica.agent()
    other = vmreplica.agent("replica", [replica()])
    ran = vmreplica("suspend", "web")
    assert ran.lines == ["web: Replicating. Protected: the replica at beta holds everything up to 2.1 s ago."]
    assert (len(primary.calls), len(other.calls)) == (1, 0)
    assert vmreplica("suspend", "web", "--role", "replica").code == 0
    assert (len(primary.calls), len(other.calls)) == (1, 1)


def test_resume(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    assert vmreplica("resume", "web").code == 0
    assert canned.calls == [(admin.RESUME, {"vm": UUID, "resynchronize": False, "at": "", "go_on": False})]


def test_continue_goes_on_and_stop_cancels(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    working(canned, healthy())
    assert vmreplica("resume", "web", "--continue", "--no-wait").code == 0
    assert vmreplica("stop", "web").code == 0
    assert vmreplica("resize", "web").code == 0
    assert canned.calls == [
        (admin.RESUME, {"vm": UUID, "resynchronize": False, "at": "", "go_on": True}),
        (admin.STOP, {"vm": UUID}),
        (admin.RESIZE, {"vm": UUID}),
    ]


def test_a_disk_is_added_removed_and_enlarged(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    ran = vmreplica("disk", "add", "web", "/images/web.raw,export=data")
    assert (ran.code, ran.err) == (0, "")
    assert URI in ran.out and "vmreplica status web --watch" in ran.out
    refused = vmreplica("disk", "remove", "web", "data")
    assert refused.code != 0 and "--yes" in refused.err
    assert vmreplica("disk", "remove", "web", "data", "--exclude", "--yes").code == 0
    resized = vmreplica("disk", "resize", "web", "0", "--size", "80GiB")
    assert resized.code == 0 and "virsh blockresize web TARGET" in resized.out and "block_resize" in resized.out
    assert vmreplica("disk", "resize", "web", "0").code == 0
    assert canned.calls == [
        (admin.DISK_ADD, {"vm": UUID, "disk": {"path": "/images/web.raw", "export": "data"}}),
        (admin.DISK_REMOVE, {"vm": UUID, "disk": "data", "exclude": True}),
        (admin.DISK_RESIZE, {"vm": UUID, "disk": "0", "size": 80 << 30}),
        (admin.DISK_RESIZE, {"vm": UUID, "disk": "0", "size": None}),
    ]


def test_remove_asks_and_is_not_guessed(vmreplica: Command) -> None:
    primary = vmreplica.agent()
    ran = vmreplica("remove", "web")
    assert ran.code == 2
    assert "shut it down first" in ran.err
    assert "add --yes" in ran.err
    assert primary.calls == []
    assert vmreplica("remove", "web", "--yes").lines == ["web is no longer replicated from this host."]
    assert primary.calls == [(admin.REMOVE, {"vm": UUID, "yes": True, "released": False})]

    other = vmreplica.agent("replica", [replica()])
    ambiguous = vmreplica("remove", "web", "--yes")
    assert ambiguous.code == 2
    assert "--role primary or --role replica" in ambiguous.err
    assert vmreplica("remove", "web", "--role", "replica", "--yes").code == 0
    assert other.calls == [(admin.REMOVE, {"vm": UUID, "yes": True, "released": False})]


def test_recover_asks_only_where_there_is_something_to_replace(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica(state="Error", state_code=9)])
    ran = vmreplica("recover", "web")
    assert ran.code == 2
    assert "is kept aside in /var/lib/vmreplica/vms/x" in ran.err
    assert "counts for nothing" in ran.err and "add --yes" in ran.err
    assert canned.calls == []
    params = {"vm": UUID, "yes": True, "replica": ""}
    assert vmreplica("recover", "web", "--yes").code == 0
    assert canned.calls == [(admin.RECOVER, params)]
    canned.set_vm(replica())
    canned.answers[admin.RECOVER] = InvalidStateError("The state of web is sound: there is nothing to recover.")
    sound = vmreplica("recover", "web")
    assert sound.code == 4
    assert "nothing to recover" in sound.err


def test_recover_of_a_primary_may_name_the_replica(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    assert vmreplica("recover", "web", "--replica", "beta:6000", "--yes").code == 0
    assert canned.calls == [(admin.RECOVER, {"vm": UUID, "yes": True, "replica": "beta:6000"})]


@pytest.mark.parametrize("typed, code, calls", [("web\n", 0, 1), ("yes\n", 2, 0), ("\n", 2, 0)])
def test_question_is_answered_with_the_name(vmreplica: Command, typed: str, code: int, calls: int) -> None:
    canned = vmreplica.agent()
    terminal = vmreplica.terminal("remove", "web")
    try:
        terminal.wait_for("Type web to go on: ")
        terminal.type(typed)
        assert terminal.end() == code
    finally:
        terminal.close()
    assert len(canned.calls) == calls


# --- long work


def test_initial_is_followed_to_its_end(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[ready()])
    working(canned, copying(0), copying(60), healthy())
    ran = vmreplica("initial", "web")
    assert (ran.code, ran.err) == (0, "")
    assert canned.calls == [(admin.INITIAL, {"vm": UUID, "at": "", "export": "", "use_seed": False})]
    assert ran.lines[0] == "web: initial replication, comparing, 0 % (0 B of 100.0 GiB)"
    assert ran.lines[-1] == "Protected: the replica at beta holds everything up to 2.1 s ago."


def test_session_that_is_being_opened_is_waited_for(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[healthy(state_code=1, link=LinkStatus())])
    steps = [canned.status.vms[0], healthy(state_code=1)]

    def connect(asked: int) -> None:
        # The first look is for the name.
        if asked > 2:
            canned.set_vm(steps[1])

    canned.on_status = connect
    connected: list[bool] = []
    canned.answers[admin.INITIAL] = lambda params: connected.append(canned.status.vms[0].link.healthy)
    assert vmreplica("initial", "web", "--no-wait").code == 0
    assert connected == [True]


def test_link_that_is_broken_is_not_waited_for(vmreplica: Command) -> None:
    refusal = InvalidStateError("Connectivity is not healthy.", "Look at test-connection.")
    canned = vmreplica.agent(vms=[healthy(state_code=1, link=LinkStatus(last_error="refused", attempts=1))])
    canned.answers[admin.INITIAL] = refusal
    ran = vmreplica("initial", "web")
    assert (ran.code, ran.err.splitlines()[0]) == (4, "vmreplica: Connectivity is not healthy.")


def test_work_that_ends_badly_says_why(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[ready()])
    problem = Cause(code="geometry", text="Disk 0 has another size there.", time=NOW, remedy="Resize it.")
    working(canned, copying(10), copying(10, problem=problem, reasons=[problem.text], remedy=problem.remedy))
    ran = vmreplica("initial", "web")
    assert ran.code == 1
    assert ran.err.splitlines() == ["vmreplica: Disk 0 has another size there.", "  Resize it."]


def test_work_is_left_with_ctrl_c_and_joined_again(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[ready()])
    working(canned, copying(10))
    started = vmreplica.start("initial", "web")
    assert started.stdout is not None
    assert started.stdout.readline().startswith("web: initial replication")
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=WAIT)
    assert (started.returncode, err) == (130, "")
    assert out.splitlines()[-1] == "The work goes on. To see it again: vmreplica status web --watch"

    rejoined = vmreplica.start("status", "web", "--watch")
    assert rejoined.stdout is not None
    assert rejoined.stdout.readline().startswith("web: initial replication, comparing, 10 %")
    canned.set_vm(healthy())
    out, err = rejoined.communicate(timeout=WAIT)
    assert (rejoined.returncode, err) == (0, "")
    assert out.splitlines()[-1].startswith("Protected")


def test_live_view_on_a_terminal(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[ready()])
    working(canned, copying(10))
    terminal = vmreplica.terminal("initial", "web", COLUMNS="90")
    try:
        terminal.wait_for("[███░")
        terminal.wait_for("10.0 %")
        canned.set_vm(copying(50))
        terminal.wait_for("50.0 %")
        canned.set_vm(healthy())
        assert terminal.end() == 0
        assert "Protected: the replica at beta" in terminal.shown
    finally:
        terminal.close()


def test_agent_that_is_restarted_meanwhile_is_found_again(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[copying(10)])
    started = vmreplica.start("status", "web", "--watch")
    assert started.stdout is not None
    started.stdout.readline()
    canned.stop()
    assert started.stdout.readline() == "The agent does not answer; trying again.\n"
    vmreplica.agent(vms=[healthy()])
    out, _ = started.communicate(timeout=WAIT)
    assert started.returncode == 0
    assert out.startswith("Protected")


def test_resync_of_a_healthy_vm_asks(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    ran = vmreplica("resume", "web", "--resynchronize")
    assert ran.code == 2
    assert "replicates without trouble" in ran.err
    assert canned.calls == []
    working(canned, copying(50, "resync"), healthy())
    ran = vmreplica("resume", "web", "--resynchronize", "--yes")
    assert ran.code == 0
    assert ran.lines[0].startswith("web: resynchronization, comparing, 50 %")
    assert canned.calls == [(admin.RESUME, {"vm": UUID, "resynchronize": True, "at": "", "go_on": False})]


def test_resync_that_is_required_does_not_ask(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[healthy(state="WaitingForStartResynchronize", state_code=10, health="Critical")])
    working(canned, healthy())
    assert vmreplica("resume", "web", "--resynchronize").code == 0


def test_work_that_is_not_waited_for(vmreplica: Command) -> None:
    vmreplica.agent(vms=[ready()])
    ran = vmreplica("initial", "web", "--no-wait")
    assert ran.lines == ["Started. To see it: vmreplica status web --watch"]


# --- the replica's verbs


def test_export_and_unexport(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica()])
    canned.answers[admin.EXPORT] = to_plain(replica().exports[0])
    ran = vmreplica("export", "web")
    assert ran.lines == [
        "web as of cut 15, 2030-03-17 17:45:39, read-only:",
        "  nbd+unix:///disk0?socket=/run/e1",
        "It stays as it is while replication goes on. To end it: vmreplica unexport web 1",
    ]
    assert json.loads(vmreplica("export", "web", "--json").out)["uris"] == ["nbd+unix:///disk0?socket=/run/e1"]
    canned.calls.clear()
    assert vmreplica("unexport", "web").lines == ["Ended: 1"]
    assert canned.calls == [(admin.UNEXPORT, {"vm": UUID, "id": "1"})]
    ran = vmreplica("unexport", "web", "7")
    assert (ran.code, ran.err.splitlines()) == (3, ["vmreplica: web has no export 7.", "  Its exports: 1."])


def test_points_and_the_export_of_one(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica()])
    canned.answers[admin.POINTS] = to_plain(
        PointsStatus(
            points=[
                PointStatus(point="01234567/15", cut=cut(15, 61.0), newest=True, exports=["1"]),
                PointStatus(point="01234567/14", cut=cut(14, 121.0), bytes=4 << 20),
                PointStatus(
                    point="01234567/3", cut=cut(3, 7200.0), bytes=1 << 30, hourly=True, consistency="application"
                ),
            ],
            keep_newest=4,
            keep_hourly=24,
            bytes=(1 << 30) + (4 << 20),
            limit_bytes=20 << 30,
        )
    )
    assert vmreplica("points", "web").lines == [
        "web  replica: 4 newest and 24 hourly points are kept; they take 1.0 GiB of at most 20.0 GiB.",
        "  POINT        SEALED                     AGE  KEPT AS    TAKES  EXPORTS  CONSISTENT",
        "  01234567/15  2030-03-17 17:45:39  1 min 1 s  newest            1        crash",
        "  01234567/14  2030-03-17 17:44:39  2 min 1 s  cut      4.0 MiB           crash",
        "  01234567/3   2030-03-17 15:46:40  2 h 0 min  hourly   1.0 GiB           application",
    ]
    assert len(json.loads(vmreplica("points", "web", "--json").out)["points"]) == 3
    canned.answers[admin.EXPORT] = to_plain(replica().exports[0])
    canned.calls.clear()
    vmreplica("export", "web", "--point", "01234567/3")
    assert canned.calls == [(admin.EXPORT, {"vm": UUID, "point": "01234567/3", "at_time": None, "writable": False})]


def test_points_that_are_named_pinned_and_proven_and_nearest_to_a_time(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica()])
    status = PointsStatus(
        points=[
            PointStatus(point="01234567/15", cut=cut(15, 61.0), newest=True),
            PointStatus(
                point="01234567/3", cut=cut(3, 7200.0), bytes=1 << 30, hourly=True, daily=True, weekly=True,
                name="base", pinned=True, proven_time=cut(3, 7000.0).time, added_disks=[2], removed_disks=[1],
            ),
        ],
        keep_newest=4, keep_hourly=24, keep_daily=7, keep_age_seconds=35 * 86400.0,
        bytes=1 << 30, limit_bytes=20 << 30, pinned_bytes=1 << 30,
        at_time=cut(3, 3600.0).time, nearest="01234567/3", after="01234567/15",
    )  # fmt: skip
    canned.answers[admin.POINTS] = canned.answers[admin.MARK_POINT] = to_plain(status)
    rules = "4 newest, 24 hourly and 7 daily points are kept, none more than 35 d 0 h older than the newest"
    room = "they take 1.0 GiB of at most 20.0 GiB, the pinned ones 1.0 GiB of it"
    headings, proven = "NAME  DISKS              PROVEN", "base  without 2, with 1  2030-03-17 15:50:00"
    assert vmreplica("points", "web", "--at", "2030-03-17 16:46").lines == [
        f"web  replica: {rules}; {room}.",
        f"  POINT        SEALED                     AGE  KEPT AS                  TAKES  EXPORTS  {headings}",
        "  01234567/15  2030-03-17 17:45:39  1 min 1 s  newest",
        f"  01234567/3   2030-03-17 15:46:40  2 h 0 min  hourly, daily, pinned  1.0 GiB           {proven}",
        "At or before 2030-03-17 16:46:40: 01234567/3, sealed 2030-03-17 15:46:40",
        "The next after it: 01234567/15, sealed 2030-03-17 17:45:39",
    ]
    assert canned.calls[0][1]["at_time"] is not None
    canned.calls.clear()
    assert vmreplica("point", "web", "--point", "01234567/3", "--name", "base", "--pin").code == 0
    given = {"vm": UUID, "point": "01234567/3", "at_time": None, "name": "base", "pinned": True}
    assert canned.calls == [(admin.MARK_POINT, given)]
    canned.calls.clear()
    assert vmreplica("point", "web", "--point", "base", "--no-name", "--unpin").code == 0
    assert canned.calls == [(admin.MARK_POINT, {**given, "point": "base", "name": "", "pinned": False})]
    ran = vmreplica("point", "web")
    assert ran.code == 2 and "--unpin" in ran.err
    ran = vmreplica("point", "web", "--at", "2h", "--point", "base", "--pin")
    assert ran.code == 2 and "one of --point and --at" in ran.err


@pytest.mark.parametrize(("outcome", "code"), [("proven", 0), ("unrecorded", 0), ("wrong", 1), ("undecided", 1)])
def test_proof_of_a_point(vmreplica: Command, outcome: str, code: int) -> None:
    canned = vmreplica.agent("replica", [replica()])
    image = ImageProof(disk=0, digest="ab" * 32, recorded="cd" * 32 if outcome == "wrong" else "")
    started = PointProof(point="01234567/3", cut=cut(3, 7200.0), started_time=1.0, running=True, total_bytes=1 << 20)
    ended = msgspec.structs.replace(
        started, running=False, done_bytes=1 << 20, outcome=outcome, text="What came of it.", images=[image]
    )
    canned.answers[admin.PROVE] = to_plain(started)
    canned.answers[admin.POINTS] = to_plain(PointsStatus(proof=ended))
    ran = vmreplica("prove", "web", "--point", "base")
    assert ran.code == code
    told = ran.out + ran.err
    assert "recovery point 01234567/3 of 2030-03-17 15:46:40: What came of it." in told
    assert "abab" in told and ("recorded was" in told) == (outcome == "wrong")
    assert json.loads(vmreplica("prove", "web", "--json").out)["outcome"] == outcome


def test_test_failover_tells_how_to_start_it_and_how_to_end_it(vmreplica: Command) -> None:
    uri = "nbd+unix:///disk0?socket=/run/e,1"
    test = TestFailoverStatus(
        name="web - Test", export="0123abcd", point="01234567/3", cut=cut(3, 7200.0), started_time=1.0, uris=[uri]
    )
    canned = vmreplica.agent("replica", [replica(test_failover=test)])
    canned.answers[admin.TEST_FAILOVER] = to_plain(replica())
    ran = vmreplica("failover", "web", "--test", "--point", "base")
    assert ran.code == 0, ran.err
    assert uri in ran.out and "-name 'web - Test'" in ran.out and "-nic none" in ran.out
    assert "server.path=/run/e,,1,export=disk0" in ran.out
    assert "vmreplica failover web --test --stop" in ran.out
    assert canned.calls == [
        (admin.TEST_FAILOVER, {"vm": UUID, "point": "base", "at_time": None, "stop": False}),
    ]
    canned.calls.clear()
    assert vmreplica("failover", "web", "--test", "--stop").code == 0
    assert canned.calls[0][1]["stop"] is True
    for wrong in (["--stop"], ["--test", "--at", "2h", "--point", "base"]):
        assert vmreplica("failover", "web", *wrong, "--yes").code == 2
    assert "To end it" in vmreplica("status", "web").out or "to end it" in vmreplica("status", "web").out


def test_settings_of_the_replica(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica()])
    canned.answers[admin.SET] = to_plain(replica())
    more = ["points-daily=7", "points-weekly=4", "points-limit=1GiB", "points-age=35d"]
    assert vmreplica("set", "web", *more).code == 0
    values = {"points_daily": 7, "points_weekly": 4, "points_limit_bytes": 1 << 30, "points_age_seconds": 35 * 86400.0}
    assert canned.calls == [(admin.SET, {"vm": UUID, "settings": values})]
    canned.calls.clear()
    assert vmreplica("set", "web", "points-newest=2", "points-hourly=default").code == 0
    assert canned.calls == [(admin.SET, {"vm": UUID, "settings": {"points_newest": 2, "points_hourly": None}})]
    ran = vmreplica("set", "web", "points-newest=2", "interval=30s")
    assert ran.code == 2
    assert "both sides" in ran.err
    assert "Give 0 to 1000" in vmreplica("set", "web", "points-newest=many").err


def test_failover_shows_progress_and_ends_with_the_disks(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica()])
    released = threading.Event()

    def promote(params: dict[str, Any]) -> None:
        progress = ProgressStatus(kind="promotion", phase="applying", total_bytes=100, done_bytes=30)
        canned.set_vm(replica(progress=progress))
        assert released.wait(WAIT)
        canned.set_vm(replica(state="FailedOverWaitingCompletion", state_code=6, uris=[URI], applied_cut=cut(16, 31.0)))

    canned.answers[admin.FAILOVER] = promote
    started = vmreplica.start("failover", "web", "--yes")
    assert started.stdout is not None
    assert started.stdout.readline() == "web: failover, applying, 30 % (30 B of 100 B)\n"
    released.set()
    out, err = started.communicate(timeout=WAIT)
    assert (started.returncode, err) == (0, "")
    assert out.splitlines()[0] == (
        "web is failed over to this host as of 2030-03-17 17:46:09; its old primary can no longer write."
    )
    assert f"  {URI}" in out.splitlines()
    assert canned.calls == [(admin.FAILOVER, {"vm": UUID, "point": "newest", "at_time": None})]


def test_failover_that_goes_on_after_the_answer_is_followed(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica()])
    promoted = {"state": "FailedOverWaitingCompletion", "state_code": 6}
    applying = ProgressStatus(kind="promotion", phase="applying", total_bytes=100, done_bytes=30)
    steps = [replica(**promoted, progress=applying), replica(**promoted), replica(**promoted, uris=[URI])]

    def go_on(asked: int) -> None:
        if canned.calls and steps:
            canned.set_vm(steps.pop(0))

    canned.on_status = go_on
    ran = vmreplica("failover", "web", "--yes")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0] == "web: failover, applying, 30 % (30 B of 100 B)"
    assert f"  {URI}" in ran.lines


def test_failover_whose_tap_does_not_start_says_why(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica()])
    problem = Cause(code="disk_in_use", text="disk-0.raw is in use.", time=NOW, remedy="End what uses it.")
    canned.answers[admin.FAILOVER] = lambda params: canned.set_vm(
        replica(
            state="FailedOverWaitingCompletion", state_code=6, problem=problem, reasons=[problem.text],
            remedy=problem.remedy,
        )
    )  # fmt: skip
    ran = vmreplica("failover", "web", "--yes")
    assert ran.code == 4
    assert ran.lines[0].startswith("web is failed over to this host")
    assert ran.err.splitlines() == [
        "vmreplica: The disks of web are not served yet. disk-0.raw is in use.",
        "  End what uses it.",
    ]


PROMOTED = {"state": "FailedOverWaitingCompletion", "state_code": 6, "uris": [URI]}


def test_failover_to_a_point_tells_it_and_how_to_undo_it(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica(pending_bytes=5 << 20)])
    asked = vmreplica("failover", "web").err
    assert "5.0 MiB were received and are not applied yet: that is done first. `--point applied` starts at" in asked
    asked = vmreplica("failover", "web", "--point", "14").err
    assert "The recovery point 14 of web becomes its disks" in asked
    status = FailoverStatus(time=NOW, epoch="e" * 32, cut=cut(14, 131.0), undoable=True, layered=True)
    canned.answers[admin.FAILOVER] = lambda params: canned.set_vm(replica(**PROMOTED, failover=status))
    ran = vmreplica("failover", "web", "--point", "14", "--yes")
    assert (ran.err, ran.code) == ("", 0)
    assert ran.lines[0] == (
        "web is failed over to this host as of 2030-03-17 17:44:29; its old primary can no longer write."
    )
    assert any("vmreplica failover web --undo" in line for line in ran.lines)
    assert canned.calls == [(admin.FAILOVER, {"vm": UUID, "point": "14", "at_time": None})]
    assert vmreplica("failover", "web", "--undo", "--commit").code == 2


def test_failover_says_whether_the_primary_was_heard_of(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica(link=LinkStatus(connected=True, heard_time=NOW - 3))])
    assert "is connected right now; it was last heard of 3 s ago" in vmreplica("failover", "web").err
    canned.set_vm(replica(link=LinkStatus(heard_time=NOW - 7200)))
    assert "The primary agent on alpha was last heard of 2 h" in vmreplica("failover", "web").err


def test_failover_is_undone_or_committed(vmreplica: Command) -> None:
    status = FailoverStatus(time=NOW, epoch="e" * 32, undoable=True, layered=True, written_bytes=3 << 20)
    canned = vmreplica.agent("replica", [replica(**PROMOTED, failover=status, older_points=7)])
    assert "3.0 MiB that were written here since are dropped for good." in vmreplica("failover", "web", "--undo").err
    assert "its 7 older recovery points are deleted" in vmreplica("failover", "web", "--commit").err
    status.added_disks = [2]
    canned.set_vm(replica(**PROMOTED, failover=status, older_points=7))
    told = "points are deleted, and so is disk 2, which the promoted one does not have."
    assert told in vmreplica("failover", "web", "--commit").err
    assert canned.calls == []
    canned.answers[admin.FAILOVER_COMMIT] = {}
    assert vmreplica("failover", "web", "--commit", "--yes").lines[0].startswith("The failover of web is committed.")
    canned.answers[admin.FAILOVER_UNDO] = lambda params: canned.set_vm(replica())
    ran = vmreplica("failover", "web", "--undo", "--yes")
    assert ran.lines[0] == "The failover of web is undone: it is a replica again, in state Replicating."
    assert ran.lines[-1] == "  vmreplica resume web   (there)"


def test_removing_says_what_becomes_of_the_disks(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica()])
    assert "is deleted, with its disks in /var/lib/vmreplica/vms/x" in vmreplica("remove", "web").err
    canned.set_vm(replica(state="FailedOverWaitingCompletion", state_code=6))
    assert "the disks stay in /var/lib/vmreplica/vms/x" in vmreplica("remove", "web").err


def test_removing_what_was_handed_over_asks_the_primary_agent(vmreplica: Command) -> None:
    """Only that agent knows whether it serves the VM from the folder that would go; its tap may be down."""
    away = replica(state="FailedOver", state_code=7, handed_over=True)
    canned = vmreplica.agent("replica", [away])
    unasked = vmreplica("remove", "web", "--yes")
    assert unasked.code == 5 and "was handed over to the primary agent of this host, which does not" in unasked.err
    assert "systemctl start vmreplica-primary" in unasked.err
    primary = vmreplica.agent()
    held = vmreplica("remove", "web", "--role", "replica", "--yes")
    assert held.code == 4 and "The primary agent of this host has web" in held.err
    assert "vmreplica remove web --role primary" in held.err
    assert canned.calls == []
    primary.status.vms = []
    assert "its disks are moved to the folder removed beside /var/lib/vmreplica/vms/x" in vmreplica("remove", "web").err
    canned.answers[admin.REMOVE] = {"kept": "/var/lib/vmreplica/vms/removed/x-7"}
    ran = vmreplica("remove", "web", "--yes")
    assert canned.calls == [(admin.REMOVE, {"vm": UUID, "yes": True, "released": True})]
    assert ran.lines == [
        "web is no longer replicated to this host.",
        "Its disks are kept in /var/lib/vmreplica/vms/removed/x-7.",
    ]


def test_failover_asks_and_tells_what_is_lost(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica()])
    ran = vmreplica("failover", "web")
    assert ran.code == 2
    assert "becomes its disks, 2.1 s old; what was written after it is lost." in ran.err
    assert "The primary agent on alpha is connected right now." in ran.err
    assert canned.calls == []


def test_verb_on_the_wrong_host_names_the_right_one(vmreplica: Command) -> None:
    vmreplica.agent()
    ran = vmreplica("failover", "web", "--yes")
    assert ran.code == 2
    assert ran.err.splitlines() == [
        "vmreplica: web is on this host as primary; this is for its replica.",
        "  Run it on the other host beta.",
    ]


def test_name_that_one_agent_has_twice_needs_the_uuid(vmreplica: Command) -> None:
    twin = "00000000-0000-4000-8000-00000000000f"
    canned = vmreplica.agent("replica", [replica(), replica(uuid=twin)])
    ran = vmreplica("export", "web")
    assert ran.code == 2
    assert f"Name it by UUID: {UUID}, {twin}." in ran.err
    canned.answers[admin.EXPORT] = to_plain(replica().exports[0])
    assert vmreplica("export", twin).code == 0
    assert canned.calls == [(admin.EXPORT, {"vm": twin, "point": "newest", "at_time": None, "writable": False})]


# --- test-connection


STEPS = [
    {"name": "resolve", "ok": True, "text": "beta is 10.0.0.2"},
    {"name": "tls", "ok": False, "text": "The certificate of beta has expired.", "remedy": "Issue another."},
]


def test_connection_is_reported_step_by_step(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[])
    canned.answers[admin.TEST_CONNECTION] = {"ok": False, "steps": STEPS}
    ran = vmreplica("test-connection", "beta")
    assert ran.code == 5
    assert ran.lines == [
        "ok      resolve        beta is 10.0.0.2",
        "FAILED  tls            The certificate of beta has expired.",
    ]
    assert ran.err.splitlines() == [
        "vmreplica: beta can't be used as a replica: The certificate of beta has expired.",
        "  Issue another.",
    ]
    failed = vmreplica("test-connection", "beta", "--json")
    assert (failed.code, json.loads(failed.out)["steps"]) == (5, STEPS)

    canned.answers[admin.TEST_CONNECTION] = {"ok": True, "steps": STEPS[:1]}
    ran = vmreplica("test-connection", "beta:7443")
    assert (ran.code, ran.lines[-1]) == (0, "beta:7443 takes replication from this host.")
    assert canned.calls[-1] == (admin.TEST_CONNECTION, {"replica": "beta:7443"})


def test_agent_that_does_not_answer_in_time(vmreplica: Command) -> None:
    canned = vmreplica.agent(vms=[])
    released = threading.Event()
    canned.answers[admin.TEST_CONNECTION] = lambda params: released.wait(WAIT)
    ran = vmreplica("test-connection", "beta", "--timeout", "0.2s")
    released.set()
    assert ran.code == 5
    assert "did not answer test_connection within 0.2 seconds" in ran.err


def test_sample_of_an_agent_is_as_agents_tell_it() -> None:
    assert to_plain(agent())["vms"][0]["role"] == "primary"
