"""Faults of the primary host that cost the log: no room for it, and disks that somebody else changed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.agent_pair import PairError, signal_process
from tests.pair.hosts import MIB, VM, Hosts, Status, patience

pytestmark = pytest.mark.slow


@pytest.fixture
def small(hosts: Hosts) -> Iterator[Hosts]:
    """The state of the primary, its log too, on a tmpfs of 96 MiB."""
    hosts.state.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(hosts.state)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield hosts
    finally:
        hosts.stop()
        subprocess.run(["umount", "-l", str(hosts.state)], check=True)


def resynchronize(hosts: Hosts) -> None:
    """What its administrator does."""
    hosts.connect()
    hosts.wait("a healthy link", "primary", lambda vm: vm["link"]["healthy"])
    hosts.call("primary", "vm.resume", vm=VM, resynchronize=True)
    hosts.wait_state("Replicating")


def lost(hosts: Hosts) -> Status:
    """Wait until a resync is required; why tracking was lost."""
    status = hosts.wait_state("WaitingForStartResynchronize")
    assert [cause["code"] for cause in status["causes"]] == ["tracking_lost"]
    assert (status["health"], status["remedy"]) == ("Critical", f"Run `vmreplica resume {VM} --resynchronize`.")
    return lost_by_tap(hosts)


def lost_by_tap(hosts: Hosts) -> Status:
    """Wait until the tap says that tracking is lost, whatever its agent says; why."""
    for _ in patience("the loss", {"log": str(hosts.log_folder)}):
        with contextlib.suppress(PairError):
            if lost := hosts.tap("status")["lost"]:
                return dict(lost)
    raise AssertionError


def kill_all(hosts: Hosts) -> None:
    """SIGKILL the primary agent, and its tap."""
    # The process it is, even where its agent can't tell.
    pid = int(hosts.tap("status")["pid"])
    hosts.kill("primary")
    signal_process(pid, signal.SIGKILL)


def stop_all(hosts: Hosts) -> None:
    """Stop the primary agent and its tap in order."""
    agent = hosts.agents.pop("primary")
    agent.terminate()
    assert agent.wait() == 0
    hosts.tap("stop")
    for _ in patience("the end of the tap", {"folder": str(hosts.tap_folder)}):
        if not hosts.taps():
            return


def test_full_volume_of_the_log_costs_a_resync_and_no_error(small: Hosts) -> None:
    """R21, R28, I14: the client sees nothing of it; the dirty map outlives kills, and bounds what heals it."""
    small.replicate(16 * MIB, 4 * MIB, log_limit=64 * MIB)
    assert small.link is not None
    writer = small.start_writer(61, pause=0.001)
    writer.go()
    small.wait("cuts", "replica", lambda vm: vm["applied_cut"]["segment"] > 2)
    writer.settle()
    small.caught_up()
    ballast = small.state / "ballast"
    with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    # The agent's state takes no more changes: it says so, and goes on by itself when there is room.
    with pytest.raises(PairError, match="full"):
        while True:
            small.call("primary", "vm.suspend", vm=VM)
            small.call("primary", "vm.resume", vm=VM)
    small.link.cut()
    status = small.wait_state("Error")
    assert (status["health"], status["problem"]["code"]) == ("Critical", "storage")
    assert "full" in status["problem"]["text"]
    with pytest.raises(PairError, match="too few"):
        small.call("primary", "vm.resume", vm=VM)
    # The tap does not need its agent to give up the log for its client's sake.
    writer.go()
    assert lost_by_tap(small)["reason"] == "log_full"
    epoch = small.status("replica")["epoch"]
    point = small.status("replica")["applied_cut"]
    ballast.unlink()
    small.call("primary", "vm.resume", vm=VM)
    assert lost_by_tap(small)["reason"] == "log_full"
    # The map is there on both sides of the control socket, however they end.
    kill_all(small)
    small.start("primary")
    assert lost_by_tap(small)["reason"] == "log_full"
    status = small.wait("the cause", "primary", lambda vm: (vm["tap"] or {}).get("tracking") == "map" and vm["causes"])
    assert [cause["code"] for cause in status["causes"]] == ["tracking_lost"]
    assert (status["state"], status["health"]) == ("WaitingForStartResynchronize", "Critical")
    # It starts by itself; the volume may be short of room all the same, which is another matter.
    assert status["remedy"] in ("", "Make room there, or enlarge it.")
    assert small.status("replica")["applied_cut"] == point
    small.link.restore()
    small.connect()
    small.wait("another baseline", "replica", lambda vm: vm["epoch"] != epoch)
    small.wait_state("Replicating")
    writer.settle()
    small.assert_same(writer.shadows)
    assert small.status("primary")["causes"] == []


@pytest.mark.parametrize("end", [stop_all, kill_all])
def test_disk_edited_while_no_tap_runs_is_noticed(hosts: Hosts, end: object) -> None:
    """I10: evidence is shown, the guest is served what is there, a resync brings it over."""
    assert callable(end)
    hosts.replicate(4 * MIB, 2 * MIB)
    writer = hosts.start_writer(62)
    writer.go()
    hosts.wait("writes", "primary", lambda vm: vm["tap"]["writes"] > 100)
    writer.finish()
    hosts.assert_same(writer.shadows)
    end(hosts)
    edit(hosts.disks[1], writer.shadows[1])
    hosts.start("primary")
    why = lost(hosts)
    assert why["reason"] == "disk_changed"
    assert str(hosts.disks[1]) in why["text"]
    resynchronize(hosts)
    hosts.assert_same(writer.shadows)


def test_disk_edited_under_the_running_tap_is_noticed_before_the_next_cut(hosts: Hosts) -> None:
    """I10: no cut claims to be the disks as they are; the client goes on, and a resync under load heals it."""
    hosts.replicate(4 * MIB, 2 * MIB)
    writer = hosts.start_writer(63)
    writer.go()
    hosts.wait("writes", "primary", lambda vm: vm["tap"]["writes"] > 100)
    writer.settle()
    hosts.caught_up()
    before = hosts.status("replica")["applied_cut"]
    edit(hosts.disks[1], writer.shadows[1])
    with pytest.raises(PairError, match="changed under the tap"):
        hosts.tap("cut", reason="test")
    assert hosts.status("replica")["applied_cut"]["epoch"] == before["epoch"]
    assert lost(hosts)["reason"] == "disk_changed"
    writer.go()
    resynchronize(hosts)
    writer.settle()
    hosts.assert_same(writer.shadows)


def edit(disk: Path, shadow: Path) -> None:
    """Change one byte without asking anybody; the shadow is what the disk holds now."""
    for path in (disk, shadow):
        with path.open("r+b") as file:
            file.seek(777_777)
            file.write(b"!")


def test_disk_of_another_size_is_not_served(hosts: Hosts) -> None:
    """The VM alone stops, with the sizes told; back at its size the disk counts as changed."""
    hosts.replicate(4 * MIB, 2 * MIB)
    stop_all(hosts)
    os.truncate(hosts.disks[1], 3 * MIB)
    hosts.start("primary")
    status = hosts.wait("the refusal", "primary", lambda vm: vm["tap"]["error"])
    assert f"has {3 * MIB} bytes, but {2 * MIB} are configured" in status["reasons"][0]
    assert status["health"] == "Critical"
    os.truncate(hosts.disks[1], 2 * MIB)
    hosts.wait("the tap", "primary", lambda vm: (vm["tap"] or {}).get("uris"))
    assert lost(hosts)["reason"] == "disk_changed"
    resynchronize(hosts)
    hosts.assert_same()


def test_copy_of_another_size_is_not_applied_to(hosts: Hosts) -> None:
    """I9, I10: nothing is written to it, both sides name both sizes, and what they say to do is the way out."""
    hosts.replicate(4 * MIB, 2 * MIB)
    hosts.caught_up()
    hosts.kill("replica")
    with hosts.copy(1).open("r+b") as file:
        file.truncate(MIB)
    before = hosts.copy(1).read_bytes()
    hosts.start("replica")
    # The primary's own waits have begun when the replica was killed.
    hosts.call("primary", "vm.resume", vm=VM)
    status = hosts.wait("the refusal", "primary", lambda vm: (vm["problem"] or {}).get("code") == "storage")
    assert f"has {MIB} bytes; it must have {2 * MIB}" in status["problem"]["text"]
    assert (status["health"], status["link"]["retryable"]) == ("Critical", False)
    assert hosts.copy(1).read_bytes() == before
    assert "remove the VM here" in status["remedy"]
    hosts.call("replica", "vm.remove", vm=VM, yes=True)
    hosts.call("primary", "vm.resume", vm=VM)
    hosts.wait_state("WaitingForStartResynchronize")
    resynchronize(hosts)
    hosts.assert_same()
