"""Throughput of replication over a long delay: what a link with a rate carries with 300 ms there and back, and without.

``python -m scripts.bench.latency [--rate MIB] [--rtt MS] [--size MIB] [--rounds N]`` starts two agents of this
checkout with a proxy between them. One VM's disk is written with random data while the link is held; the time from
the release until the replica acknowledges the cut is what counts. Medians of rounds that take turns, and their ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.agent_pair import AgentPair, PairError
from tests.pair.hosts import VM, Hosts
from tests.pair.proxy import Proxy

MIB = 1 << 20
INTERVAL_SECONDS = 3600.0
"""No cut but those that this asks for."""


class Bench(Hosts):
    """Hosts whose link is the proxy."""

    proxy: Proxy

    @property
    def address(self) -> str:
        return f"localhost:{self.proxy.port}"

    def set_up(self, size: int) -> None:
        self.make_disks(size)
        AgentPair.prepare(self, cuttable=False)
        self.proxy = Proxy(("127.0.0.1", self.port))
        self.start_both()
        self.enable(interval=INTERVAL_SECONDS, log_limit=4 * size)
        self.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
        self.call("primary", "vm.initial", vm=VM)
        self.wait_state("Replicating")

    def round(self, size: int, delay: float, rate: float) -> float:
        """Seconds from the release of the link until what was written is acknowledged."""
        self._wait_acknowledged(self.tap("cut", reason="bench")["segment"])
        way_up, way_down = self.proxy.up, self.proxy.down
        self.proxy.hold()
        way_up.rate, way_up.delay, way_down.delay = rate, delay, delay
        # What a path of that rate and delay holds, and as much again in its queue.
        way_up.window = max(256 << 10, int(2 * rate * 2 * delay))
        words = [word for at in range(0, size, 4 * MIB) for word in ("-c", f"write -s /dev/urandom {at} 4M")]
        subprocess.run(
            ["qemu-io", "-f", "raw", *words, "-c", "flush", self.uris[0]], check=True, stdout=subprocess.DEVNULL
        )
        segment = self.tap("cut", reason="bench")["segment"]
        began = time.monotonic()
        self.proxy.release()
        self._wait_acknowledged(segment)
        return time.monotonic() - began

    def _wait_acknowledged(self, segment: int) -> None:
        self.wait("the cut", "primary", lambda vm: (vm["acked_cut"] or {"segment": 0})["segment"] >= segment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=8.0, help="of the link, in MiB a second")
    parser.add_argument("--rtt", type=float, default=300.0, help="there and back, in ms")
    parser.add_argument("--size", type=int, default=64, help="what is written in each round, in MiB")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rate, delay, size = arguments.rate * MIB, arguments.rtt / 2000, arguments.size * MIB
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="vmr-latency-", dir=memory) as folder:
        bench = Bench(Path(folder))
        try:
            bench.set_up(size)
            times: dict[float, list[float]] = {0.0: [], delay: []}
            for _ in range(arguments.rounds):
                for one, taken in times.items():
                    taken.append(bench.round(size, one, rate))
        except PairError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            bench.stop()
            if hasattr(bench, "proxy"):
                bench.proxy.close()
    speeds = {one: arguments.size / statistics.median(taken) for one, taken in times.items()}
    for one, speed in speeds.items():
        print(f"{2000 * one:5.0f} ms: {speed:6.2f} MiB/s  {', '.join(f'{taken:.2f} s' for taken in times[one])}")
    print(f"ratio: {speeds[delay] / speeds[0.0]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
