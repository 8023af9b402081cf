"""A real Linux guest with ext4 on a replicated disk: taps and hosts die under it, and e2fsck judges the copies."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.agent_pair import signal_process
from tests.guest.crash_image import assert_clean, judge, recover
from tests.guest.machine import Guest, GuestError
from tests.pair.hosts import MIB, VM, Hosts

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("guest")]

DISK = 64 * MIB
KILLS = 4
NOTES = 12
"""How many the guest makes between two events: a second or two of work."""


def judge_newest_point(hosts: Hosts, guest: Guest, kept: int = 0) -> list[str]:
    """Take a cut under the writing guest; what an export of it holds is as a crash at that moment would leave it.

    ``kept`` is how many notes the disk had when this guest booted. Returns all notes of the point.
    """
    durable = guest.notes
    hosts.caught_up()
    export = hosts.call("replica", "vm.export", vm=VM)
    image = hosts.folder / "export.raw"
    subprocess.run(["nbdcopy", export["uris"][0], str(image)], check=True)
    hosts.call("replica", "vm.unexport", vm=VM, id=export["id"])
    recover(image)
    return judge(image, durable, kept)


def judge_copy(disk: Path, notes: Sequence[str]) -> None:
    """A disk whose guest has unmounted it: nothing to replay, and every note is there."""
    assert_clean(disk)
    assert judge(disk, notes) == list(notes)


@pytest.mark.thorough
def test_guest_works_on_while_its_tap_is_killed(hosts: Hosts, boot_image: Path) -> None:
    """I1, I2, I3, I14: no error in the guest; each point of the replica is a sound crash image that lacks nothing."""
    hosts.replicate(DISK)
    epoch = hosts.status("primary")["epoch"]
    points = []
    with Guest(hosts.folder, "guest", boot_image, hosts.uris[0]) as guest:
        guest.boot("format:formatted", "mount:mounted", "go:going")
        for _ in range(KILLS):
            guest.write_more(NOTES)
            tap = hosts.tap_pid()
            hosts.kill_tap()
            hosts.wait("another tap", "primary", lambda vm: vm["tap"] and vm["tap"]["pid"] not in (None, tap))  # noqa: B023
            guest.write_more(NOTES)
            points.append(judge_newest_point(hosts, guest))
        guest.order("stop", "idle")
        guest.verify()
        guest.power_off()
        notes = guest.notes
    for point in points:
        assert point == notes[: len(point)]
    hosts.assert_same()
    judge_copy(hosts.copy(0), notes)
    status = hosts.status("primary")
    assert (status["epoch"], status["state"], status["causes"]) == (epoch, "Replicating", [])


def test_guest_boots_from_the_replica_after_a_failover(hosts: Hosts, boot_image: Path) -> None:
    """I6, I8, R42: host A is gone in the middle of the work, which goes on at host B, also when a tap dies there."""
    # The cut that is taken below is the newest: what the failover holds is known to the note.
    hosts.replicate(DISK, interval=600.0)
    with Guest(hosts.folder, "alpha", boot_image, hosts.uris[0]) as guest:
        guest.boot("format:formatted", "mount:mounted", "go:going").write_more(4 * NOTES)
        durable = guest.notes
        hosts.caught_up()
        guest.write_more(NOTES)
        power_cut(hosts, guest)
        said = guest.notes
    hosts.call("replica", "vm.failover", vm=VM)
    promoted = hosts.wait("the disks", "replica", lambda vm: vm["uris"] and vm["tap"] and vm["tap"]["pid"])
    with Guest(hosts.folder, "beta", boot_image, promoted["uris"][0]) as guest:
        # What the guest did after the newest cut is lost; before it, nothing is.
        kept = guest.boot("mount:mounted").verify()
        guest.order("go", "going")
        guest.write_more(NOTES)
        tap = hosts.tap_pid("replica")
        signal_process(tap, signal.SIGKILL)
        hosts.wait("another tap", "replica", lambda vm: vm["tap"] and vm["tap"]["pid"] not in (None, tap))
        guest.write_more(NOTES)
        guest.order("stop", "idle")
        guest.verify()
        guest.power_off()
    # Until then what the guest wrote lies over the copy.
    hosts.call("replica", "vm.failover_commit", vm=VM)
    hosts.wait("plain disks", "replica", lambda vm: not vm["failover"]["layered"])
    assert_clean(hosts.copy(0))
    notes = judge(hosts.copy(0), durable)
    assert same_as_far_as_both_go(notes[:kept], said)
    assert notes[kept:] == guest.notes


@pytest.mark.thorough
def test_power_cut_of_the_primary_host(hosts: Hosts, boot_image: Path) -> None:
    """I1, I5, R26: guest, tap and agent end at once and come back; nothing durable is lost, and the replica follows."""
    hosts.replicate(DISK)
    epoch = hosts.status("primary")["epoch"]
    with Guest(hosts.folder, "before", boot_image, hosts.uris[0]) as guest:
        guest.boot("format:formatted", "mount:mounted", "go:going").write_more(4 * NOTES)
        power_cut(hosts, guest)
        said = guest.notes
    hosts.start("primary")
    hosts.connect()
    with Guest(hosts.folder, "after", boot_image, hosts.uris[0]) as guest:
        kept = guest.boot("mount:mounted").verify()
        # One note more may have become durable than the guest came to say.
        assert len(said) <= kept <= len(said) + 1
        guest.order("go", "going")
        guest.write_more(NOTES)
        earlier = judge_newest_point(hosts, guest, kept)[:kept]
        guest.order("stop", "idle")
        guest.verify()
        guest.power_off()
    assert earlier[: len(said)] == said
    hosts.assert_same()
    judge_copy(hosts.copy(0), [*earlier, *guest.notes])
    status = hosts.status("primary")
    assert (status["epoch"], status["state"], status["causes"]) == (epoch, "Replicating", [])


@pytest.mark.thorough
def test_guest_tells_of_an_error_when_nobody_brings_its_tap_back(hosts: Hosts, boot_image: Path) -> None:
    """What the other tests rely on: with the agent gone and an impatient QEMU, the guest and its kernel complain."""
    hosts.replicate(DISK)
    with Guest(hosts.folder, "guest", boot_image, hosts.uris[0], reconnect_seconds=1) as guest:
        guest.boot("format:formatted", "mount:mounted", "go:going").write_more(NOTES)
        tap = hosts.tap_pid()
        hosts.kill("primary")
        signal_process(tap, signal.SIGKILL)
        with pytest.raises(GuestError):
            guest.write_more(10 * NOTES)
        guest.kill()
        assert any("I/O error" in line for line in guest.errors())


def power_cut(hosts: Hosts, guest: Guest) -> None:
    """Everything on host A ends, in the middle of whatever it was doing."""
    tap = hosts.tap_pid()
    guest.process.kill()
    signal_process(tap, signal.SIGKILL)
    hosts.kill("primary")
    guest.kill()


def same_as_far_as_both_go(one: Sequence[str], other: Sequence[str]) -> bool:
    return all(left == right for left, right in zip(one, other, strict=False))
