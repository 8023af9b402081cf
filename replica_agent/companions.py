"""What comes beside the log: marks of cuts, and versions of the VM's definition, and which points each belongs to.

Contents lie in files that are named by their SHA-256 alone: nothing of a peer's choice becomes a path. A version is on
record only when all its files are durable; what no point needs any more is deleted.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from protocol.errors import ProtocolError
from protocol.messages import (
    MAX_DEFINITION_BYTES,
    MAX_DEFINITION_TEXT,
    Body,
    CutMark,
    CutMarked,
    Definition,
    DefinitionKept,
    DefinitionPart,
    DefinitionWanted,
    MessageType,
)
from protocol.position import Position
from replica_agent.companion_records import (
    MARKS_MAX,
    VERSIONS_MAX,
    Ranks,
    definition_of,
    is_marked,
    needed_definitions,
    needed_marks,
)
from replica_agent.finishing import finish
from replica_agent.intake import Admit
from replica_agent.parts import VmParts
from replica_agent.point_disks import SHORT_EPOCH_DIGITS
from replica_agent.record import (
    CompanionsRecord,
    ConsistentRecord,
    DefinitionDiskRecord,
    DefinitionRecord,
    FileRecord,
    PositionRecord,
)
from replica_agent.space import space_error
from shared.channel import Channel
from shared.cut_status import CutStatus
from shared.errors import NoSpaceError, NotFoundError
from shared.events import EventId
from shared.guest_status import DefinitionDiskStatus, DefinitionFileStatus, DefinitionReport, DefinitionStatus
from shared.ports import File

READ_BYTES = 256 << 10
"""Bytes of a file that one answer to the command carries."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Incoming:
    """A version that is being received: what is still wanted of it, and the file that is being written."""

    version: Definition
    wanted: list[bytes]
    hasher: Any = None
    file: File | None = None
    offset: int = 0


@dataclass(slots=True, eq=False)
class Companions:
    """Those of one VM."""

    parts: VmParts
    _incoming: _Incoming | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while files or the record are changed."""

    @property
    def record(self) -> CompanionsRecord:
        return self.parts.ledger.companions

    # --- what is asked ---------------------------------------------------------------------------------------------

    def ranks(self) -> Ranks:
        """The order of cuts over all epochs."""
        return Ranks.of(self.parts.ledger.replication.ancestors)

    def points(self) -> list[Position]:
        """All recovery points, the newest last."""
        applied = self.parts.ledger.replication.applied
        return [*self.parts.history.positions(), *([applied.position] if applied is not None else [])]

    def marked(self) -> list[Position]:
        """The recovery points for which the guest was frozen, the newest last."""
        return [position for position in self.points() if is_marked(self.record, position)]

    def status(self) -> DefinitionStatus | None:
        """The newest version of the definition, as the VM's status has it."""
        versions = self.record.definitions
        return DefinitionStatus(files=files_of(versions[-1]), cut=since(versions[-1]), kept=True) if versions else None

    def report(self, position: Position, cut: CutStatus) -> DefinitionReport:
        """The version that belongs to a point, which is ``cut`` for people. Raises NotFoundError."""
        version, later = self.definition_of(position)
        mapping = self.parts.surroundings.definition
        return DefinitionReport(
            point=f"{cut.epoch[:SHORT_EPOCH_DIGITS]}/{cut.segment}",
            cut=cut,
            since=since(version),
            later=later,
            files=files_of(version),
            disks=[
                DefinitionDiskStatus(index=each.index, path=each.path, export=each.export) for each in version.disks
            ],
            networks=list(mapping.networks),
            test_networks=list(mapping.test_networks),
        )

    def definition_of(self, position: Position) -> tuple[DefinitionRecord, bool]:
        """The version that belongs to a point, and whether it is from after it. Raises NotFoundError."""
        found = definition_of(self.record.definitions, position, self.ranks())
        if found is None:
            name = self.parts.ledger.vm.name
            raise NotFoundError(
                f"No definition of {name} was received.",
                f"Set it at the primary: vmreplica set {name} definition=libvirt:DOMAIN (docs/definition.md).",
            )
        return found

    async def read(self, digest: bytes, offset: int) -> str:
        """Bytes of a file from ``offset`` on, in base64; empty at its end. Raises NotFoundError, OSError."""
        if all(each.digest != digest for version in self.record.definitions for each in version.files):
            name = self.parts.ledger.vm.name
            raise NotFoundError(
                f"No definition of {name} has the file {digest.hex()}.",
                f"A newer one has come meanwhile: run `vmreplica definition {name}` again.",
            )
        return base64.b64encode(await self.parts.ports.workers.run(self._read, digest, offset)).decode()

    def _read(self, digest: bytes, offset: int) -> bytes:
        """Blocks."""
        file = self.parts.ports.files.open(self.parts.layout.definition_file(digest))
        try:
            return file.read(offset, READ_BYTES)
        finally:
            file.close()

    # --- what is received ------------------------------------------------------------------------------------------

    async def take(self, message: Body, channel: Channel, admit: Admit) -> bool:
        """Take a message that is for here; False for any other. Raises ProtocolError, LedgerError."""
        match message:
            case CutMark():
                await finish(self._mark(message))
                _send(channel, MessageType.CUT_MARKED, CutMarked(cut=message.cut))
            case Definition():
                await finish(self._begin(message, channel))
            case DefinitionPart():
                await self._receive(message, channel, admit)
            case _:
                return False
        return True

    async def _mark(self, message: CutMark) -> None:
        position, points = message.cut.position(), self.points()
        if is_marked(self.record, position):
            return
        async with self.parts.ledger.transaction() as draft:
            marks = [*draft.companions.marks, ConsistentRecord(position=PositionRecord.of(position))]
            kept = needed_marks(marks, points, self.ranks())[-MARKS_MAX:]
            draft.companions = msgspec.structs.replace(draft.companions, marks=kept)
            draft.event(EventId.CUT_CONSISTENT, f"Cut {position.segment} is application-consistent.")
        self.parts.changed.notify()

    async def _begin(self, message: Definition, channel: Channel) -> None:
        _check(message)
        async with self._turn:
            await self.parts.ports.workers.run(self._drop_incoming)
            try:
                wanted = await self.parts.ports.workers.run(self._missing, message)
            except (NoSpaceError, OSError) as error:
                self._refuse(message, channel, str(error))
                return
            if not wanted:
                await self._keep(message, channel)
                return
            self._incoming = _Incoming(message, wanted)
        _send(channel, MessageType.DEFINITION_WANTED, DefinitionWanted(number=message.number, digests=list(wanted)))

    def _missing(self, message: Definition) -> list[bytes]:
        """What is not here, each once. Blocks. Raises NoSpaceError."""
        files, layout = self.parts.ports.files, self.parts.layout
        files.make_folder(layout.definitions)
        wanted = {each.digest: each.size for each in message.files}
        missing = [digest for digest in wanted if not files.exists(layout.definition_file(digest))]
        room = files.free_space(layout.definitions) - self.parts.surroundings.reserve
        short = sum(wanted[digest] for digest in missing) - room
        if short > 0:
            text = f"The volume of {layout.folder} lacks {short} bytes for the definition."
            raise NoSpaceError(text, "Make room there; it is sent again by itself.")
        return missing

    async def _receive(self, message: DefinitionPart, channel: Channel, admit: Admit) -> None:
        incoming = self._incoming
        if incoming is None or incoming.version.number != message.number:
            # The version was refused, or its storing failed, while this was on its way.
            return
        size = next((each.size for each in incoming.version.files if each.digest == message.digest), 0)
        fits = message.offset == incoming.offset and incoming.offset + len(message.data) <= size
        if message.digest != incoming.wanted[0] or not fits or (not message.data and size):
            raise ProtocolError("DEFINITION_PART is not what follows of the file that was asked for")
        try:
            await admit(len(message.data))
        except NoSpaceError as error:
            await self._give_up(incoming, channel, str(error))
            return
        await finish(self._store(incoming, message, size, channel))

    async def _store(self, incoming: _Incoming, message: DefinitionPart, size: int, channel: Channel) -> None:
        async with self._turn:
            if self._incoming is not incoming:
                return
            try:
                done = await self.parts.ports.workers.run(self._write, incoming, message, size)
            except OSError as error:
                told = space_error(error, self.parts.layout.definitions, len(message.data))
                await self.parts.ports.workers.run(self._drop_incoming)
                self._refuse(incoming.version, channel, str(told))
                return
            if not done:
                return
            if incoming.file is not None:
                await self.parts.ports.workers.run(self._drop_incoming)
                self._refuse(incoming.version, channel, "A file is not what its SHA-256 says.")
                return
            if not incoming.wanted:
                self._incoming = None
                await self._keep(incoming.version, channel)

    def _write(self, incoming: _Incoming, message: DefinitionPart, size: int) -> bool:
        """Write a part; True when the file is whole: then it is durable under its name, or ``file`` stays set because
        it is another one than was promised. Blocks.
        """
        files, layout = self.parts.ports.files, self.parts.layout
        if incoming.file is None:
            files.remove(layout.definition_incoming)
            incoming.file = files.open(layout.definition_incoming, write=True, create=True, exclusive=True)
            incoming.hasher, incoming.offset = hashlib.sha256(), 0
        incoming.file.write(incoming.offset, message.data)
        incoming.hasher.update(message.data)
        incoming.offset += len(message.data)
        if incoming.offset < size:
            return False
        if incoming.hasher.digest() != message.digest:
            return True
        incoming.file.sync()
        incoming.file.close()
        incoming.file, incoming.offset = None, 0
        files.rename(layout.definition_incoming, layout.definition_file(message.digest))
        files.sync_folder(layout.definitions)
        incoming.wanted.pop(0)
        return True

    async def _keep(self, message: Definition, channel: Channel) -> None:
        """All files of the version are durable: put it on record, unless it is the one that is known for that cut."""
        replication = self.parts.ledger.replication
        version = DefinitionRecord(
            epoch=message.epoch,
            segment=message.segment,
            files=[FileRecord(path=each.path, digest=each.digest, size=each.size) for each in message.files],
            disks=[
                DefinitionDiskRecord(index=each.index, path=each.path, export=each.export) for each in message.disks
            ],
            time=self.parts.ports.clock.wall(),
        )
        at = Position(message.epoch, message.segment, 0, bytes(16))
        known = definition_of(self.record.definitions, at, Ranks.of(replication.ancestors))
        if known is None or known[1] or (known[0].files, known[0].disks) != (version.files, version.disks):
            async with self.parts.ledger.transaction() as draft:
                versions = [*draft.companions.definitions, version][-VERSIONS_MAX:]
                draft.companions = msgspec.structs.replace(draft.companions, definitions=versions)
            self.parts.changed.notify()
        _send(channel, MessageType.DEFINITION_KEPT, DefinitionKept(number=message.number, kept=True))

    def _refuse(self, version: Definition, channel: Channel, text: str) -> None:
        answer = DefinitionKept(number=version.number, kept=False, text=text[:2048])
        _send(channel, MessageType.DEFINITION_KEPT, answer)

    async def _give_up(self, incoming: _Incoming, channel: Channel, text: str) -> None:
        async with self._turn:
            await self.parts.ports.workers.run(self._drop_incoming)
        self._refuse(incoming.version, channel, text)

    def _drop_incoming(self) -> None:
        """Blocks."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None and incoming.file is not None:
            incoming.file.close()
            with contextlib.suppress(OSError):
                self.parts.ports.files.remove(self.parts.layout.definition_incoming)

    # --- what goes -------------------------------------------------------------------------------------------------

    async def leave(self) -> None:
        """The session has ended: what it had not sent wholly is not kept."""
        async with self._turn:
            await self.parts.ports.workers.run(self._drop_incoming)

    async def tidy(self) -> None:
        """Forget marks and versions that no point needs any more, and delete the files that no version has."""
        if self.record == CompanionsRecord():
            return
        async with self._turn:
            if self._incoming is not None:
                return
            if self._needed(self.record) != self.record:
                async with self.parts.ledger.transaction() as draft:
                    # A mark may have come meanwhile.
                    draft.companions = self._needed(draft.companions)
            try:
                await self.parts.ports.workers.run(self._sweep)
            except OSError as error:
                log.warning("files of a definition can't be removed", vm=self.parts.uuid, reason=str(error))

    def _needed(self, record: CompanionsRecord) -> CompanionsRecord:
        points, ranks = self.points(), self.ranks()
        return CompanionsRecord(
            marks=needed_marks(record.marks, points, ranks),
            definitions=needed_definitions(record.definitions, points, ranks),
        )

    def _sweep(self) -> None:
        """Blocks."""
        files, layout = self.parts.ports.files, self.parts.layout
        named = {each.digest.hex() for version in self.record.definitions for each in version.files}
        for name in files.list(layout.definitions):
            if name not in named:
                files.remove(f"{layout.definitions}/{name}")


def files_of(version: DefinitionRecord) -> list[DefinitionFileStatus]:
    return [
        DefinitionFileStatus(path=each.path, size_bytes=each.size, sha256=each.digest.hex()) for each in version.files
    ]


def since(version: DefinitionRecord) -> CutStatus:
    """The first cut that a version belongs to."""
    return CutStatus(epoch=version.epoch.hex(), segment=version.segment, entry=0, time=None)


def _check(message: Definition) -> None:
    """What the types of the fields can't say. Raises ProtocolError."""
    sizes = {each.digest: each.size for each in message.files}
    texts = [*(each.path for each in message.files), *(disk.path for disk in message.disks)]
    texts += [disk.export for disk in message.disks]
    if message.files[0].size > MAX_DEFINITION_TEXT:
        raise ProtocolError(f"DEFINITION of {message.files[0].size} bytes; the limit is {MAX_DEFINITION_TEXT}")
    if sum(each.size for each in message.files) > MAX_DEFINITION_BYTES:
        raise ProtocolError(f"DEFINITION with files of more than {MAX_DEFINITION_BYTES} bytes together")
    if any(sizes[each.digest] != each.size for each in message.files):
        raise ProtocolError("DEFINITION names one content with two sizes")
    if not all(text.isprintable() for text in texts):
        raise ProtocolError("DEFINITION has a name with characters that can't be printed")
    if len({disk.index for disk in message.disks}) != len(message.disks):
        raise ProtocolError("DEFINITION names a disk twice")


def _send(channel: Channel, kind: MessageType, body: Body) -> None:
    """An answer that the state of the session does not allow any more is not missed: it is asked for again."""
    if not channel.closed and channel.session.allows(kind):
        channel.send(body)
