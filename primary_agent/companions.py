"""What goes to the replica beside the log of a session: the marks of cuts, and the VM's definition."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from primary_agent.consistent_cuts import ConsistentCuts
from primary_agent.definition_watch import LOOK_SECONDS, DefinitionWatch, Version
from primary_agent.dialing import Dialled
from primary_agent.parts import Parts
from protocol.errors import ProtocolError
from protocol.messages import (
    MAX_DEFINITION_PART,
    Body,
    CutKind,
    CutMark,
    CutMarked,
    DefinitionKept,
    DefinitionPart,
    DefinitionWanted,
    WirePosition,
)
from protocol.session import DEFINITION, MARKS
from shared.errors import VmreplicaError
from shared.tasks import all_of

AGAIN_SECONDS = 60.0
"""A definition that the replica did not keep is offered again after so long."""


@dataclass(slots=True, eq=False)
class Companions:
    """Those of one VM, over all its sessions."""

    parts: Parts
    cuts: ConsistentCuts
    definition: DefinitionWatch

    async def run(self, dialled: Dialled) -> None:
        """Send over this session whatever the replica has not, until cancelled."""
        self.parts.beside = asyncio.Queue()
        answers: asyncio.Queue[DefinitionWanted | DefinitionKept] = asyncio.Queue()
        agreed = dialled.channel.session.capabilities
        works = [self._sort(answers)]
        if MARKS in agreed:
            works.append(self._send_marks(dialled))
        if DEFINITION in agreed:
            works.append(self._send_definition(dialled, answers))
        else:
            works.append(self._tell_older(dialled))
        await all_of(*works)

    async def _sort(self, answers: asyncio.Queue[DefinitionWanted | DefinitionKept]) -> None:
        beside: asyncio.Queue[Body] = self.parts.beside
        while True:
            match await beside.get():
                case CutMarked() as marked:
                    await self.cuts.told(marked.cut.position())
                case (DefinitionWanted() | DefinitionKept()) as answer:
                    answers.put_nowait(answer)

    async def _send_marks(self, dialled: Dialled) -> None:
        sent: set[tuple[bytes, int]] = set()
        while True:
            for mark in self.cuts.record.untold:
                position = mark.position.position
                if (position.epoch, position.segment) not in sent:
                    sent.add((position.epoch, position.segment))
                    dialled.channel.send(CutMark(cut=WirePosition.of(position), kind=CutKind.APPLICATION))
            await self.cuts.changed.wait()

    async def _tell_older(self, dialled: Dialled) -> None:
        """The replica takes no definitions: said where there is one."""
        text = f"The replica ({dialled.welcome.software}) is of a version that keeps no definitions."
        while True:
            if self.definition.current is not None:
                await self.definition.fail("not_agreed", text, "Upgrade it.")
            await self.definition.changed.wait()

    # --- the definition --------------------------------------------------------------------------------------------

    async def _send_definition(
        self, dialled: Dialled, answers: asyncio.Queue[DefinitionWanted | DefinitionKept]
    ) -> None:
        watch, done = self.definition, 0
        while True:
            version = watch.current
            if version is None or version.number == done:
                await watch.changed.wait()
                continue
            try:
                kept = await self._offer(dialled, version, answers)
            except VmreplicaError as error:
                # It changed while it was sent, or can't be read: the next look says what it is now.
                await watch.fail(error.code, error.text, error.remedy)
                await asyncio.sleep(LOOK_SECONDS)
                continue
            if kept.kept:
                done = version.number
                await watch.note_kept(version)
            else:
                await watch.fail("not_kept", f"The replica does not keep the definition: {kept.text}", "")
                await watch.changed.wait_for(AGAIN_SECONDS)

    async def _offer(
        self, dialled: Dialled, version: Version, answers: asyncio.Queue[DefinitionWanted | DefinitionKept]
    ) -> DefinitionKept:
        """Tell the replica of a version, and send what it wants of it. Raises DefinitionError."""
        dialled.channel.send(self.definition.message(version))
        while True:
            answer = await answers.get()
            if answer.number != version.number:
                # Of a version that was given up on the way.
                continue
            if isinstance(answer, DefinitionKept):
                return answer
            by_digest = {each.digest: each for each in version.contents}
            for digest in answer.digests:
                if digest not in by_digest:
                    raise ProtocolError("DEFINITION_WANTED asks for a file that was not offered")
                await self._send_file(dialled, version, digest)

    async def _send_file(self, dialled: Dialled, version: Version, digest: bytes) -> None:
        content = next(each for each in version.contents if each.digest == digest)
        surroundings, offset = self.parts.surroundings, 0
        while True:
            reader, length = self.definition.reader, min(MAX_DEFINITION_PART, content.size - offset)
            data = await surroundings.ports.workers.run(reader.part, content, offset, length)
            dialled.channel.send(DefinitionPart(number=version.number, digest=digest, offset=offset, data=data))
            await dialled.channel.drain()
            offset += len(data)
            if offset >= content.size or not data:
                return
