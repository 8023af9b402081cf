"""What the tap's process runs once it knows its folder: logging, the loop, the ports, signals and the collector."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import sys
from importlib import metadata

import structlog
import uvloop

from primary_agent.tap import lodging
from primary_agent.tap.ports import OwnPorts
from primary_agent.tap.process import STOP_SECONDS, Identity, TapFailedError, TapProcess
from shared.admin.access import Access
from shared.errors import VmreplicaError
from shared.ports.clock import RealClock
from shared.ports.file_system import RealFileSystem
from shared.ports.kernel import starved_seconds
from shared.ports.network import RealNetwork
from shared.ports.ownership import host_of
from shared.ports.rng import SystemRandom
from shared.ports.systemd import ServiceManager
from shared.ports.workers import ThreadWorkers
from shared.tap_config import TapConfig

WORKERS = 8
"""Threads for cold reads and syncs."""
COLLECT_AFTER = 50_000
"""Objects made beyond those freed before the collector looks for cycles: a pause is a guest's latency."""


def run(folder: str) -> int:
    """Run a tap until SIGTERM or SIGINT; the exit code is that of the error (shared.errors)."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # A watchdog's SIGABRT leaves the stacks of all threads in the journal.
    faulthandler.enable()
    manager = ServiceManager.of_this_process()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 100)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(folder, manager))
    except VmreplicaError as error:
        print(f"vmreplica-tap: {error}", file=sys.stderr)
        manager.failed(str(error))
        return error.exit_code
    return 0


async def _run(folder: str, manager: ServiceManager) -> None:
    tasks = [asyncio.create_task(manager.keep_alive())]
    workers = ThreadWorkers(WORKERS)
    # Root's tap of a VM that the replica agent promoted, in the folder of that agent's user.
    host = host_of(folder) if os.geteuid() == 0 else None
    ports = OwnPorts(RealClock(), SystemRandom(), workers, RealFileSystem(disks_of=host), RealNetwork())
    identity = Identity(os.getpid(), metadata.version("vmreplica"), starved_seconds)

    def told(serving: bool) -> None:
        if serving:
            manager.tell("READY=1")
            tasks.append(asyncio.create_task(manager.keep_status(process.line)))
        else:
            tasks.pop().cancel()
            manager.stopping(STOP_SECONDS)

    def judge(config: TapConfig) -> None:
        if host is not None:
            lodging.judge(config, folder)

    process = TapProcess(folder, ports, identity, authorize=Access(os.getuid()), told=told, judge=judge)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop.set)
    try:
        await process.run()
    except TapFailedError as error:
        print(f"vmreplica-tap: {error}", file=sys.stderr, flush=True)
        manager.failed(str(error))
        # A worker may be stuck in a system call, and must not keep the process, and so the disks' locks, alive.
        os._exit(error.exit_code)
    finally:
        await workers.close()
        for task in tasks:
            task.cancel()
