"""Tests of clock and randomness, and of all real ports together."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import uvloop

from shared.ports import Clock, FileSystem, Network, Ports, Random, Stores, TapLauncher, Workers
from shared.ports.clock import RealClock
from shared.ports.real import RealPorts
from shared.ports.rng import SystemRandom


def as_ports(ports: Ports) -> tuple[Clock, Random, Workers, FileSystem, Network, Stores, TapLauncher]:
    """Checked by mypy: each real port has the interface of its port."""
    return (ports.clock, ports.random, ports.workers, ports.files, ports.network, ports.stores, ports.taps)


def test_clock_never_goes_back_and_counts_as_the_loops_do() -> None:
    clock = RealClock()
    times = [clock.monotonic() for _ in range(1000)]
    assert times == sorted(times)
    for make in (asyncio.new_event_loop, uvloop.new_event_loop):
        loop = make()
        assert abs(loop.time() - clock.monotonic()) < 60
        loop.close()


def test_wall_is_the_hosts() -> None:
    before = time.time()
    assert before <= RealClock().wall() <= time.time()


def test_boot_is_the_kernels() -> None:
    assert RealClock().boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert len(RealClock().boot_id()) == 36


def test_random_bytes_and_jitter() -> None:
    random = SystemRandom()
    drawn = {random.bytes(16) for _ in range(100)}
    assert len(drawn) == 100
    assert {len(each) for each in drawn} == {16}
    spread = [random.uniform(1.5, 2.5) for _ in range(1000)]
    assert 1.5 <= min(spread) < 1.6
    assert 2.4 < max(spread) <= 2.5


async def test_all_ports_work_together(tmp_path: Path) -> None:
    real = RealPorts(None, threads=2)
    ports = real.ports
    assert len(as_ports(ports)) == 7
    folder = str(tmp_path / "vm")
    await ports.workers.run(ports.files.make_folder, folder)
    store = await ports.stores.open(folder, create=True)
    await store.commit({"boot": ports.clock.boot_id()})
    await real.close()
    again = RealPorts(None, threads=1)
    assert (await again.ports.stores.open(folder)).get("boot") == ports.clock.boot_id()
    await again.close()
