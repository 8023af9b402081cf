"""Tests of who gets in, of one session at a time, and of messages at the wrong time or with wrong content."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
import pytest

from protocol.bulk import encode_blocks, encode_blocks_entry
from protocol.entries import EntryKind, encode_entry
from protocol.frames import encode_frame_header
from protocol.hrl import Geometry
from protocol.messages import (
    BLOCK_SIZE,
    Applied,
    Commit,
    Committed,
    MessageType,
    Opened,
    RangeSettled,
    Received,
    ResyncCancel,
    ResyncCancelled,
    ResyncKind,
    Role,
    WireDisk,
    WirePosition,
)
from protocol.position import NO_EPOCH
from replica_agent import sessions as sessions_module
from replica_agent.agent import ReplicaAgent
from replica_agent.authorize import Authorization
from shared.budget import Budget
from shared.channel import ChannelClosed
from shared.config_sections import LimitsSection
from shared.ports import Peer
from tests.unit.replica.logs import EPOCH, VM, Tap, write
from tests.unit.replica.rig import (
    DISKS,
    WAIT_SECONDS,
    Dialler,
    Primary,
    Resync,
    World,
    disk_bytes,
    open_body,
    random_content,
)

OTHER_VM = bytes(range(50, 66))


def dialler_of(world: World, agent: ReplicaAgent, host: str = "primary") -> Dialler:
    assert agent.sessions.listener is not None
    return Dialler(world.certificates, agent.sessions.listener.address, host)


async def refusal_of(primary: Primary) -> ChannelClosed:
    """The ERROR that ends the connection."""
    async with asyncio.timeout(WAIT_SECONDS):
        with pytest.raises(ChannelClosed) as info:
            while True:
                message = await primary.channel.receive()
                assert isinstance(message, Applied | Received | RangeSettled), message
    assert info.value.problem is not None, info.value
    return info.value


async def refused_open(dialler: Dialler, **changes: Any) -> ChannelClosed:
    channel = await dialler.greet()
    channel.send(open_body(**changes))
    return await refusal_of(Primary(channel))


async def until(condition: Callable[[], object]) -> None:
    """Wait for what the loop will bring about, such as a heartbeat's answer."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass
class Pair:
    """An agent with a VM that has a baseline, and its open control connection."""

    world: World
    agent: ReplicaAgent
    dialler: Dialler
    control: Primary
    tap: Tap
    rng: random.Random

    def next_resync(self, epoch: bytes = b"n" * 16) -> Resync:
        fresh = self.tap.begin(epoch)
        return Resync(self.dialler, self.control, fresh, self.rng.randbytes(16), ResyncKind.RESYNC, self.tap.epoch)

    async def check_unharmed(self) -> None:
        """I18, I11: what was refused changed nothing, and the next session goes on."""
        self.control.channel.abort()
        self.control, opened = await self.dialler.open(epoch=self.tap.epoch)
        assert opened.epoch == self.tap.epoch
        if opened.resync is not None:
            self.control.channel.send(ResyncCancel(id=opened.resync.id, text="test"))
            await self.control.expect(ResyncCancelled)
        vm = self.agent.vms[VM]
        assert vm.point() == self.tap.ends[self.tap.segment]
        for disk in DISKS:
            assert disk_bytes(self.world, disk.index) == self.tap.cuts[self.tap.segment][disk.index]


@asynccontextmanager
async def replicating(world: World) -> AsyncIterator[Pair]:
    rng = random.Random(11)
    tap = Tap(DISKS)
    random_content(tap, rng)
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        control, _ = await dialler.open()
        await Resync(dialler, control, tap, b"1" * 16).whole(rng)
        await control.send_segment(tap, rng)
        await control.until_applied(tap.position)
        yield Pair(world, agent, dialler, control, tap, rng)


# --- authorization --------------------------------------------------------------------------------------------------


async def test_unknown_certificate_is_refused_and_nothing_is_made(world: World) -> None:
    """I19: default deny, before anything is touched; whoever keeps the records is told who it was."""
    told: list[tuple[Peer, str]] = []
    async with world.agent() as agent:
        agent.sessions.on_refused = lambda peer, text: told.append((peer, text))
        error = await refused_open(dialler_of(world, agent, "other"))
        assert error.code == "unauthorized"
        ((peer, text),) = told
        assert peer.fingerprint and peer.address.startswith("127.0.0.1:") and text
        assert not error.retryable
        assert agent.vms == {}
        assert list(world.storage.iterdir()) == []


async def test_unknown_and_forbidden_vm_get_the_same_answer(world: World) -> None:
    """I19, A6."""
    import uuid

    only = str(uuid.UUID(bytes=VM))
    world.authorize = [world.entry("primary", [only]), world.entry("other", [str(uuid.UUID(bytes=b"z" * 16))])]
    async with world.agent() as agent:
        control, _ = await dialler_of(world, agent).open()
        unknown = await refused_open(dialler_of(world, agent, "other"), vm=OTHER_VM)
        forbidden = await refused_open(dialler_of(world, agent, "other"), vm=VM)
        assert (unknown.text.split(" refused")[1], unknown.remedy) == (
            forbidden.text.split(" refused")[1],
            forbidden.remedy,
        )
        assert unknown.code == forbidden.code == "unauthorized"
        assert not control.channel.closed
        assert set(agent.vms) == {VM}


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/passwd", "\u202egnp.exe", "a\0b", "a\x1b[2J", "x" * 128, "\u0444\u0430"]
)
async def test_name_of_a_vm_leads_nowhere(world: World, name: str) -> None:
    """A14: folders and files are named by the UUID; a name is shown, and nothing else."""
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        if name.isprintable():
            await dialler.open(name=name)
            assert agent.vms[VM].name == name
            assert os.listdir(world.storage) == [str(UUID(bytes=VM))]
        else:
            assert (await refused_open(dialler, name=name)).code == "protocol"
            assert os.listdir(world.storage) == []
        everything = [path.name for path in world.folder.rglob("*")]
        assert not any(name.rpartition("/")[2] == each for each in everything)


async def test_identity_that_is_no_uuid_is_refused(world: World) -> None:
    """A14: bytes of another number than sixteen never get as far as a path."""
    for identity in (b"../../etc", b"\0", b"x" * 4096, b"", "\u0444".encode()):
        async with world.agent() as agent:
            channel = await dialler_of(world, agent).greet()
            body = msgspec.to_builtins(open_body(), builtin_types=(bytes,))
            payload = msgspec.msgpack.encode({**body, "vm": identity})
            header = encode_frame_header(MessageType.OPEN, len(payload), channel.session.token)
            channel._link.write(header + payload)
            error = await refusal_of(Primary(channel))
            assert error.code == "protocol"
            assert os.listdir(world.storage) == []


async def test_name_alone_authorizes(world: World) -> None:
    entry = world.entry("primary")
    world.authorize = [msgspec.structs.replace(entry, fingerprint="", name="OTHER.test")]
    async with world.agent() as agent:
        await dialler_of(world, agent, "other").open()
        assert (await refused_open(dialler_of(world, agent))).code == "unauthorized"


async def test_name_and_fingerprint_must_both_fit(world: World) -> None:
    world.authorize = [msgspec.structs.replace(world.entry("primary"), name="other.test")]
    async with world.agent() as agent:
        assert (await refused_open(dialler_of(world, agent))).code == "unauthorized"
        assert (await refused_open(dialler_of(world, agent, "other"))).code == "unauthorized"


async def test_probe_is_answered_without_touching_a_vm(world: World) -> None:
    async with world.agent() as agent:
        _, opened = await dialler_of(world, agent).open(role=Role.PROBE, vm=bytes(16), disks=[])
        assert (opened.epoch, opened.disks, opened.promoted) == (NO_EPOCH, [], False)
        refused = await refused_open(dialler_of(world, agent, "other"), role=Role.PROBE, vm=bytes(16), disks=[])
        assert refused.code == "unauthorized"
        assert agent.vms == {}


async def test_reload_drops_sessions_that_are_no_longer_authorized(world: World) -> None:
    async with replicating(world) as pair:
        told: list[str] = []
        pair.agent.sessions.on_refused = lambda _peer, text: told.append(text)
        pair.agent.sessions.reauthorize(Authorization())
        assert told == ["This certificate is not authorized for that VM here."] * 2, (
            "the end of control and bulk, which were allowed, is a refusal, too"
        )
        assert (await refusal_of(pair.control)).code == "unauthorized"
        assert (await refused_open(pair.dialler)).code == "unauthorized"
        await pair.agent.reload(world.config())
        await pair.check_unharmed()


async def test_links_of_one_peer_are_capped(world: World) -> None:
    """I13."""
    world.options["limits"] = LimitsSection(extra_sessions=4)
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        channels = [await dialler.greet() for _ in range(7)]
        with pytest.raises(ChannelClosed):
            await dialler.greet()
        channels[0].abort()
        other = await dialler_of(world, agent, "other").greet()
        other.abort()
        for channel in channels:
            channel.abort()


async def test_links_that_name_no_vm_displace_the_oldest_of_their_own_peer(world: World) -> None:
    """I13: a peer with a valid certificate that opens and opens can't keep another one out."""
    world.options["limits"] = LimitsSection(half_open=8, extra_sessions=100)
    async with world.agent() as agent:
        other = await dialler_of(world, agent, "other").greet()
        dialler = dialler_of(world, agent)
        flood = [await dialler.greet() for _ in range(7)]
        more = await dialler.greet()
        await until(lambda: flood[0].closed)
        assert not other.closed
        assert not any(channel.closed for channel in flood[1:])
        limits = agent.status().limits
        assert limits is not None
        assert (limits.unopened, limits.displaced, limits.sessions) == (8, 1, 8)
        for channel in (*flood, more, other):
            channel.abort()


async def test_links_of_all_peers_are_capped_and_told(world: World) -> None:
    world.options["limits"] = LimitsSection(sessions=8, extra_sessions=6)
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        channels = [await dialler.greet() for _ in range(8)]
        for _ in range(3):
            with pytest.raises(ChannelClosed):
                await dialler_of(world, agent, "other").greet()
        limits = agent.status().limits
        assert limits is not None
        assert (limits.sessions, limits.sessions_limit, limits.refused_sessions) == (8, 8, 3)
        for channel in channels:
            channel.abort()
        await until(lambda: not agent.sessions.connected())
        (await dialler_of(world, agent, "other").greet()).abort()


async def test_refusals_are_counted_and_not_all_of_them_logged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    monkeypatch.setattr(sessions_module, "LOGGED_AT_ONCE", 3)
    monkeypatch.setattr(sessions_module.log, "warning", lambda text, **fields: lines.append((text, fields)))
    async with world.agent() as agent:
        for _ in range(5):
            assert (await refused_open(dialler_of(world, agent, "other"))).code == "unauthorized"
        limits = agent.status().limits
        assert limits is not None
        assert limits.refused_unauthorized == 5
    assert len(lines) == 3
    assert {fields["code"] for _, fields in lines} == {"unauthorized"}


async def test_memory_of_all_links_is_counted_and_given_back(world: World) -> None:
    """I13: with no more than one piece at a time everything still goes on."""
    world.options["memory"] = Budget(1)
    async with replicating(world) as pair:
        for _ in range(4):
            await pair.control.send_segment(pair.tap, pair.rng)
        await pair.control.until_applied(pair.tap.position)
        limits = pair.agent.status().limits
        assert limits is not None
        assert limits.memory_limit_bytes == 1
        assert limits.memory_highest_bytes > 0
        await pair.check_unharmed()
        pair.control.channel.abort()
        await until(lambda: not pair.agent.sessions.connected())
        assert pair.agent.surroundings.memory.used == 0


# --- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "disks",
    [
        DISKS[:1],
        (DISKS[0], Geometry(3, 64 << 10, b"b" * 16)),
        (DISKS[0], Geometry(3, 96 << 10, b"x" * 16)),
        (*DISKS, Geometry(7, 512, b"c" * 16)),
    ],
    ids=["fewer", "smaller", "uuid", "more"],
)
async def test_other_geometry_is_refused(world: World, disks: tuple[Geometry, ...]) -> None:
    """I9: the disk and both sides are named."""
    async with world.agent() as agent:
        await dialler_of(world, agent).open()
        error = await refused_open(dialler_of(world, agent), disks=[WireDisk.of(disk) for disk in disks])
        assert error.code == "geometry"
        assert "disk" in error.text


async def test_larger_disks_open_and_nothing_grows_before_a_resync(world: World) -> None:
    """What is here is told as it is; the log of the larger disks is another one and is not taken."""
    larger = (DISKS[0], Geometry(3, 128 << 10, b"b" * 16))
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        await dialler.open()
        _, opened = await dialler.open(disks=[WireDisk.of(disk) for disk in larger])
        assert [disk.geometry() for disk in opened.disks] == list(DISKS)


@pytest.mark.parametrize(
    "disks", [(), (Geometry(0, 513, b"a" * 16),), (Geometry(0, 512, b"a" * 16), Geometry(0, 512, b"b" * 16))]
)
async def test_disks_that_can_not_be_kept_are_refused(world: World, disks: tuple[Geometry, ...]) -> None:
    async with world.agent() as agent:
        error = await refused_open(dialler_of(world, agent), disks=[WireDisk.of(disk) for disk in disks])
        assert error.code == "geometry"
        assert agent.vms == {}


# --- one session at a time ------------------------------------------------------------------------------------------


async def test_newer_session_ends_the_older(world: World) -> None:
    """R13."""
    async with replicating(world) as pair:
        log, seal = pair.tap.random_segment(pair.rng)
        pair.control.log(log)
        second, opened = await pair.dialler.open(epoch=EPOCH)
        assert (await refusal_of(pair.control)).code == "stale"
        assert opened.received is not None
        received = opened.received.position()
        if received.segment != pair.tap.segment:
            second.log(log)
        second.seal(seal)
        await second.received(pair.tap.position)
        pair.control = second
        await second.until_applied(pair.tap.position)
        await pair.check_unharmed()


async def test_many_sessions_at_once_leave_one(world: World) -> None:
    """R13: a crowd of reconnects."""
    async with replicating(world) as pair:

        async def dial() -> Primary | None:
            try:
                primary, _ = await pair.dialler.open(epoch=EPOCH)
            except ChannelClosed:
                return None
            return primary

        opened = [primary for primary in await asyncio.gather(*(dial() for _ in range(5))) if primary]
        assert len(pair.agent.vms[VM].connections) == 1
        log, seal = pair.tap.random_segment(pair.rng)
        answers = 0
        for primary in opened:
            try:
                primary.log(log)
                primary.seal(seal)
                await primary.received(pair.tap.position)
                answers += 1
            except ChannelClosed:
                continue
        assert answers == 1


async def test_second_primary_is_refused_while_the_first_is_well(world: World) -> None:
    world.authorize = [world.entry("primary"), world.entry("other")]
    async with replicating(world) as pair:
        await until(pair.agent.vms[VM].connections.control.channel.healthy)  # type: ignore[union-attr]
        error = await refused_open(dialler_of(world, pair.agent, "other"), epoch=EPOCH)
        assert (error.code, error.retryable) == ("busy", True)
        assert "another primary" in error.text
        await pair.control.send_segment(pair.tap, pair.rng)


async def test_bulk_connection_needs_its_control_connection(world: World) -> None:
    async with replicating(world) as pair:
        error = await refused_open(pair.dialler, role=Role.BULK, control_token=12345)
        assert error.code == "stale"
        token = pair.control.channel.session.token
        bulk, _ = await pair.dialler.open(role=Role.BULK, control_token=token)
        pair.control.channel.abort()
        with pytest.raises(ChannelClosed):
            await bulk.expect(Opened)
        assert (await refused_open(pair.dialler, role=Role.BULK, control_token=token)).code == "stale"
        pair.control, _ = await pair.dialler.open(epoch=EPOCH)


# --- wrong order and content ----------------------------------------------------------------------------------------


async def test_log_without_baseline_is_refused(world: World) -> None:
    async with world.agent() as agent:
        control, _ = await dialler_of(world, agent).open()
        control.log(Tap(DISKS).open())
        assert (await refusal_of(control)).code == "state"


async def test_gap_is_refused_and_nothing_of_it_is_applied(world: World) -> None:
    """I11, N12."""
    async with replicating(world) as pair:
        ahead = Tap(DISKS, segment=pair.tap.segment + 1, entry=pair.tap.entry, chain=pair.tap.chain)
        pair.control.log(ahead.open())
        error = await refusal_of(pair.control)
        assert (error.code, error.retryable) == ("gap", False)
        await pair.check_unharmed()


async def test_wrong_chain_is_refused(world: World) -> None:
    async with replicating(world) as pair:
        other = Tap(DISKS, segment=pair.tap.segment, entry=pair.tap.entry, chain=b"?" * 16)
        pair.control.log(other.open())
        assert (await refusal_of(pair.control)).code == "chain"
        await pair.check_unharmed()


async def test_log_of_another_epoch_is_refused(world: World) -> None:
    async with replicating(world) as pair:
        pair.control.log(pair.tap.begin(b"n" * 16).open())
        assert (await refusal_of(pair.control)).code == "chain"
        await pair.check_unharmed()


async def test_write_outside_its_disk_is_refused(world: World) -> None:
    async with replicating(world) as pair:
        copy = Tap(DISKS, segment=pair.tap.segment, entry=pair.tap.entry, chain=pair.tap.chain)
        copy.content[0].extend(bytes(4096))
        pair.control.log(copy.open() + copy.batch(write(0, DISKS[0].size - 512, b"x" * 1024)))
        assert (await refusal_of(pair.control)).code == "protocol"
        await pair.check_unharmed()


async def test_repeated_segments_are_acknowledged_again(world: World) -> None:
    """I11, N4, N11."""
    async with replicating(world) as pair:
        for number in range(1, pair.tap.segment + 1):
            pair.control.log(pair.tap.sent[number][0])
            pair.control.seal(pair.tap.sent[number][1])
            answer = (await pair.control.expect(Received)).position.position()
            assert answer in (pair.tap.ends[number], pair.tap.position)
        await pair.check_unharmed()


async def test_log_while_a_resync_is_open_elsewhere_is_refused(world: World) -> None:
    """The base that was compared must not move under the differences."""
    async with replicating(world) as pair:
        resync = pair.next_resync()
        await resync.begin()
        pair.control.channel.abort()
        pair.control, opened = await pair.dialler.open(epoch=EPOCH)
        assert opened.resync is not None
        log, _ = pair.tap.random_segment(pair.rng)
        pair.control.log(log)
        assert (await refusal_of(pair.control)).code == "state"
        del pair.tap.ends[pair.tap.segment]
        pair.tap.segment -= 1
        await pair.check_unharmed()


BAD_BEGINS: dict[str, tuple[dict[str, Any], str]] = {
    "known epoch": ({"epoch": EPOCH}, "state"),
    "no epoch": ({"epoch": NO_EPOCH}, "state"),
    "initial over a point": ({"kind": ResyncKind.INITIAL}, "state"),
    "unknown hash": ({"hash": "md5"}, "version"),
    "short key": ({"key": b"k" * 16}, "protocol"),
    "tiny blocks": ({"block_size": 512}, "protocol"),
    "odd blocks": ({"block_size": 65535}, "protocol"),
    "huge blocks": ({"block_size": 32 << 20}, "protocol"),
}


@pytest.mark.parametrize("case", BAD_BEGINS)
async def test_wrong_begin_is_refused(world: World, case: str) -> None:
    changes, code = BAD_BEGINS[case]
    async with replicating(world) as pair:
        pair.control.channel.send(pair.next_resync().begin_body(**changes))
        assert (await refusal_of(pair.control)).code == code
        await pair.check_unharmed()


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "other resync": ({"id": b"x" * 16}, "stale"),
    "other round": ({"round": 2}, "stale"),
    "other key": ({"key_id": b"x" * 16}, "stale"),
    "unknown disk": ({"disk": 9}, "protocol"),
    "unaligned": ({"offset": 512}, "protocol"),
    "past the end": ({"offset": 256 << 10, "length": BLOCK_SIZE}, "protocol"),
    "half a block": ({"length": 4096}, "protocol"),
    "nothing": ({"length": 0}, "protocol"),
    "far": ({"offset": (1 << 62), "length": BLOCK_SIZE}, "protocol"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_wrong_manifest_request_is_refused(world: World, case: str) -> None:
    """R23, A12."""
    changes, code = BAD_REQUESTS[case]
    async with replicating(world) as pair:
        resync = pair.next_resync()
        await resync.begin()
        assert resync.bulk is not None
        body = {"disk": 0, "offset": 0, "length": BLOCK_SIZE, **changes}
        resync.bulk.channel.send(resync.request(**body))
        assert (await refusal_of(resync.bulk)).code == code
        await pair.check_unharmed()


async def test_manifest_request_without_begin_is_refused(world: World) -> None:
    async with replicating(world) as pair:
        resync = pair.next_resync()
        token = pair.control.channel.session.token
        bulk, _ = await pair.dialler.open(role=Role.BULK, control_token=token)
        bulk.channel.send(resync.request(0, 0, BLOCK_SIZE))
        assert (await refusal_of(bulk)).code == "state"
        await pair.check_unharmed()


async def test_range_that_was_not_compared_is_not_settled(world: World) -> None:
    """R24, I15: only what was hashed counts as equal."""
    async with replicating(world) as pair:
        resync = pair.next_resync()
        await resync.begin()
        assert resync.bulk is not None
        resync.bulk.channel.send(resync.done(0, 0, DISKS[0].size))
        assert (await refusal_of(resync.bulk)).code == "protocol"
        assert pair.agent.vms[VM].connections.opened().resync is not None
        await pair.check_unharmed()


@pytest.mark.parametrize("case", ["before the manifest", "outside the range", "discard", "other resync"])
async def test_wrong_blocks_are_refused(world: World, case: str) -> None:
    async with replicating(world) as pair:
        resync = pair.next_resync()
        await resync.begin()
        assert resync.bulk is not None
        identity, entry = resync.identity, encode_blocks_entry(0, 0, 4096, zero=True)
        if case != "before the manifest":
            resync.bulk.channel.send(resync.request(0, 0, BLOCK_SIZE))
            await resync.bulk.manifest()
        if case == "outside the range":
            entry = encode_blocks_entry(0, BLOCK_SIZE - 512, 1024, zero=True)
        elif case == "discard":
            entry = encode_entry(0, EntryKind.DISCARD, 0, 4096)
        elif case == "other resync":
            identity = b"x" * 16
        resync.bulk.channel.send_bulk(MessageType.BLOCKS, encode_blocks(identity, 1, [entry], []))
        expected = "stale" if case == "other resync" else "protocol"
        assert (await refusal_of(resync.bulk)).code == expected
        await pair.check_unharmed()


async def test_commit_before_all_is_settled_is_refused(world: World) -> None:
    """I7."""
    async with replicating(world) as pair:
        resync = pair.next_resync()
        await resync.begin()
        await resync.compare_range(DISKS[0], 0, DISKS[0].size)
        await resync.send_tracked(pair.rng)
        end = WirePosition.of(resync.tap.position)
        pair.control.channel.send(Commit(id=resync.identity, round=1, end=end))
        assert (await refusal_of(pair.control)).code == "state"
        await pair.check_unharmed()


@pytest.mark.parametrize("case", ["segment", "entry", "chain", "epoch", "id", "round"])
async def test_commit_to_another_end_is_refused(world: World, case: str) -> None:
    """I7, A25."""
    async with replicating(world) as pair:
        resync = pair.next_resync()
        await resync.begin()
        await resync.compare()
        await resync.send_tracked(pair.rng)
        end, identity, number = resync.tap.position, resync.identity, 1
        match case:
            case "segment":
                end = end._replace(segment=end.segment + 1)
            case "entry":
                end = end._replace(entry=end.entry + 1)
            case "chain":
                end = end._replace(chain=b"?" * 16)
            case "epoch":
                end = end._replace(epoch=b"?" * 16)
            case "id":
                identity = b"x" * 16
            case "round":
                number = 2
        pair.control.channel.send(Commit(id=identity, round=number, end=WirePosition.of(end)))
        assert (await refusal_of(pair.control)).code in ("gap", "chain", "stale")
        await pair.check_unharmed()


async def test_cancel_leaves_everything_as_it_was(world: World) -> None:
    """I7."""
    async with replicating(world) as pair:
        resync = pair.next_resync()
        resync.tap.content[0][:10] = b"unlogged!!"
        await resync.begin()
        await resync.compare()
        await resync.send_tracked(pair.rng)
        pair.control.channel.send(ResyncCancel(id=resync.identity, text="enough"))
        await pair.control.expect(ResyncCancelled)
        vm = pair.agent.vms[VM]
        assert vm.connections.opened().resync is None
        assert vm.connections.opened().state == "Replicating", "nothing of this side asks for one"
        assert list((world.folder_of() / "resync").iterdir()) == []
        assert all(path.name.startswith("free-") for path in (world.folder_of() / "spool").iterdir())
        await pair.check_unharmed()


async def test_cancel_crosses_nothing_after_the_commit(world: World) -> None:
    """I7: past the commit there is no way back."""
    async with replicating(world) as pair:
        resync = pair.next_resync()
        await resync.begin()
        await resync.compare()
        await resync.send_tracked(pair.rng)
        await resync.commit()
        pair.control.channel.send(ResyncCancel(id=resync.identity, text="too late"))
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(ChannelClosed):
                while True:
                    message = await pair.control.channel.receive()
                    if isinstance(message, ResyncCancelled):
                        # The merge was over already: nothing of that name is open any more.
                        break
                raise ChannelClosed("merged before")
        pair.control.channel.abort()
        pair.control, opened = await pair.dialler.open(epoch=resync.tap.epoch)
        assert opened.epoch == resync.tap.epoch
        async with asyncio.timeout(WAIT_SECONDS):
            await pair.agent.vms[VM].parts.applier.caught_up()
        assert pair.agent.vms[VM].point() == resync.tap.position


async def test_resync_goes_on_in_the_next_session(world: World) -> None:
    """R35: what is settled is not compared again, under a fresh key."""
    async with replicating(world) as pair:
        resync = pair.next_resync()
        resync.tap.content[0][:10] = b"unlogged!!"
        await resync.begin()
        await resync.compare_range(DISKS[0], 0, DISKS[0].size)
        pair.control.channel.abort()
        again, opened = await pair.dialler.open(epoch=EPOCH)
        assert opened.resync is not None
        assert opened.resync.settled_bytes == DISKS[0].size
        resumed = Resync(pair.dialler, again, resync.tap, resync.identity, ResyncKind.RESYNC, EPOCH)
        ready = await resumed.begin()
        assert [(run.disk, run.offset, run.length) for run in ready.settled] == [(0, 0, DISKS[0].size)]
        await resumed.compare_range(DISKS[1], 0, DISKS[1].size)
        await resumed.send_tracked(pair.rng)
        await resumed.commit()
        await again.until_applied(resumed.tap.position)
        assert pair.agent.vms[VM].point() == resumed.tap.position
        for disk in DISKS:
            assert disk_bytes(world, disk.index) == resumed.tap.content[disk.index]


async def test_another_resync_replaces_the_open_one(world: World) -> None:
    """A stale resync is dropped, with what it tracked."""
    async with replicating(world) as pair:
        first = pair.next_resync()
        await first.begin()
        await first.compare()
        await first.send_tracked(pair.rng)
        pair.control.channel.abort()
        pair.control, _ = await pair.dialler.open(epoch=EPOCH)
        second = pair.next_resync(b"o" * 16)
        second.tap.content[0][:10] = b"unlogged!!"
        ready = await second.begin()
        assert ready.settled == []
        assert len(list((world.folder_of() / "resync").iterdir())) == 1
        await second.compare()
        await second.send_tracked(pair.rng)
        await second.commit()
        await pair.control.until_applied(second.tap.position)
        for disk in DISKS:
            assert disk_bytes(world, disk.index) == second.tap.content[disk.index]


async def test_begin_of_a_lost_answer_is_repeated(world: World) -> None:
    """N4: BEGIN, COMMIT and their answers may be lost; OPENED tells (R33)."""
    async with replicating(world) as pair:
        resync = pair.next_resync()
        await resync.begin()
        await resync.compare()
        await resync.send_tracked(pair.rng)
        end = resync.tap.position
        pair.control.channel.send(Commit(id=resync.identity, round=1, end=WirePosition.of(end)))
        await pair.control.expect(Committed)
        pair.control.channel.abort()
        pair.control, opened = await pair.dialler.open(epoch=EPOCH, proposed=resync.tap.epoch)
        assert opened.epoch == resync.tap.epoch
        assert opened.resync is None
        assert opened.received is not None
        assert opened.received.position() == end


async def test_suspended_vm_takes_no_session(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await vm.suspend()
        assert (await refusal_of(pair.control)).code == "busy"
        error = await refused_open(pair.dialler, epoch=EPOCH)
        assert (error.code, error.retryable) == ("busy", True)
        assert "suspended" in error.text
        await vm.resume()
        await pair.check_unharmed()


async def test_copy_in_another_location_is_nobody_elses(world: World) -> None:
    """I19, T2: an entry for all VMs gives no right to what another host keeps in a location of its own."""
    elsewhere = msgspec.structs.replace(world.entry("other"), storage=str(world.folder / "elsewhere"))
    world.authorize = [world.entry("primary"), elsewhere]
    async with world.agent() as agent:
        await dialler_of(world, agent).open()
        taken = await refused_open(dialler_of(world, agent, "other"))
        assert taken.code == "unauthorized"
        _, opened = await dialler_of(world, agent, "other").open(vm=OTHER_VM)
        assert opened.state == "ReadyForInitialReplication"
        assert agent.vms[OTHER_VM].parts.layout.folder.startswith(str(world.folder / "elsewhere"))


async def test_name_that_can_not_be_printed_is_refused(world: World) -> None:
    async with world.agent() as agent:
        error = await refused_open(dialler_of(world, agent), name="web\x1b[2J")
        assert error.code == "protocol"
        assert agent.vms == {}
