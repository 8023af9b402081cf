"""Disks, volumes and hosts that fail while a resync of real processes runs, and a client writes."""

from __future__ import annotations

import errno
import time

import pytest

from shared.resync_runs import COMMITTED
from tests.faults.shim import Operation, Shim
from tests.faults.test_pair_storage import BLOCK, PRIMARY, REPLICA, ROT, flip, replicating, resynchronize
from tests.pair.hosts import MIB, VM, Hosts, Status

pytestmark = pytest.mark.slow


def last_run(hosts: Hosts) -> Status:
    (run,) = hosts.call("primary", "vm.resync_history", vm=VM, limit=1)["runs"]
    return dict(run)


def total(run: Status, field: str) -> int:
    return sum(disk[field] for disk in run["disks"])


def order(hosts: Hosts) -> None:
    hosts.connect()
    hosts.wait("a healthy link", "primary", lambda vm: vm["link"]["healthy"])
    hosts.call("primary", "vm.resume", vm=VM, resynchronize=True)


def test_what_the_primary_cannot_read_stops_the_compare_by_name(shim: Shim, hosts: Hosts) -> None:
    """R24: it is never equal, nor told to be; with the disk well again the run goes on."""
    replicating(hosts)
    flip(hosts.copy(0), ROT)
    hosts.caught_up()
    epoch = hosts.status("replica")["epoch"]
    with shim.fault(Operation.READ, "*/disk0.raw", program=PRIMARY, span=(ROT, ROT + 1)) as fault:
        order(hosts)
        status = hosts.wait("the failure", "primary", lambda vm: vm["problem"])
        assert fault.hits
        assert status["problem"]["code"] == "block_unreadable"
        assert f"Disk 0 ({hosts.disks[0]}) can't be read at bytes" in status["problem"]["text"]
        assert (status["state"], status["health"]) == ("Resynchronizing", "Critical")
        assert hosts.status("replica")["epoch"] == epoch
    hosts.call("primary", "vm.resume", vm=VM)
    hosts.wait_state("Replicating")
    hosts.assert_same()
    run = last_run(hosts)
    assert (run["result"], 0 < total(run, "sent_bytes") <= BLOCK) == (COMMITTED, True)


def test_what_the_replica_cannot_read_is_sent(shim: Shim, hosts: Hosts) -> None:
    """R24: nobody can say that it is equal, and it is."""
    replicating(hosts)
    hosts.caught_up()
    with shim.fault(Operation.READ, "*/disk-0.raw", program=REPLICA, span=(ROT, ROT + 1)) as fault:
        resynchronize(hosts)
        assert fault.hits
    hosts.assert_same()
    run = last_run(hosts)
    assert (run["result"], total(run, "sent_bytes") >= BLOCK) == (COMMITTED, True)
    told = [event["text"] for event in hosts.events("replica")]
    assert any("can't be read and is sent anew" in text for text in told)


def test_a_full_volume_of_the_log_in_the_middle_of_a_resync(shim: Shim, hosts: Hosts) -> None:
    """R10, R28, I14: the client sees nothing of it, and the resync ends with what the client wrote."""
    hosts.replicate(24 * MIB, 4 * MIB)
    hosts.caught_up()
    writer = hosts.start_writer(17, depth=8, pause=0.002)
    hosts.call("primary", "vm.set", vm=VM, settings={"resync_read_rate": [8 * MIB]})
    writer.go()
    order(hosts)
    hosts.wait("the compare", "primary", lambda vm: (vm["progress"] or {}).get("phase") == "comparing")
    with shim.fault(Operation.WRITE | Operation.ALLOCATE, "*/tap/log/*.hrl", error=errno.ENOSPC) as fault:
        fault.wait()
        hosts.wait("the loss", "primary", lambda _vm: hosts.tap("status")["lost"])
        assert hosts.tap("status")["lost"]["reason"] in ("log_full", "log_failed")
    hosts.call("primary", "vm.set", vm=VM, settings={"resync_read_rate": []})
    hosts.wait("its end", "primary", lambda vm: vm["state"] == "Replicating" and not vm["causes"])
    writer.settle()
    hosts.assert_same(writer.shadows)
    assert all(write["done"] for write in writer.finish())


def test_what_was_settled_before_power_loss_of_the_replica_is_not_compared_again(shim: Shim, hosts: Hosts) -> None:
    """R35: settled is durable there; the run's own counts tell that only what was under way is done again."""
    hosts.replicate(64 * MIB)
    hosts.caught_up()
    hosts.call("primary", "vm.set", vm=VM, settings={"resync_read_rate": [16 * MIB]})
    order(hosts)
    settled = 24 * MIB

    def half(vm: Status) -> bool:
        progress = vm["progress"] or {}
        return bool(sum(disk["settled_bytes"] for disk in progress.get("disks", [])) >= settled)

    hosts.wait("half of it", "primary", half)
    hosts.kill("replica")
    shim.new_boot("after")
    time.sleep(0.1)
    hosts.start("replica")
    hosts.call("primary", "vm.set", vm=VM, settings={"resync_read_rate": []})
    hosts.connect()
    hosts.wait_state("Replicating")
    hosts.assert_same()
    run = last_run(hosts)
    assert (run["result"], run["interruption_count"] >= 1) == (COMMITTED, True)
    assert 64 * MIB <= total(run, "compared_bytes") < 64 * MIB + settled
