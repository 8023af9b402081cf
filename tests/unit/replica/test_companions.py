"""What comes beside the log at a replica: kept durably, and never by a peer's names; bad bytes end the session."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any

import msgspec
import pytest

from protocol.errors import ProtocolError
from protocol.messages import (
    MAX_DEFINITION_FILE,
    MAX_DEFINITION_TEXT,
    Body,
    CutKind,
    CutMark,
    CutMarked,
    Definition,
    DefinitionDisk,
    DefinitionFile,
    DefinitionKept,
    DefinitionPart,
    DefinitionWanted,
    WirePosition,
)
from protocol.position import Ancestor, Position
from replica_agent.agent import ReplicaAgent
from replica_agent.companion_records import Ranks, definition_of, needed_definitions, needed_marks
from replica_agent.record import ConsistentRecord, DefinitionRecord, FileRecord, PositionRecord
from shared.channel import ChannelClosed
from tests.unit.replica.logs import EPOCH, VM
from tests.unit.replica.rig import WAIT_SECONDS, Dialler, Primary, World

TEXT, VARIABLES = b"<domain><name>web</name></domain>", os.urandom(100_000)
PART = 40_000
HOSTILE_PATH = "/../../../etc/cron.d/evil"


def file_of(content: bytes, path: str = "/etc/web.xml") -> DefinitionFile:
    return DefinitionFile(path=path, digest=hashlib.sha256(content).digest(), size=len(content))


def version(number: int = 1, segment: int = 3, **changes: Any) -> Definition:
    body: dict[str, Any] = {
        "number": number,
        "epoch": EPOCH,
        "segment": segment,
        "files": [file_of(TEXT), file_of(VARIABLES, HOSTILE_PATH)],
        "disks": [DefinitionDisk(index=0, path="/images/web.raw", export="disk0")],
    }
    return Definition(**{**body, **changes})


def parts(content: bytes, number: int = 1) -> list[DefinitionPart]:
    digest = hashlib.sha256(content).digest()
    return [
        DefinitionPart(number=number, digest=digest, offset=at, data=content[at : at + PART])
        for at in range(0, len(content), PART)
    ]


async def opened(world: World, agent: ReplicaAgent) -> Primary:
    assert agent.sessions.listener is not None
    address = agent.sessions.listener.address
    dialler = Dialler(world.certificates, address, capabilities=("zstd", "marks", "definition"))
    primary, _ = await dialler.open()
    return primary


async def ended(primary: Primary) -> str:
    """What the replica says of the end of the connection."""
    async with asyncio.timeout(WAIT_SECONDS):
        with pytest.raises(ChannelClosed) as info:
            while True:
                await primary.channel.receive()
    assert info.value.problem is not None
    return f"{info.value.problem.code}: {info.value.problem.text}"


async def test_a_version_is_kept_by_its_content_over_restarts(world: World) -> None:
    mark = CutMark(cut=WirePosition(epoch=EPOCH, segment=9, entry=1, chain=bytes(16)), kind=CutKind.APPLICATION)
    async with world.agent() as agent:
        primary = await opened(world, agent)
        primary.channel.send(version())
        wanted = await primary.expect(DefinitionWanted)
        assert wanted.digests == [each.digest for each in version().files]
        for part in (*parts(TEXT), *parts(VARIABLES)):
            primary.channel.send(part)
        assert (await primary.expect(DefinitionKept)).kept
        primary.channel.send(mark)
        assert (await primary.expect(CutMarked)).cut == mark.cut
        # What was sent half is not kept; a version that is known is not kept twice.
        primary.channel.send(version(2, 5, files=[file_of(b"a" * 100_000)]))
        await primary.expect(DefinitionWanted)
        primary.channel.send(parts(b"a" * 100_000, 2)[0])
        primary.channel.send(version(3, 5))
        assert (await primary.expect(DefinitionKept)).number == 3
    folder = world.folder_of() / "definition"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        hashlib.sha256(each).hexdigest(): each for each in (TEXT, VARIABLES)
    }
    async with world.agent() as agent:
        vm = agent.vms[VM]
        (kept,) = vm.companions.record.definitions
        assert [each.path for each in kept.files] == ["/etc/web.xml", HOSTILE_PATH]
        assert [each.position.position for each in vm.companions.record.marks] == [mark.cut.position()]
        primary = await opened(world, agent)
        primary.channel.send(version(1, 9))
        assert (await primary.expect(DefinitionKept)).kept


def test_order_of_cuts_goes_by_the_lineage() -> None:
    old, new = b"o" * 16, b"n" * 16
    ranks = Ranks.of((Ancestor(old, bytes(16), 0), Ancestor(new, old, 7)))

    def made(epoch: bytes, segment: int) -> DefinitionRecord:
        file = FileRecord(path="x", digest=bytes(32), size=1)
        return DefinitionRecord(epoch=epoch, segment=segment, files=[file], disks=[], time=0.0)

    def at(epoch: bytes, segment: int) -> Position:
        return Position(epoch, segment, 0, bytes(16))

    first, second, third = versions = [made(old, 4), made(old, 6), made(new, 2)]
    for cut, wanted, later in (
        (at(old, 3), first, True),
        (at(old, 4), first, False),
        (at(old, 9), second, False),
        (at(new, 1), second, False),
        (at(new, 2), third, False),
    ):
        assert definition_of(versions, cut, ranks) == (wanted, later), cut
    assert needed_definitions(versions, [at(old, 9), at(new, 1)], ranks) == [second, third]
    marks = [
        ConsistentRecord(position=PositionRecord.of(at(*each)))
        for each in ((old, 5), (old, 9), (new, 3), (b"u" * 16, 1))
    ]
    # Of points, of cuts to come, and of an epoch that is not committed yet.
    assert needed_marks(marks, [at(old, 9), at(new, 1)], ranks) == marks[1:]


OTHER = b"a text that never comes to be kept"
ASKED = version(files=[file_of(OTHER), file_of(VARIABLES)])
FIRST = DefinitionPart(number=1, digest=file_of(OTHER).digest, offset=0, data=OTHER)


def changed(**changes: Any) -> DefinitionPart:
    return msgspec.structs.replace(FIRST, **changes)


HOSTILE: dict[str, list[Body]] = {
    "is not what follows": [ASKED, changed(offset=1)],
    "is not what follows of": [ASKED, parts(VARIABLES)[0]],
    "is not what follows of the": [ASKED, changed(data=b"")],
    "is not what follows of the file": [ASKED, changed(data=OTHER + b"more")],
    "the limit is": [version(files=[DefinitionFile(path="x", digest=bytes(32), size=MAX_DEFINITION_TEXT + 1)])],
    "together": [
        version(
            files=[
                file_of(TEXT),
                *(DefinitionFile(path="x", digest=bytes([at]) * 32, size=MAX_DEFINITION_FILE) for at in range(3)),
            ]
        )
    ],
    "two sizes": [version(files=[file_of(TEXT), DefinitionFile(path="x", digest=file_of(TEXT).digest, size=1)])],
    "can't be printed": [version(files=[file_of(TEXT, "/etc/\x1b[2J")])],
    "a disk twice": [version(disks=[DefinitionDisk(index=0, path="/x", export="x")] * 2)],
}


async def test_hostile_bytes_end_the_connection_and_leave_nothing(world: World) -> None:
    async with world.agent() as agent:
        for said, messages in HOSTILE.items():
            primary = await opened(world, agent)
            for message in messages:
                primary.channel.send(message)
            told = await ended(primary)
            assert told.startswith("protocol: ") and said in told, (said, told)
        # A content that is not what was promised is refused, and the session goes on.
        primary = await opened(world, agent)
        primary.channel.send(version(files=[file_of(TEXT)]))
        await primary.expect(DefinitionWanted)
        digest = file_of(TEXT).digest
        primary.channel.send(DefinitionPart(number=1, digest=digest, offset=0, data=TEXT[::-1]))
        answer = await primary.expect(DefinitionKept)
        assert not answer.kept and "SHA-256" in answer.text
        assert agent.vms[VM].companions.record.definitions == []
    files = [path for path in world.folder_of().rglob("*") if path.is_file() and path.parent.name == "definition"]
    # At most a whole content that no version names yet: the next tidying, or the next version, sees to it.
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in files)
    assert not (world.folder / "etc").exists()


async def test_who_did_not_agree_is_told_nothing_and_may_say_nothing(world: World) -> None:
    async with world.agent() as agent:
        assert agent.sessions.listener is not None
        primary, _ = await Dialler(world.certificates, agent.sessions.listener.address).open()
        with pytest.raises(ProtocolError, match="not agreed on: it needs definition"):
            primary.channel.send(version())
        primary.channel.session.capabilities = frozenset({"definition", "marks"})
        primary.channel.send(version())
        assert "not agreed on" in await ended(primary)
