"""The tap's control socket: an agent's commands to the engine, and the engine's news to whoever subscribed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from primary_agent.tap.dirty_map import DirtyMap, Force
from primary_agent.tap.disks import Disk
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.enlarging import enlarge
from primary_agent.tap.locate import Place
from primary_agent.tap.log import Cut
from primary_agent.tap.ports import TapPorts
from primary_agent.tap.relog import relog
from primary_agent.tap.settling import Settling
from primary_agent.tap.state import Loss
from protocol.hrl import SealReason
from protocol.position import Position
from shared.admin.access import Authorize
from shared.admin.methods import Methods, NoParams
from shared.admin.server import Client, JsonRpcServer
from shared.errors import InvalidStateError, UsageError, VmreplicaError
from shared.ports import Address
from shared.tap_control import (
    CONTROL_VERSION,
    AbandonParams,
    AllowParams,
    BeginParams,
    DiskFile,
    DiskStatus,
    Doubt,
    EnlargeParams,
    GuestLatency,
    KnowsCut,
    KnowsCutParams,
    LeaseParams,
    LocateParams,
    LogPlace,
    LogUsage,
    Lost,
    Notification,
    Progress,
    ReasonParams,
    RefuseParams,
    ReleaseParams,
    RelogParams,
    Sealed,
    SetParams,
    TapPosition,
    TapStatus,
    TrackingChanged,
    TryDiskParams,
    notification_name,
)

PROGRESS_SECONDS = 0.02
"""Progress is told at once after a pause, and at most this often."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the process around the engine knows: itself, its NBD clients (their number by export name), and how long
    these wait.
    """

    pid: int
    version: str
    clients: Callable[[str], int]
    latency: Callable[[], GuestLatency] = GuestLatency
    settling: Settling | None = None


class TapControl:
    """Serves the configuration's control socket (methods and notifications of shared.tap_control)."""

    def __init__(self, engine: TapEngine, ports: TapPorts, surroundings: Surroundings, *, authorize: Authorize) -> None:
        self.stop_requested = asyncio.Event()
        """An orderly stop was asked for; ``stopped`` says that it is done."""
        self._engine = engine
        self._clock, self._files = ports.clock, ports.files
        self._surroundings = surroundings
        self._subscribers: dict[Client, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._news = False
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answering: set[asyncio.Future[None]] = set()
        methods = Methods()
        methods.add("status", NoParams, self._status)
        methods.add("latency", NoParams, self._latency)
        methods.add("begin", BeginParams, self._begin)
        methods.add("stop_tracking", ReasonParams, self._stop_tracking)
        methods.add("abandon", AbandonParams, self._abandon)
        methods.add("try_disk", TryDiskParams, self._try_disk)
        methods.add("enlarge", EnlargeParams, self._enlarge)
        methods.add("leave_log", ReasonParams, self._leave_log)
        methods.add("forget", AbandonParams, self._forget)
        methods.add("to_map", NoParams, self._to_map)
        methods.add("cut", ReasonParams, self._cut)
        methods.add("set", SetParams, self._set)
        methods.add("locate", LocateParams, self._locate)
        methods.add("knows_cut", KnowsCutParams, self._knows_cut)
        methods.add("relog", RelogParams, self._relog)
        methods.add("lease", LeaseParams, self._lease)
        methods.add("release", ReleaseParams, self._release)
        methods.add("refuse_writes", RefuseParams, self._refuse_writes)
        methods.add("allow_writes", AllowParams, self._allow_writes)
        methods.add("subscribe", NoParams, self._subscribe)
        methods.add("settle", NoParams, self._settle)
        methods.add("stop", NoParams, self._stop)
        address = Address(unix_path=engine.config.control_socket)
        self._server = JsonRpcServer(ports.network, address, methods, authorize=authorize)
        engine.tracker.listeners.append(self)

    async def start(self) -> None:
        """Listen. Raises what ``Network.listen`` raises."""
        await self._server.start()

    async def close(self) -> None:
        """Stop listening and end all clients."""
        self._engine.tracker.listeners.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        await self._server.close()

    async def stopped(self, error: VmreplicaError | None) -> None:
        """The engine has stopped, or could not in order: answer whoever asked for it."""
        if error is not None:
            self._stopped.set_exception(error)
            # There may be nobody who asked.
            self._stopped.exception()
        else:
            self._stopped.set_result(None)
        if self._answering:
            await asyncio.wait(self._answering)

    # --- primary_agent.tap.tracker.Listener

    def progressed(self) -> None:
        if not self._subscribers:
            return
        if self._timer is not None:
            self._news = True
            return
        self._tell_progress()

    def sealed(self, cut: Cut) -> None:
        self._notify(_sealed(cut))

    def tracking_changed(self) -> None:
        tracker = self._engine.tracker
        epoch = tracker.epoch.hex() or None
        self._notify(TrackingChanged(tracking=tracker.tracking, epoch=epoch, lost=_lost(tracker.loss)))

    def _tell_progress(self) -> None:
        self._news = False
        self._timer = asyncio.get_running_loop().call_later(PROGRESS_SECONDS, self._pause_over)
        log = self._engine.tracker.log
        if log is not None:
            file, offset = log.place
            epoch = log.epoch.hex()
            progress = Progress(file=file, offset=offset, epoch=epoch, segment=log.segment, entry=log.entry)
            self._notify(progress, replaces="progress")

    def _pause_over(self) -> None:
        self._timer = None
        if self._news:
            self._tell_progress()

    def _notify(self, notification: Notification, *, replaces: str | None = None) -> None:
        if self._subscribers:
            name, params = notification_name(notification), msgspec.to_builtins(notification)
            for client in tuple(self._subscribers):
                client.notify(name, params, replaces=replaces)

    # --- methods

    def status(self) -> TapStatus:
        """Everything about the tap."""
        engine, tracker, config = self._engine, self._engine.tracker, self._engine.config
        log, cut, files = tracker.log, tracker.newest_cut, tracker.files
        return TapStatus(
            vm=config.vm,
            name=config.name,
            pid=self._surroundings.pid,
            version=self._surroundings.version,
            boot_id=self._clock.boot_id(),
            tracking=tracker.tracking,
            lost=_lost(tracker.loss),
            epoch=tracker.epoch.hex() or None,
            position=TapPosition.of(log.position) if log is not None else None,
            sealed=TapPosition.of(cut.position) if cut is not None else None,
            first_segment=tracker.first_segment,
            log=LogUsage(
                used=files.used_bytes,
                limit=files.limit,
                files=len(files.used),
                file_bytes=files.file_bytes,
                folder=files.folder,
            ),
            disks=[self._disk_status(disk) for disk in engine.disks],
            interval=engine.intervals.seconds,
            nbd_uri=f"nbd+unix:///?socket={quote(config.nbd_socket)}",
            writes=sum(disk.writes for disk in engine.disks),
            bytes_written=sum(disk.bytes_written for disk in engine.disks),
            last_write_time=engine.last_write_time,
            doubt=_doubt(tracker.maps.dirty),
            hot_bytes=tracker.maps.hot.hot_bytes() if tracker.maps.hot is not None else 0,
            hot_regions=tracker.maps.hot.limit if tracker.maps.hot is not None else config.hot_regions,
            hot_region_bytes=config.hot_region_bytes,
            latency=self._surroundings.latency(),
            layers=self._surroundings.settling.status() if self._surroundings.settling is not None else None,
            control=CONTROL_VERSION,
            fenced=config.fenced,
            refused=engine.gate.refused,
        )

    def _disk_status(self, disk: Disk) -> DiskStatus:
        export = disk.config.export
        return DiskStatus(
            index=disk.index,
            path=disk.config.path,
            size=disk.size,
            export=export,
            uri=f"nbd+unix:///{quote(export)}?socket={quote(self._engine.config.nbd_socket)}",
            clients=self._surroundings.clients(export),
            writes=disk.writes,
            bytes_written=disk.bytes_written,
            failed=disk.failed,
            # One that we enlarged ourselves is no news to anybody.
            found_size=disk.size if disk.found_size == disk.larger else disk.found_size,
            block=disk.block,
        )

    async def _status(self, params: NoParams, client: Client) -> TapStatus:
        # Whoever asks wants to know how the disks are: an agent does every few seconds.
        tracker = self._engine.tracker
        look = tracker.watch.check_unchanged if tracker.is_tracked else tracker.watch.look_at_sizes
        look(self._engine.disks)
        return self.status()

    async def _latency(self, params: NoParams, client: Client) -> GuestLatency:
        return self._surroundings.latency()

    async def _begin(self, params: BeginParams, client: Client) -> TapStatus:
        await self._engine.begin(bytes.fromhex(params.epoch))
        return self.status()

    async def _stop_tracking(self, params: ReasonParams, client: Client) -> TapStatus:
        await self._engine.end_tracking()
        return self.status()

    async def _abandon(self, params: AbandonParams, client: Client) -> TapStatus:
        await self._engine.abandon(bytes.fromhex(params.epoch))
        return self.status()

    async def _try_disk(self, params: TryDiskParams, client: Client) -> dict[str, Any]:
        def work() -> None:
            Disk.open(self._files, 0, params.disk).file.close()

        await self._engine.workers.run(work)
        return {}

    async def _enlarge(self, params: EnlargeParams, client: Client) -> DiskFile:
        return await enlarge(self._engine, params.disk, params.size)

    async def _leave_log(self, params: ReasonParams, client: Client) -> TapStatus:
        await self._engine.leave_log(params.reason)
        return self.status()

    async def _forget(self, params: AbandonParams, client: Client) -> TapStatus:
        await self._engine.tracker.forget(bytes.fromhex(params.epoch))
        return self.status()

    async def _to_map(self, params: NoParams, client: Client) -> TapStatus:
        await self._engine.tracker.to_map()
        return self.status()

    async def _cut(self, params: ReasonParams, client: Client) -> Sealed:
        reason = SealReason.RESYNC if params.reason == "resync" else SealReason.COMMAND
        return _sealed(await self._engine.cut(reason))

    async def _set(self, params: SetParams, client: Client) -> TapStatus:
        if params.log_limit is not None:
            self._engine.set_log_limit(params.log_limit)
        hot = self._engine.tracker.maps.hot
        if params.hot_regions is not None and hot is not None:
            hot.limit = params.hot_regions
        if params.interval is not None:
            self._engine.intervals.set(params.interval)
        if params.fenced is not None:
            self._engine.config = msgspec.structs.replace(self._engine.config, fenced=params.fenced)
        return self.status()

    async def _locate(self, params: LocateParams, client: Client) -> LogPlace:
        epoch, position = bytes.fromhex(params.epoch), None
        if (params.entry is None) != (params.chain is None):
            raise UsageError("locate needs entry and chain, or neither.", "Name both, or the segment only.")
        if params.entry is not None and params.chain is not None:
            position = Position(epoch, params.segment, params.entry, bytes.fromhex(params.chain))
        return _log_place(await self._engine.locate(epoch, params.segment, position))

    async def _knows_cut(self, params: KnowsCutParams, client: Client) -> KnowsCut:
        dirty = self._engine.tracker.maps.dirty
        cut = bytes.fromhex(params.epoch), params.segment, bytes.fromhex(params.chain)
        return KnowsCut(known=dirty is not None and dirty.knows(*cut))

    async def _relog(self, params: RelogParams, client: Client) -> LogPlace:
        return _log_place(await relog(self._engine, params.disk, params.ranges))

    async def _lease(self, params: LeaseParams, client: Client) -> dict[str, Any]:
        # A client that is gone keeps its lease until it expires: whoever follows it takes its own in time.
        self._engine.tracker.files.lease(id(client), params.from_file, params.seconds, weak=params.weak)
        return {}

    async def _release(self, params: ReleaseParams, client: Client) -> dict[str, Any]:
        self._engine.tracker.release(bytes.fromhex(params.epoch), params.segment)
        return {}

    async def _refuse_writes(self, params: RefuseParams, client: Client) -> TapStatus:
        engine = self._engine
        if engine.gate.refused is None and not params.used:
            used = {disk.config.export: self._surroundings.clients(disk.config.export) for disk in engine.disks}
            if named := ", ".join(f"{count} of {export}" for export, count in used.items() if count):
                raise InvalidStateError(
                    f"Clients of the disks are connected ({named}): whatever runs on them would lose its writes.",
                    "Shut the VM down first.",
                    code="in_use",
                )
        await engine.gate.close(engine, params.id, params.text)
        return self.status()

    async def _allow_writes(self, params: AllowParams, client: Client) -> TapStatus:
        await self._engine.gate.open(self._engine, params.id)
        return self.status()

    async def _subscribe(self, params: NoParams, client: Client) -> TapStatus:
        if client not in self._subscribers:
            self._subscribers[client] = None
            client.on_closed(lambda: self._subscribers.pop(client, None))
        return self.status()

    async def _settle(self, params: NoParams, client: Client) -> TapStatus:
        if self._surroundings.settling is not None:
            self._surroundings.settling.begin()
        return self.status()

    async def _stop(self, params: NoParams, client: Client) -> dict[str, Any]:
        self.stop_requested.set()
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answering.add(answered)
        try:
            await asyncio.shield(self._stopped)
            return {}
        finally:
            answered.set_result(None)


def _sealed(cut: Cut) -> Sealed:
    position = cut.position
    return Sealed(
        epoch=position.epoch.hex(),
        segment=position.segment,
        entry=position.entry,
        chain=position.chain.hex(),
        file=cut.file,
        offset=cut.offset,
        time_ns=cut.time_ns,
    )


def _doubt(dirty: DirtyMap | None) -> Doubt | None:
    if dirty is None or not dirty.in_force:
        return None
    note = dirty.note
    return Doubt(
        base_epoch=note.epoch.hex(),
        base_segment=note.base_segment,
        end_segment=note.end_segment,
        complete=note.force is Force.COMPLETE,
        catch_up=note.catch_up,
        bytes=dirty.file.set_bytes(),
    )


def _lost(loss: Loss | None) -> Lost | None:
    return None if loss is None else loss.told()


def _log_place(place: Place) -> LogPlace:
    return LogPlace(file=place.file, offset=place.offset, position=TapPosition.of(place.position))
