"""The channel, on virtual time and a simulated wire: deadlines, heartbeats, back-pressure, and every way to end.

The last tests run over real sockets.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any

import pytest
import xxhash

from protocol.bulk import Bulk
from protocol.errors import ProtocolError
from protocol.frames import FRAME_HEADER_BYTES, MAX_FRAME_PAYLOAD, Frame, FrameReader, encode_frame_header
from protocol.messages import (
    Body,
    Close,
    ErrorCode,
    Heartbeat,
    Hello,
    MessageType,
    Opened,
    Problem,
    Received,
    Role,
    Welcome,
    decode_body,
    encode_body,
)
from protocol.session import Identity, PrimarySession, ReplicaSession, SessionState
from shared.channel import (
    CLOSING_SECONDS,
    DEAD_AFTER_SECONDS,
    HANDSHAKE_SECONDS,
    HEARTBEAT_SECONDS,
    PROGRESS_SECONDS,
    UNREAD_SECONDS,
    Channel,
    ChannelClosed,
)
from shared.patience import ANSWERS, PATIENCE_MAX_SECONDS, SHORTEST_INTERVAL_SECONDS
from shared.ports import Address, Link, Peer
from shared.ports.clock import RealClock
from shared.ports.network import RealNetwork
from shared.refusing import describe
from tests.simulation.loop import Process, SimulationLoop
from tests.simulation.net import SimulatedNetwork, Wire
from tests.vectors.cases import forged_header
from tests.vectors.messages import EXAMPLES, TOKEN

ADDRESS = Address(host="replica", port=1)
PRIMARY = Identity("vmreplica 0.1.0", "alpha", capabilities=("zstd",))
REPLICA = Identity("vmreplica 0.1.0", "beta", capabilities=("zstd",))
HEARTBEAT = EXAMPLES[MessageType.HEARTBEAT]
TICK = 1.0


class LoopClock:
    """The simulated loop's time as a clock port."""

    def __init__(self, loop: SimulationLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return 1_700_000_000 + self._loop.time()

    def boot_id(self) -> str:
        return "boot"

    def zone(self) -> tzinfo:
        return UTC


class RawEnd:
    """A peer that minds no rule: sends any bytes, reads only when told."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.reader = FrameReader(MAX_FRAME_PAYLOAD)
        self.frames: list[Frame] = []
        self.ended = asyncio.Event()
        link.attach(self)

    def get_buffer(self, size_hint: int) -> memoryview:
        return self.reader.get_buffer(size_hint)

    def buffer_updated(self, count: int) -> None:
        self.frames += self.reader.buffer_updated(count)

    def lost(self, error: Exception | None) -> None:
        self.ended.set()

    def say(self, body: Body, kind: MessageType, token: int = TOKEN) -> None:
        payload = encode_body(body)
        self.link.write(encode_frame_header(kind, len(payload), token) + payload)

    def heard(self, kind: MessageType) -> list[Body]:
        return [decode_body(kind, frame.payload) for frame in self.frames if frame.type is kind]


class World:
    """Two hosts and the wire between them."""

    def __init__(self, loop: SimulationLoop) -> None:
        self.loop = loop
        self.clock = LoopClock(loop)
        self.wire = Wire(loop, random.Random(1))
        self.here = SimulatedNetwork(self.wire, Process("primary", loop), "alpha", Peer(address="alpha:2"))
        self.there = SimulatedNetwork(self.wire, Process("replica", loop), "beta", Peer(address="beta:1"))

    async def links(self) -> tuple[Link, Link]:
        accepted: asyncio.Future[Link] = self.loop.create_future()
        listener = await self.there.listen(ADDRESS, accepted.set_result)
        link = await self.here.connect(ADDRESS, timeout=5)
        await listener.close()
        return link, await accepted

    async def pair(self, *, queue_bytes: int = 8 << 20, greeted: bool = True) -> tuple[Channel, Channel]:
        mine, yours = await self.links()
        primary = Channel(mine, PrimarySession(PRIMARY), self.clock, queue_bytes=queue_bytes)
        replica = Channel(yours, ReplicaSession(REPLICA, TOKEN), self.clock, queue_bytes=queue_bytes)
        if greeted:
            await asyncio.gather(primary.greet(), replica.greet())
        return primary, replica

    async def open_pair(self, *, queue_bytes: int = 8 << 20) -> tuple[Channel, Channel]:
        primary, replica = await self.pair(queue_bytes=queue_bytes)
        primary.send(EXAMPLES[MessageType.OPEN])
        await replica.receive()
        replica.send(EXAMPLES[MessageType.OPENED])
        assert isinstance(await primary.receive(), Opened)
        return primary, replica

    async def replica_and_raw(
        self, *, upto: SessionState = SessionState.OPEN, **options: Any
    ) -> tuple[Channel, RawEnd]:
        """A replica's channel, and a primary that minds no rule, in the given state."""
        mine, yours = await self.links()
        replica = Channel(yours, ReplicaSession(REPLICA, TOKEN), self.clock, **options)
        raw = RawEnd(mine)
        if upto is SessionState.NEW:
            return replica, raw
        raw.say(PrimarySession(PRIMARY).hello(), MessageType.HELLO, 0)
        await replica.greet()
        if upto is SessionState.OPEN:
            raw.say(EXAMPLES[MessageType.OPEN], MessageType.OPEN)
            await replica.receive()
            replica.send(EXAMPLES[MessageType.OPENED])
        return replica, raw


def simulated(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    """Run the test on virtual time."""

    def run() -> None:
        loop = SimulationLoop(max_steps=2_000_000)

        async def main() -> None:
            await test(World(loop))

        try:
            loop.run_until_complete(main())
            assert loop.errors == []
        finally:
            loop.dismantle()

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


async def ending(channel: Channel) -> Exception:
    """What the channel ends with; messages before it are dropped."""
    while True:
        try:
            await channel.receive()
        except (ChannelClosed, ProtocolError) as error:
            return error


# --- greeting and talking ------------------------------------------------------------------------------------------


@simulated
async def test_sides_greet_and_know_each_other(world: World) -> None:
    primary, replica = await world.pair(greeted=False)
    welcome, hello = await asyncio.gather(primary.greet(), replica.greet())
    assert isinstance(welcome, Welcome)
    assert isinstance(hello, Hello)
    assert (welcome.host, hello.host) == ("beta", "alpha")
    assert primary.session.token == replica.session.token == TOKEN
    assert primary.peer.address == "beta:1"


@simulated
async def test_messages_come_in_order_in_both_directions(world: World) -> None:
    primary, replica = await world.open_pair()
    world.wire.splits = 0.5
    for number in range(30):
        primary.send_bulk(MessageType.LOG, [bytes([number]) * 8, bytes(1 + number * 3000)])
        replica.send(EXAMPLES[MessageType.RECEIVED])
    for number in range(30):
        log = await replica.receive()
        assert isinstance(log, Bulk)
        assert bytes(log.payload) == bytes([number]) * 8 + bytes(1 + number * 3000)
        assert isinstance(await primary.receive(), Received)


@simulated
async def test_bytes_are_counted_on_both_sides(world: World) -> None:
    primary, replica = await world.open_pair()
    before = replica.bytes_received
    assert (primary.bytes_sent, replica.bytes_sent) == (replica.bytes_received, primary.bytes_received)
    primary.send_bulk(MessageType.LOG, [bytes(1000)])
    await replica.receive()
    assert replica.bytes_received == primary.bytes_sent == before + FRAME_HEADER_BYTES + 1000


@simulated
async def test_received_payload_belongs_to_the_receiver(world: World) -> None:
    primary, replica = await world.open_pair()
    for content in (b"a", b"b"):
        primary.send_bulk(MessageType.LOG, [content * 200_000])
    first, second = await replica.receive(), await replica.receive()
    assert isinstance(first, Bulk)
    assert isinstance(second, Bulk)
    memoryview(first.payload)[:] = b"x" * 200_000
    assert bytes(second.payload) == b"b" * 200_000


@simulated
async def test_forbidden_message_is_the_senders_error_and_harms_nothing(world: World) -> None:
    primary, replica = await world.open_pair()
    with pytest.raises(ProtocolError, match="RECEIVED from the primary"):
        primary.send(EXAMPLES[MessageType.RECEIVED])
    primary.send_bulk(MessageType.LOG, [b"12345678"])
    assert isinstance(await replica.receive(), Bulk)


# --- heartbeats ----------------------------------------------------------------------------------------------------


@simulated
async def test_proof_needs_an_echo_of_what_is_sent_now(world: World) -> None:
    """I20: each proof is an exchange of its own, however lately another one was echoed."""
    primary, replica = await world.open_pair()
    await asyncio.sleep(1)
    assert primary.healthy()
    for channel in (primary, replica, primary):
        before = channel.bytes_sent
        assert await channel.prove()
        assert channel.bytes_sent > before
    world.wire.partition()
    assert primary.healthy(), "its last echo is still young"
    assert not await primary.prove()


@simulated
async def test_proofs_in_a_row_take_a_round_trip_each(world: World) -> None:
    """I20: an order that follows a greeting or another order at once does not wait until the peer's ration grows."""
    primary, _replica = await world.open_pair()
    began = world.loop.time()
    for _ in range(3):
        assert await primary.prove()
    assert world.loop.time() - began < 8 * world.wire.slow + 0.01


@simulated
async def test_greeted_channel_is_healthy_after_one_round_trip(world: World) -> None:
    primary, replica = await world.pair(greeted=False)
    assert not primary.healthy()
    await asyncio.gather(primary.greet(), replica.greet())
    await asyncio.sleep(0.5)
    assert primary.healthy()
    assert replica.healthy()
    assert primary.rtt is not None
    assert 0 < primary.rtt < 2 * world.wire.slow + 0.001


@simulated
async def test_idle_channel_lives_for_hours_on_few_heartbeats(world: World) -> None:
    primary, replica = await world.open_pair()
    before = primary.bytes_sent
    await asyncio.sleep(3600)
    assert primary.healthy()
    assert replica.healthy()
    # In each interval one of our own and one answer.
    beats = (primary.bytes_sent - before) / (FRAME_HEADER_BYTES + len(encode_body(HEARTBEAT)) + 16)
    assert 3600 / HEARTBEAT_SECONDS * 0.9 < beats < 3600 / HEARTBEAT_SECONDS * 2.5


@simulated
async def test_silent_peer_is_dead_in_time(world: World) -> None:
    """N2: a black hole is found without TCP's help; until then the channel stops calling itself healthy."""
    primary, replica = await world.open_pair()
    await asyncio.sleep(20)
    assert primary.healthy()
    world.wire.partition()
    start = world.loop.time()
    errors = await asyncio.gather(ending(primary), ending(replica))
    assert DEAD_AFTER_SECONDS - HEARTBEAT_SECONDS <= world.loop.time() - start <= DEAD_AFTER_SECONDS + 2 * TICK
    for error in errors:
        assert isinstance(error, ChannelClosed)
        assert error.code == "unreachable"
        assert error.retryable
        assert "silent" in str(error)
    assert not primary.healthy()


@simulated
async def test_short_silence_is_survived(world: World) -> None:
    primary, replica = await world.open_pair()
    world.wire.partition()
    await asyncio.sleep(DEAD_AFTER_SECONDS * 0.6)
    world.wire.heal()
    await asyncio.sleep(60)
    assert primary.healthy()
    assert replica.healthy()


@simulated
async def test_connectivity_is_proven_both_ways_or_not_at_all(world: World) -> None:
    """I20: a peer that we hear, but that does not hear us, is not healthy."""
    replica, raw = await world.replica_and_raw()
    for number in range(1, 8):
        raw.say(Heartbeat(number=number, echo=0, wall_ns=0), MessageType.HEARTBEAT)
        await asyncio.sleep(HEARTBEAT_SECONDS)
    assert not replica.closed
    assert not replica.healthy()
    sent = raw.heard(MessageType.HEARTBEAT)[-1]
    assert isinstance(sent, Heartbeat)
    raw.say(Heartbeat(number=8, echo=sent.number, wall_ns=0), MessageType.HEARTBEAT)
    await asyncio.sleep(0.1)
    assert replica.healthy()


@simulated
async def test_flood_of_heartbeats_is_not_answered_one_by_one(world: World) -> None:
    _replica, raw = await world.replica_and_raw()
    for number in range(1, 2000):
        raw.say(Heartbeat(number=number, echo=0, wall_ns=0), MessageType.HEARTBEAT)
    await asyncio.sleep(1)
    # Its own, four that are let through at once, and what the second brings.
    assert len(raw.heard(MessageType.HEARTBEAT)) <= 6


@simulated
async def test_peer_that_sends_but_does_not_read_is_cut_off(world: World) -> None:
    """N8: our heartbeats never come back, so what we send piles up at the peer."""
    replica, raw = await world.replica_and_raw()
    raw.link.pause()
    start = world.loop.time()
    failure = asyncio.ensure_future(ending(replica))
    number = 0
    while not failure.done():
        number += 1
        raw.say(Heartbeat(number=number, echo=0, wall_ns=0), MessageType.HEARTBEAT)
        await asyncio.sleep(1)
    assert "did not read" in str(failure.result())
    assert UNREAD_SECONDS - TICK <= world.loop.time() - start <= UNREAD_SECONDS + HEARTBEAT_SECONDS + 2 * TICK


# --- hosts that are not configured alike ---------------------------------------------------------------------------


async def unlike_pair(world: World, mine: tuple[float, float], yours: tuple[float, float]) -> tuple[Channel, Channel]:
    """A greeted pair; of each side its heartbeat interval and after how long a silence it ends, in seconds."""
    here, there = await world.links()
    first, second = (replace(PRIMARY, heartbeat_seconds=mine[0]), replace(REPLICA, heartbeat_seconds=yours[0]))
    primary = Channel(here, PrimarySession(first), world.clock, heartbeat=mine[0], dead_after=mine[1])
    replica = Channel(
        there, ReplicaSession(second, TOKEN), world.clock, heartbeat=yours[0], dead_after=yours[1], queue_bytes=2048
    )
    await asyncio.gather(primary.greet(), replica.greet())
    primary.send(EXAMPLES[MessageType.OPEN])
    await replica.receive()
    replica.send(EXAMPLES[MessageType.OPENED])
    await primary.receive()
    return primary, replica


@pytest.mark.parametrize(
    ("mine", "yours"),
    [
        ((5.0, 15.0), (60.0, 180.0)),
        ((0.5, 1.0), (5.0, 15.0)),
        ((60.0, 180.0), (5.0, 15.0)),
        ((1.0, 3.0), (1800.0, 3600.0)),
    ],
)
def test_hosts_with_other_intervals_stay_together(mine: tuple[float, float], yours: tuple[float, float]) -> None:
    """Neither ends a peer for beating as rarely as it said that it would; and each gets its echoes in its own time."""

    @simulated
    async def test(world: World) -> None:
        primary, replica = await unlike_pair(world, mine, yours)
        for _ in range(40):
            await asyncio.sleep(97.3)
            assert not primary.reason
            assert not replica.reason
            assert primary.healthy()
            assert replica.healthy()
        assert await primary.prove()

    test()


@simulated
async def test_peer_that_does_not_read_for_a_while_is_judged_by_what_it_told(world: World) -> None:
    """Its queue is full, so that it answers no heartbeat; its own ones, as rare as it said, are enough."""
    primary, replica = await unlike_pair(world, (0.5, 1.0), (5.0, 15.0))
    for _ in range(4):
        primary.send_bulk(MessageType.LOG, [bytes(1024)])
    await asyncio.sleep(60)
    assert primary.healthy() is False, "it is full, and does not read"
    assert not primary.reason
    assert not replica.reason


@simulated
async def test_silence_is_found_whatever_interval_a_peer_told(world: World) -> None:
    """No peer switches the detection off by telling that it beats once an hour."""
    primary, replica = await unlike_pair(world, (5.0, 15.0), (3600.0, 3600.0))
    await asyncio.sleep(100)
    world.wire.partition()
    start = world.loop.time()
    assert "silent" in str(await ending(primary))
    assert world.loop.time() - start <= PATIENCE_MAX_SECONDS + 2 * TICK
    replica.abort()


@simulated
async def test_peer_that_tells_an_interval_of_nothing_gets_no_answers_without_end(world: World) -> None:
    mine, yours = await world.links()
    replica, raw = Channel(yours, ReplicaSession(REPLICA, TOKEN), world.clock), RawEnd(mine)
    raw.say(PrimarySession(replace(PRIMARY, heartbeat_seconds=0.0)).hello(), MessageType.HELLO, 0)
    await replica.greet()
    for number in range(1, 5000):
        raw.say(Heartbeat(number=number, echo=0, wall_ns=0), MessageType.HEARTBEAT)
        await asyncio.sleep(0.001)
    assert len(raw.heard(MessageType.HEARTBEAT)) < 5 * ANSWERS / SHORTEST_INTERVAL_SECONDS + 2 * ANSWERS
    assert len(raw.heard(MessageType.HEARTBEAT)) > ANSWERS


@simulated
async def test_process_that_did_not_run_does_not_blame_the_peer(world: World) -> None:
    """P11: after a stop of this process, what the peer sent meanwhile is read before it is judged."""
    primary, replica = await world.open_pair()
    await asyncio.sleep(7)
    world.loop.call_soon(lambda: setattr(world.loop, "now", world.loop.now + 60))
    await asyncio.sleep(1)
    assert not primary.closed
    assert not replica.closed
    await asyncio.sleep(30)
    assert primary.healthy()
    assert replica.healthy()


# --- deadlines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "upto, missing", [(SessionState.NEW, "HELLO"), (SessionState.READY, "OPEN")], ids=["hello", "open"]
)
def test_accepting_side_waits_only_so_long(upto: SessionState, missing: str) -> None:
    """A16: a half-open connection is cut off, however alive it looks."""

    @simulated
    async def test(world: World) -> None:
        replica, raw = await world.replica_and_raw(upto=upto)
        start = world.loop.time()
        failure = asyncio.ensure_future(ending(replica))
        number = 0
        while not failure.done():
            if upto is SessionState.READY:
                number += 1
                raw.say(Heartbeat(number=number, echo=number, wall_ns=0), MessageType.HEARTBEAT)
            await asyncio.sleep(0.5)
        assert f"no {missing} " in str(failure.result())
        assert HANDSHAKE_SECONDS - TICK <= world.loop.time() - start <= HANDSHAKE_SECONDS + 3 * TICK
        assert raw.ended.is_set()

    test()


@simulated
async def test_dialling_side_waits_only_so_long_for_the_welcome(world: World) -> None:
    mine, yours = await world.links()
    raw = RawEnd(yours)
    primary = Channel(mine, PrimarySession(PRIMARY), world.clock)
    start = world.loop.time()
    with pytest.raises(ChannelClosed, match="silent|WELCOME"):
        await primary.greet()
    assert world.loop.time() - start <= DEAD_AFTER_SECONDS + 2 * TICK
    await raw.ended.wait()


@simulated
async def test_answer_to_open_may_take_long(world: World) -> None:
    """R13: the replica may have to end an older session first; heartbeats show that it lives."""
    primary, replica = await world.pair()
    primary.send(EXAMPLES[MessageType.OPEN])
    await replica.receive()
    await asyncio.sleep(300)
    replica.send(EXAMPLES[MessageType.OPENED])
    assert isinstance(await primary.receive(), Opened)


@simulated
async def test_frame_that_crawls_is_cut_off(world: World) -> None:
    """A16: a byte a second keeps nobody waiting for a frame that never comes."""
    replica, raw = await world.replica_and_raw()
    raw.link.write(encode_frame_header(MessageType.LOG, 100_000, TOKEN))
    start = world.loop.time()
    failure = asyncio.ensure_future(ending(replica))
    while not failure.done():
        raw.link.write(b"x")
        await asyncio.sleep(1)
    assert "of a message" in str(failure.result())
    assert PROGRESS_SECONDS - TICK <= world.loop.time() - start <= PROGRESS_SECONDS + 3 * TICK


@simulated
async def test_frame_that_is_slow_but_moves_arrives(world: World) -> None:
    replica, raw = await world.replica_and_raw()
    raw.link.write(encode_frame_header(MessageType.LOG, 10_000, TOKEN))
    for _ in range(50):
        raw.link.write(bytes(200))
        await asyncio.sleep(1)
    message = await replica.receive()
    assert isinstance(message, Bulk)
    assert len(message.payload) == 10_000


# --- back-pressure -------------------------------------------------------------------------------------------------


@simulated
async def test_unread_messages_are_bounded_and_the_sender_waits(world: World) -> None:
    """I13: above its bound the link is paused; below half of it, it goes on; nothing is lost."""
    limit = 1 << 20
    primary, replica = await world.open_pair(queue_bytes=limit)
    sent = 0

    async def send() -> None:
        nonlocal sent
        for number in range(100):
            primary.send_bulk(MessageType.LOG, [number.to_bytes(8, "little"), bytes(100_000)])
            sent += 1
            await primary.drain()

    sending = asyncio.ensure_future(send())
    await asyncio.sleep(DEAD_AFTER_SECONDS * 4)
    assert not sending.done()
    assert replica.bytes_received < limit + 400_000
    assert sent * 100_000 < limit + 1_000_000
    assert not primary.closed
    assert not replica.closed, "a peer that was not listened to is not silent"
    for number in range(100):
        message = await replica.receive()
        assert isinstance(message, Bulk)
        assert bytes(message.payload[:8]) == number.to_bytes(8, "little")
    await sending


@simulated
async def test_many_small_messages_are_bounded_too(world: World) -> None:
    limit = 1 << 20
    replica, raw = await world.replica_and_raw(queue_bytes=limit)
    one = encode_frame_header(MessageType.LOG, 8, TOKEN) + bytes(8)
    for _ in range(200):
        raw.link.write(one * 200)
    await asyncio.sleep(5)
    assert replica.bytes_received < limit / 8
    for _ in range(200 * 200):
        assert isinstance(await replica.receive(), Bulk)


@simulated
async def test_messages_wait_for_their_reader_through_the_end(world: World) -> None:
    primary, replica = await world.open_pair()
    primary.send_bulk(MessageType.LOG, [b"first---"])
    primary.send_bulk(MessageType.LOG, [b"second--"])
    await primary.close("done")
    await asyncio.sleep(1)
    assert replica.closed
    for content in (b"first---", b"second--"):
        message = await replica.receive()
        assert isinstance(message, Bulk)
        assert bytes(message.payload) == content
    with pytest.raises(ChannelClosed, match="done"):
        await replica.receive()


# --- endings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage, code",
    [
        (b"GET / HTTP/1.1\r\nHost: replica\r\n\r\n", "protocol"),
        (forged_header(kind=99), "protocol"),
        (forged_header(version=9), "version"),
        (forged_header(kind=MessageType.LOG, length=2**32 - 1), "protocol"),
        (encode_frame_header(MessageType.CLOSE, 4, TOKEN) + b"\xff\xff\xff\xff", "protocol"),
        (encode_frame_header(MessageType.LOG, 8, TOKEN + 1) + bytes(8), "state"),
        (encode_frame_header(MessageType.RECEIVED, 8, TOKEN) + bytes(8), "state"),
        (encode_frame_header(MessageType.LOG, 8, TOKEN, raw_length=100) + bytes(8), ""),
    ],
    ids=["http", "type", "version", "4-gib", "no-msgpack", "old-token", "wrong-side", "compressed"],
)
def test_bad_input_ends_this_channel_with_a_typed_error(garbage: bytes, code: str) -> None:
    """I18, A10, A11: what came before is delivered, the peer is told, the owner gets a typed error."""

    @simulated
    async def test(world: World) -> None:
        replica, raw = await world.replica_and_raw()
        raw.link.write(encode_frame_header(MessageType.LOG, 8, TOKEN) + b"good-log" + garbage)
        good = await replica.receive()
        assert isinstance(good, Bulk)
        assert bytes(good.payload) == b"good-log"
        if not code:
            bad = await replica.receive()
            assert isinstance(bad, Bulk)
            with pytest.raises(ProtocolError, match="zstd"):
                bad.content()
            return
        with pytest.raises(ProtocolError) as error:
            await replica.receive()
        assert error.value.code == code
        await raw.ended.wait()
        (problem,) = raw.heard(MessageType.ERROR)
        assert isinstance(problem, Problem)
        assert problem.code == code
        with pytest.raises(ProtocolError):
            replica.send(EXAMPLES[MessageType.RECEIVED])

    test()


@simulated
async def test_garbage_in_place_of_a_greeting_is_refused_at_once(world: World) -> None:
    replica, raw = await world.replica_and_raw(upto=SessionState.NEW)
    raw.link.write(bytes(range(256)))
    with pytest.raises(ProtocolError, match="no frame"):
        await replica.greet()
    await raw.ended.wait()
    assert len(raw.heard(MessageType.ERROR)) == 1


@simulated
async def test_different_versions_are_told_to_both(world: World) -> None:
    mine, yours = await world.links()
    primary = Channel(mine, PrimarySession(Identity("a", "alpha", versions=(7,))), world.clock)
    replica = Channel(yours, ReplicaSession(REPLICA, TOKEN), world.clock)
    here, there = await asyncio.gather(primary.greet(), replica.greet(), return_exceptions=True)
    assert isinstance(there, ProtocolError)
    assert isinstance(here, ChannelClosed)
    assert (here.code, here.retryable) == ("version", False)
    assert here.problem is not None
    assert "7" in here.problem.text


@simulated
async def test_refusal_carries_code_text_and_remedy(world: World) -> None:
    primary, replica = await world.pair()
    primary.send(EXAMPLES[MessageType.OPEN])
    await replica.receive()
    replica.refuse(ErrorCode.FENCED, "VM web was promoted.", "Remove it here.")
    with pytest.raises(ChannelClosed) as error:
        await primary.receive()
    assert (error.value.code, error.value.remedy, error.value.retryable) == ("fenced", "Remove it here.", False)
    assert "VM web was promoted." in error.value.text
    assert error.value.problem == describe("fenced", "VM web was promoted.", "Remove it here.")
    with pytest.raises(ChannelClosed) as own:
        await replica.receive()
    assert own.value.code == "fenced"


def test_error_texts_are_cut_to_what_fits() -> None:
    problem = describe(ErrorCode.BUSY, "ü" * 5000, "ö" * 5000)
    assert problem.retryable
    assert decode_body(MessageType.ERROR, encode_body(problem)) == problem
    assert len(encode_body(problem)) < 16 << 10
    assert describe("unheard-of", "x").code is ErrorCode.PROTOCOL


@simulated
async def test_close_is_told_and_returns_when_the_link_is_gone(world: World) -> None:
    primary, replica = await world.open_pair()
    await primary.close("the agent is stopping")
    with pytest.raises(ChannelClosed, match="the agent is stopping"):
        await replica.receive()
    with pytest.raises(ChannelClosed, match="was closed"):
        await primary.receive()
    await primary.close()
    await replica.close()


@simulated
async def test_close_before_the_greeting_ends_without_a_word(world: World) -> None:
    replica, raw = await world.replica_and_raw(upto=SessionState.NEW)
    await replica.close("never mind")
    await raw.ended.wait()
    assert raw.frames == []


@simulated
async def test_abort_ends_at_once(world: World) -> None:
    primary, replica = await world.open_pair()
    primary.abort("cancelled")
    with pytest.raises(ChannelClosed, match="cancelled"):
        primary.send(Close(text=""))
    with pytest.raises(ChannelClosed):
        await replica.receive()
    await primary.close()


@simulated
async def test_lost_link_ends_both_sides(world: World) -> None:
    """N1: a reset in the middle of a frame leaves nothing of it."""
    primary, replica = await world.open_pair()
    primary.send_bulk(MessageType.LOG, [bytes(1 << 20)])
    world.wire.reset()
    for channel in (primary, replica):
        error = await ending(channel)
        assert isinstance(error, ChannelClosed)
        assert "lost" in str(error)
        assert error.retryable
        with pytest.raises(ChannelClosed):
            await channel.drain()


@simulated
async def test_end_inside_a_frame_leaves_nothing_of_it(world: World) -> None:
    """A23: the stream ends in order, but without CLOSE and inside a message."""
    replica, raw = await world.replica_and_raw()
    raw.link.write(encode_frame_header(MessageType.LOG, 1000, TOKEN) + bytes(999))
    raw.link.close()
    with pytest.raises(ChannelClosed, match="without a closing message"):
        await replica.receive()


@simulated
async def test_waiting_sender_is_woken_by_the_end(world: World) -> None:
    primary, replica = await world.open_pair(queue_bytes=1 << 16)

    async def send() -> None:
        while True:
            primary.send_bulk(MessageType.LOG, [bytes(100_000)])
            await primary.drain()

    sending = asyncio.ensure_future(send())
    await asyncio.sleep(1)
    assert not sending.done()
    replica.abort()
    with pytest.raises(ChannelClosed):
        await sending


@simulated
async def test_nothing_of_an_ended_channel_stays_on_the_loop(world: World) -> None:
    """I13: no timer and no task outlives the channel."""
    primary, replica = await world.open_pair()
    await primary.close()
    await ending(replica)
    await asyncio.sleep(CLOSING_SECONDS * 3)
    steps = world.loop.steps
    await asyncio.sleep(3600)
    assert world.loop.steps - steps < 10
    assert len(asyncio.all_tasks()) == 1


# --- real sockets --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def real_pair(address: Address, queue_bytes: int) -> AsyncIterator[tuple[Channel, Channel]]:
    accepted: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
    network, clock = RealNetwork(), RealClock()
    listener = await network.listen(address, accepted.set_result)
    try:
        link = await network.connect(listener.address, timeout=10)
        primary = Channel(link, PrimarySession(PRIMARY), clock, queue_bytes=queue_bytes)
        replica = Channel(await accepted, ReplicaSession(REPLICA, TOKEN), clock, queue_bytes=queue_bytes)
        await asyncio.gather(primary.greet(), replica.greet())
        primary.send(EXAMPLES[MessageType.OPEN])
        await replica.receive()
        replica.send(EXAMPLES[MessageType.OPENED])
        await primary.receive()
        yield primary, replica
        await primary.close()
        await replica.close()
    finally:
        await listener.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_bulk_crosses_real_sockets_whole_and_in_order(kind: str, tmp_path: Path) -> None:
    address = Address(unix_path=str(tmp_path / "socket")) if kind == "unix" else Address(host="127.0.0.1", port=0)
    sizes = [1 + (number * 7919) % MAX_FRAME_PAYLOAD for number in range(60)]
    content = random.Random(3).randbytes(MAX_FRAME_PAYLOAD)
    async with real_pair(address, queue_bytes=2 << 20) as (primary, replica):

        async def send() -> None:
            for size in sizes:
                primary.send_bulk(MessageType.LOG, [memoryview(content)[:size]])
                await primary.drain()

        sending = asyncio.ensure_future(send())
        for size in sizes:
            message = await replica.receive()
            assert isinstance(message, Bulk)
            assert len(message.payload) == size
            expected = xxhash.xxh3_64_intdigest(memoryview(content)[:size])
            assert xxhash.xxh3_64_intdigest(message.payload) == expected
        await sending
        assert primary.session.role is Role.CONTROL
