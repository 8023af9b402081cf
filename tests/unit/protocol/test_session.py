"""The session: every message in every state from either side, the handshake's rules, tokens, conversations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.bulk import Bulk
from protocol.compression import compress
from protocol.errors import ProtocolError
from protocol.frames import MAX_FRAME_PAYLOAD, Buffer, Frame, encode_frame_header
from protocol.messages import (
    BULK_TYPES,
    MAX_HELLO_BODY,
    MessageType,
    Open,
    Role,
    Welcome,
    encode_body,
)
from protocol.session import (
    STATE_OF_ROLE,
    TRANSITIONS,
    Identity,
    Message,
    PrimarySession,
    ReplicaSession,
    Session,
    SessionState,
    Side,
)
from tests.vectors.logs import VM
from tests.vectors.messages import BULK_EXAMPLES, EXAMPLES, TOKEN

ME = Identity("vmreplica 0.1.0", "alpha", capabilities=("zstd", "marks", "definition", "planned", "future"))
YOU = Identity("vmreplica 0.1.0", "beta", capabilities=("zstd", "marks", "definition", "planned"))
VERIFYING = (
    SessionState.VERIFY,
    SessionState.ANNOUNCING,
    SessionState.ANNOUNCED,
    SessionState.REACHING,
    SessionState.VERIFYING,
    SessionState.VERIFIED,
)
"""In the order in which a verify goes through them."""
EARLY = (SessionState.NEW, SessionState.HELLO, SessionState.READY, SessionState.CLOSED)
ENDS = (MessageType.CLOSE, MessageType.ERROR)
LIVE = [state for state in SessionState if state is not SessionState.CLOSED]


def open_body(role: Role) -> Open:
    return Open(role=role, vm=VM, name="web", disks=[], epoch=bytes(16))


class Pair:
    """Two sessions, and a wire between them that delivers at once."""

    def __init__(self, mine: Identity = ME, yours: Identity = YOU) -> None:
        self.primary = PrimarySession(mine)
        self.replica = ReplicaSession(yours, TOKEN)

    def session(self, side: Side) -> Session:
        return self.primary if side is Side.PRIMARY else self.replica

    def carry(self, side: Side, buffers: list[Buffer]) -> Message:
        """Deliver what ``side`` sent; returns what the other side makes of it."""
        peer = self.session(side.other)
        (frame,) = peer.reader.feed(b"".join(buffers))
        return peer.receive(frame)

    def say(self, side: Side, kind: MessageType) -> Message:
        session = self.session(side)
        if kind in BULK_TYPES:
            return self.carry(side, session.send_bulk(kind, [BULK_EXAMPLES[kind]]))
        body = EXAMPLES[kind]
        if kind is MessageType.HELLO:
            body = self.primary.hello()
        elif kind is MessageType.WELCOME:
            body = self.replica.welcome()
        return self.carry(side, session.send(body))

    def talk(self, *kinds: tuple[Side, MessageType]) -> None:
        for side, kind in kinds:
            self.say(side, kind)

    def bring_to(self, state: SessionState) -> Pair:
        """Lead both sides into ``state`` by a lawful conversation."""
        p, r, m = Side.PRIMARY, Side.REPLICA, MessageType
        greeting = [(p, m.HELLO), (r, m.WELCOME)]
        begun = [(p, m.RESYNC_BEGIN)]
        verify = [
            (p, m.VERIFY_BEGIN),
            (r, m.VERIFY_READY),
            (p, m.VERIFY_CUT),
            (r, m.VERIFY_HELD),
            (p, m.VERIFY_END),
        ]
        steps = {
            SessionState.NEW: [],
            SessionState.HELLO: greeting[:1],
            SessionState.READY: greeting,
            SessionState.CLOSED: [*greeting, (p, m.CLOSE)],
            SessionState.BEGINNING: begun,
            SessionState.RESYNC: [*begun, (r, m.RESYNC_READY)],
            SessionState.COMMITTING: [*begun, (r, m.RESYNC_READY), (p, m.COMMIT)],
            SessionState.CANCELLING: [*begun, (p, m.RESYNC_CANCEL)],
            SessionState.LOST: [(p, m.VERIFY_BEGIN), (r, m.VERIFY_LOST)],
            SessionState.PREPARING: [(p, m.FAILOVER_PREPARE)],
            SessionState.PREPARED: [(p, m.FAILOVER_PREPARE), (r, m.FAILOVER_PREPARED)],
            SessionState.VOIDING: [(p, m.FAILOVER_VOID)],
            **{state: verify[:count] for count, state in enumerate(VERIFYING)},
        }
        if state in EARLY:
            self.talk(*steps[state])
            return self
        self.talk(*greeting)
        roles = {Role.BULK: SessionState.BULK, Role.PROBE: SessionState.PROBE, Role.SAMPLE: SessionState.SAMPLE}
        role = next((role for role, reached in roles.items() if reached is state), Role.CONTROL)
        if state in (*VERIFYING, SessionState.LOST):
            role = Role.VERIFY
        self.carry(p, self.primary.send(open_body(role)))
        if state is not SessionState.OPENING:
            self.talk((r, m.OPENED), *steps.get(state, []))
        return self


@pytest.mark.parametrize("state", list(SessionState))
def test_both_sides_are_always_in_the_same_state(state: SessionState) -> None:
    pair = Pair().bring_to(state)
    assert pair.primary.state is pair.replica.state is state


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("kind", list(MessageType))
def test_message_is_accepted_or_refused_as_the_table_says(side: Side, kind: MessageType) -> None:
    """Each message is sent from each side in each state: the table alone decides, and both sides agree."""
    for state in LIVE:
        pair = Pair().bring_to(state)
        sender, receiver = pair.session(side), pair.session(side.other)
        following = TRANSITIONS.get((state, side, kind))
        if following is None:
            with pytest.raises(ProtocolError, match=kind.name) as refused:
                pair.say(side, kind) if kind is not MessageType.WELCOME else sender.send(EXAMPLES[kind])
            assert refused.value.code == "state"
            assert not sender.allows(kind)
            # The same frame, sent by somebody who does not care for the rules.
            payload = BULK_EXAMPLES[kind] if kind in BULK_TYPES else encode_body(EXAMPLES[kind])
            with pytest.raises(ProtocolError) as judged:
                receiver.receive(Frame(kind, payload, receiver.token, False, len(payload)))
            assert judged.value.code == "state"
            assert sender.state is receiver.state is state
        else:
            assert sender.allows(kind)
            message = pair.say(side, kind)
            assert isinstance(message, Bulk) == (kind in BULK_TYPES)
            assert sender.state is receiver.state
            if kind is not MessageType.OPENED:
                assert sender.state is following


@pytest.mark.parametrize("kind", [kind for kind in MessageType if kind not in BULK_TYPES])
def test_truncated_body_changes_no_state(kind: MessageType) -> None:
    state, side = next((state, side) for (state, side, each) in TRANSITIONS if each is kind)
    pair = Pair().bring_to(state)
    receiver = pair.session(side.other)
    payload = encode_body(EXAMPLES[kind])[:-1]
    with pytest.raises(ProtocolError, match=kind.name):
        receiver.receive(Frame(kind, payload, receiver.token, False, len(payload)))
    assert receiver.state is state


@pytest.mark.parametrize("kind", list(MessageType))
def test_too_large_message_is_refused_before_its_payload(kind: MessageType) -> None:
    state, side = next((state, side) for (state, side, each) in TRANSITIONS if each is kind)
    pair = Pair().bring_to(state)
    with pytest.raises(ValueError, match=kind.name):
        encode_frame_header(kind, MAX_FRAME_PAYLOAD + 1, 0)
    assert pair.session(side.other).reader.limit == (
        MAX_HELLO_BODY if state in (SessionState.NEW, SessionState.HELLO) else MAX_FRAME_PAYLOAD
    )


def test_nothing_is_sent_or_taken_once_closed() -> None:
    assert not any(state is SessionState.CLOSED for state, _side, _kind in TRANSITIONS)


@pytest.mark.parametrize("role", list(Role))
def test_role_of_open_decides_the_state(role: Role) -> None:
    pair = Pair().bring_to(SessionState.READY)
    pair.carry(Side.PRIMARY, pair.primary.send(open_body(role)))
    pair.say(Side.REPLICA, MessageType.OPENED)
    assert pair.primary.state is pair.replica.state is STATE_OF_ROLE[role]


# --- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in LIVE if state not in (SessionState.NEW, SessionState.HELLO)])
@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("token", [0, TOKEN + 1, 2**64 - 1])
def test_every_frame_needs_the_token_of_its_session(state: SessionState, side: Side, token: int) -> None:
    """R13: a frame of another, older session is refused in every state."""
    pair = Pair().bring_to(state)
    receiver = pair.session(side.other)
    payload = encode_body(EXAMPLES[MessageType.HEARTBEAT])
    with pytest.raises(ProtocolError, match="token"):
        receiver.receive(Frame(MessageType.HEARTBEAT, payload, token, False, len(payload)))
    assert receiver.state is state


def test_welcome_itself_carries_no_token_and_everything_after_does() -> None:
    pair = Pair()
    pair.say(Side.PRIMARY, MessageType.HELLO)
    (frame,) = pair.primary.reader.feed(b"".join(pair.replica.send(pair.replica.welcome())))
    assert frame.token == 0
    pair.primary.receive(frame)
    (frame,) = pair.replica.reader.feed(b"".join(pair.primary.send(open_body(Role.CONTROL))))
    assert frame.token == TOKEN == pair.primary.token == pair.replica.token


# --- the handshake -------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 9), min_size=1), st.sets(st.integers(0, 9), min_size=1))
def test_highest_common_version_is_taken_or_none(mine: set[int], yours: set[int]) -> None:
    pair = Pair(Identity("a", "a", versions=tuple(mine)), Identity("b", "b", versions=tuple(yours)))
    common = mine & yours
    if common:
        pair.talk((Side.PRIMARY, MessageType.HELLO), (Side.REPLICA, MessageType.WELCOME))
        assert pair.primary.version == pair.replica.version == max(common)
    else:
        with pytest.raises(ProtocolError, match="no common version") as refused:
            pair.say(Side.PRIMARY, MessageType.HELLO)
        assert refused.value.code == "version"
        assert pair.replica.state is SessionState.NEW


def test_planned_failovers_are_spoken_of_only_where_both_know_them() -> None:
    """An older peer would end the connection over such a message: it is not sent, and from it none is taken."""
    pair = Pair(yours=Identity("vmreplica 0.1.0", "beta", capabilities=("zstd",))).bring_to(SessionState.OPEN)
    assert not pair.primary.plans and not pair.primary.allows(MessageType.FAILOVER_PREPARE)
    with pytest.raises(ProtocolError, match="not agreed on"):
        pair.primary.send(EXAMPLES[MessageType.FAILOVER_PREPARE])
    knowing = Pair().bring_to(SessionState.OPEN)
    frame = b"".join(knowing.primary.send(EXAMPLES[MessageType.FAILOVER_PREPARE]))
    with pytest.raises(ProtocolError, match="not agreed on"):
        pair.replica.receive(pair.replica.reader.feed(frame)[0])


def test_no_log_follows_the_promote_token() -> None:
    """R43: what the replica is to promote is the cut that the token names, and nothing behind it."""
    for state in (SessionState.PREPARING, SessionState.PREPARED, SessionState.VOIDING):
        pair = Pair().bring_to(state)
        assert not pair.primary.allows(MessageType.LOG) and not pair.primary.allows(MessageType.RESYNC_BEGIN)


@given(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")))
def test_capabilities_are_those_of_both(mine: set[str], yours: set[str]) -> None:
    pair = Pair(
        Identity("a", "a", capabilities=tuple(sorted(mine))), Identity("b", "b", capabilities=tuple(sorted(yours)))
    )
    pair.talk((Side.PRIMARY, MessageType.HELLO), (Side.REPLICA, MessageType.WELCOME))
    assert pair.primary.capabilities == pair.replica.capabilities == mine & yours


@pytest.mark.parametrize(
    "change, code",
    [
        ({"version": 2}, "version"),
        ({"capabilities": ["zstd", "unheard"]}, "protocol"),
        ({"max_frame": MAX_FRAME_PAYLOAD - 1}, "version"),
    ],
)
def test_welcome_that_was_not_offered_is_refused(change: dict[str, object], code: str) -> None:
    """A22: the peer can't talk us into what we did not offer."""
    pair = Pair()
    pair.say(Side.PRIMARY, MessageType.HELLO)
    honest = pair.replica.welcome()
    fields = {name: getattr(honest, name) for name in Welcome.__struct_fields__}
    payload = encode_body(Welcome(**(fields | change)))
    with pytest.raises(ProtocolError) as refused:
        pair.primary.receive(Frame(MessageType.WELCOME, payload, 0, False, len(payload)))
    assert refused.value.code == code
    assert pair.primary.state is SessionState.HELLO
    assert pair.primary.token == 0


def test_reason_of_a_primary_that_refuses_the_welcome_is_heard() -> None:
    """The primary has no token then, and the replica has sent it already."""
    pair = Pair(yours=Identity("vmreplica 0.1.0", "beta", capabilities=("zstd",)))
    pair.say(Side.PRIMARY, MessageType.HELLO)
    pair.replica.send(pair.replica.welcome())
    reason = EXAMPLES[MessageType.ERROR]
    assert pair.carry(Side.PRIMARY, pair.primary.send(reason)) == reason
    assert pair.replica.state is SessionState.CLOSED


@pytest.mark.parametrize("state", [SessionState.OPENING, SessionState.OPEN, SessionState.BULK])
def test_error_without_a_token_is_taken_in_the_greeting_only(state: SessionState) -> None:
    replica = Pair().bring_to(state).replica
    payload = encode_body(EXAMPLES[MessageType.ERROR])
    with pytest.raises(ProtocolError, match="token"):
        replica.receive(Frame(MessageType.ERROR, payload, 0, False, len(payload)))


def test_sides_know_each_other_after_the_greeting() -> None:
    pair = Pair().bring_to(SessionState.READY)
    assert pair.primary.peer is not None
    assert pair.replica.peer is not None
    assert (pair.primary.peer.host, pair.replica.peer.host) == ("beta", "alpha")


# --- compression ---------------------------------------------------------------------------------------------------


def test_compressed_bulk_comes_out_raw() -> None:
    pair = Pair().bring_to(SessionState.OPEN)
    raw = bytes(100_000)
    packed = compress([raw])
    assert packed is not None
    message = pair.carry(Side.PRIMARY, pair.primary.send_bulk(MessageType.LOG, [packed], len(raw)))
    assert isinstance(message, Bulk)
    assert message.compressed
    assert message.content() == raw


def test_compression_needs_both_sides() -> None:
    pair = Pair(yours=Identity("b", "b")).bring_to(SessionState.OPEN)
    assert not pair.primary.compresses
    with pytest.raises(ProtocolError, match="compressed"):
        pair.primary.send_bulk(MessageType.LOG, [b"x"], 10)
    with pytest.raises(ProtocolError, match="not agreed"):
        pair.replica.receive(Frame(MessageType.LOG, b"x", TOKEN, True, 10))


def test_control_message_is_never_sent_as_bulk() -> None:
    with pytest.raises(ValueError, match="HEARTBEAT"):
        Pair().bring_to(SessionState.OPEN).primary.send_bulk(MessageType.HEARTBEAT, [b"x"])


# --- conversations -------------------------------------------------------------------------------------------------


def test_whole_life_of_a_control_connection() -> None:
    p, r, m = Side.PRIMARY, Side.REPLICA, MessageType
    pair = Pair().bring_to(SessionState.OPEN)
    pair.talk((p, m.LOG), (p, m.SEAL), (r, m.HEARTBEAT), (r, m.RECEIVED), (r, m.APPLIED))
    pair.talk((p, m.RESYNC_BEGIN), (r, m.APPLIED), (r, m.RESYNC_READY), (p, m.LOG), (p, m.SEAL), (r, m.RECEIVED))
    pair.talk((p, m.COMMIT), (p, m.HEARTBEAT), (r, m.COMMITTED), (r, m.APPLIED), (p, m.LOG))
    pair.talk((p, m.RESYNC_BEGIN), (p, m.RESYNC_CANCEL), (r, m.RESYNC_READY), (r, m.RESYNC_CANCELLED), (p, m.LOG))
    pair.talk((p, m.RESYNC_BEGIN), (r, m.RESYNC_READY), (p, m.UNSETTLE), (p, m.UNSETTLE), (r, m.UNSETTLED))
    pair.talk((r, m.RESYNC_READY), (r, m.RESYNC_READY), (p, m.UNSETTLE), (p, m.RESYNC_CANCEL), (r, m.UNSETTLED))
    pair.talk((r, m.RESYNC_CANCELLED), (p, m.RESYNC_CANCEL), (r, m.RESYNC_CANCELLED), (p, m.CLOSE))
    assert pair.primary.state is pair.replica.state is SessionState.CLOSED


def test_whole_life_of_a_connection_for_a_sample() -> None:
    p, r, m = Side.PRIMARY, Side.REPLICA, MessageType
    pair = Pair().bring_to(SessionState.SAMPLE)
    pair.talk((p, m.SAMPLE_REQUEST), (r, m.SAMPLE), (p, m.SAMPLE_REQUEST), (r, m.HEARTBEAT), (r, m.SAMPLE))
    pair.talk((p, m.CLOSE))


def test_whole_life_of_a_bulk_connection() -> None:
    p, r, m = Side.PRIMARY, Side.REPLICA, MessageType
    pair = Pair().bring_to(SessionState.BULK)
    pair.talk(
        (p, m.HOLES_REQUEST),
        (r, m.HOLES),
        (p, m.MANIFEST_REQUEST),
        (r, m.MANIFEST),
        (p, m.DETAIL_REQUEST),
        (r, m.DETAIL),
        (p, m.BLOCKS),
        (p, m.RANGE_DONE),
        (r, m.RANGE_SETTLED),
    )
    pair.talk((r, m.HEARTBEAT), (r, m.CLOSE))


def test_whole_life_of_a_verify_connection() -> None:
    p, r, m = Side.PRIMARY, Side.REPLICA, MessageType
    pair = Pair().bring_to(SessionState.VERIFY)
    for _ in range(2):
        pair.talk((p, m.VERIFY_BEGIN), (r, m.VERIFY_READY), (p, m.VERIFY_CUT), (p, m.HEARTBEAT), (r, m.VERIFY_HELD))
        pair.talk((p, m.VERIFY_REQUEST), (p, m.VERIFY_REQUEST), (r, m.VERIFY_ANSWER), (r, m.VERIFY_ANSWER))
        pair.talk((p, m.VERIFY_END), (r, m.VERIFY_ENDED))
    pair.talk((p, m.VERIFY_BEGIN), (r, m.VERIFY_LOST), (p, m.CLOSE))


@pytest.mark.parametrize("kind", sorted(set(MessageType) - {MessageType.COMMITTED, MessageType.ERROR}))
def test_commit_can_not_be_taken_back(kind: MessageType) -> None:
    """I7: after COMMIT only its answer, or the end of the connection, leaves the state."""
    for side in Side:
        following = TRANSITIONS.get((SessionState.COMMITTING, side, kind))
        assert following in (None, SessionState.COMMITTING, SessionState.CLOSED)
    assert (SessionState.COMMITTING, Side.PRIMARY, MessageType.RESYNC_CANCEL) not in TRANSITIONS


@given(st.sampled_from([state for state in LIVE if state not in EARLY]), st.data())
def test_messages_may_cross_on_their_way(start: SessionState, choices: st.DataObject) -> None:
    """Whatever each side sends by what it has seen so far, the other accepts: no order of delivery is an error."""
    pair = Pair().bring_to(start)
    under_way: dict[Side, list[list[Buffer]]] = {side: [] for side in Side}
    for step in choices.draw(st.lists(st.tuples(st.sampled_from(list(Side)), st.integers(0, 11)), max_size=40)):
        side, choice = step
        session = pair.session(side)
        # Messages that change the state come first, and are the most interesting.
        kinds = sorted(
            (each for each in MessageType if session.allows(each) and each not in ENDS),
            key=lambda kind: TRANSITIONS[session.state, side, kind] is session.state,
        )
        if choice >= 6 and under_way[side]:
            pair.carry(side, under_way[side].pop(0))
        elif choice < len(kinds) and kinds[choice] in BULK_TYPES:
            under_way[side].append(session.send_bulk(kinds[choice], [BULK_EXAMPLES[kinds[choice]]]))
        elif choice < len(kinds):
            under_way[side].append(session.send(EXAMPLES[kinds[choice]]))
    for side in Side:
        for buffers in under_way[side]:
            pair.carry(side, buffers)
    assert pair.primary.state is pair.replica.state


def test_every_state_is_reached_and_left() -> None:
    roles = {SessionState.BULK, SessionState.PROBE, SessionState.SAMPLE, SessionState.VERIFY}
    reached = {SessionState.NEW, *roles, *TRANSITIONS.values()}
    assert reached == set(SessionState)
    assert {state for state, _side, _kind in TRANSITIONS} == set(LIVE)
