"""Rot and failing calls under the whole pair of real processes (rows P9, P13, R5, R6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.events import EventId
from tests.faults.shim import Action, Operation, Shim
from tests.pair.hosts import MIB, VM, Hosts, compare

pytestmark = pytest.mark.slow

BLOCK = 64 << 10
PERIOD = 2 * MIB
ROT = 256 << 10
REPLICA = "vmreplica-replica"
PRIMARY = "vmreplica-primary"


def resynchronize(hosts: Hosts) -> None:
    hosts.connect()
    hosts.wait("a healthy link", "primary", lambda vm: vm["link"]["healthy"])
    epoch = hosts.status("replica")["epoch"]
    hosts.call("primary", "vm.resume", vm=VM, resynchronize=True)
    hosts.wait("another baseline", "replica", lambda vm: vm["epoch"] != epoch and vm["applied_cut"] is not None)
    hosts.wait_state("Replicating")


def flip(path: Path, offset: int) -> None:
    """Rot: a byte is another one, and whoever looks at the file's times later finds nothing strange."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def periodic(hosts: Hosts) -> None:
    """Make the disk repeat itself, so that a read from the wrong place brings what looks right."""
    with hosts.disks[0].open("r+b") as file:
        content = file.read(PERIOD)
        for at in range(0, 8 * MIB, PERIOD):
            file.seek(at)
            file.write(content)


def differs(hosts: Hosts) -> bool:
    return hosts.disks[0].read_bytes() != hosts.copy(0).read_bytes()


def replicating(hosts: Hosts) -> None:
    hosts.make_disks(8 * MIB)
    periodic(hosts)
    hosts.prepare()
    hosts.start_both()
    hosts.enable()
    hosts.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
    hosts.call("primary", "vm.initial", vm=VM)
    hosts.wait_state("Replicating")
    hosts.assert_same()


def test_rot_in_the_copy_is_found_by_the_next_whole_compare(hosts: Hosts) -> None:
    """R6: what nobody wrote is found by its hash, and brought over from the primary."""
    replicating(hosts)
    flip(hosts.copy(0), ROT)
    hosts.caught_up()
    assert differs(hosts)
    resynchronize(hosts)
    hosts.assert_same()


@pytest.mark.parametrize(
    "program, action, argument",
    [(REPLICA, Action.MISDIRECT, PERIOD), (PRIMARY, Action.TORN, 4096)],
    ids=["the replica reads elsewhere", "the primary reads torn"],
)
def test_misdirected_read_is_made_good_by_the_next_compare(
    shim: Shim, hosts: Hosts, program: str, action: Action, argument: int
) -> None:
    """P13: a read that brings something else without an error fools this compare, and no later one."""
    replicating(hosts)
    flip(hosts.copy(0), ROT)
    hosts.caught_up()
    path = "*/disk-0.raw" if program == REPLICA else "*/disk0.raw"
    options = {"action": action, "argument": argument, "program": program, "span": (ROT, ROT + 1)}
    with shim.fault(Operation.READ, path, **options) as fault:  # type: ignore[arg-type]
        resynchronize(hosts)
        assert fault.hits
    hosts.caught_up()
    assert differs(hosts), "the fault was not felt"
    resynchronize(hosts)
    hosts.assert_same()


def test_failed_sync_in_a_merge_is_not_told_and_everything_is_sent_anew(shim: Shim, hosts: Hosts) -> None:
    """R5, R17: the merge is never told as done, the disks are suspect, and what heals them trusts no page of theirs."""
    replicating(hosts)
    flip(hosts.copy(0), ROT)
    hosts.caught_up()
    point = hosts.status("replica")["applied_cut"]
    # The first sync is that of what the resync is going to read.
    with shim.fault(Operation.SYNC, "*/disk-0.raw", program=REPLICA, skip=1, times=1) as fault:
        hosts.call("primary", "vm.resume", vm=VM, resynchronize=True)
        status = hosts.wait("the failure", "replica", lambda vm: vm["causes"])
        assert (fault.hits, fault.seen) == (1, 2)
    assert [cause["code"] for cause in status["causes"]] == ["disk_failed"]
    assert status["applied_cut"] is None or status["applied_cut"]["epoch"] == point["epoch"]
    assert (status["health"], status["protected"]) == ("Critical", False)
    hosts.wait_state("WaitingForStartResynchronize")
    resynchronize(hosts)
    hosts.assert_same()
    told = [event["text"] for event in hosts.events() if event["event"] == EventId.RESYNC_COMPARED]
    count = 8 * MIB // BLOCK
    assert f"{count} blocks compared, {count} sent" in told[-1]


def test_rot_in_the_log_is_not_shipped(hosts: Hosts) -> None:
    """P9: a flipped bit in log that was not sent yet stops the stream there, and a resync heals it."""
    hosts.replicate(4 * MIB, 2 * MIB, interval=30.0)
    assert hosts.link is not None
    hosts.caught_up()
    point = hosts.status("replica")["applied_cut"]
    hosts.link.cut()
    hosts.wait("the loss of the link", "primary", lambda vm: not vm["link"]["connected"])
    writer = hosts.start_writer(90)
    before = hosts.tap("status")["position"]["entry"]
    writer.go()
    hosts.wait("writes", "primary", lambda vm: vm["tap"]["writes"] > 200)
    writer.settle()
    place = hosts.tap("locate", epoch=point["epoch"], segment=point["segment"] + 1)
    log = hosts.log_folder / f"{place['file']:08d}.hrl"
    flip(log, place["offset"] + 60_000)
    assert before < hosts.tap("status")["position"]["entry"]
    hosts.link.restore()
    hosts.connect()
    hosts.wait("the cause", "primary", lambda vm: vm["causes"])
    assert hosts.status("replica")["applied_cut"]["segment"] == point["segment"]
    resynchronize(hosts)
    writer.settle()
    for index, disk in enumerate(hosts.disks):
        compare(writer.shadows[index], disk)
    hosts.assert_same()
