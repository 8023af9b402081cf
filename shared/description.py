"""A VM's description: what its database holds and no header of a file repeats, kept in a small file beside it.

It is written right after the transaction that changed one of its fields, so it is never ahead of the database, and it
is read by ``recover`` only, where the database is damaged or missing: an intact database is always believed instead.

The file is text in UTF-8, three lines each ended by a line feed (``docs/replica-store.md``, ``docs/tap.md``)::

    vmreplica-description ROLE VERSION
    {"canonical": "JSON"}
    blake2b-256 CHECKSUM

Canonical JSON has its keys in order and no space between tokens; bytes are base64. The checksum, 64 hex digits, is that
of everything before its line.
"""

from __future__ import annotations

import asyncio
import errno
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import msgspec
import structlog

from shared.errors import StorageError, StoreDamagedError
from shared.ports import FileSystem, Ports
from shared.replacing import replace_file
from shared.tasks import uninterrupted

NAME = "vm.description"
VERSION = 1
MAX_BYTES = 4 << 20
_MAGIC = b"vmreplica-description"
_SUM = b"blake2b-256"
_SUM_LINE_BYTES = len(_SUM) + 1 + 64 + 1

T = TypeVar("T", bound=msgspec.Struct)

log = structlog.get_logger(__name__)


class DescriptionDamagedError(StoreDamagedError):
    """A description that can't be believed: damaged, of another role or VM, or from a newer version."""

    code = "description_damaged"


def encode(role: str, description: msgspec.Struct) -> bytes:
    """The file of a description; ``role`` says whose it is."""
    body = msgspec.json.encode(description, order="sorted")
    text = b"%s %s %d\n%s\n" % (_MAGIC, role.encode(), VERSION, body)
    return text + b"%s %s\n" % (_SUM, _checksum(text))


def decode(role: str, data: bytes, kind: type[T], path: str = NAME) -> T:
    """The description in a file's bytes; ``path`` is for the error. Raises DescriptionDamagedError."""
    text, line = data[:-_SUM_LINE_BYTES], data[-_SUM_LINE_BYTES:]
    if len(data) > MAX_BYTES:
        raise _damaged(path, f"it has more than {MAX_BYTES} bytes")
    if line != b"%s %s\n" % (_SUM, _checksum(text)):
        raise _damaged(path, "its checksum is wrong")
    head, _, rest = text.partition(b"\n")
    match head.split(b" "):
        case [magic, found, version] if magic == _MAGIC and found == role.encode() and version.isdigit():
            pass
        case _:
            raise _damaged(path, f"it does not begin as the description of a {role} does")
    if version != b"%d" % VERSION:
        raise DescriptionDamagedError(
            f"{path} has version {version[:20].decode()}; this program reads {VERSION}.",
            "Install the version of vmreplica that wrote it.",
        )
    body = rest[:-1]
    try:
        description = msgspec.json.decode(body, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, f"it is not valid: {error}") from None
    if rest[-1:] != b"\n" or not _is_canonical(body, description):
        raise _damaged(path, "its JSON is not canonical")
    return description


def _is_canonical(body: bytes, description: msgspec.Struct) -> bool:
    """Whether ``body`` is what was or would be written; an older version's lacks fields that were added since."""
    made = msgspec.json.encode(description, order="sorted")
    if made == body:
        return True
    found = msgspec.json.decode(body)
    return msgspec.json.encode(found, order="sorted") == body and _is_part(found, msgspec.json.decode(made))


def _is_part(found: Any, made: Any) -> bool:
    """Whether ``made`` is ``found`` but for fields that only ``made`` has."""
    match found, made:
        case dict(), dict():
            return all(name in made and _is_part(value, made[name]) for name, value in found.items())
        case list(), list():
            return len(found) == len(made) and all(map(_is_part, found, made))
    return bool(found == made)


def _checksum(text: bytes) -> bytes:
    return blake2b(text, digest_size=32).hexdigest().encode()


def _damaged(path: str, reason: str) -> DescriptionDamagedError:
    return DescriptionDamagedError(f"{path} can't be believed: {reason}.", "Nothing was changed.")


def read(files: FileSystem, folder: str, role: str, kind: type[T]) -> T | None:
    """The folder's description, None where there is none. Blocks. Raises DescriptionDamagedError or StorageError."""
    path = f"{folder}/{NAME}"
    try:
        file = files.open(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}.", "Check the volume.") from error
    try:
        data = file.read(0, MAX_BYTES + 1)
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}.", "Check the volume.") from error
    finally:
        file.close()
    return decode(role, data, kind, path)


def write(files: FileSystem, folder: str, data: bytes) -> None:
    """Replace the folder's description atomically and durably. Blocks. Raises OSError or StorageError."""
    path = f"{folder}/{NAME}"
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"a description of {len(data)} bytes", path)
    replace_file(files, path, data)


class Keeper(Generic[T]):
    """Keeps the description of one VM up to date: whoever commits a transaction calls :meth:`keep` before it answers.

    A description that can't be written is no reason to refuse what is durable already; it is tried again with the next
    call. The file then tells an older state, which a later ``recover`` must assume of any description.
    """

    def __init__(self, ports: Ports, folder: str, role: str, kind: type[T]) -> None:
        self._ports = ports
        self._folder = folder
        self._role = role
        self._kind = kind
        self._written: bytes | None = None
        self._turn = asyncio.Lock()

    async def look(self) -> None:
        """See what the file says now, so that one that is up to date is not written again."""
        self._written = await self._ports.workers.run(self._read)

    def _read(self) -> bytes | None:
        """Blocks."""
        try:
            found = read(self._ports.files, self._folder, self._role, self._kind)
        except (StoreDamagedError, StorageError):
            return None
        return encode(self._role, found) if found is not None else None

    async def keep(self, description: T) -> None:
        """Write ``description`` unless the file says so already. Returns when that is durable, or has failed."""
        data = encode(self._role, description)
        if data == self._written:
            return
        async with self._turn:
            try:
                # A write that has begun is never left running beside the next one.
                await uninterrupted(self._ports.workers.run(write, self._ports.files, self._folder, data))
            except (OSError, StorageError) as error:
                log.warning("a VM's description can't be written", folder=self._folder, reason=str(error))
                self._written = None
            else:
                self._written = data
