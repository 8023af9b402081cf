"""The writing half of a start: takes the log up where it ended, as the reading half has judged it."""

from __future__ import annotations

from primary_agent.tap.ports import TapPorts
from primary_agent.tap.start import Start
from primary_agent.tap.tracker import Tracker
from primary_agent.tap.watch import why
from shared.errors import StorageError
from shared.tap_control import LostReason


async def resume(ports: TapPorts, start: Start, tracker: Tracker, state_path: str) -> None:
    """Make the tap's state ACTIVE, durably, and the log ready for the first change.

    After an orderly stop the state comes first: what is logged then must not be taken for a foreign change of a log
    that was left CLEAN. After a kill the state is ACTIVE, and the log is mended first; a second kill meanwhile finds
    the same group in doubt as this start did. Raises StorageError where the state can't be written.
    """
    tracker.restore(start.state, start.loss, start.former)
    if start.bounded is not None and start.changes is not None:
        try:
            tracker.begin_map(start.bounded, start.changes)
        except OSError as error:
            tracker.lose(LostReason.MAP_FAILED, f"the dirty map can't be written: {why(error)}")
    if start.tail is not None and start.file is not None:
        try:
            tracker.resume(start.tail, start.file)
            if not start.clean:
                _mend(start, tracker)
        except OSError as error:
            tracker.lose_log(error)
        for disk in start.disks:
            tracker.watch.saw_through(disk, start.tail.newest_ns)
        if not start.clean and tracker.log is not None:
            await _sync_log(ports, start, tracker)
        if not start.clean:
            tracker.seal_recovered()
    try:
        await ports.workers.run(tracker.activate, state_path, start.fresh)
    except OSError as error:
        raise StorageError(f"{state_path} can't be written: {why(error)}.", "Check the tap's folder.") from error
    if start.clean and tracker.log is not None:
        try:
            tracker.log.open_segment()
        except OSError as error:
            tracker.lose_log(error)
    if tracker.is_tracked and tracker.log is None:
        for disk in start.disks:
            tracker.watch.saw_through(disk, int(ports.clock.wall() * 1e9))
    await _take_up_hot_regions(ports, start, tracker)
    await tracker.sync.run()
    tracker.resume_map(start.changes)
    tracker.tidy()


async def _sync_log(ports: TapPorts, start: Start, tracker: Tracker) -> None:
    """Make durable what the tap that was killed may not have synced, in the files before the last one.

    Else a cut that is told as durable would not be.
    """

    def sync() -> None:
        for log_file in list(start.files.used)[:-1]:
            file = ports.files.open(log_file.path, write=True)
            try:
                file.sync()
            finally:
                file.close()
        ports.files.sync_folder(start.files.folder)

    try:
        await ports.workers.run(sync)
    except OSError as error:
        tracker.lose(LostReason.LOG_FAILED, f"the log can't be made durable: {why(error)}")


async def _take_up_hot_regions(ports: TapPorts, start: Start, tracker: Tracker) -> None:
    """What was hot stays hot; where that is not known, everything is made durable first."""
    hot = tracker.maps.hot
    if hot is None:
        return
    try:
        if not tracker.is_tracked:
            hot.clear(tracker.place)
            return
        if start.hot_is_new or start.unvouched:
            for disk in start.disks:
                await ports.workers.run(disk.file.sync)
        hot.adopt()
    except OSError as error:
        tracker.lose(LostReason.DISK_FAILED, f"a disk or map can't be made durable: {why(error)}")
    hot.begin()


def _mend(start: Start, tracker: Tracker) -> None:
    """Log anew what the last group left in doubt (R26), if anything. Raises OSError where the log can't be written."""
    tail = start.tail
    assert tail is not None and tracker.log is not None
    if not tail.cursor.inside:
        tracker.log.open_segment()
    for disk in start.disks:
        for _ in tracker.log_anew(disk, tail.doubt.get(disk.index, ()), tail.group_ns):
            pass
