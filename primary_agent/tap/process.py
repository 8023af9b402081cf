"""A tap from start to end: engine, NBD server and control socket, started and stopped in the right order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from primary_agent.tap.control import Surroundings, TapControl
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.exports import DiskDirectory
from primary_agent.tap.ports import TapPorts
from primary_agent.tap.settling import Settling
from shared.admin.access import Authorize
from shared.errors import FatalError, StorageError, UsageError, VmreplicaError
from shared.nbd.latency import LatencyMeter
from shared.nbd.server import NbdServer
from shared.ports import FileSystem
from shared.tap_config import ERROR_NAME, TapConfig, load_config
from shared.tap_control import GuestLatency
from shared.tasks import first_of

STOP_SECONDS = 30.0
"""How long an orderly stop may take before the tap ends as if it were killed; the next start recovers."""

log = structlog.get_logger(__name__)


class TapFailedError(FatalError):
    """The tap can't go on: an unexpected error, or a stop that took too long. Its next start recovers."""

    code = "tap_failed"


@dataclass(frozen=True, slots=True)
class Identity:
    """Of the process: its id, and the version of its program.

    ``starved`` tells for how many seconds its thread could have run and had no processor.
    """

    pid: int
    version: str
    starved: Callable[[], float] = lambda: 0.0


class TapProcess:
    """Runs the tap of one folder. ``stop`` may be set at any time; the control socket sets it, too."""

    def __init__(
        self,
        folder: str,
        ports: TapPorts,
        identity: Identity,
        *,
        authorize: Authorize,
        told: Callable[[bool], None] = lambda _serving: None,
        judge: Callable[[TapConfig], None] = lambda _config: None,
    ) -> None:
        """``told`` is called with True when the tap serves, and with False when it begins to end in order.

        ``judge`` raises VmreplicaError for a configuration that this tap must not follow; it may block.
        """
        self.stop = asyncio.Event()
        self.engine: TapEngine | None = None
        """Once it is started."""
        self._folder = folder
        self._ports = ports
        self._identity = identity
        self._authorize = authorize
        self._told = told
        self._judge = judge
        self._name = ""
        self._server: NbdServer | None = None
        self._settling: Settling | None = None

    async def line(self) -> str:
        """What it does, in one line."""
        if self.engine is None or self._server is None:
            return "Starting: what is in doubt after the last end is read."
        clients, disks = len(self._server.connections), len(self.engine.disks)
        return (
            f"{self._name}: {disks} disk{'s' if disks != 1 else ''}, {clients} client{'s' if clients != 1 else ''}, "
            f"tracking {self.engine.tracker.tracking.value}."
        )

    async def run(self, *, serve_nbd: bool = True) -> None:
        """Serve until stopped. Raises VmreplicaError where the tap has to refuse its work or can't end in order.

        What a start is refused for is left in the folder (ERROR_NAME) for whoever started the tap.
        """
        try:
            config = await self._ports.workers.run(load_config, self._ports.files, self._folder)
            await self._ports.workers.run(self._judge, config)
            engine = TapEngine(self._folder, config, self._ports)
            await engine.start()
            self.engine = engine
            self._settling = Settling(engine, self._ports)
            server = NbdServer(DiskDirectory(engine), latency=LatencyMeter(self._ports.clock.monotonic))
            try:
                control = TapControl(engine, self._ports, self._surroundings(server), authorize=self._authorize)
                if serve_nbd:
                    await self._serve(server, config)
                await control.start()
            except BaseException:
                await server.close()
                await engine.stop()
                raise
            self._settling.begin_again()
        except VmreplicaError as error:
            await self._ports.workers.run(_note, self._ports.files, self._folder, error)
            raise
        await self._ports.workers.run(_note, self._ports.files, self._folder, None)
        self._name, self._server = config.name, server
        self._told(True)
        log.info("tap serves", vm=config.name, tracking=engine.tracker.tracking.value, folder=self._folder)
        await self._until_stopped(engine, control)
        self._told(False)
        await self._end(engine, server, control)

    def _surroundings(self, server: NbdServer) -> Surroundings:
        def clients(export: str) -> int:
            return sum(connection.export == export for connection in server.connections)

        def latency() -> GuestLatency:
            meter = server.latency
            return GuestLatency(
                reads=meter.reads.count,
                read_seconds=meter.reads.seconds,
                writes=meter.changes.count,
                write_seconds=meter.changes.seconds,
                flushes=meter.flushes.count,
                flush_seconds=meter.flushes.seconds,
                passes=meter.passes,
                starved_seconds=self._identity.starved(),
            )

        return Surroundings(self._identity.pid, self._identity.version, clients, latency, self._settling)

    async def _serve(self, server: NbdServer, config: TapConfig) -> None:
        await server.start_unix(config.nbd_socket, group=config.nbd_group)
        if config.nbd_tcp:
            host, _, port = config.nbd_tcp.rpartition(":")
            if not port.isdecimal():
                raise UsageError(f"nbd_tcp {config.nbd_tcp!r} is not host:port.", "Write 127.0.0.1:10809, say.")
            await server.start_tcp(host.strip("[]"), int(port))

    async def _until_stopped(self, engine: TapEngine, control: TapControl) -> None:
        """Wait for an order to stop. Raises TapFailedError when going on is impossible."""
        await first_of(self.stop.wait(), control.stop_requested.wait(), _done(engine.tasks.failure))
        if engine.tasks.failure.done():
            error = engine.tasks.failure.result()
            text = f"The tap met an unexpected error: {type(error).__name__}: {error}."
            raise TapFailedError(text, "It recovers when it is started again; report the error.") from error

    async def _end(self, engine: TapEngine, server: NbdServer, control: TapControl) -> None:
        """Finish what clients were promised, then the engine, then answer who asked for it."""
        failure: VmreplicaError | None = None
        try:
            async with asyncio.timeout(STOP_SECONDS):
                # No request is refused: what is not begun stays unanswered, and the client sends it to the next tap.
                await server.close()
                if self._settling is not None:
                    await self._settling.end()
                await engine.stop()
        except TimeoutError:
            text = f"The tap could not stop in order within {STOP_SECONDS:g} seconds."
            failure = TapFailedError(text, "Its next start recovers; check the volumes for stalls.")
        except StorageError as error:
            failure = error
        await control.stopped(failure)
        await control.close()
        if failure is not None:
            raise failure
        log.info("tap stopped in order", folder=self._folder)


async def _done(future: asyncio.Future[Any]) -> None:
    await asyncio.wait({future})


def _note(files: FileSystem, folder: str, error: VmreplicaError | None) -> None:
    """Leave the reason of a refused start in the folder, or remove an older one. Blocks.

    That is a courtesy: a folder that can't be written does not change what the error is.
    """
    path = f"{folder}/{ERROR_NAME}"
    with _ignoring_storage():
        files.remove(path)
        if error is not None:
            file = files.open(path, write=True, create=True, exclusive=True)
            try:
                reason = {"code": error.code, "text": error.text, "remedy": error.remedy}
                file.write(0, msgspec.json.encode(reason))
            finally:
                file.close()


@contextlib.contextmanager
def _ignoring_storage() -> Iterator[None]:
    with contextlib.suppress(OSError, StorageError):
        yield
