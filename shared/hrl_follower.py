"""Follows a tap's log from file to file while the tap writes it, and tells recycled files from damaged ones (R36).

Everything here blocks and is meant for workers. Nothing is returned that was not verified against the chain.
"""

from __future__ import annotations

from protocol.chain import Cursor
from protocol.errors import LogError
from protocol.hrl import FILE_HEADER_BYTES, FileHeader, RecordKind
from protocol.position import Position
from shared.errors import StorageError, VmreplicaError
from shared.hrl_files import RUN_BYTES, RecordReader, Run, log_file_name, read_file_header
from shared.ports import File, FileSystem


class LogGoneError(VmreplicaError):
    """The log file was recycled or removed under its reader, who had lost its lease (R36): not damage."""

    code = "log_gone"


class LogDamagedError(StorageError):
    """A log file that is still in its place does not hold the records that it must; ``reason`` as in LogError."""

    code = "log_damaged"

    def __init__(self, path: str, error: LogError) -> None:
        super().__init__(
            f"{path} is damaged at offset {error.offset}: {error.text}.", "A resynchronization is required."
        )
        self.path = path
        self.offset = error.offset
        self.reason = error.reason


class LogFollower:
    """Reads a tap's log in ``folder`` from a position on, from file to file, while the tap goes on writing it.

    Hold a lease for :attr:`sequence` meanwhile (R36). Use from one worker at a time.
    """

    def __init__(self, files: FileSystem, folder: str, vm: bytes, *, run_bytes: int = RUN_BYTES) -> None:
        self._files = files
        self.folder = folder
        self._vm = vm
        self._run_bytes = run_bytes
        self._file: File | None = None
        self._reader: RecordReader | None = None
        self.sequence = 0
        """The number of the file that is read next, and the oldest one needed."""

    def seek(self, sequence: int, offset: int, position: Position) -> None:
        """Go on from ``position``, which lies at ``offset`` of file ``sequence``. Raises LogGoneError, OSError."""
        self.close()
        self._open(sequence)
        self._start(Cursor.at(position), offset)

    @property
    def position(self) -> Position:
        """The position after the last run."""
        assert self._reader is not None, "seek first"
        return self._reader.cursor.position

    @property
    def offset(self) -> int:
        """Where in file :attr:`sequence` the next run begins."""
        assert self._reader is not None, "seek first"
        return self._reader.offset

    def read(self, sequence: int, offset: int) -> Run | None:
        """The next run before the committed end of the log: ``offset`` in file ``sequence``. None at that end.

        Steps over end-of-file records. Raises LogGoneError where the log was recycled under us, LogDamagedError where
        it is in its place but not valid, and OSError.
        """
        while self.sequence <= sequence:
            assert self._reader is not None and self._file is not None, "seek first"
            last = self.sequence == sequence
            try:
                run = self._reader.run(offset if last else self._file.size())
                if run is None and not last:
                    raise LogError(self._reader.offset, "short", "the file ends without an end-of-file record")
            except LogError as error:
                raise self._explain(error) from None
            if run is None or run.kind is not RecordKind.END_OF_FILE:
                return run
            self._go_on()
        return None

    def close(self) -> None:
        """Close the file; :meth:`seek` may be called again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start(self, cursor: Cursor, offset: int) -> None:
        assert self._file is not None
        self._reader = RecordReader(self._file, cursor, offset, run_bytes=self._run_bytes)

    def _open(self, sequence: int) -> FileHeader:
        path = f"{self.folder}/{log_file_name(sequence)}"
        try:
            self._file = self._files.open(path)
        except FileNotFoundError:
            raise LogGoneError(f"Log file {path} is gone: it was released and recycled.") from None
        self.sequence = sequence
        try:
            header = read_file_header(self._file)
        except LogError as error:
            raise LogDamagedError(path, error) from None
        if header.vm != self._vm:
            raise LogDamagedError(path, LogError(0, "vm", f"it belongs to VM {header.vm.hex()}"))
        if header.sequence != sequence:
            raise LogGoneError(f"Log file {path} was recycled as number {header.sequence}.")
        return header

    def _go_on(self) -> None:
        """Step from an end-of-file record to the first record of the next file."""
        assert self._reader is not None
        before = self._reader.cursor
        self.close()
        header = self._open(self.sequence + 1)
        if (header.epoch, header.segment, header.entry, header.chain) != before.position:
            assert self._file is not None
            error = LogError(0, "order", f"the file does not go on from {before.position}")
            raise LogDamagedError(self._file.path, error)
        self._start(before, FILE_HEADER_BYTES)

    def _explain(self, error: LogError) -> VmreplicaError:
        """Tell a file that was recycled under us from one that is damaged: recycling writes a new header first."""
        assert self._file is not None
        path = self._file.path
        try:
            if read_file_header(self._file).sequence == self.sequence and self._files.exists(path):
                return LogDamagedError(path, error)
        except LogError:
            if self._files.exists(path):
                return LogDamagedError(path, error)
        return LogGoneError(f"Log file {path} was recycled while it was read.")
