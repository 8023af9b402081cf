"""Reads what a VM needs to start beside its disks, each file only when it has changed, and within its bounds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from protocol.messages import MAX_DEFINITION_BYTES, MAX_DEFINITION_FILE, MAX_DEFINITION_TEXT
from shared.errors import StorageError, VmreplicaError
from shared.ports import File, FileIdentity, FileSystem
from shared.rates import size_text

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Content:
    """One file as it was read: its path, its SHA-256 and its size in bytes."""

    path: str
    digest: bytes
    size: int


class DefinitionError(VmreplicaError):
    """The definition of a VM can't be read, or is too large."""

    code = "definition"


@dataclass(slots=True)
class DefinitionReader:
    """Remembers what each file was when it was read. All methods block and belong into a worker."""

    files: FileSystem
    _known: dict[str, tuple[FileIdentity, Content]] = field(default_factory=dict)

    def read(self, paths: list[str]) -> tuple[Content, ...]:
        """The files, the definition first. Raises DefinitionError."""
        found: list[Content] = []
        for path in paths:
            limit = MAX_DEFINITION_FILE if found else MAX_DEFINITION_TEXT
            found.append(self._read(path, limit))
        total = sum(content.size for content in found)
        if total > MAX_DEFINITION_BYTES:
            raise DefinitionError(
                f"The files of the definition have {size_text(total)} together; at most "
                f"{size_text(MAX_DEFINITION_BYTES)} can go with the cuts.",
                "Leave out what the VM does not need to start.",
            )
        self._known = {path: self._known[path] for path in paths}
        return tuple(found)

    def _read(self, path: str, limit: int) -> Content:
        try:
            with _opened(self.files, path) as (file, identity):
                known = self._known.get(path)
                if known is not None and known[0] == identity:
                    return known[1]
                if identity.size > limit:
                    raise _too_large(path, limit)
                content = _hashed(file, path, limit)
                # A file that changes while it is read is read again the next time.
                if file.identity() == identity:
                    self._known[path] = identity, content
                else:
                    raise DefinitionError(f"{path} changed while it was read.", "It is read again by itself.")
                return content
        except FileNotFoundError:
            raise DefinitionError(
                f"{path} does not exist.", "Mend `definition` or `definition-files` (vmreplica set VM ...)."
            ) from None
        except OSError as error:
            raise DefinitionError(f"{path} can't be read: {error.strerror or error}.", "Check its owner.") from error
        except StorageError as error:
            raise DefinitionError(error.text, error.remedy) from error

    def part(self, content: Content, offset: int, length: int) -> bytes:
        """Bytes of a file as it was read. Raises DefinitionError where it is another one by now."""
        try:
            with _opened(self.files, content.path) as (file, identity):
                known = self._known.get(content.path)
                if known is None or known != (identity, content):
                    raise DefinitionError(f"{content.path} changed while it was sent.", "It is sent again by itself.")
                return file.read(offset, length)
        except OSError as error:
            raise DefinitionError(
                f"{content.path} can't be read: {error.strerror or error}.", "Check the file."
            ) from error


@contextmanager
def _opened(files: FileSystem, path: str) -> Iterator[tuple[File, FileIdentity]]:
    """A file that is open for reading, with its identity."""
    file = files.open(path)
    try:
        yield file, file.identity()
    finally:
        file.close()


def _hashed(file: File, path: str, limit: int) -> Content:
    hasher, size = hashlib.sha256(), 0
    while data := file.read(size, READ_BYTES):
        hasher.update(data)
        size += len(data)
        if size > limit:
            raise _too_large(path, limit)
    return Content(path, hasher.digest(), size)


def _too_large(path: str, limit: int) -> DefinitionError:
    return DefinitionError(
        f"{path} has more than {size_text(limit)}, which is the most that can go with the cuts.",
        "Leave it out: vmreplica set VM definition-files=... names the others.",
    )
