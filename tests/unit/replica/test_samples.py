"""A connection for a sample: what is answered, and what is refused, without anything being changed."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.messages import Role, Sample, SamplePlace, SampleRequest
from replica_agent.sampling import REQUESTS_MAX
from shared.disks.hashing import HASH_NAME, RangeHasher
from shared.ports.files import RealFile
from tests.unit.replica.logs import VM
from tests.unit.replica.rig import DISKS, Primary, World
from tests.unit.replica.test_sessions import dialler_of, refusal_of, refused_open, replicating

KEY = bytes(range(32))
FIRST, SECOND = DISKS


def request(*places: tuple[int, int, int], **changes: Any) -> SampleRequest:
    asked = [SamplePlace(disk=disk, offset=at, length=length) for disk, at, length in places or ((0, 0, 4096),)]
    return SampleRequest(**{"key": KEY, "hash": HASH_NAME, "places": asked, **changes})


async def asked(primary: Primary, question: SampleRequest) -> bytes:
    primary.channel.send(question)
    return (await primary.expect(Sample)).tags


async def test_tags_are_those_of_the_newest_point_and_replication_goes_on(world: World) -> None:
    async with replicating(world) as pair:
        sample, opened = await pair.dialler.open(role=Role.SAMPLE)
        assert opened.epoch == pair.tap.position.epoch
        places = [(0, 65536, 65536), (SECOND.index, SECOND.size - 512, 512), (0, 4096, 4096)]
        content = pair.tap.content
        tag = RangeHasher(KEY, 512).tag
        expected = b"".join(tag(bytes(content[disk][at : at + length])) for disk, at, length in places)
        assert await asked(sample, request(*places)) == expected
        # The session that was there before is still served, and a second question as well.
        await pair.control.send_segment(pair.tap, pair.rng)
        await pair.control.until_applied(pair.tap.position)
        after = tag(bytes(content[0][:4096]))
        assert await asked(sample, request()) == after
        await pair.check_unharmed()


@pytest.mark.parametrize(
    "wrong",
    [
        request((9, 0, 512)),
        request((0, FIRST.size, 512)),
        request((0, FIRST.size - 256, 512)),
        request(hash="md5"),
        request(key=KEY[:16]),
    ],
    ids=["unknown disk", "behind the end", "over the end", "unknown hash", "short key"],
)
async def test_wrong_questions_are_refused(world: World, wrong: SampleRequest) -> None:
    async with replicating(world) as pair:
        sample, _ = await pair.dialler.open(role=Role.SAMPLE)
        sample.channel.send(wrong)
        assert (await refusal_of(sample)).code in ("protocol", "version")
        await pair.check_unharmed()


async def test_questions_are_bounded(world: World) -> None:
    async with replicating(world) as pair:
        sample, _ = await pair.dialler.open(role=Role.SAMPLE)
        for _ in range(REQUESTS_MAX):
            await asked(sample, request())
        assert (await refusal_of(sample)).code == "state"
        await pair.check_unharmed()


async def test_what_cannot_be_read_is_never_told_to_be_equal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replicating(world) as pair:
        sample, _ = await pair.dialler.open(role=Role.SAMPLE)
        healthy = await asked(sample, request((0, 0, 4096), (0, 4096, 4096)))
        read_into = RealFile.read_into

        def fails(file: RealFile, offset: int, buffer: Any) -> int:
            if file.path.endswith("disk-0.raw") and offset == 0:
                raise OSError(5, "the test's bad sector")
            return read_into(file, offset, buffer)

        monkeypatch.setattr(RealFile, "read_into", fails)
        told = [await asked(sample, request((0, 0, 4096), (0, 4096, 4096))) for _ in range(2)]
        assert told[0][:16] not in (healthy[:16], told[1][:16])
        assert told[0][16:] == healthy[16:] == told[1][16:]


async def test_nobody_is_asked_who_is_not_known_and_no_vm_is_made(world: World) -> None:
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        assert (await refused_open(dialler, role=Role.SAMPLE)).code == "unauthorized"
        assert VM not in agent.vms
        await dialler.open()
        sample, _ = await dialler.open(role=Role.SAMPLE)
        sample.channel.send(request())
        assert (await refusal_of(sample)).code == "state"


async def test_a_promoted_replica_tells_nothing(world: World) -> None:
    async with replicating(world) as pair:
        sample, _ = await pair.dialler.open(role=Role.SAMPLE)
        vm = pair.agent.vms[VM]
        await vm.promotion.decide()
        sample.channel.send(request())
        assert (await refusal_of(sample)).code == "fenced"
        assert (await refused_open(pair.dialler, role=Role.SAMPLE)).code == "fenced"
