"""Finds a position in the log's files: by their headers, then from record to record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from primary_agent.tap.log_files import LogFile, LogFiles
from primary_agent.tap.ports import TapPorts
from protocol.errors import LogError
from protocol.hrl import FILE_HEADER_BYTES, RECORD_HEADER_BYTES, RecordKind, decode_record_header
from protocol.position import Position
from shared.errors import NotFoundError, StorageError
from shared.ports import FileSystem

LOCATE_SECONDS = 60.0
"""For so long the log's files are kept while a place in them is looked for."""


@dataclass(frozen=True, slots=True)
class Place:
    """A byte of the log between two records, and the position there."""

    file: int
    offset: int
    position: Position


async def locate(
    ports: TapPorts, files: LogFiles, epoch: bytes, segment: int, position: Position | None = None
) -> Place:
    """The place of ``position``, or of the start of ``segment``; no file is recycled meanwhile.

    Raises NotFoundError or StorageError.
    """
    log = [file for file in files.used if file.header.epoch == epoch]
    holder = object()
    if log:
        files.lease(holder, log[0].sequence, LOCATE_SECONDS)
    try:
        if position is not None:
            return await ports.workers.run(locate_position, ports.files, log, position)
        return await ports.workers.run(locate_segment, ports.files, log, epoch, segment)
    except OSError as error:
        text = f"The log can't be read: {error.strerror or error}."
        raise StorageError(text, "Check the log's volume.") from error
    finally:
        files.lease(holder, 0, 0)


def locate_position(files: FileSystem, log: Sequence[LogFile], position: Position) -> Place:
    """The place of ``position``, whose chain must be the one found there (R34). Blocks. Raises NotFoundError."""
    wanted = (position.segment, position.entry)
    candidates = [file for file in log if (file.header.segment, file.header.entry) <= wanted]
    for log_file in reversed(candidates):
        for place in _places(files, log_file):
            if place.position == position:
                return place
            if (place.position.segment, place.position.entry) > wanted:
                break
        if (log_file.header.segment, log_file.header.entry) < wanted:
            break
    raise _not_found(f"position {position} with chain {position.chain.hex()}")


def locate_segment(files: FileSystem, log: Sequence[LogFile], epoch: bytes, segment: int) -> Place:
    """The place before the SEGMENT record of ``segment``. Blocks. Raises NotFoundError."""
    candidates = [file for file in log if file.header.epoch == epoch and file.header.segment < segment]
    if candidates:
        before: Place | None = None
        for place in _places(files, candidates[-1]):
            if before is not None and place.position.segment == segment:
                return before
            before = place
    raise _not_found(f"the start of segment {epoch.hex()[:8]}/{segment}")


def _not_found(what: str) -> NotFoundError:
    return NotFoundError(f"The log does not hold {what}.", "A resynchronization is required.")


def _places(files: FileSystem, log_file: LogFile) -> list[Place]:
    """The place before the first record of a file and behind each of its records, up to its end."""
    header = log_file.header
    places = [Place(header.sequence, FILE_HEADER_BYTES, log_file.before)]
    try:
        file = files.open(log_file.path)
    except FileNotFoundError:
        return []
    try:
        offset = FILE_HEADER_BYTES
        while offset < log_file.end:
            record = decode_record_header(file.read(offset, RECORD_HEADER_BYTES), at=offset)
            if record.kind is RecordKind.END_OF_FILE or record.epoch != header.epoch:
                break
            offset += record.length
            position = Position(record.epoch, record.segment, record.next_entry, record.chain)
            places.append(Place(header.sequence, offset, position))
    except LogError:
        # Whoever reads on from here verifies what it reads, and says what is damaged.
        pass
    finally:
        file.close()
    return places
