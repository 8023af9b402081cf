"""The states in which anything may be restarted: how each is entered, told, and left; and what is restarted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.pair.hosts import compare
from tests.systemd.pair import CHECKOUT, Pair, Status

MIB = 1 << 20
DISK_BYTES = 48 * MIB
RANDOM_BYTES = 8 * MIB
LOG_LIMIT_BYTES = 8 * MIB
SLOW = [MIB]
"""A rate at which a compare of a disk without a hole outlasts all restarts."""


class Vm:
    """One VM of a pair: a disk at alpha, which a guest writes, and its copy at beta."""

    def __init__(self, pair: Pair, name: str, *, log_limit: int = LOG_LIMIT_BYTES, full: bool = False) -> None:
        """Its disk begins with random data; the rest is a hole, or zeros where it is ``full``."""
        self.pair = pair
        self.name = name
        self.disk = f"/srv/images/{name}.raw"
        self.writes = 0
        self.served_at = "alpha"
        self.promoted: dict[int, int] = {}
        self.export: Status = {}
        """What was exported, while something is."""
        pair.alpha.shell(
            f"mkdir -p /srv/images && head -c {RANDOM_BYTES} /dev/urandom >{self.disk} && "
            f"head -c {DISK_BYTES - RANDOM_BYTES if full else 0} /dev/zero >>{self.disk} && "
            f"truncate -s {DISK_BYTES} {self.disk}"
        )
        pair.call(
            "alpha", "vm.enable", name=name, disks=[self.disk], replica="beta", interval_seconds=2,
            log_limit_bytes=log_limit,
        )  # fmt: skip

    def order(self, verb: str, at: str = "alpha", **params: Any) -> None:
        """One order for this VM, as the command gives it to the agent of the host."""
        self.pair.call(at, f"vm.{verb}", vm=self.name, **params)

    def set(self, **settings: Any) -> None:
        self.order("set", settings=settings)

    def status(self, at: str = "alpha") -> Status:
        return self.pair.status(at, self.name)

    def wait(self, what: str, until: Callable[[Status], object], at: str = "alpha") -> Status:
        return self.pair.wait(f"{self.name}: {what}", at, until, vm=self.name)

    def wait_state(self, state: str, at: str = "alpha") -> Status:
        return self.wait(f"the state {state}", lambda vm: vm["state"] == state, at)

    def connected(self) -> None:
        """A session, which the agents make by themselves."""
        self.wait("a session", lambda vm: vm["link"]["connected"])

    def initial(self) -> None:
        self.connected()
        self.order("initial")
        self.wait_state("Replicating")

    # --- its guest

    def uri(self) -> str:
        """Where the disk is served, once it is."""
        if self.served_at == "alpha":
            vm = self.wait("the tap", lambda vm: vm["tap"] and vm["tap"]["running"] and vm["tap"]["uris"])
            return str(vm["tap"]["uris"][0])
        return str(self.wait("the promoted disk", lambda vm: vm["uris"], self.served_at)["uris"][0])

    def write(self, length: int = 256 << 10) -> int:
        """Write and flush, as a guest does; where: a place of its own for each of the first thirty writes."""
        self.writes += 1
        offset = self.writes % 30 * MIB
        self.promoted[offset] = self.writes % 200 + 1
        self.guest(f"write -P {self.promoted[offset]} {offset} {length}", "flush")
        return offset

    def guest(self, *commands: str) -> None:
        """Commands of qemu-io at the served disk; an error of any is an error."""
        words = [word for command in commands for word in ("-c", command)]
        self.pair.hosts[self.served_at].run("qemu-io", "-f", "raw", *words, self.uri())

    def assert_same(self) -> None:
        self.pair.assert_same(self.name, self.disk)

    def start_export(self) -> None:
        """Export what the disk holds now, which no rule of recovery points keeps from the next write on."""
        self.order("set", "beta", settings={"points_newest": 1, "points_hourly": 0})
        self.assert_same()
        self.pair.alpha.run("cp", self.disk, f"{self.disk}.then")
        self.export = self.pair.call("beta", "vm.export", vm=self.name)

    def assert_exported(self) -> None:
        """The same export is served at the same place, with what the disk held then."""
        identity, uris = self.export["id"], self.export["uris"]

        def served(now: Status) -> bool:
            return [(each["id"], each["uris"], each["error"]) for each in now["exports"]] == [(identity, uris, "")]

        self.wait("its export", served, "beta")
        image = f"/srv/{self.name}.then"
        self.pair.beta.run("qemu-img", "convert", "-f", "raw", "-O", "raw", uris[0], image)
        compare(self.pair.alpha.path(f"{self.disk}.then"), self.pair.beta.path(image))
        self.pair.beta.run("rm", image)

    def remove(self) -> None:
        """End replication on both hosts, and take the files away."""
        if self.served_at == "beta":
            self.order("failover_commit", "beta")
            self.wait("settled disks", lambda now: not now["failover"]["layered"], "beta")
        self.order("remove", yes=True)
        self.order("remove", "beta", yes=True)
        self.pair.alpha.run("rm", self.disk)


@dataclass(frozen=True)
class State:
    """``enter`` brings a VM there, ``holds`` waits until it is (again) there and proves it, ``leave`` finishes."""

    enter: Callable[[Vm], None]
    holds: Callable[[Vm], None]
    leave: Callable[[Vm], None]
    full: bool = False
    """Its disk has no hole, so that a compare has all of it to read."""


RESTARTS: dict[str, Callable[[Pair], None]] = {
    "primary agent": lambda pair: pair.alpha.restart("vmreplica-primary"),
    "replica agent": lambda pair: pair.beta.restart("vmreplica-replica"),
    "host alpha": lambda pair: pair.alpha.reboot(),
    "host beta": lambda pair: pair.beta.reboot(),
    "power of alpha": lambda pair: pair.alpha.power_cut(),
    "power of beta": lambda pair: pair.beta.power_cut(),
}


def catches_up(vm: Vm) -> None:
    """By itself: Replicating, and the same on both sides after another write."""
    vm.wait_state("Replicating")
    vm.write()
    vm.connected()
    vm.wait_state("Replicating")
    vm.assert_same()


def is_in(state: str, *, connected: bool = True) -> Callable[[Vm], None]:
    """In the state, with or without a session, while its guest writes."""

    def holds(vm: Vm) -> None:
        vm.wait_state(state)
        vm.write()
        vm.wait("its link", lambda now: now["state"] == state and now["link"]["connected"] == connected)

    return holds


def is_cut_off(vm: Vm) -> None:
    """The guest writes on, and the log keeps it."""
    vm.wait("no session", lambda now: now["state"] == "Replicating" and not now["link"]["connected"])
    vm.write()


def on_the_map(vm: Vm) -> None:
    """More was written than the log holds; the dirty map goes on in its place."""
    vm.guest(f"write -P 77 4M {LOG_LIMIT_BYTES + MIB}", "flush")
    vm.wait(
        "the dirty map",
        lambda now: now["state"] == "WaitingForStartResynchronize" and now["tap"] and now["tap"]["tracking"] == "map",
    )


def compare_slowly(vm: Vm) -> None:
    vm.initial()
    vm.set(resync_read_rate=SLOW)
    vm.order("resume", resynchronize=True)


def is_comparing(vm: Vm) -> None:
    """The same resync, and it gets on."""
    before = vm.wait("Resynchronizing", lambda now: now["state"] == "Resynchronizing" and now["progress"])
    done = before["progress"]["done_bytes"]
    vm.write()
    vm.wait("progress", lambda now: now["progress"] and now["progress"]["done_bytes"] > done)


def compare_fast(vm: Vm) -> None:
    vm.set(resync_read_rate=[], initial_read_rate=[])
    catches_up(vm)


def suspend_compare(vm: Vm) -> None:
    compare_slowly(vm)
    vm.wait_state("Resynchronizing")
    vm.order("suspend")


def resume(vm: Vm) -> None:
    vm.order("resume")
    compare_fast(vm)


def suspend(vm: Vm) -> None:
    vm.initial()
    vm.order("suspend")


def suspend_replica(vm: Vm) -> None:
    vm.initial()
    vm.order("suspend", "beta")


def is_suspended_there(vm: Vm) -> None:
    vm.wait_state("Suspended", "beta")
    vm.write()
    vm.wait_state("Suspended", "beta")


def resume_replica(vm: Vm) -> None:
    vm.order("resume", "beta")
    catches_up(vm)


def copy_slowly(vm: Vm) -> None:
    vm.connected()
    vm.set(initial_read_rate=[rate // 2 for rate in SLOW])
    vm.order("initial")
    vm.wait_state("InitialReplicationInProgress")


def is_copying(vm: Vm) -> None:
    vm.wait("the copy", lambda now: now["state"] == "InitialReplicationInProgress" and now["progress"])
    vm.write()


def edit_behind(vm: Vm) -> None:
    """Somebody else writes the image: whole disks have to be compared, which waits for its window."""
    vm.initial()
    in_hours = dt.datetime.now() + dt.timedelta(hours=3)  # noqa: DTZ005  # the hosts' local time is ours
    vm.set(resync_window=f"{in_hours:%H:%M}-{in_hours + dt.timedelta(hours=1):%H:%M}")
    vm.pair.alpha.shell(f"printf vandal | dd of={vm.disk} bs=1 seek={40 * MIB} conv=notrunc status=none")
    vm.write()


def open_window(vm: Vm) -> None:
    """The window opens: nobody has to do anything."""
    now = dt.datetime.now()  # noqa: DTZ005
    earlier, later = now - dt.timedelta(minutes=5), now + dt.timedelta(hours=1)
    vm.set(resync_window=f"{earlier:%H:%M}-{later:%H:%M}")
    catches_up(vm)


def export(vm: Vm) -> None:
    vm.initial()
    vm.write()
    vm.start_export()


def is_exported(vm: Vm) -> None:
    """What it shows stays as it was, and replication goes on."""
    vm.wait_state("Replicating")
    vm.write()
    vm.assert_exported()


def unexport(vm: Vm) -> None:
    vm.order("unexport", "beta", id=vm.export["id"])
    vm.pair.alpha.run("rm", f"{vm.disk}.then")
    assert vm.status("beta")["exports"] == []
    catches_up(vm)


def fail_over(vm: Vm) -> None:
    vm.initial()
    vm.write()
    vm.assert_same()
    vm.order("failover", "beta")
    vm.served_at = "beta"


def is_promoted(vm: Vm) -> None:
    """The VM's disk is served at beta with all that was written, alpha knows that it is fenced."""
    vm.wait_state("FailedOverWaitingCompletion", "beta")
    vm.wait_state("FailedOver")
    vm.guest(*(f"read -P {pattern} {offset} 256k" for offset, pattern in vm.promoted.items()))
    vm.write()


@contextmanager
def steady(vm: Vm) -> Iterator[None]:
    """A guest at beta of a VM that was failed over: it writes and reads on one connection, which has to last, as the
    tap's process has to, while the agent becomes another one.
    """
    beta, unit = vm.pair.beta, "vmreplica-replica.service"
    uri, tap = vm.uri(), vm.status("beta")["tap"]["pid"]
    assert unit in beta.path(f"/proc/{tap}/cgroup").read_text(), "it is started by the replica agent"
    python = ("env", f"--chdir={CHECKOUT}", "/usr/bin/python3", "-B")
    with beta.open(*python, "-m", "tests.systemd.steady_client", uri, str(MIB)) as client:
        client.ask("go", "going")
        agent = beta.show(unit, "MainPID")
        yield
        assert beta.show(unit, "MainPID") not in ("0", agent), "the agent is another process"
        client.ask("end", "bye")
    assert vm.status("beta")["tap"]["pid"] == tap


STATES = {
    "replicating": State(lambda vm: vm.initial(), catches_up, catches_up),
    "resynchronizing": State(compare_slowly, is_comparing, compare_fast, full=True),
    "resync suspended": State(suspend_compare, is_in("ResynchronizeSuspended", connected=False), resume),
    "resync waits for its window": State(edit_behind, is_in("WaitingForStartResynchronize"), open_window),
    "suspended": State(suspend, is_in("Suspended", connected=False), resume),
    "suspended at the replica": State(suspend_replica, is_suspended_there, resume_replica),
    "ready for initial": State(lambda vm: None, is_in("ReadyForInitialReplication"), lambda vm: vm.initial()),
    "initial under way": State(copy_slowly, is_copying, compare_fast, full=True),
    "exported": State(export, is_exported, unexport),
    "failed over": State(fail_over, is_promoted, is_promoted),
}
"""While the wire is whole."""

CUT_OFF = {
    "link down": State(lambda vm: vm.initial(), is_cut_off, catches_up),
    "log full": State(lambda vm: vm.initial(), on_the_map, catches_up),
}
"""While the wire is out: between ``enter`` and ``holds`` it is pulled, and put in again before ``leave``."""
