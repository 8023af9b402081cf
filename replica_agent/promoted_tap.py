"""The tap that serves a promoted VM's disks on this host: configured, started, and kept running.

It is a process of its own that outlives this agent (R42). From the moment it is configured only it opens the disks.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from replica_agent.finishing import finish
from replica_agent.parts import VmParts
from replica_agent.promoted_layers import other_sizes, tap_disks, tap_layers
from replica_agent.record import PromotionRecord
from shared.errors import ForbiddenError, UnreachableError, VmreplicaError
from shared.ports import FileSystem
from shared.status import TapStatus as TapView
from shared.tap_config import ERROR_NAME, TapConfig, load_config, save_config
from shared.tap_control import TapClient, TapStatus, Tracking
from shared.tasks import Signal, first_of

CONNECT_SECONDS = 2.0
START_SECONDS = 30.0
START_POLL_SECONDS = 0.05
RETRY_SECONDS = 2.0
REFRESH_SECONDS = 5.0
SETTLING_SECONDS = 0.5
"""Between two looks while layers settle: what follows waits for the end of it."""


class PromotedTap:
    """The tap of one promoted VM. ``epoch`` is the one that the promotion began."""

    def __init__(self, parts: VmParts, epoch: bytes) -> None:
        self.status: TapStatus | None = None
        """As it was told last; None while the tap does not answer."""
        self.error = ""
        self.changed = Signal()
        self.poke = Signal()
        """Notified where the tap is to be looked at now."""
        self.settled = asyncio.Event()
        """What lay over the disks has settled in them."""
        self._parts = parts
        self._folder = parts.layout.tap
        self._sockets = f"{parts.surroundings.runtime_folder}/{parts.uuid}"
        self._name = parts.ledger.vm.name
        self._epoch = epoch

    @property
    def config(self) -> TapConfig:
        record = self._parts.ledger.promotion
        assert record is not None
        return self._config(record)

    def _config(self, record: PromotionRecord) -> TapConfig:
        parts = self._parts
        return TapConfig(
            vm=parts.uuid,
            name=self._name,
            disks=tap_disks(parts, record),
            layers=tap_layers(parts, record) if record.layered else msgspec.UNSET,
            other_sizes=other_sizes(parts, record) if record.layered else msgspec.UNSET,
            nbd_socket=f"{self._sockets}/nbd.sock",
            control_socket=f"{self._sockets}/control.sock",
            log_folder=f"{self._folder}/log",
            nbd_group=parts.surroundings.nbd_group,
        )

    def configure(self) -> None:
        """Write its configuration, durably. Blocks."""
        self._save(self.config)

    def configure_plain(self) -> None:
        """Write that the disks are plain ones, durably. Blocks."""
        record = self._parts.ledger.promotion
        assert record is not None
        self._save(self._config(msgspec.structs.replace(record, layered=False)))

    def _save(self, config: TapConfig) -> None:
        files = self._parts.ports.files
        files.make_folder(self._sockets)
        files.make_folder(self._folder)
        save_config(files, self._folder, config)
        files.sync_folder(self._parts.layout.folder)

    def prepare(self) -> None:
        """Make sure that there is what a start of the tap needs: a boot, or a loss, may have taken it. Blocks."""
        files, record = self._parts.ports.files, self._parts.ledger.promotion
        files.make_folder(self._sockets)
        try:
            found = load_config(files, self._folder)
        except VmreplicaError:
            self.configure()
            return
        if record is not None and record.layered:
            # What the disks are made of was decided at the failover, and changes only where a tap has settled them.
            return
        if found != self.config:
            self.configure()

    async def run(self) -> None:
        """Keep the tap running and tracking, until cancelled."""
        while True:
            try:
                with contextlib.closing(await self._reach()) as client:
                    await self._follow(client)
            except (VmreplicaError, OSError) as error:
                self.error = str(error)
            self.status = None
            self.changed.notify()
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self, client: TapClient) -> None:
        while True:
            self.status = await client.status()
            self.error = ""
            if self.status.epoch != self._epoch.hex() and self.status.tracking is Tracking.OFF:
                # Never where it was lost: a tap whose state is damaged does not know any more which epoch it tracked.
                await self._begin(client)
            await self._settle(client, self.status)
            self.changed.notify()
            settling = self.status.layers is not None and self.status.layers.committed
            pause = SETTLING_SECONDS if settling else REFRESH_SECONDS
            await first_of(asyncio.wait({client.rpc.closed}), self.poke.wait_for(pause))
            if client.rpc.closed.done():
                raise UnreachableError(f"The tap of {self._name} ended.", "It is being started again.")

    async def _settle(self, client: TapClient, status: TapStatus) -> None:
        """Once the failover is committed, what lies over the disks goes into them."""
        record = self._parts.ledger.promotion
        if record is None or record.committed_time is None:
            return
        if status.layers is not None and not status.layers.committed:
            status = self.status = await client.settle()
        if status.layers is None:
            self.settled.set()

    async def _begin(self, client: TapClient) -> None:
        """Track in the promotion's epoch. Where that fails the disks are served all the same (I14)."""
        try:
            self.status = await client.begin(self._epoch)
        except UnreachableError:
            raise
        except VmreplicaError as error:
            self.error = str(error)

    async def _reach(self) -> TapClient:
        """A client of the running tap; starts the tap if nobody answers."""
        try:
            return await self.dial()
        except UnreachableError:
            workers = self._parts.ports.workers
            await finish(workers.run(self._parts.ports.files.remove, f"{self._folder}/{ERROR_NAME}"))
            await self._parts.ports.taps.start(self._folder)
        deadline = self._parts.ports.clock.monotonic() + START_SECONDS
        while True:
            try:
                return await self.dial()
            except UnreachableError:
                reason = await finish(workers.run(start_error, self._parts.ports.files, self._folder))
                if reason is not None:
                    raise reason from None
                if self._parts.ports.clock.monotonic() > deadline:
                    raise
            await asyncio.sleep(START_POLL_SECONDS)

    async def dial(self) -> TapClient:
        """A client of it, to be closed. Raises VmreplicaError."""
        return await TapClient.connect(
            self._parts.ports.network, f"{self._sockets}/control.sock", timeout=CONNECT_SECONDS
        )

    async def refresh(self) -> None:
        """Ask it now. Where it does not answer, what it told last stays."""
        with contextlib.suppress(VmreplicaError, OSError):
            with contextlib.closing(await self.dial()) as client:
                self.status = await client.status()

    async def clients(self) -> int:
        """How many NBD clients it has right now. Raises VmreplicaError; a tap that does not run has none."""
        try:
            client = await self.dial()
        except UnreachableError:
            return 0
        with contextlib.closing(client):
            return sum(disk.clients for disk in (await client.status()).disks)

    async def answers(self) -> bool:
        """Whether a tap runs on the folder, whoever looks after it; where that can't be seen one may."""
        try:
            client = await self.dial()
        except UnreachableError:
            return False
        except ForbiddenError:
            # Since a boot the folder of its sockets may be that of another agent's user.
            return True
        client.close()
        return True

    async def stop_tap(self) -> None:
        """Stop the tap process in order. Raises VmreplicaError; a tap that does not run is no error."""
        try:
            client = await self.dial()
        except UnreachableError:
            return
        with contextlib.closing(client):
            await client.stop()

    @property
    def uris(self) -> list[str]:
        """Where the disks are served; empty while the tap does not answer."""
        return [disk.uri for disk in self.status.disks] if self.status is not None else []

    def view(self) -> TapView:
        """For the VM's status."""
        status = self.status
        if status is None:
            return TapView(error=self.error)
        return TapView(
            running=True,
            pid=status.pid,
            tracking=status.tracking.value,
            lost_reason=status.lost.reason.value if status.lost is not None else "",
            lost_text=status.lost.text if status.lost is not None else "",
            uris=self.uris,
            clients=sum(disk.clients for disk in status.disks),
            log_used_bytes=status.log.used,
            log_limit_bytes=status.log.limit,
            writes=status.writes,
            bytes_written=status.bytes_written,
            last_write_time=status.last_write_time,
            version=status.version,
            error=self.error,
        )


def is_written(status: TapStatus, epoch: bytes) -> bool:
    """Whether anything was written since the failover that began ``epoch``; what is not known counts as that."""
    if status.tracking is Tracking.ON and status.position is not None and status.epoch == epoch.hex():
        return status.position.entry > 0
    doubt = status.doubt
    if status.tracking is not Tracking.MAP or doubt is None or not doubt.complete:
        return True
    return (doubt.base_epoch, doubt.base_segment) != (epoch.hex(), 0) or doubt.bytes > 0


def start_error(files: FileSystem, folder: str) -> VmreplicaError | None:
    """What a tap wrote down when it could not start. Blocks."""
    try:
        file = files.open(f"{folder}/{ERROR_NAME}")
    except OSError:
        return None
    try:
        told = msgspec.json.decode(file.read(0, 1 << 16), type=dict[str, str])
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        return None
    finally:
        file.close()
    return VmreplicaError(told.get("text", ""), told.get("remedy", ""), code=told.get("code", "tap"))
