"""The agent's line to the tap of one VM: starts the tap where nobody answers, reconnects, keeps what it tells.

The tap goes on without the agent, and the agent without the tap: this line may break and come back at any time. What
depends on one run of the tap (places in its log) is bound to a ``Connection`` and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from protocol.position import Position
from shared.admin.client import OnNotification
from shared.errors import UnreachableError, UsageError, VmreplicaError
from shared.ports import Ports
from shared.tap_config import DISK_SIZE, ERROR_NAME, TapConfig, load_config, save_config, save_settings, sizes_of
from shared.tap_control import (
    Lost,
    Progress,
    Sealed,
    TapClient,
    TapProtocolError,
    TapStatus,
    Tracking,
    TrackingChanged,
    read_notification,
)
from shared.tasks import Signal

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 2.0
START_SECONDS = 30.0
"""How long a started tap may take until it answers: it recovers its log first."""
START_POLL_SECONDS = 0.05
RETRY_FIRST_SECONDS = 0.2
RETRY_LAST_SECONDS = 10.0


class TapUnavailableError(UnreachableError):
    """The tap does not answer, or its connection ended."""

    code = "tap_unavailable"


@dataclass(slots=True)
class Connection:
    """One connection to one run of the tap, and the newest that it told."""

    client: TapClient
    status: TapStatus
    refreshed: float
    """When ``status`` was taken, monotonic seconds."""
    tracking: Tracking = Tracking.OFF
    epoch: bytes | None = None
    lost: Lost | None = None
    progress: Progress | None = None
    """The written end of the log; None until the first notification."""
    sealed: Sealed | None = None

    @property
    def alive(self) -> bool:
        return not self.client.rpc.closed.done()

    def tracks(self, epoch: bytes) -> bool:
        """Whether this tap tracks ``epoch`` without a break, as far as it told."""
        return self.alive and self.tracking is Tracking.ON and self.epoch == epoch

    def adopt(self, status: TapStatus, now: float) -> None:
        """Take over a whole status."""
        self.status = status
        self.refreshed = now
        self.tracking = status.tracking
        self.epoch = bytes.fromhex(status.epoch) if status.epoch is not None else None
        self.lost = status.lost

    def sealed_segment(self) -> int:
        """The newest segment of the tracked epoch that is sealed and durable; 0 where there is none."""
        known = 0
        if self.sealed is not None and self.epoch is not None and self.sealed.epoch == self.epoch.hex():
            known = self.sealed.segment
        told = self.status.sealed
        if told is not None and told.epoch == self.status.epoch and self.status.epoch == _hex(self.epoch):
            known = max(known, told.segment)
        return known

    def written_end(self) -> tuple[int, int] | None:
        """Log file and offset up to which the log of the tracked epoch is written, as far as that was told."""
        epoch = _hex(self.epoch)
        told = [(news.file, news.offset) for news in (self.progress, self.sealed) if news and news.epoch == epoch]
        return max(told, default=None)

    def log_end(self) -> Position | None:
        """The end of the log as last told in full; newer entries may exist."""
        return self.status.position.position() if self.status.position is not None else None


class TapLink:
    """Keeps one tap running and connected. ``connection`` is None while it is not."""

    def __init__(self, folder: str, config: TapConfig, ports: Ports, vm_folder: str = "") -> None:
        """``vm_folder`` is the VM's own, where the tap's does not lie in it."""
        self.folder = folder
        self.vm_folder = vm_folder or folder.rpartition("/")[0]
        self.config = config
        self.connection: Connection | None = None
        self.failure: VmreplicaError | None = None
        """Why there is no connection; None while there is one, or at the first attempt."""
        self.changed = Signal()
        """Notified at every connection, end of one, and notification of the tap."""
        self._ports = ports

    async def run(self) -> None:
        """Keep the tap running and connected, until cancelled."""
        delay = RETRY_FIRST_SECONDS
        while True:
            try:
                connection = await self._connect()
            except VmreplicaError as error:
                self.failure = error
                self.changed.notify()
                await self._give_up_gone_disks()
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_LAST_SECONDS)
                continue
            connected_at = self._ports.clock.monotonic()
            try:
                if not self.serves(connection.status):
                    # Nobody gets to see it: what is planned by the record does not fit it.
                    await self._change_disks(connection)
                    continue
                self.connection = connection
                self.failure = None
                self.changed.notify()
                await self._reconcile(connection)
                await asyncio.shield(connection.client.rpc.closed)
            except VmreplicaError as error:
                self.failure = error
            finally:
                connection.client.close()
                self.connection = None
                self.changed.notify()
            if self._ports.clock.monotonic() - connected_at > delay:
                delay = RETRY_FIRST_SECONDS
            else:
                # A tap that ends as soon as it serves is not started without a pause.
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_LAST_SECONDS)

    # --- other disks -----------------------------------------------------------------------------------------------

    def serves(self, status: TapStatus) -> bool:
        """Whether the tap has the disks, and their sizes, that it is configured to have from its next start on."""
        return {disk.index: disk.size for disk in status.disks} == sizes_of(self.config.disks)

    def reconnect(self) -> None:
        """End the connection, so that the next one finds out whether the tap has the disks that it is to have."""
        if self.connection is not None:
            self.connection.client.close()

    async def followed(self) -> None:
        """Wait until the tap serves the disks that it is configured to have, or can't start with them."""
        former, self.failure = self.connection, None
        while self.connection is None or self.connection is former or not self.serves(self.connection.status):
            if self.failure is not None and self.connection is None:
                return
            await self.changed.wait()

    async def _change_disks(self, connection: Connection) -> None:
        """Bring the tap to its end in an order that leaves nothing in doubt, and only then give it other disks.

        Its log ends in the dirty map, so that the next start need not read it with disks that it does not name
        (primary_agent.tap.other_disks). Raises VmreplicaError; then it is tried again.
        """
        before, after = {disk.index: disk.size for disk in connection.status.disks}, sizes_of(self.config.disks)
        told = [f"disk {index} was added" for index in sorted(after.keys() - before.keys())]
        told += [f"disk {index} was removed" for index in sorted(before.keys() - after.keys())]
        told += [f"disk {index} was enlarged" for index in sorted(before) if after.get(index, 0) > before[index]]
        with contextlib.suppress(TapProtocolError):
            # A tap of an older version is stopped as it is: then everything is compared.
            await connection.client.leave_log(", ".join(told))
        await connection.client.stop()
        await self._ports.workers.run(save_config, self._ports.files, self.folder, self.config)

    async def _give_up_gone_disks(self) -> None:
        """Where the tap can't start, and has only to lose disks: one of these may be why, and it starts without them.

        So it does at the sizes that it is to have, where it refuses those that it had. If it was not stopped in order
        before, nothing then proves what the log knew, and everything is compared.
        """
        files, run = self._ports.files, self._ports.workers.run
        resized = self.failure is not None and self.failure.code == DISK_SIZE

        def work() -> None:
            try:
                former = sizes_of(load_config(files, self.folder).disks)
            except VmreplicaError:
                return
            wanted = sizes_of(self.config.disks)
            if wanted.keys() < former.keys() or (resized and wanted.keys() == former.keys() and wanted != former):
                save_config(files, self.folder, self.config)

        with contextlib.suppress(OSError):
            await run(work)

    async def save(self, config: TapConfig) -> None:
        """Take over another configuration, in force from the tap's next start on. Raises UsageError or OSError.

        Other disks come into the file only when the tap was stopped for them.
        """
        self.config = config
        await self._ports.workers.run(save_settings, self._ports.files, self.folder, config)

    async def save_disks(self, config: TapConfig) -> None:
        """The same, disks and their sizes included: they are in force however the tap ends. Raises OSError."""
        self.config = config
        await self._ports.workers.run(save_config, self._ports.files, self.folder, config)

    async def _reconcile(self, connection: Connection) -> None:
        """A tap that outlived a change of settings is told now."""
        status, config = connection.status, self.config
        interval = config.interval_seconds if status.interval != config.interval_seconds else None
        limit = config.log_limit if status.log.limit != config.log_limit else None
        regions = config.hot_regions if status.hot_regions not in (0, config.hot_regions) else None
        fenced = config.fenced if status.fenced not in (None, config.fenced) else None
        if any(each is not None for each in (interval, limit, regions, fenced)):
            tell = connection.client.set
            try:
                status = await tell(interval=interval, log_limit=limit, hot_regions=regions, fenced=fenced)
            except UsageError as error:
                if limit is None:
                    raise
                # Its log began with files too large for that limit, on the host that it was failed over to, say.
                log.warning("the log limit is in force from the tap's next start on", vm=config.name, reason=str(error))
                status = await tell(interval=interval, hot_regions=regions, fenced=fenced)
            connection.adopt(status, self._ports.clock.monotonic())

    def require(self) -> Connection:
        """The present connection. Raises TapUnavailableError."""
        if self.connection is None or not self.connection.alive:
            raise TapUnavailableError(
                f"The tap of {self.config.name} does not answer. {self.error}".strip(),
                "It is being started again; see its log if it does not come back.",
            )
        return self.connection

    @property
    def error(self) -> str:
        """Why there is no connection, in words; empty while there is one."""
        return str(self.failure) if self.failure is not None else ""

    async def stop_tap(self) -> None:
        """Stop the tap in order, if it runs. ``run`` must have ended: it would start the tap again."""
        try:
            client = await self._dial(lambda _method, _params: None)
        except UnreachableError:
            return
        try:
            if (vm := (await client.status()).vm) != self.config.vm:
                raise self._foreign(vm)
            await client.stop()
        finally:
            client.close()

    async def connected(self) -> Connection:
        """Wait for a connection to a tap with the disks that it is to have."""
        while self.connection is None or not self.connection.alive or not self.serves(self.connection.status):
            await self.changed.wait()
        return self.connection

    async def settled(self) -> None:
        """Wait for a connection, or for the first failure to get one."""
        while self.connection is None and self.failure is None:
            await self.changed.wait()

    async def served(self, seconds: float) -> None:
        """Wait until the tap serves the disks. Raises why it does not, or TimeoutError."""
        async with asyncio.timeout(seconds):
            while self.connection is None:
                if self.failure is not None:
                    raise self.failure
                await self.changed.wait()

    async def refresh(self, *, older_than: float = 0.0) -> TapStatus:
        """The tap's status, asked for anew if the known one is older than so many seconds."""
        connection = self.require()
        now = self._ports.clock.monotonic()
        if now - connection.refreshed >= older_than:
            connection.adopt(await connection.client.status(), self._ports.clock.monotonic())
        return connection.status

    async def _connect(self) -> Connection:
        """Connect and subscribe, starting the tap where nobody answers. Raises VmreplicaError."""
        held: list[tuple[str, dict[str, Any]]] = []
        connection: Connection | None = None

        def notified(method: str, params: dict[str, Any]) -> None:
            # Notifications may arrive before the answer to ``subscribe`` was taken.
            if connection is None:
                held.append((method, params))
            else:
                self._notified(connection, method, params)

        client = await self._reach(notified)
        try:
            status = await client.subscribe()
            if status.vm != self.config.vm:
                raise self._foreign(status.vm)
        except BaseException:
            client.close()
            raise
        connection = Connection(client, status, self._ports.clock.monotonic())
        connection.adopt(status, connection.refreshed)
        for method, params in held:
            self._notified(connection, method, params)
        return connection

    def _foreign(self, vm: str) -> VmreplicaError:
        text = f"The tap at {self.config.control_socket} serves VM {vm}, not {self.config.vm}."
        return VmreplicaError(text, "Stop that tap.")

    async def _reach(self, notified: OnNotification) -> TapClient:
        """A client of the running tap; starts the tap if nobody answers."""
        try:
            return await self._dial(notified)
        except UnreachableError:
            await self._ports.workers.run(self._ports.files.remove, f"{self.folder}/{ERROR_NAME}")
            await self._ports.taps.start(self.folder)
        deadline = self._ports.clock.monotonic() + START_SECONDS
        while True:
            try:
                return await self._dial(notified)
            except UnreachableError as error:
                reason = await self._ports.workers.run(self._start_error)
                if reason is not None:
                    raise reason from None
                if self._ports.clock.monotonic() > deadline:
                    raise TapUnavailableError(
                        f"The tap was started but does not answer: {error.text}", "See the tap's log."
                    ) from None
            await asyncio.sleep(START_POLL_SECONDS)

    async def _dial(self, notified: OnNotification) -> TapClient:
        return await TapClient.connect(
            self._ports.network, self.config.control_socket, timeout=CONNECT_SECONDS, on_notification=notified
        )

    def _start_error(self) -> VmreplicaError | None:
        """What the tap wrote down when it could not start. Blocks."""
        try:
            file = self._ports.files.open(f"{self.folder}/{ERROR_NAME}")
        except OSError:
            return None
        try:
            told = msgspec.json.decode(file.read(0, 1 << 16), type=dict[str, str])
        except (OSError, UnicodeDecodeError, msgspec.DecodeError):
            return None
        finally:
            file.close()
        return TapUnavailableError(told.get("text", ""), told.get("remedy", ""), code=told.get("code"))

    def _notified(self, connection: Connection, method: str, params: dict[str, Any]) -> None:
        match read_notification(method, params):
            case Progress() as progress:
                connection.progress = progress
            case Sealed() as sealed:
                connection.sealed = sealed
            case TrackingChanged() as changed:
                connection.tracking = changed.tracking
                connection.epoch = bytes.fromhex(changed.epoch) if changed.epoch is not None else None
                connection.lost = changed.lost
        self.changed.notify()


def _hex(epoch: bytes | None) -> str | None:
    return epoch.hex() if epoch is not None else None
