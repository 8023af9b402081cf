"""What a resync may ask of the replica beside manifests, and what it answers: groups, smaller blocks, holes."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.bulk import Bulk, decode_detail
from protocol.messages import BLOCK_SIZE, DETAIL_BYTES, GROUP_BLOCKS, Holes, RangeSettled
from tests.unit.replica.logs import VM
from tests.unit.replica.rig import DISKS, Primary, Resync, World
from tests.unit.replica.test_sessions import BAD_REQUESTS, Pair, refusal_of, replicating


async def begun(pair: Pair) -> tuple[Resync, Primary]:
    resync = pair.next_resync()
    await resync.begin()
    assert resync.bulk is not None
    return resync, resync.bulk


BAD_DETAILS: dict[str, tuple[dict[str, Any], str]] = {
    "other resync": ({"id": b"x" * 16}, "stale"),
    "other round": ({"round": 2}, "stale"),
    "other key": ({"key_id": b"x" * 16}, "stale"),
    "other range": ({"length": 3 * BLOCK_SIZE}, "protocol"),
    "no block": ({"blocks": b"\0"}, "protocol"),
    "behind the range": ({"blocks": b"\4"}, "protocol"),
    "long bitmap": ({"blocks": b"\1\0"}, "protocol"),
    "unknown disk": ({"disk": 9}, "protocol"),
}


@pytest.mark.parametrize("case", BAD_DETAILS)
async def test_wrong_detail_request_is_refused(world: World, case: str) -> None:
    """R23, A12."""
    changes, code = BAD_DETAILS[case]
    async with replicating(world) as pair:
        resync, bulk = await begun(pair)
        bulk.channel.send(resync.request(0, 0, 2 * BLOCK_SIZE))
        await bulk.manifest()
        body = {"disk": 0, "offset": 0, "length": 2 * BLOCK_SIZE, "blocks": b"\1", **changes}
        bulk.channel.send(resync.detail(**body))
        assert (await refusal_of(bulk)).code == code
        await pair.check_unharmed()


@pytest.mark.parametrize("when", ["before the manifest", "after it is done"])
async def test_detail_of_a_range_that_is_not_being_compared_is_refused(world: World, when: str) -> None:
    """R23."""
    async with replicating(world) as pair:
        resync, bulk = await begun(pair)
        if when == "after it is done":
            await resync.compare_range(DISKS[0], 0, 2 * BLOCK_SIZE)
        bulk.channel.send(resync.detail(0, 0, 2 * BLOCK_SIZE, b"\1"))
        assert (await refusal_of(bulk)).code == "protocol"
        await pair.check_unharmed()


async def test_detail_has_the_tags_of_the_smaller_blocks(world: World) -> None:
    async with replicating(world) as pair:
        resync, bulk = await begun(pair)
        size = DISKS[1].size
        bulk.channel.send(resync.request(3, 0, size))
        await bulk.manifest()
        bulk.channel.send(resync.detail(3, 0, size, b"\2"))
        message = await bulk.channel.receive()
        assert isinstance(message, Bulk)
        content = pair.agent.vms[VM].parts.disks.file(3).read(BLOCK_SIZE, size - BLOCK_SIZE)
        tags = [row.tobytes() for row in decode_detail(message.content()).tags]
        assert tags == [
            resync.hasher.tag(content[at : at + DETAIL_BYTES]) for at in range(0, len(content), DETAIL_BYTES)
        ]


@pytest.mark.parametrize("agree", [True, False])
async def test_groups_whose_digest_agrees_have_no_tags(world: World, agree: bool) -> None:
    async with replicating(world) as pair:
        resync, bulk = await begun(pair)
        file, size, hasher = pair.agent.vms[VM].parts.disks.file(0), DISKS[0].size, resync.hasher
        holes, tags = hasher.hash_range(file, 0, size)
        digests = hasher.digests(hasher.filled(holes, tags, size), GROUP_BLOCKS)
        if not agree:
            digests = bytes([digests[0] ^ 1]) + digests[1:]
        bulk.channel.send(resync.request(0, 0, size, digests=digests))
        manifest = await bulk.manifest()
        assert manifest.equal.tolist() == [agree]
        assert manifest.tags.tolist() == ([] if agree else tags.tolist())


async def test_what_cannot_be_read_never_has_the_digest_that_was_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R24."""
    async with replicating(world) as pair:
        resync, bulk = await begun(pair)
        file, size, hasher = pair.agent.vms[VM].parts.disks.file(0), DISKS[0].size, resync.hasher
        holes, tags = hasher.hash_range(file, 0, size)
        digests = hasher.digests(hasher.filled(holes, tags, size), GROUP_BLOCKS)

        def unreadable(*_arguments: Any) -> int:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(type(file), "read_into", unreadable)
            bulk.channel.send(resync.request(0, 0, size, digests=digests))
            manifest = await bulk.manifest()
            assert not manifest.equal.any()
            assert len(manifest.tags) == len(manifest.holes)
            assert not {row.tobytes() for row in manifest.tags} & {row.tobytes() for row in tags}
            bulk.channel.send(resync.detail(0, 0, size, b"\1"))
            message = await bulk.channel.receive()
        assert isinstance(message, Bulk)
        got = {row.tobytes() for row in decode_detail(message.content()).tags}
        small = {row.tobytes() for row in hasher.detail(file, [(0, BLOCK_SIZE)], DETAIL_BYTES)}
        assert len(got) == BLOCK_SIZE // DETAIL_BYTES
        assert not got & small


async def test_request_with_digests_of_another_number_of_groups_is_refused(world: World) -> None:
    async with replicating(world) as pair:
        resync, bulk = await begun(pair)
        bulk.channel.send(resync.request(0, 0, BLOCK_SIZE, digests=bytes(32)))
        assert (await refusal_of(bulk)).code == "protocol"
        await pair.check_unharmed()


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_wrong_holes_request_is_refused(world: World, case: str) -> None:
    """R23, A12."""
    changes, code = BAD_REQUESTS[case]
    async with replicating(world) as pair:
        resync, bulk = await begun(pair)
        bulk.channel.send(resync.holes(**{"disk": 0, "offset": 0, "length": BLOCK_SIZE, **changes}))
        assert (await refusal_of(bulk)).code == code
        await pair.check_unharmed()


async def test_only_what_is_a_hole_here_is_settled_as_one(world: World) -> None:
    """R24: data of the replica in a hole of the primary has to be compared."""
    async with replicating(world) as pair:
        resync, bulk = await begun(pair)
        size, file = DISKS[0].size, pair.agent.vms[VM].parts.disks.file(0)
        file.punch_hole(0, size)
        file.write(BLOCK_SIZE + 5, b"data")
        bulk.channel.send(resync.holes(0, 0, size))
        answer = await bulk.expect(Holes)
        assert answer.length == size
        assert [(run.offset, run.length) for run in answer.data] == [(BLOCK_SIZE, BLOCK_SIZE)]
        bulk.channel.send(resync.done(0, 0, BLOCK_SIZE))
        settled = await bulk.expect(RangeSettled)
        assert [(run.offset, run.length) for run in settled.ranges] == [(0, BLOCK_SIZE)]
        bulk.channel.send(resync.done(0, BLOCK_SIZE, BLOCK_SIZE))
        assert (await refusal_of(bulk)).code == "protocol"
