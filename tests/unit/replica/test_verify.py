"""A verify at the replica: its cut is never passed over, its view stays fixed, and nothing is equal that is not."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import (
    BLOCK_SIZE,
    GROUP_BLOCKS,
    Role,
    VerifyAnswer,
    VerifyBegin,
    VerifyCut,
    VerifyEnd,
    VerifyEnded,
    VerifyHeld,
    VerifyLost,
    VerifyReady,
    VerifyRequest,
    WirePosition,
)
from protocol.position import Position
from replica_agent import verify
from shared.disks.leaves import LEAF_BYTES, LEAF_HASH, UNREADABLE, group_digests
from tests.unit.replica.logs import VM
from tests.unit.replica.rig import DISKS, Primary, World
from tests.unit.replica.test_failover import failover
from tests.unit.replica.test_sessions import Pair, refusal_of, replicating, until

IDENTITY = b"v" * 16


def leaves_of(content: bytes) -> bytes:
    return b"".join(hashlib.sha256(content[at : at + BLOCK_SIZE]).digest() for at in range(0, len(content), BLOCK_SIZE))


class Verify:
    """A verify as a primary drives it."""

    def __init__(self, pair: Pair, line: Primary) -> None:
        self.pair = pair
        self.line = line

    @classmethod
    async def open(cls, pair: Pair) -> Verify:
        line, _ = await pair.dialler.open(
            role=Role.VERIFY, control_token=pair.control.channel.session.token, epoch=pair.tap.epoch
        )
        return cls(pair, line)

    async def begin(self) -> None:
        self.line.channel.send(VerifyBegin(id=IDENTITY, hash=LEAF_HASH, block_size=BLOCK_SIZE))
        await self.line.expect(VerifyReady)

    def name(self, cut: Position) -> None:
        self.line.channel.send(VerifyCut(id=IDENTITY, cut=WirePosition.of(cut)))

    async def hold(self, cut: Position) -> None:
        self.name(cut)
        assert (await self.line.expect(VerifyHeld)).cut.position() == cut

    def request(self, disk: int, content: bytes, /, **changes: Any) -> VerifyRequest:
        digests = group_digests(leaves_of(content), GROUP_BLOCKS)
        body: dict[str, Any] = {
            "id": IDENTITY,
            "disk": disk,
            "offset": 0,
            "length": len(content),
            "digests": digests,
            **changes,
        }
        return VerifyRequest(**body)

    async def ask(self, disk: int, content: bytes, **changes: Any) -> VerifyAnswer:
        self.line.channel.send(self.request(disk, content, **changes))
        return await self.line.expect(VerifyAnswer)

    async def end(self) -> dict[int, bytes]:
        self.line.channel.send(VerifyEnd(id=IDENTITY))
        return {image.disk: image.digest for image in (await self.line.expect(VerifyEnded)).images}


async def held(pair: Pair) -> tuple[Verify, dict[int, bytes]]:
    """A verify whose view is held, and the content at its cut; the disks are beyond it."""
    asking = await Verify.open(pair)
    await asking.begin()
    for _ in range(3):
        await pair.control.send_segment(pair.tap, pair.rng)
    cut = pair.tap.position
    for _ in range(3):
        await pair.control.send_segment(pair.tap, pair.rng)
    await asking.hold(cut)
    await pair.control.until_applied(pair.tap.position)
    return asking, pair.tap.cuts[cut.segment]


async def test_cut_is_not_passed_over_and_its_view_stays_fixed(world: World) -> None:
    """R46, R37."""
    async with replicating(world) as pair:
        asking, content = await held(pair)
        for disk in DISKS:
            answer = await asking.ask(disk.index, content[disk.index])
            assert (answer.equal, answer.leaves) == (b"\1", b""), disk
        images = await asking.end()
        assert images == {disk.index: hashlib.sha256(leaves_of(content[disk.index])).digest() for disk in DISKS}
        vm = pair.agent.vms[VM]
        assert not vm.parts.history.readings
        assert not vm.parts.surroundings.verifying


async def test_nothing_is_applied_between_announcement_and_cut(world: World) -> None:
    async with replicating(world) as pair:
        vm, before = pair.agent.vms[VM], pair.tap.position
        asking = await Verify.open(pair)
        await asking.begin()
        await pair.control.send_segment(pair.tap, pair.rng)
        await pair.control.send_segment(pair.tap, pair.rng)
        await asyncio.sleep(0.1)
        assert vm.point() == before
        # A promotion must not take what is only held up for applied.
        assert not vm.parts.applier.idle
        asking.line.channel.abort("the primary is gone")
        await pair.control.until_applied(pair.tap.position)


async def test_blocks_that_differ_are_told(world: World) -> None:
    async with replicating(world) as pair:
        asking, content = await held(pair)
        ours = bytearray(content[0])
        ours[BLOCK_SIZE + 7] ^= 1
        answer = await asking.ask(0, bytes(ours))
        assert (answer.equal, answer.leaves) == (b"\0", leaves_of(content[0]))


async def test_unreadable_block_has_no_leaf_and_no_image(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """R24."""
    async with replicating(world) as pair:
        asking, content = await held(pair)
        read = verify.PointImage.read

        def failing(self: verify.PointImage, offset: int, length: int) -> bytes:
            if self.disk == 0 and offset <= BLOCK_SIZE < offset + length:
                raise OSError(5, "bad sector")
            return read(self, offset, length)

        monkeypatch.setattr(verify.PointImage, "read", failing)
        monkeypatch.setattr(verify.PointImage, "extents", lambda *_: (_ for _ in ()).throw(OSError(5, "bad")))
        answer = await asking.ask(0, content[0])
        leaves = [answer.leaves[at : at + LEAF_BYTES] for at in range(0, len(answer.leaves), LEAF_BYTES)]
        true = leaves_of(content[0])
        assert answer.equal == b"\0"
        assert leaves[1] == UNREADABLE
        assert [leaves[0], *leaves[2:]] == [
            true[at : at + LEAF_BYTES] for at in range(0, len(true), LEAF_BYTES) if at != LEAF_BYTES
        ]
        assert (await asking.ask(3, content[3])).equal == b"\1"
        assert set(await asking.end()) == {3}


async def test_image_needs_every_block_in_order(world: World) -> None:
    async with replicating(world) as pair:
        asking, content = await held(pair)
        await asking.ask(0, content[0][BLOCK_SIZE:], offset=BLOCK_SIZE)
        await asking.ask(0, content[0][:BLOCK_SIZE])
        await asking.ask(3, content[3])
        await asking.ask(3, content[3])
        assert set(await asking.end()) == {3}


async def test_point_that_gives_way_is_told_and_nothing_is_answered(world: World) -> None:
    async with replicating(world) as pair:
        asking, content = await held(pair)
        vm = pair.agent.vms[VM]
        for reading in vm.parts.history.readings:
            reading.reader.lose("The recovery point was deleted.")
        asking.line.channel.send(asking.request(0, content[0]))
        lost = await asking.line.expect(VerifyLost)
        assert (lost.code, lost.text) == ("point_lost", "The recovery point was deleted.")
        # What crosses it is not answered, and the next verify is another connection.
        asking.line.channel.send(asking.request(3, content[3]))
        again = await Verify.open(pair)
        await again.begin()
        await pair.control.send_segment(pair.tap, pair.rng)
        await again.hold(pair.tap.position)


async def test_cut_that_was_not_sealed_since_is_lost(world: World) -> None:
    async with replicating(world) as pair:
        before = pair.tap.position
        asking = await Verify.open(pair)
        await asking.begin()
        asking.name(before)
        assert (await asking.line.expect(VerifyLost)).code == "other_cut"
        await pair.control.send_segment(pair.tap, pair.rng)
        await pair.control.until_applied(pair.tap.position)


async def test_cut_with_another_chain_is_lost(world: World) -> None:
    """R34."""
    async with replicating(world) as pair:
        asking = await Verify.open(pair)
        await asking.begin()
        await pair.control.send_segment(pair.tap, pair.rng)
        cut = pair.tap.position
        asking.name(Position(cut.epoch, cut.segment, cut.entry, b"x" * 16))
        assert (await asking.line.expect(VerifyLost)).code == "other_cut"
        await pair.control.until_applied(cut)


@pytest.mark.parametrize("what", ["HOLD_SECONDS", "REACH_SECONDS"])
async def test_waits_have_an_end(world: World, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """I13: neither a primary that names no cut nor a cut that does not come holds applying up for ever."""
    async with replicating(world) as pair:
        asking = await Verify.open(pair)
        monkeypatch.setattr(verify, what, 0.05)
        await asking.begin()
        if what == "REACH_SECONDS":
            cut = pair.tap.position
            asking.name(Position(cut.epoch, cut.segment + 5, cut.entry, cut.chain))
        lost = await asking.line.expect(VerifyLost)
        assert lost.code == {"HOLD_SECONDS": "no_cut", "REACH_SECONDS": "not_reached"}[what]
        await pair.control.send_segment(pair.tap, pair.rng)
        await pair.control.until_applied(pair.tap.position)


async def test_verifies_of_all_vms_are_capped(world: World) -> None:
    async with replicating(world) as pair:
        verifying = pair.agent.vms[VM].parts.surroundings.verifying
        verifying |= {b"1" * 16, b"2" * 16}
        asking = await Verify.open(pair)
        asking.line.channel.send(VerifyBegin(id=IDENTITY, hash=LEAF_HASH, block_size=BLOCK_SIZE))
        assert (await asking.line.expect(VerifyLost)).code == "busy"
        verifying.clear()


async def test_untrusted_disks_are_not_verified(world: World) -> None:
    async with replicating(world) as pair:
        resync = pair.next_resync()
        await resync.begin()
        asking = await Verify.open(pair)
        asking.line.channel.send(VerifyBegin(id=IDENTITY, hash=LEAF_HASH, block_size=BLOCK_SIZE))
        assert (await asking.line.expect(VerifyLost)).code == "resyncing"


async def test_newer_verify_ends_the_older_one(world: World) -> None:
    async with replicating(world) as pair:
        older, _ = await held(pair)
        newer, content = await held(pair)
        assert (await refusal_of(older.line)).code == "stale"
        assert (await newer.ask(0, content[0])).equal == b"\1"


async def test_verify_ends_with_its_control_connection(world: World) -> None:
    async with replicating(world) as pair:
        await held(pair)
        vm = pair.agent.vms[VM]
        pair.control.channel.abort("test")
        await until(lambda: vm.connections.verify is None)
        assert not vm.parts.history.readings
        assert vm.parts.applier.ceiling.cut is None
        await pair.check_unharmed()


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "other verify": ({"id": b"x" * 16}, "stale"),
    "unknown disk": ({"disk": 9}, "protocol"),
    "empty": ({"length": 0}, "protocol"),
    "behind the end": ({"offset": DISKS[0].size}, "protocol"),
    "no block": ({"offset": 512, "length": BLOCK_SIZE}, "protocol"),
    "half a block": ({"length": BLOCK_SIZE + 512}, "protocol"),
    "too many digests": ({"digests": bytes(64)}, "protocol"),
    "half a digest": ({"digests": bytes(48)}, "protocol"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_wrong_request_is_refused(world: World, case: str) -> None:
    """R23, I18."""
    changes, code = BAD_REQUESTS[case]
    async with replicating(world) as pair:
        asking, content = await held(pair)
        asking.line.channel.send(asking.request(0, content[0], **changes))
        assert (await refusal_of(asking.line)).code == code
        await pair.check_unharmed()


@pytest.mark.parametrize("changes", [{"hash": "crc32"}, {"block_size": 4096}])
async def test_wrong_begin_is_refused(world: World, changes: dict[str, Any]) -> None:
    async with replicating(world) as pair:
        asking = await Verify.open(pair)
        body: dict[str, Any] = {"id": IDENTITY, "hash": LEAF_HASH, "block_size": BLOCK_SIZE, **changes}
        asking.line.channel.send(VerifyBegin(**body))
        assert (await refusal_of(asking.line)).code == "protocol"
        await pair.check_unharmed()


async def test_changed_byte_of_the_base_is_told(world: World) -> None:
    async with replicating(world) as pair:
        asking = await Verify.open(pair)
        await asking.begin()
        await pair.control.send_segment(pair.tap, pair.rng)
        await asking.hold(pair.tap.position)
        content = pair.tap.cuts[pair.tap.segment]
        path = pair.agent.vms[VM].parts.layout.disk(0)
        descriptor = os.open(path, os.O_RDWR)
        os.pwrite(descriptor, bytes([content[0][5] ^ 1]), 5)
        os.close(descriptor)
        answer = await asking.ask(0, content[0])
        assert answer.equal == b"\0"
        assert answer.leaves[LEAF_BYTES:] == leaves_of(content[0])[LEAF_BYTES:]
        assert answer.leaves[:LEAF_BYTES] != leaves_of(content[0])[:LEAF_BYTES]


@pytest.mark.parametrize("stage", ["announced", "held"])
async def test_failover_does_not_wait_for_a_verify_and_takes_all_that_was_received(world: World, stage: str) -> None:
    """I5, I6."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        asking = await Verify.open(pair)
        await asking.begin()
        await pair.control.send_segment(pair.tap, pair.rng)
        if stage == "held":
            await asking.hold(pair.tap.position)
        await pair.control.send_segment(pair.tap, pair.rng)
        await failover(vm)
        assert not vm.parts.history.readings
        content = pair.tap.cuts[pair.tap.segment]
        for disk in DISKS:
            path = vm.parts.layout.disk(disk.index)
            found = Path(path).read_bytes()
            assert found == content[disk.index]
