"""An agent as a program: configuration in, ports out, signals, systemd's notifications, and an orderly end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import Any, Protocol, TypeVar

import structlog
import uvloop

from shared import log
from shared.admin.access import Access
from shared.admin.audit import Auditor
from shared.admin.audit_log import AuditLog
from shared.admin.methods import Method, Methods
from shared.admin.refused_peers import RefusedPeers
from shared.admin.server import JsonRpcServer
from shared.admin.verbs import READING
from shared.config import load_config
from shared.config_sections import AgentSection, PrimaryConfig, ReplicaConfig
from shared.credentials import FOLDER_VARIABLE, identity_of
from shared.errors import VmreplicaError
from shared.operations import Operations
from shared.ports import Address
from shared.ports.alarm_ways import RealAlarmWays
from shared.ports.journal import system_journal
from shared.ports.kernel import allow_descriptors, keep_freed_memory
from shared.ports.own_threads import in_own_thread
from shared.ports.real import RealPorts
from shared.ports.systemd import ServiceManager
from shared.ports.users import group_id, user_name
from shared.status import VmStatus
from shared.status_line import line_of
from shared.tasks import first_of
from shared.trust_watch import keep_trust

STOP_SECONDS = 20.0
"""An orderly stop that takes longer is cut short, and so is closing what it leaves: nothing durable depends on either.
Both together are well within TimeoutStopSec= of the units.
"""

TAP_COMMAND_VARIABLE = "VMREPLICA_TAP_COMMAND"
"""What starts a tap where the configuration does not say: set by the unit, which keeps taps in units of their own."""

USER_CLIENTS_MAX = 32
"""Clients of one user other than root at the admin socket; half of all that are served."""

_log = structlog.get_logger(__name__)

C = TypeVar("C", PrimaryConfig, ReplicaConfig)


class Service(Protocol):
    """An agent, as this module runs it."""

    async def start(self) -> None:
        """Load all VMs, and listen."""

    async def served(self) -> None:
        """Wait until what guests need of this host is there, or can't be: the service is ready then."""

    async def stop(self) -> None: ...

    def methods(self) -> dict[str, Method]:
        """What the admin socket serves."""

    async def reload(self, config: Any) -> None:
        """Take over what can change of a configuration while running."""

    async def vms(self) -> list[VmStatus]:
        """What is known of all VMs, without asking anybody; gives way to others between VMs."""

    def reexamine(self) -> None:
        """End the sessions whose peers' certificates would not be accepted any more."""


def run(name: str, kind: type[C], default_path: str, make: Callable[[C, RealPorts, Operations], Service]) -> int:
    """Run an agent until SIGTERM or SIGINT; the exit code is that of the error (shared.errors)."""
    parser = argparse.ArgumentParser(prog=name, description=f"The {name} agent of vmreplica; see docs/config.md.")
    parser.add_argument("--config", default=default_path, metavar="FILE", help=f"default: {default_path}")
    parser.add_argument("--version", action="version", version=f"{name} {metadata.version('vmreplica')}")
    path = parser.parse_args().config
    # A watchdog's SIGABRT leaves the stacks of all threads in the journal.
    faulthandler.enable()
    manager = ServiceManager.of_this_process()
    try:
        config = load_config(path, kind)
        log.configure(config.log_format)
        os.umask(0o077)
        keep_freed_memory()
        allow_descriptors()
        gc.freeze()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(path, config, make, manager))
    except VmreplicaError as error:
        print(f"{name}: {error.text}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        manager.failed(str(error))
        return error.exit_code
    return 0


async def _serve(
    path: str, config: C, make: Callable[[C, RealPorts, Operations], Service], manager: ServiceManager
) -> None:
    beating = asyncio.create_task(manager.keep_alive())
    tls = identity_of(config.tls, os.environ.get(FOLDER_VARIABLE, ""))
    tap_command = config.tap_command or shlex.split(os.environ.get(TAP_COMMAND_VARIABLE, ""))
    limits = config.limits if isinstance(config, ReplicaConfig) else None
    real = RealPorts(tls, threads=config.worker_threads, tap_command=tap_command, limits=limits)
    operations = Operations(
        config.role,
        path,
        config,
        real.ports,
        journal=system_journal(os.environ),
        ways=RealAlarmWays(),
        blocking=in_own_thread,
    )
    real.ports = operations.ports
    service = make(config, real, operations)
    stop, hangup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    methods = Methods(service.methods())
    operations.add_methods(methods)
    auditor = _auditor(config, real)
    refusals = RefusedPeers(auditor.note_peer, real.ports.clock)
    operations.on_refused = refusals.refused
    real.network.on_forbidden = lambda peer, error: refusals.refused(peer, error.code, error.text)
    admin = JsonRpcServer(
        real.network,
        _admin_address(config),
        auditor.around(methods),
        authorize=_access(config),
        refused=auditor.note_refusal,
        max_user_clients=USER_CLIENTS_MAX,
    )
    await real.ports.workers.run(real.ports.files.make_folder, config.runtime_dir)
    _open_to_passers(config.runtime_dir)
    await operations.open()
    await service.start()
    try:
        await admin.start()
        # An order to stop is not kept waiting by what serves slowly.
        await first_of(service.served(), stop.wait())
        state = _State(service, manager)
        telling = asyncio.create_task(manager.keep_status(state.line))
        await auditor.note("agent.start", version=metadata.version("vmreplica"), config=path)
        reloading = asyncio.create_task(_reload_on(hangup, path, real, service, operations, state, auditor))
        watching = asyncio.create_task(keep_trust(real.network, real.ports.workers, service.reexamine))
        await operations.started(metadata.version("vmreplica"), service.vms, lambda: real.network.trust)
        manager.ready(await state.line())
        try:
            await stop.wait()
        finally:
            manager.stopping(5 * STOP_SECONDS)
            telling.cancel()
            reloading.cancel()
            watching.cancel()
            await _within(STOP_SECONDS, admin.close())
            await _within(STOP_SECONDS, refusals.close())
            await _within(STOP_SECONDS, auditor.note("agent.stop"))
    finally:
        await _within(STOP_SECONDS, service.stop())
        await _within(STOP_SECONDS, operations.close())
        await _within(STOP_SECONDS, real.close())
        beating.cancel()


class _State:
    """The service in one line, for the service manager."""

    def __init__(self, service: Service, manager: ServiceManager) -> None:
        self.manager = manager
        self.refused = ""
        """Why the last reload was refused; empty where it was not."""
        self._service = service

    async def line(self) -> str:
        try:
            line = line_of(await self._service.vms())
        except Exception:
            # It is only told by this line: nothing else may end by a mistake in it.
            _log.exception("the state in one line can't be told")
            line = "The state can't be told."
        return f"Not reloaded: {self.refused} {line}" if self.refused else line


async def _reload_on(
    hangup: asyncio.Event,
    path: str,
    real: RealPorts,
    service: Service,
    operations: Operations,
    state: _State,
    auditor: Auditor,
) -> None:
    """At each SIGHUP load certificates and configuration anew; where that fails, what was loaded stays in force."""
    while True:
        await hangup.wait()
        hangup.clear()
        state.manager.reloading()
        try:
            await operations.reload(lambda config: take_over(real, service, config))
        except VmreplicaError as error:
            state.refused = str(error)
            _log.error("not reloaded", reason=str(error))
            await auditor.note("agent.reload", config=path, refused=error.text)
        except Exception as error:
            # The next reload has to be heard, whatever this one met.
            state.refused = f"{type(error).__name__}: {error}."
            _log.exception("not reloaded")
            await auditor.note("agent.reload", config=path, refused=state.refused)
        else:
            state.refused = ""
            _log.info("reloaded", path=path)
            await auditor.note("agent.reload", config=path)
        finally:
            state.manager.ready(await state.line())


async def take_over(real: RealPorts, service: Service, config: Any) -> None:
    """Put a new configuration in force, with the certificate files as they are now: all of it, or nothing.

    Raises VmreplicaError.
    """
    use_certificates = real.network.read_tls()
    await service.reload(config)
    use_certificates()
    log.set_format(config.log_format)


async def _within(seconds: float, work: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        _log.warning("the orderly end took too long and was cut short", seconds=seconds)


def _open_to_passers(folder: str) -> None:
    """Who may connect to a socket must be able to reach it; the sockets' own modes decide who that is."""
    with contextlib.suppress(PermissionError):
        # Not ours where it was made for us, with the mode it should have.
        os.chmod(folder, 0o711)  # noqa: S103


def _auditor(config: AgentSection, real: RealPorts) -> Auditor:
    assert isinstance(config, PrimaryConfig | ReplicaConfig)
    ports = real.ports
    audit = AuditLog(ports.files, ports.workers, ports.clock, config.state_dir, limit=config.audit_bytes)
    role = "primary" if isinstance(config, PrimaryConfig) else "replica"
    return Auditor(audit, role, ports.workers, ports.clock, user_name)


def _admin_address(config: AgentSection) -> Address:
    """Administrators and viewers may connect; what each of them may ask for is decided with every request."""
    assert isinstance(config, PrimaryConfig | ReplicaConfig)
    group = config.admin_group if group_id(config.admin_group) is not None else ""
    viewers = (config.viewer_group,) if group_id(config.viewer_group) is not None else ()
    return Address(unix_path=config.admin_socket, mode=0o660, group=group, other_groups=viewers)


def _access(config: AgentSection) -> Access:
    return Access(
        os.getuid(),
        admin_gid=group_id(config.admin_group),
        viewer_gid=group_id(config.viewer_group),
        viewer_methods=READING,
    )
