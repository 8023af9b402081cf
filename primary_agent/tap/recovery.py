"""What a start of the tap may conclude from state, witness, log and disks: go on, or why tracking is lost.

Nothing here writes. ``docs/tap.md`` gives the reasoning; rules R16, R18, R26 and R27 are applied here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from primary_agent.tap.disks import Disk, Range, join_ranges
from primary_agent.tap.evidence import changes_since, changes_text, show_time
from primary_agent.tap.locate import locate_segment
from primary_agent.tap.log import Cut
from primary_agent.tap.log_files import LogFile
from primary_agent.tap.state import Loaded, Status, TapState, Witness
from protocol.bulk import LogRecord
from protocol.chain import Cursor, body_of
from protocol.errors import LogError
from protocol.hrl import FILE_HEADER_BYTES, RecordKind, decode_entries, decode_record_header
from protocol.position import Position
from shared.errors import NotFoundError
from shared.hrl_files import EndKind, scan_file
from shared.ports import FileIdentity, FileSystem
from shared.tap_control import DiskChange, DiskPart, LostReason

WRITE_SLACK_NS = 250_000_000
"""How long after the witnessed intention to write a disk its mtime may be set by that write: scheduling, no more."""

COMPARED_MAX = 4096
"""A last group of more entries is not compared with the disks, but logged anew."""


class TrackingLost(Exception):
    """The log can't be shown to name everything that changed: why, with the evidence."""

    def __init__(self, reason: LostReason, text: str, changes: Sequence[DiskChange] = ()) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.changes = changes


@dataclass(slots=True)
class Tail:
    """The end of the log: the cursor there, and the last group of batches, which a crash leaves in doubt.

    ``doubt`` maps disk index to the group's ranges, ``group`` has path, offset and length of its records in order;
    ``group_ns`` and ``newest_ns`` are the times of that group and of the newest record, 0 where there is none.
    ``first_entry`` and ``segment_bytes`` (an estimate where it spans several files) are those of the segment that is
    open.
    """

    file: LogFile
    cursor: Cursor
    ended: bool
    group_ns: int = 0
    newest_ns: int = 0
    doubt: dict[int, list[Range]] = field(default_factory=dict)
    group: list[tuple[str, int, int]] = field(default_factory=list)
    sealed: Cut | None = None
    first_entry: int = 0
    segment_bytes: int = 0


# --- the log -------------------------------------------------------------------------------------------------------


class _Collector:
    """Sees a file's records, and keeps the last group of batches and the last seal of it."""

    def __init__(self, sizes: dict[int, int], sequence: int) -> None:
        self.group_ns = 0
        self.newest_ns = 0
        self.groups = 0
        self.ranges: list[tuple[int, int, int]] = []
        self.places: list[tuple[int, int]] = []
        self.sealed: Cut | None = None
        self._sizes = sizes
        self._sequence = sequence

    def __call__(self, offset: int, record: LogRecord) -> None:
        header = record.header
        self.newest_ns = max(self.newest_ns, header.time_ns)
        if header.kind is RecordKind.SEAL:
            position = Position(header.epoch, header.segment, header.entry, header.chain)
            self.sealed = Cut(position, self._sequence, offset + header.length, header.time_ns)
        if header.kind is not RecordKind.BATCH:
            return
        if header.time_ns != self.group_ns:
            self.group_ns = header.time_ns
            self.groups += 1
            self.ranges.clear()
            self.places.clear()
        self.places.append((offset, header.length))
        table = decode_entries(header, body_of(record.record), self._sizes, at=offset)
        self.ranges += table[["disk", "offset", "length"]].tolist()


def read_tail(files: FileSystem, log: Sequence[LogFile], sizes: dict[int, int]) -> Tail:
    """Verify the newest file of the log, and the ones before as far as the last group reaches.

    Blocks. Raises TrackingLost for a log that is missing or damaged, and OSError.
    """
    if not log:
        raise TrackingLost(LostReason.LOG_DAMAGED, "the log's files are missing")
    tail: Tail | None = None
    ranges: list[tuple[int, int, int]] = []
    for log_file in reversed(log):
        collector = _Collector(sizes, log_file.sequence)
        file = files.open(log_file.path)
        try:
            result = scan_file(file, visit=collector, keep=False)
        except LogError as error:
            raise TrackingLost(LostReason.LOG_DAMAGED, f"{log_file.path}: {error.text}") from None
        finally:
            file.close()
        ended = result.kind is EndKind.END_OF_FILE
        if result.kind is EndKind.DAMAGED or (tail is not None and not ended):
            text = f"{log_file.path} is damaged at offset {result.end}: {result.text or 'its end is missing'}"
            raise TrackingLost(LostReason.LOG_DAMAGED, text)
        if tail is None:
            log_file.end = result.end
            tail = Tail(log_file, result.cursor, ended)
        if tail.cursor.inside is None:
            tail.cursor.inside = result.cursor.inside
        tail.newest_ns = max(tail.newest_ns, collector.newest_ns)
        tail.sealed = tail.sealed or collector.sealed
        if collector.groups:
            if tail.group_ns and collector.group_ns != tail.group_ns:
                break
            tail.group_ns = collector.group_ns
            ranges += collector.ranges
            tail.group = [(log_file.path, *place) for place in collector.places] + tail.group
        if collector.groups > 1:
            break
    assert tail is not None
    if tail.cursor.inside:
        tail.first_entry, tail.segment_bytes = _segment_start(files, log, tail)
    for disk, offset, length in ranges:
        tail.doubt.setdefault(disk, []).append((offset, length))
    tail.doubt = {disk: join_ranges(doubt) for disk, doubt in sorted(tail.doubt.items())}
    return tail


def _segment_start(files: FileSystem, log: Sequence[LogFile], tail: Tail) -> tuple[int, int]:
    """The first entry of the segment that is open at the log's end, and its bytes so far."""
    try:
        start = locate_segment(files, log, tail.cursor.epoch, tail.cursor.segment)
    except NotFoundError as error:
        raise TrackingLost(LostReason.LOG_DAMAGED, error.text) from None
    size = sum(file.end - FILE_HEADER_BYTES for file in log if file.sequence >= start.file)
    return start.position.entry, size - (start.offset - FILE_HEADER_BYTES)


# --- the disks -----------------------------------------------------------------------------------------------------


def explained_by(
    witness: Witness | None, identity: FileIdentity, group_ns: int, touched: bool, enlarged: bool = False
) -> str:
    """Evidence that somebody else wrote a disk after the tap was killed (R27); empty if there is none.

    Either the file is as it was after the last batch that the tap saw through, or the last group was about to write
    to it (``touched``), or the tap to enlarge it (``enlarged``), and then its times must be those of that write.
    """
    if witness is None:
        return "what was last known of it is damaged"
    if (identity.mtime_ns, identity.ctime_ns) == (witness.mtime_ns, witness.ctime_ns):
        return ""
    latest = max(group_ns, witness.before_ns) + WRITE_SLACK_NS
    in_doubt = (touched and witness.done_ns < group_ns) or (enlarged and witness.done_ns < witness.before_ns)
    if in_doubt and witness.mtime_ns <= identity.mtime_ns <= latest and identity.ctime_ns <= latest:
        return ""
    expected = f"at most {show_time(latest)}" if in_doubt else show_time(witness.mtime_ns)
    if identity.mtime_ns == witness.mtime_ns:
        expected = f"at most {show_time(latest)}" if in_doubt else show_time(witness.ctime_ns)
        return f"its ctime is {show_time(identity.ctime_ns)}; the tap left it at {expected}"
    return f"its mtime is {show_time(identity.mtime_ns)}; the tap left it at {expected}"


def still_in_doubt(files: FileSystem, tail: Tail, disks: Sequence[Disk]) -> dict[int, list[Range]]:
    """Those parts of the last group's ranges where a disk does not hold what the log says.

    Where it does, the group is wholly there, and nothing happened that the log does not tell: to log it anew would make
    a side that was killed look as if it had gone on. Blocks. Raises OSError where the log can't be read.
    """
    sizes = {disk.index: disk.size for disk in disks}
    by_index = {disk.index: disk for disk in disks}
    later: dict[int, list[Range]] = {disk.index: [] for disk in disks}
    doubt: dict[int, list[Range]] = {}
    compared = 0
    for path, at, length in reversed(tail.group):
        for index, offset, size, payload in reversed(_entries(files, path, at, length, sizes)):
            compared += 1
            if compared > COMPARED_MAX:
                return tail.doubt
            for start, count in _outside(later[index], offset, size):
                if not _holds(by_index[index], start, count, payload, start - offset):
                    doubt.setdefault(index, []).append((start, count))
            later[index] = join_ranges([*later[index], (offset, size)])
    return {index: join_ranges(ranges) for index, ranges in sorted(doubt.items())}


def _entries(
    files: FileSystem, path: str, at: int, length: int, sizes: dict[int, int]
) -> list[tuple[int, int, int, memoryview | None]]:
    """Disk, offset, length and payload, if any, of the entries of a batch that was found valid before."""
    file = files.open(path)
    try:
        record = memoryview(file.read(at, length))
    finally:
        file.close()
    header, body = decode_record_header(record, at=at), body_of(record)
    table = decode_entries(header, body, sizes, at=at)
    place, entries = table.nbytes, []
    for index, offset, size, payload in table[["disk", "offset", "length", "payload"]].tolist():
        entries.append((index, offset, size, body[place : place + payload] if payload else None))
        place += payload
    return entries


def _outside(ranges: Sequence[Range], offset: int, length: int) -> list[Range]:
    """The parts of a range that are in none of ``ranges``, which are in order and apart."""
    parts, end = [], offset + length
    for start, size in ranges:
        if start > offset:
            parts.append((offset, min(start, end) - offset))
        offset = max(offset, start + size)
        if offset >= end:
            return parts
    return [*parts, (offset, end - offset)]


def _holds(disk: Disk, offset: int, length: int, payload: memoryview | None, skip: int) -> bool:
    """Whether the disk holds there what an entry says: its payload from ``skip`` on, or zeroes."""
    try:
        return disk.holds(offset, length, None if payload is None else payload[skip : skip + length])
    except OSError:
        # Whoever reads it in order to log it anew finds the same, and says so.
        return False


# --- the verdict ---------------------------------------------------------------------------------------------------


def lost_power(state: TapState, boot_id: str) -> bool:
    """Whether the host stopped while the tap ran: pages may have reached the disk and not the log, or the reverse."""
    return state.status is Status.ACTIVE and state.boot_id != boot_id


def check_state(loaded: Loaded, vm: bytes, boot_id: str, *, ran: bool) -> None:
    """Whether the state may be relied upon. Raises TrackingLost.

    After power loss the newest slot may be older than what was written last: nothing relied on that before it was
    synced, and what was tracked otherwise since then lies in hot regions.
    Log files, or a dirty map in force, without a state are the rest of a tap that did run: ``ran``.
    """
    torn = loaded.gap and loaded.state is not None and lost_power(loaded.state, boot_id)
    if loaded.damage and not torn:
        raise TrackingLost(LostReason.STATE_DAMAGED, f"the state file's {loaded.damage}")
    state = loaded.state
    if state is None:
        if ran:
            text = "the state file is missing, but there is a log or a dirty map"
            raise TrackingLost(LostReason.STATE_DAMAGED, text)
    elif state.vm != vm:
        raise TrackingLost(LostReason.STATE_DAMAGED, f"the state file is that of VM {state.vm.hex()}")


def check_disks(state: TapState, disks: Sequence[Disk], identities: Sequence[FileIdentity], boot_id: str) -> None:
    """Compare the disks with the state's stamps. Raises TrackingLost naming disk, field, old and new value (I10)."""
    stamps = {stamp.index: stamp for stamp in state.disks}
    if sorted(stamps) != sorted(disk.index for disk in disks):
        text = f"the VM had disks {sorted(stamps)} and has {sorted(disk.index for disk in disks)}"
        raise TrackingLost(LostReason.DISK_CHANGED, text)
    same_boot, times = state.boot_id == boot_id, state.status is Status.CLEAN
    found: list[DiskChange] = []
    texts = []
    for disk, identity in zip(disks, identities, strict=True):
        stamp = stamps[disk.index]
        if identity.size == disk.larger and not times and stamp.size == disk.size:
            # It was being enlarged by the tap that wrote the stamp; its times are judged like those of any write.
            stamp = msgspec.structs.replace(stamp, size=identity.size)
        if changes := changes_since(stamp, identity, same_boot=same_boot, times=times):
            found += changes
            texts.append(f"{disk.config.path} was changed: {changes_text(changes)}")
    if found:
        raise TrackingLost(LostReason.DISK_CHANGED, ". ".join(texts), found)


def check_log_end(state: TapState, tail: Tail) -> None:
    """After an orderly stop the log ends where the state says. Raises TrackingLost."""
    end, found = state.end, tail.cursor
    if end is None or (end.file, end.offset, end.segment, end.entry, end.chain) != (
        tail.file.sequence,
        tail.file.end,
        found.segment,
        found.entry,
        found.chain,
    ):
        text = f"the log ends at offset {tail.file.end} of {tail.file.path}, not where the tap left it"
        raise TrackingLost(LostReason.LOG_DAMAGED, text)


def check_lease(lease_ns: int, disks: Sequence[Disk], identities: Sequence[FileIdentity]) -> None:
    """After power loss no disk was written later than its hot regions were vouched for (R30). Raises TrackingLost."""
    for disk, identity in zip(disks, identities, strict=True):
        if identity.mtime_ns > lease_ns:
            text = (
                f"{disk.config.path} was written at {show_time(identity.mtime_ns)}, "
                f"later than its hot regions were on record ({show_time(lease_ns)})"
            )
            change = DiskChange(disk=disk.index, part=DiskPart.MTIME, old=lease_ns, new=identity.mtime_ns)
            raise TrackingLost(LostReason.DISK_CHANGED, text, [change])


def check_map_witnesses(
    disks: Sequence[Disk], identities: Sequence[FileIdentity], witnesses: Sequence[Witness | None]
) -> None:
    """After a kill in the dirty map's time nobody else wrote the disks (R27). Raises TrackingLost."""
    for disk, identity, witness in zip(disks, identities, witnesses, strict=True):
        evidence = explained_by(witness, identity, witness.before_ns if witness is not None else 0, touched=True)
        if evidence:
            raise _changed(disk, identity, witness, evidence)


def check_witnesses(
    tail: Tail, disks: Sequence[Disk], identities: Sequence[FileIdentity], witnesses: Sequence[Witness | None]
) -> None:
    """After a kill the log reaches as far as the disks, and nobody else wrote them (R27).

    Raises TrackingLost naming log file and offset, or disk, old and new times (I10).
    """
    if any(witness is not None and witness.done_ns > tail.newest_ns for witness in witnesses):
        text = f"{tail.file.path} ends at offset {tail.file.end}, before what is on the disks"
        raise TrackingLost(LostReason.LOG_DAMAGED, text)
    for disk, identity, witness in zip(disks, identities, witnesses, strict=True):
        touched, enlarged = disk.index in tail.doubt, identity.size == disk.larger
        evidence = explained_by(witness, identity, tail.group_ns, touched, enlarged)
        if evidence:
            raise _changed(disk, identity, witness, evidence)


def _changed(disk: Disk, identity: FileIdentity, witness: Witness | None, evidence: str) -> TrackingLost:
    """That somebody else wrote the disk since the tap noted how it left it."""
    if witness is None:
        change = DiskChange(disk=disk.index, part=DiskPart.STAMP, old="sound", new="damaged")
    elif identity.mtime_ns != witness.mtime_ns:
        change = DiskChange(disk=disk.index, part=DiskPart.MTIME, old=witness.mtime_ns, new=identity.mtime_ns)
    else:
        change = DiskChange(disk=disk.index, part=DiskPart.CTIME, old=witness.ctime_ns, new=identity.ctime_ns)
    return TrackingLost(LostReason.DISK_CHANGED, f"{disk.config.path} was changed: {evidence}", [change])
