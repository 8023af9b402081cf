"""The reading half of a start: opens and locks the disks, reads state and log, and judges whether tracking goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from primary_agent.tap.changes import LoggedChanges, LogUnreadableError, read_changes
from primary_agent.tap.devices import check_last_write, check_policy, check_samples
from primary_agent.tap.dirty_map import DirtyMap
from primary_agent.tap.disks import Disk, join_ranges
from primary_agent.tap.hot_regions import VOID, HotNote
from primary_agent.tap.laying import lay, read_witnesses
from primary_agent.tap.log_files import LogFile, LogFiles, prepare
from primary_agent.tap.map_tracking import NOT_WHOLE
from primary_agent.tap.other_disks import as_it_was, map_of_other_disks
from primary_agent.tap.ports import TapPorts
from primary_agent.tap.recovery import (
    Tail,
    TrackingLost,
    check_disks,
    check_lease,
    check_log_end,
    check_map_witnesses,
    check_state,
    check_witnesses,
    lost_power,
    read_tail,
    still_in_doubt,
)
from primary_agent.tap.state import STATE_BYTES, Loaded, Loss, StateFile, Status, TapState
from primary_agent.tap.supply import no_room
from primary_agent.tap.watch import NO_SPACE, why
from protocol.errors import LogError
from shared.errors import DiskInUseError, NoSpaceError, StorageError
from shared.hrl_files import log_file_sequence, read_file_header
from shared.map_file import MapDamagedError, MapFile, MapKind
from shared.ports import File, FileIdentity, FileSystem
from shared.rates import size_text
from shared.tap_config import (
    DIRTY_BLOCK_BITS,
    HOT_NAME,
    LOCK_NAME,
    MAP_NAME,
    MAX_HOT_REGION,
    MIN_HOT_REGION,
    STATE_NAME,
    TapConfig,
)
from shared.tap_control import LostReason, Tracking

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Start:
    """What a start found.

    ``tail`` is set where tracking goes on, with ``file``, its last log file, open for writing; ``loss`` says why it
    does not although it was on. ``clean``: the tap before stopped in order. ``fresh``: both slots are to be written.
    """

    lock: File
    state_file: StateFile
    files: LogFiles
    disks: list[Disk]
    state: TapState | None = None
    loss: Loss | None = None
    tail: Tail | None = None
    file: File | None = None
    clean: bool = False
    fresh: bool = False
    dirty: DirtyMap | None = None
    hot: MapFile | None = None
    hot_is_new: bool = False
    """The hot-region map was made by this start: what was hot before is not known."""
    unvouched: bool = False
    """The hot-region map does not name all that may not be durable yet."""
    bounded: Loss | None = None
    """Why the dirty map takes the place of the log at this start; ``changes`` are what goes into it."""
    changes: LoggedChanges | None = None
    former: bytes = b""
    """The epoch that was tracked last, where the state does not tell it any more: it can't be taken up again."""

    def close(self) -> None:
        """Close everything: the start is given up."""
        for disk in self.disks:
            disk.file.close()
        if self.file is not None:
            self.file.close()
        if self.dirty is not None:
            self.dirty.file.close()
        if self.hot is not None:
            self.hot.close()
        self.files.close()
        self.state_file.close()
        self.lock.close()


def read_start(ports: TapPorts, folder: str, config: TapConfig) -> Start:
    """Everything of a start that comes before the first change. Blocks.

    Raises VmreplicaError where the tap has to refuse its work: a disk or the folder is in use, missing, of the wrong
    size or not writable. What only makes tracking impossible is no reason to refuse, since the guest comes first (I14);
    but the very first start wants room for a log, for then nobody relies on the tap yet.
    """
    opened: list[File] = []
    try:
        lock = lock_folder(ports.files, folder)
        opened.append(lock)
        disks: list[Disk] = []
        for slot, disk_config in enumerate(config.disks):
            disks.append(Disk.open(ports.files, slot, disk_config))
            opened.append(disks[-1].file)
        opened.extend(lay(ports, config, disks))
        path = f"{folder}/{STATE_NAME}"
        try:
            state_file, loaded = StateFile.open(ports.files, path)
        except OSError as error:
            text = f"The tap's state {path} can't be opened: {why(error)}."
            if error.errno in NO_SPACE:
                raise NoSpaceError(text, f"Free at least {STATE_BYTES} bytes there.") from error
            raise StorageError(text, "Check the tap's folder.") from error
        log_files = LogFiles(
            ports.files,
            config.log_folder,
            config.vm_id,
            config.log_file_size,
            config.log_limit,
            ports.clock.monotonic,
        )
        start = Start(lock, state_file, log_files, disks, fresh=state_file.is_new or bool(loaded.damage))
        try:
            _open_maps(ports.files, folder, config, start)
            _judge(ports, folder, config, start, loaded)
        except BaseException:
            start.close()
            raise
    except BaseException:
        for file in opened:
            file.close()
        raise
    return start


def lock_folder(files: FileSystem, folder: str) -> File:
    """Make sure that only one tap runs on the folder. Blocks. Raises DiskInUseError or StorageError."""
    path = f"{folder}/{LOCK_NAME}"
    try:
        file = files.open(path, write=True, create=True)
    except OSError as error:
        raise StorageError(f"{path} can't be opened: {why(error)}.", "Check the tap's folder.") from error
    try:
        file.lock()
    except DiskInUseError as error:
        file.close()
        text = f"A tap already runs on {folder}."
        raise DiskInUseError(text, "Leave it running, or stop it first.", code="tap_running") from error
    except BaseException:
        file.close()
        raise
    return file


def _open_maps(files: FileSystem, folder: str, config: TapConfig, start: Start) -> None:
    """Open both maps, or make them. Without them tracking goes on, and bounds nothing when it is lost."""
    dirty = _open_map(files, f"{folder}/{MAP_NAME}", config, MapKind.DIRTY, DIRTY_BLOCK_BITS, start.disks)
    if dirty is not None:
        start.dirty = DirtyMap(dirty[0])
    hot = _open_map(files, f"{folder}/{HOT_NAME}", config, MapKind.HOT, config.hot_region_bits, start.disks)
    if hot is not None:
        start.hot, start.hot_is_new = hot


def _open_map(
    files: FileSystem, path: str, config: TapConfig, kind: MapKind, region_bits: int, opened: Sequence[Disk]
) -> tuple[MapFile, bool] | None:
    """A map, and whether it had to be made; None where it can't be."""
    disks = [disk.geometry for disk in config.disks]
    try:
        if files.exists(path):
            try:
                return MapFile.open(files, path, kind, config.vm_id, region_bits, disks), False
            except MapDamagedError as error:
                resized = _resized_map(files, path, config) if kind is MapKind.HOT else None
                former = resized or map_of_other_disks(files, path, kind, config.vm_id, region_bits, opened)
                if former is not None:
                    return former, False
                _log.warning("a map is made anew", path=path, reason=str(error))
        return MapFile.create(files, path, kind, config.vm_id, region_bits, disks), True
    except OSError as error:
        _log.warning("there is no map", path=path, reason=why(error))
        return None


def _resized_map(files: FileSystem, path: str, config: TapConfig) -> MapFile | None:
    """The hot-region map in regions of the size that is configured, if it is there in regions of another one.

    It takes the old one's place in one step and names at least what that named, so that whatever is in doubt stays so.
    None where there is none. Raises OSError where it can't be made; the old one stays then.
    """
    disks = [disk.geometry for disk in config.disks]
    for region_bits in range(MIN_HOT_REGION.bit_length() - 1, MAX_HOT_REGION.bit_length()):
        if region_bits == config.hot_region_bits:
            continue
        try:
            former = MapFile.open(files, path, MapKind.HOT, config.vm_id, region_bits, disks, write=False)
        except MapDamagedError:
            continue
        try:
            return MapFile.create(files, path, MapKind.HOT, config.vm_id, config.hot_region_bits, disks, like=former)
        finally:
            former.close()
    return None


def _judge(ports: TapPorts, folder: str, config: TapConfig, start: Start, loaded: Loaded) -> None:
    """Fill in what state and log say. Raises StorageError only where a first start finds no room."""
    state = start.state = loaded.state
    tracked = state is not None and state.tracking in (Tracking.ON, Tracking.MAP)
    try:
        numbered = [name for name in ports.files.list(config.log_folder) if log_file_sequence(name) is not None]
        ran = bool(numbered) or (start.dirty is not None and start.dirty.in_force)
        check_state(loaded, config.vm_id, ports.clock.boot_id(), ran=ran)
    except TrackingLost as lost:
        start.loss = Loss.of(lost.reason, lost.text, ports.clock.wall(), lost.changes)
        start.former = _former_epoch(ports.files, config, numbered, start.dirty)
        tracked = False
    except OSError:
        # Whoever needs the folder next will say so.
        pass
    try:
        epoch = b""
        if tracked and start.hot is not None and HotNote.decode(start.hot.note).lease_ns == VOID:
            tracked = False
            raise TrackingLost(LostReason.STATE_FAILED, "tracking was lost, and the state could not be written")
        if state is not None and tracked:
            if start.dirty is not None:
                tracks = state.tracking is Tracking.MAP
                start.dirty.take_up(state.epoch, tracks=tracks, older=state.doubt)
            epoch = b"" if _is_mapped(start, state, ports.clock.boot_id()) else state.epoch
        durable = _durable_file(start, state, ports.clock.boot_id())
        log = start.files.discover(epoch, state.first_file if state is not None else 1, durable_file=durable)
        if state is None and start.loss is None:
            start.files.prepared(_proof_of_room(ports.files, start.files))
        elif state is not None and tracked:
            _check_disks(ports, folder, config, start, state)
            if lost_power(state, ports.clock.boot_id()):
                _bound(ports, start, state, log)
            elif state.tracking is Tracking.MAP:
                _take_up_map(ports, start, state, log)
            else:
                _take_up(ports, start, state, log)
    except TrackingLost as lost:
        start.loss = Loss.of(lost.reason, lost.text, ports.clock.wall(), lost.changes)
    except OSError as error:
        if state is None and start.loss is None:
            raise no_room(start.files, error) from error
        if tracked:
            text = f"the log in {config.log_folder} can't be read: {why(error)}"
            start.loss = Loss.of(LostReason.LOG_FAILED, text, ports.clock.wall())


def _durable_file(start: Start, state: TapState | None, boot_id: str) -> int | None:
    """After power loss, the file up to which the log was durable at the last checkpoint; 0 without one."""
    if state is None or not lost_power(state, boot_id):
        return None
    note = HotNote.decode(start.hot.note) if start.hot is not None else HotNote()
    return note.file if note.epoch == state.epoch else 0


def _former_epoch(files: FileSystem, config: TapConfig, names: Sequence[str], dirty: DirtyMap | None) -> bytes:
    """The epoch of the log's newest file, or whose log the dirty map has replaced. Empty where none tells it."""
    for name in reversed(names):
        try:
            file = files.open(f"{config.log_folder}/{name}")
            try:
                header = read_file_header(file)
            finally:
                file.close()
        except (LogError, StorageError, OSError):
            continue
        if header.vm == config.vm_id:
            return header.epoch
    return dirty.note.log_epoch if dirty is not None and dirty.in_force else b""


def _check_disks(ports: TapPorts, folder: str, config: TapConfig, start: Start, state: TapState) -> None:
    """The disks are those that the tap left, as far as can be told without the log. Raises TrackingLost or OSError."""
    state, disks = as_it_was(state, start.disks, start.dirty)
    identities = [disk.file.identity() for disk in disks]
    check_disks(state, disks, identities, ports.clock.boot_id())
    check_policy(config.block_device_policy, state, disks, identities)
    if state.status is Status.CLEAN:
        check_samples(ports.files, folder, state.samples, disks)
    for disk in start.disks:
        if disk not in disks:
            # Whoever wrote it before did so untracked, and no region tells of it: a compare may read it any time now.
            disk.file.sync()


def _is_mapped(start: Start, state: TapState, boot_id: str) -> bool:
    """Whether the dirty map has wholly taken the place of the log; after power loss the state may not say so yet."""
    says_so = state.tracking is Tracking.MAP or lost_power(state, boot_id)
    return says_so and start.dirty is not None and start.dirty.is_complete(state.epoch)


def _proof_of_room(files: FileSystem, log_files: LogFiles) -> File:
    """The first log file. Raises OSError where there is no room for it."""
    plan = log_files.plan(needed=True)
    assert plan is not None
    return prepare(files, plan)


def _take_up(ports: TapPorts, start: Start, state: TapState, log: list[LogFile]) -> None:
    """Find the log's end, and judge whether it names all that changed. Raises TrackingLost or OSError."""
    identities = [disk.file.identity() for disk in start.disks]
    tail = read_tail(ports.files, log, {disk.index: disk.size for disk in start.disks})
    start.clean = state.status is Status.CLEAN
    if start.clean:
        check_log_end(state, tail)
        tail.doubt.clear()
    else:
        witnesses = read_witnesses(start.state_file, start.disks)
        check_witnesses(tail, start.disks, identities, witnesses)
        tail.doubt = still_in_doubt(ports.files, tail, start.disks)
        start.unvouched = _is_unvouched(start, identities)
    start.file = ports.files.open(tail.file.path, write=True)
    start.files.used.extend(log)
    start.tail = tail


def _take_up_map(ports: TapPorts, start: Start, state: TapState, log: list[LogFile]) -> None:
    """Go on in the dirty map. Raises TrackingLost or OSError."""
    identities = [disk.file.identity() for disk in start.disks]
    dirty, reason = start.dirty, state.loss.reason if state.loss is not None else None
    if dirty is None or not dirty.in_force or dirty.note.log_epoch != state.epoch:
        raise TrackingLost(LostReason.MAP_FAILED, "the dirty map is damaged or missing")
    if start.hot_is_new and reason in NOT_WHOLE and not dirty.is_complete(state.epoch):
        raise TrackingLost(LostReason.MAP_FAILED, "the hot-region map is damaged or missing, and the log not whole")
    start.clean = state.status is Status.CLEAN
    if not start.clean:
        start.unvouched = _is_unvouched(start, identities)
        witnesses = read_witnesses(start.state_file, start.disks)
        check_map_witnesses(start.disks, identities, witnesses)
    start.files.used.extend(log)


def _is_unvouched(start: Start, identities: Sequence[FileIdentity]) -> bool:
    """After a kill: whether disks were written while the hot-region map could not be, or there is none."""
    if start.hot is None:
        return False
    lease_ns = HotNote.decode(start.hot.note).lease_ns
    return start.hot_is_new or any(identity.block or identity.mtime_ns > lease_ns for identity in identities)


def _bound(ports: TapPorts, start: Start, state: TapState, log: list[LogFile]) -> None:
    """After power loss: what is in doubt, from log, dirty map and hot regions (R3). Raises TrackingLost or OSError."""
    stopped = "the host stopped while the tap ran"
    identities = [disk.file.identity() for disk in start.disks]
    dirty, hot = start.dirty, start.hot
    if dirty is None or hot is None or start.hot_is_new or state.hotless:
        raise TrackingLost(LostReason.UNCLEAN_STOP, f"{stopped}, and its maps are damaged or missing")
    note = HotNote.decode(hot.note)
    check_lease(note.lease_ns, start.disks, identities)
    changes = LoggedChanges(0)
    if not _is_mapped(start, state, ports.clock.boot_id()):
        durable = (note.file, note.offset) if note.epoch == state.epoch else (0, 0)
        sizes = {disk.index: disk.size for disk in start.disks}
        try:
            changes = read_changes(ports.files, log, sizes, durable=durable, torn=True)
        except LogUnreadableError as error:
            raise TrackingLost(LostReason.LOG_DAMAGED, f"{stopped}, and {error}") from None
    check_last_write(note.lease_ns, changes.newest_ns, identities)
    hot_bytes = 0
    for disk in start.disks:
        ranges = list(hot.ranges(disk.index))
        hot_bytes += sum(length for _, length in ranges)
        changes.ranges[disk.index] = join_ranges([*changes.ranges.get(disk.index, ()), *ranges])
    start.files.used.extend(log)
    start.changes = changes
    text = f"{stopped}: {size_text(hot_bytes)} that were written last are in doubt"
    start.bounded = Loss.of(LostReason.UNCLEAN_STOP, text, ports.clock.wall())
