"""What the log says has changed: the ranges and the cuts in its files, for the dirty map. Blocks; writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from primary_agent.tap.disks import Range, join_ranges
from primary_agent.tap.log_files import LogFile
from protocol.bulk import LogRecord
from protocol.chain import Cursor, body_of
from protocol.errors import LogError
from protocol.hrl import RecordKind, decode_entries
from shared.hrl_files import EndKind, scan_file
from shared.ports import FileSystem

JOIN_ABOVE = 1 << 16
"""Ranges of one disk above which overlapping ones are joined on the way."""


class LogUnreadableError(Exception):
    """The log does not hold all that it must: where, and what is there."""


@dataclass(slots=True)
class LoggedChanges:
    """Of a log from its oldest file on.

    ``ranges`` maps disk index to ranges of bytes, ``cuts`` are segment and chain of its seals. ``base_segment`` is the
    newest segment of which the log may hold only a part, or nothing; it ends in ``end``, at ``end_offset`` of its last
    file ``end_file``. ``newest_ns`` is the newest time in it (nanoseconds, Unix epoch).
    """

    base_segment: int
    ranges: dict[int, list[Range]] = field(default_factory=dict)
    cuts: list[tuple[int, bytes]] = field(default_factory=list)
    end: Cursor | None = None
    end_file: int = 0
    end_offset: int = 0
    newest_ns: int = 0


def read_changes(
    files: FileSystem,
    log: Sequence[LogFile],
    sizes: dict[int, int],
    *,
    released: int = 0,
    after: int = 0,
    durable: tuple[int, int] = (0, 0),
    torn: bool = False,
) -> LoggedChanges:
    """Read and verify a log wholly.

    ``after``: what changed up to that cut is left out. ``durable`` is the file and the offset in it up to which the log
    must reach. ``torn``: the host lost power, so that behind that place anything may be lost, whatever lies behind it;
    else a damaged middle is an error. Blocks. Raises LogUnreadableError and OSError.
    """
    if not log and torn and durable == (0, 0):
        # Nothing of the log was made durable yet, and so every region that was written is hot.
        return LoggedChanges(released)
    if not log:
        raise LogUnreadableError("the log's files are missing")
    changes = LoggedChanges(max(released, log[0].header.segment))
    # A log that was released up to a cut may begin right behind it; in the middle of a segment this is no cut's chain.
    changes.cuts.append((log[0].header.segment, log[0].header.chain))
    join_at: dict[int, int] = {}

    def visit(offset: int, record: LogRecord) -> None:
        header = record.header
        if header.kind is RecordKind.SEAL:
            changes.cuts.append((header.segment, header.chain))
        elif header.kind is RecordKind.BATCH:
            changes.newest_ns = max(changes.newest_ns, header.time_ns)
            if header.segment <= after:
                return
            table = decode_entries(header, body_of(record.record), sizes, at=offset)
            for disk, start, length in table[["disk", "offset", "length"]].tolist():
                ranges = changes.ranges.setdefault(disk, [])
                ranges.append((start, length))
                if len(ranges) > join_at.setdefault(disk, JOIN_ABOVE):
                    joined = changes.ranges[disk] = join_ranges(ranges)
                    join_at[disk] = max(JOIN_ABOVE, 2 * len(joined))

    for number, log_file in enumerate(log):
        try:
            file = files.open(log_file.path)
        except FileNotFoundError:
            raise LogUnreadableError(f"{log_file.path} is gone") from None
        try:
            result = scan_file(file, visit=visit, keep=False)
        except LogError as error:
            raise LogUnreadableError(f"{log_file.path}: {error.text}") from None
        finally:
            file.close()
        if changes.end is not None and log_file.before != changes.end.position:
            raise LogUnreadableError(f"{log_file.path} does not go on where the file before it ends")
        changes.end, changes.end_file, changes.end_offset = result.cursor, log_file.sequence, result.end
        reached = (log_file.sequence, result.end) >= durable
        if result.kind is EndKind.END_OF_FILE:
            continue
        if not reached or (result.kind is EndKind.DAMAGED and not torn):
            text = f"{log_file.path} is damaged at offset {result.end}: {result.text or 'its end is missing'}"
            raise LogUnreadableError(text)
        if number + 1 < len(log) and not torn:
            raise LogUnreadableError(f"{log_file.path} ends at offset {result.end} without its mark")
        break
    if (changes.end_file, changes.end_offset) < durable:
        raise LogUnreadableError(f"the log ends in file {changes.end_file}, before what was made durable")
    changes.ranges = {disk: join_ranges(ranges) for disk, ranges in sorted(changes.ranges.items())}
    return changes
