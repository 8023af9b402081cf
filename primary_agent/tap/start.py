"""The reading half of a start: opens and locks the disks, reads state and log, and judges whether tracking goes on."""

from __future__ import annotations

from dataclasses import dataclass

from primary_agent.tap.disks import Disk
from primary_agent.tap.log_files import LogFile, LogFiles, prepare
from primary_agent.tap.ports import TapPorts
from primary_agent.tap.recovery import (
    Tail,
    TrackingLost,
    check_disks,
    check_log_end,
    check_state,
    check_witnesses,
    read_tail,
    still_in_doubt,
)
from primary_agent.tap.state import MAX_TEXT, STATE_BYTES, Loaded, Loss, StateFile, Status, TapState
from primary_agent.tap.supply import no_room
from primary_agent.tap.watch import NO_SPACE, why
from shared.errors import DiskInUseError, NoSpaceError, StorageError
from shared.hrl_files import log_file_sequence
from shared.ports import File, FileSystem
from shared.tap_config import LOCK_NAME, STATE_NAME, TapConfig
from shared.tap_control import LostReason, Tracking


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

    def close(self) -> None:
        """Close everything: the start is given up."""
        for disk in self.disks:
            disk.file.close()
        if self.file is not None:
            self.file.close()
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
            _judge(ports, config, start, loaded)
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


def _judge(ports: TapPorts, config: TapConfig, start: Start, loaded: Loaded) -> None:
    """Fill in what state and log say. Raises StorageError only where a first start finds no room."""
    state = start.state = loaded.state
    tracked = state is not None and state.tracking is Tracking.ON
    try:
        numbered = [name for name in ports.files.list(config.log_folder) if log_file_sequence(name) is not None]
        check_state(loaded, config.vm_id, ports.clock.boot_id(), log_exists=bool(numbered))
    except TrackingLost as lost:
        start.loss = Loss(lost.reason, lost.text[:MAX_TEXT], ports.clock.wall())
        tracked = False
    except OSError:
        # Whoever needs the folder next will say so.
        pass
    try:
        epoch = state.epoch if state is not None and tracked else b""
        log = start.files.discover(epoch, state.first_file if state is not None else 1)
        if state is None and start.loss is None:
            start.files.prepared(_proof_of_room(ports.files, start.files))
        elif state is not None and tracked:
            _take_up(ports, start, state, log)
    except TrackingLost as lost:
        start.loss = Loss(lost.reason, lost.text[:MAX_TEXT], ports.clock.wall())
    except OSError as error:
        if state is None and start.loss is None:
            raise no_room(start.files, error) from error
        if tracked:
            text = f"the log in {config.log_folder} can't be read: {why(error)}"
            start.loss = Loss(LostReason.LOG_FAILED, text[:MAX_TEXT], ports.clock.wall())


def _proof_of_room(files: FileSystem, log_files: LogFiles) -> File:
    """The first log file. Raises OSError where there is no room for it."""
    plan = log_files.plan(needed=True)
    assert plan is not None
    return prepare(files, plan)


def _take_up(ports: TapPorts, start: Start, state: TapState, log: list[LogFile]) -> None:
    """Find the log's end, and judge whether it names all that changed. Raises TrackingLost or OSError."""
    identities = [disk.file.identity() for disk in start.disks]
    check_disks(state, start.disks, identities, ports.clock.boot_id())
    tail = read_tail(ports.files, log, {disk.index: disk.size for disk in start.disks})
    start.clean = state.status is Status.CLEAN
    if start.clean:
        check_log_end(state, tail)
        tail.doubt.clear()
    else:
        witnesses = [start.state_file.read_witness(disk.slot) for disk in start.disks]
        check_witnesses(tail, start.disks, identities, witnesses)
        tail.doubt = still_in_doubt(ports.files, tail, start.disks)
    start.file = ports.files.open(tail.file.path, write=True)
    start.files.used.extend(log)
    start.tail = tail
