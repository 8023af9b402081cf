"""Which version of its definition a VM has, as of which cut: looked at all the time, with a session or without."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field

from primary_agent.definition_reading import Content, DefinitionError, DefinitionReader
from primary_agent.parts import Parts
from protocol.messages import Definition, DefinitionDisk, DefinitionFile
from protocol.position import NO_EPOCH
from shared.cut_status import Cause, CutStatus
from shared.errors import VmreplicaError
from shared.events import EventId
from shared.guest_settings import NONE, parse_definition
from shared.guest_status import DefinitionFileStatus, DefinitionStatus
from shared.tasks import Signal

LOOK_SECONDS = 5.0
"""The files are looked at so often, or once an interval where that is shorter."""


@dataclass(frozen=True, slots=True)
class Version:
    """What the files were, from which cut on: the first that is sealed after they were read."""

    number: int
    contents: tuple[Content, ...]
    epoch: bytes
    segment: int


@dataclass(slots=True, eq=False)
class DefinitionWatch:
    """The definition of one VM."""

    parts: Parts
    reader: DefinitionReader = field(init=False)
    current: Version | None = None
    """As it was read last; None where none is set, or none could be read yet."""
    kept: int = 0
    """The number of the version that the replica has, by its last answer."""
    failure: Cause | None = None
    """Why it can't be read, or the replica does not keep it."""
    changed: Signal = field(default_factory=Signal)
    _numbers: int = 0
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.reader = DefinitionReader(self.parts.surroundings.ports.files)

    def status(self) -> DefinitionStatus | None:
        """As the VM's status has it; None where none is set."""
        setting, current = self.parts.replication.vm.definition, self.current
        if setting == NONE:
            return None
        if current is None:
            return DefinitionStatus(setting=setting, failure=self.failure)
        files = [
            DefinitionFileStatus(path=each.path, size_bytes=each.size, sha256=each.digest.hex())
            for each in current.contents
        ]
        cut = CutStatus(epoch=current.epoch.hex(), segment=current.segment, entry=0, time=None)
        kept = self.kept == current.number
        return DefinitionStatus(setting=setting, files=files, cut=cut, kept=kept, failure=self.failure)

    async def run(self) -> None:
        """Look at the files again and again, until cancelled."""
        replication = self.parts.replication
        while True:
            if replication.vm.definition == NONE:
                self.current = self.failure = None
                await replication.changed.wait()
                continue
            await self.look()
            # A change of the settings is seen at once.
            await replication.changed.wait_for(min(LOOK_SECONDS, replication.vm.interval_seconds))

    async def look(self) -> None:
        """Read what has changed."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        vm, connection = self.parts.replication.vm, self.parts.tap.connection
        if vm.definition == NONE or connection is None or connection.epoch is None:
            return
        # The cut that the next seal makes, whatever is read meanwhile.
        epoch, segment = connection.epoch, connection.sealed_segment() + 1
        paths = [parse_definition(vm.definition), *vm.definition_files]
        try:
            contents = await self.parts.surroundings.ports.workers.run(self.reader.read, paths)
        except VmreplicaError as error:
            await self.fail(error.code, error.text, error.remedy)
            return
        if self.current is None or self.current.contents != contents:
            self._numbers += 1
            self.current = Version(self._numbers, contents, epoch, segment)
            self.failure = None
            self.changed.notify()
        elif self.failure is not None and (
            self.failure.code == DefinitionError.code or self.kept == self.current.number
        ):
            self.failure = None

    def message(self, version: Version) -> Definition:
        """What the replica is told of a version. An epoch that is over says nothing of the present one's cuts."""
        connection = self.parts.tap.connection
        present = connection.epoch if connection is not None and connection.epoch is not None else NO_EPOCH
        return Definition(
            number=version.number,
            epoch=present,
            segment=version.segment if version.epoch == present else 0,
            files=[DefinitionFile(path=each.path, digest=each.digest, size=each.size) for each in version.contents],
            disks=[
                DefinitionDisk(index=disk.index, path=disk.path, export=disk.export)
                for disk in self.parts.replication.vm.disks
            ],
        )

    async def note_kept(self, version: Version) -> None:
        """The replica has it durably."""
        if self.kept != version.number:
            self.kept = version.number
            size = sum(each.size for each in version.contents)
            text = (
                f"The definition of {self.parts.replication.vm.name}, {len(version.contents)} file(s) of {size} bytes, "
                f"is kept at the replica from cut {version.segment} on."
            )
            data = {"sha256": hashlib.sha256(b"".join(each.digest for each in version.contents)).hexdigest()}
            event = self.parts.replication.event(EventId.DEFINITION_SENT, text, data=data)
            await self.parts.replication.note(event)
        self.failure = None

    async def fail(self, code: str, text: str, remedy: str) -> None:
        """It can't be read, or is not kept: told once for each reason."""
        before = self.failure
        if before is not None and (before.code, before.text) == (code, text):
            return
        now = self.parts.surroundings.ports.clock.wall()
        self.failure = Cause(code=code, text=text, time=now, remedy=remedy)
        event = self.parts.replication.event(EventId.DEFINITION_NOT_SENT, text, cause=code, data={"remedy": remedy})
        await self.parts.replication.note(event)
