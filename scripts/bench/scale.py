"""Measures what many VMs cost one pair of agents: idle processor time, ``status``, restarts, memory and descriptors.

Two real agents over TLS on loopback, and a real tap for each of ``--vms`` VMs with a small disk each; all of them are
replicated, and ``--live`` of them are written to by a client of their tap (fio) while everything is measured. Times of
processes are the kernel's own and hold on a busy machine, too; wall times tell the load that they were taken under.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.agent_pair import ROLES, AgentPair, call
from scripts.bench.processes import cpu_of, loop_seconds

KIB, MIB = 1 << 10, 1 << 20
GOAL_CPU, GOAL_STATUS, GOAL_RESTART = 0.05, 0.5, 30.0
WAIT_SECONDS = 1800.0
SETTLE_SECONDS = 60.0
STATUS_RUNS = 5
POLL_SECONDS = 0.5

Status = dict[str, Any]


class Scale(AgentPair):
    """A pair with many VMs, and clients of some of them."""

    def __init__(self, folder: Path, vms: int, live: int, disk_bytes: int) -> None:
        super().__init__(folder, sessions=True)
        self.names = [f"vm-{number:04}" for number in range(vms)]
        self.live = self.names[:live]
        self.disk_bytes = disk_bytes
        self.clients: list[subprocess.Popen[bytes]] = []

    def call(self, role: str, method: str, **params: Any) -> Any:
        """One call of an agent's administration."""
        return call(self.sockets[role], method, params)

    def all(self, role: str = "primary") -> list[Status]:
        """The status of all VMs."""
        return list(self.call(role, "status")["vms"])

    def until(self, what: str, reached: Callable[[Status], object], role: str = "primary") -> float:
        """Wait until all VMs are so; returns after how many seconds they were."""
        began = told = time.monotonic()
        while True:
            vms = self.all(role)
            there = sum(map(bool, map(reached, vms)))
            if there == len(self.names):
                return time.monotonic() - began
            if time.monotonic() - told > 20:
                told = time.monotonic()
                print(f"  {what}: {there} of {len(self.names)} after {told - began:.0f} s", flush=True)
            if time.monotonic() - began > WAIT_SECONDS:
                late = next(vm for vm in vms if not reached(vm))
                raise SystemExit(f"{what}: {there} of {len(self.names)} after {WAIT_SECONDS:g} s, not {late}")
            time.sleep(POLL_SECONDS)

    # --- the way to a replicated pair --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Agents, VMs, and their initial replication."""
        self.prepare(cuttable=False)
        at_once = "resyncs_at_once = 32\n"
        with (self.folder / "replica.toml").open("a") as config:
            config.write(f"[storage]\nreserve_bytes = {MIB}\n{at_once}")
        primary = self.folder / "primary.toml"
        primary.write_text(primary.read_text().replace("[resync]\n", "[resync]\nat_once = 32\n"))
        disks = self.folder / "disks"
        disks.mkdir()
        for role in ("replica", "primary"):
            self.start(role)
        began = time.monotonic()
        for name in self.names:
            disk = disks / name
            with disk.open("wb") as file:
                file.write(os.urandom(64 * KIB))
                file.truncate(self.disk_bytes)
            self.call(
                "primary", "vm.enable", name=name, disks=[str(disk)], replica=self.address, interval_seconds=30.0,
                log_limit_bytes=64 * MIB,
            )  # fmt: skip
        print(f"{len(self.names)} VMs enabled in {time.monotonic() - began:.0f} s", flush=True)
        self.until("connected", lambda vm: vm["link"]["connected"])
        for name in self.names:
            self.call("primary", "vm.initial", vm=name)
        took = self.until("replicating", lambda vm: vm["state"] == "Replicating")
        print(f"initial replication of all in {took:.0f} s", flush=True)

    def write(self) -> None:
        """A client of each live VM: a 4 KiB write each second."""
        for vm in self.all():
            if vm["name"] in self.live:
                self.clients.append(
                    subprocess.Popen(
                        ["fio", "--name=live", "--ioengine=nbd", f"--uri={vm['tap']['uris'][0]}", "--rw=randwrite",
                         "--bs=4k", "--rate_iops=1", f"--size={self.disk_bytes}", "--time_based",
                         "--runtime=86400", "--minimal"],
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder,
                    )
                )  # fmt: skip

    # --- what is measured --------------------------------------------------------------------------------------------

    def idle(self, seconds: float) -> None:
        """Processor time of both agents, and of the taps, over some time."""
        taps = self.taps()
        pids = {role: [agent.pid] for role, agent in self.agents.items()} | {"all taps": taps}
        before = {what: sum(map(cpu_of, of)) for what, of in pids.items()}
        began = time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        for what, of in pids.items():
            share = (sum(map(cpu_of, of)) - before[what]) / passed * 100 / len(self.names)
            goal = f"  (goal {GOAL_CPU:.0%})" if what in ROLES else ""
            print(f"idle, {what}: {share:.2%} of a core per 100 VMs{goal}", flush=True)

    def sizes(self) -> None:
        """Memory and descriptors."""
        for role, agent in self.agents.items():
            print(
                f"{role}: {memory(agent.pid, 'Rss') / MIB:.0f} MiB resident, "
                f"{len(os.listdir(f'/proc/{agent.pid}/fd'))} descriptors, "
                f"{len(os.listdir(f'/proc/{agent.pid}/task'))} threads"
            )
        shares = [memory(pid, "Pss") for pid in self.taps()]
        print(f"{len(shares)} taps: {sum(shares) / MIB:.0f} MiB (proportional), {max(shares) / MIB:.1f} MiB at most")

    def status_times(self) -> None:
        """``vmreplica status`` as an administrator runs it."""
        for options in ([], ["--json"], [self.names[-1]]):
            times, size = [], 0
            for _ in range(STATUS_RUNS):
                began = time.monotonic()
                size = len(self.run("status", *options, "--socket", str(self.sockets["primary"])))
                times.append(time.monotonic() - began)
            print(
                f"status {' '.join(options) or '(text)'}: {statistics.median(times):.2f} s, best {min(times):.2f} s, "
                f"{size / KIB:.0f} KiB  (goal {GOAL_STATUS:g} s)",
                flush=True,
            )
        for role in ROLES:
            began = time.monotonic()
            self.call(role, "status")
            print(f"the {role} answers the question for all in {time.monotonic() - began:.2f} s")

    def restart(self, role: str) -> None:
        """An orderly restart of an agent, until every VM has its session again."""
        agent = self.agents.pop(role)
        before = time.monotonic()
        agent.terminate()
        agent.wait()
        stopped = time.monotonic()
        self.start(role)
        up = time.monotonic()
        self.until(f"connected after the restart of the {role}", lambda vm: vm["link"]["connected"])
        done = time.monotonic()
        busy = cpu_of(self.agents[role].pid)
        print(
            f"restart of the {role}: ended in {stopped - before:.1f} s, answers after {up - stopped:.1f} s, all "
            f"connected {done - stopped:.1f} s after its start, {busy:.1f} s of processor time  "
            f"(goal {GOAL_RESTART:g} s)",
            flush=True,
        )

    def stop(self) -> None:
        for client in self.clients:
            client.kill()
            client.wait()
        super().stop()


def memory(pid: int, what: str) -> int:
    """Bytes of a process that are resident (``Rss``), or its share of them (``Pss``)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"no {what} of process {pid}")


def speed() -> None:
    """What a core is worth, lest a slow one is taken for a slow agent."""
    print(f"ten million turns of an empty loop: {loop_seconds():.2f} s", flush=True)


def main() -> int:
    """Measure and print; the exit code says nothing of the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=500)
    parser.add_argument("--live", type=int, default=20, help="VMs that a client writes to")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long idle agents are watched")
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS, help="how long nothing is measured before that")
    parser.add_argument("--folder", type=Path, help="where everything is put; a fresh one below /tmp")
    parser.add_argument("--keep", action="store_true", help="wait for Enter before everything is ended")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="vmreplica-scale-"))
    folder.mkdir(exist_ok=True)
    pair = Scale(folder, options.vms, options.live, MIB)
    try:
        pair.begin()
        pair.write()
        time.sleep(options.settle)
        pair.sizes()
        speed()
        pair.idle(options.seconds)
        speed()
        pair.status_times()
        speed()
        for role in ROLES:
            pair.restart(role)
            speed()
        print(f"load of the machine: {' '.join(f'{load:.1f}' for load in os.getloadavg())}, {os.cpu_count()} cores")
        if options.keep:
            print({role: agent.pid for role, agent in pair.agents.items()}, folder, flush=True)
            sys.stdin.readline()
    finally:
        pair.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
