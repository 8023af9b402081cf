"""The session: which message either side may send in which state, as one table; tokens; the handshake's rules.

No I/O and no clock. Each side keeps a session of its own and runs every message, sent or received, through the same
table, so both know what may come next. ``docs/protocol.md`` shows the table, and a test keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from protocol.bulk import Bulk
from protocol.compression import CAPABILITY as ZSTD
from protocol.errors import ProtocolError
from protocol.frames import MAX_FRAME_PAYLOAD, Buffer, Frame, FrameReader, encode_frame_header
from protocol.messages import (
    BULK_TYPES,
    DISK_SETS,
    DISK_SIZES,
    PLANNED,
    PLANNED_TYPES,
    PROTOCOL_VERSIONS,
    REVERSE,
    SEED,
    TYPE_OF,
    Body,
    Hello,
    MessageType,
    Open,
    Role,
    Welcome,
    decode_body,
    encode_body,
)

Message = Body | Bulk

MARKS = "marks"
DEFINITION = "definition"
NEEDED: dict[MessageType, str] = {
    MessageType.CUT_MARK: MARKS,
    MessageType.CUT_MARKED: MARKS,
    MessageType.DEFINITION: DEFINITION,
    MessageType.DEFINITION_WANTED: DEFINITION,
    MessageType.DEFINITION_PART: DEFINITION,
    MessageType.DEFINITION_KEPT: DEFINITION,
    **dict.fromkeys(PLANNED_TYPES, PLANNED),
}
"""The capability that both sides must have said that they have before a message of that type is sent."""


def capabilities(*, compress: bool) -> tuple[str, ...]:
    """All that this program offers, at either side; ``compress``: compressed payloads as well."""
    return (*((ZSTD,) if compress else ()), MARKS, DEFINITION, REVERSE, PLANNED, DISK_SETS, SEED, DISK_SIZES)


class SessionState(StrEnum):
    """States of a session. A connection starts in NEW and its end is CLOSED."""

    NEW = "new"
    HELLO = "hello"
    READY = "ready"
    OPENING = "opening"
    OPEN = "open"
    BEGINNING = "beginning"
    RESYNC = "resync"
    COMMITTING = "committing"
    CANCELLING = "cancelling"
    BULK = "bulk"
    PROBE = "probe"
    SAMPLE = "sample"
    VERIFY = "verify"
    ANNOUNCING = "announcing"
    ANNOUNCED = "announced"
    REACHING = "reaching"
    VERIFYING = "verifying"
    VERIFIED = "verified"
    LOST = "lost"
    PREPARING = "preparing"
    PREPARED = "prepared"
    VOIDING = "voiding"
    CLOSED = "closed"


class Side(StrEnum):
    """Who sends a message."""

    PRIMARY = "primary"
    REPLICA = "replica"

    @property
    def other(self) -> Side:
        return Side.REPLICA if self is Side.PRIMARY else Side.PRIMARY


Transitions = dict[tuple[SessionState, Side, MessageType], SessionState]


def _stay(state: SessionState, side: Side, kinds: Iterable[MessageType]) -> Transitions:
    return {(state, side, kind): state for kind in kinds}


def _transitions() -> Transitions:
    s, m, primary, replica = SessionState, MessageType, Side.PRIMARY, Side.REPLICA
    table: Transitions = {
        (s.NEW, primary, m.HELLO): s.HELLO,
        (s.HELLO, replica, m.WELCOME): s.READY,
        (s.READY, primary, m.OPEN): s.OPENING,
        # OPEN here stands for the state of the role that OPEN asked for: OPEN, BULK, PROBE, SAMPLE or VERIFY.
        (s.OPENING, replica, m.OPENED): s.OPEN,
        (s.OPEN, primary, m.RESYNC_BEGIN): s.BEGINNING,
        (s.BEGINNING, replica, m.RESYNC_READY): s.RESYNC,
        (s.BEGINNING, primary, m.RESYNC_CANCEL): s.CANCELLING,
        (s.RESYNC, primary, m.RESYNC_CANCEL): s.CANCELLING,
        (s.RESYNC, primary, m.COMMIT): s.COMMITTING,
        (s.COMMITTING, replica, m.COMMITTED): s.OPEN,
        # A cancel may cross the answers to the begin, and to what is unsettled.
        (s.CANCELLING, replica, m.RESYNC_READY): s.CANCELLING,
        (s.CANCELLING, replica, m.UNSETTLED): s.CANCELLING,
        (s.CANCELLING, replica, m.RESYNC_CANCELLED): s.OPEN,
    }
    for state in (s.OPEN, s.RESYNC):
        table |= _stay(state, primary, (m.LOG, m.SEAL))
    table |= _stay(s.RESYNC, primary, (m.UNSETTLE,))
    # They may be on their way while the primary already commits.
    for state in (s.RESYNC, s.COMMITTING):
        table |= _stay(state, replica, (m.UNSETTLED, m.RESYNC_READY))
    # Cuts sent before a resync began are still received and applied while it runs.
    for state in (s.OPEN, s.BEGINNING, s.RESYNC, s.COMMITTING, s.CANCELLING):
        table |= _stay(state, replica, (m.RECEIVED, m.APPLIED))
    # A resync that the replica reported as open is dropped without being begun again.
    table[s.OPEN, primary, m.RESYNC_CANCEL] = s.CANCELLING
    table |= _stay(s.BULK, primary, (m.MANIFEST_REQUEST, m.DETAIL_REQUEST, m.HOLES_REQUEST, m.BLOCKS, m.RANGE_DONE))
    table |= _stay(s.BULK, replica, (m.MANIFEST, m.DETAIL, m.HOLES, m.RANGE_SETTLED))
    table[s.SAMPLE, primary, m.SAMPLE_REQUEST] = s.SAMPLE
    table[s.SAMPLE, replica, m.SAMPLE] = s.SAMPLE
    table |= {
        (s.VERIFY, primary, m.VERIFY_BEGIN): s.ANNOUNCING,
        (s.ANNOUNCING, replica, m.VERIFY_READY): s.ANNOUNCED,
        (s.ANNOUNCED, primary, m.VERIFY_CUT): s.REACHING,
        (s.REACHING, replica, m.VERIFY_HELD): s.VERIFYING,
        (s.VERIFYING, primary, m.VERIFY_END): s.VERIFIED,
        (s.VERIFIED, replica, m.VERIFY_ENDED): s.VERIFY,
    }
    table |= _stay(s.VERIFYING, primary, (m.VERIFY_REQUEST,))
    for state in (s.VERIFYING, s.VERIFIED):
        table |= _stay(state, replica, (m.VERIFY_ANSWER,))
    for state in (s.ANNOUNCING, s.ANNOUNCED, s.REACHING, s.VERIFYING, s.VERIFIED):
        table[state, replica, m.VERIFY_LOST] = s.LOST
    # What was sent before the loss was known.
    table |= _stay(s.LOST, primary, (m.VERIFY_CUT, m.VERIFY_REQUEST, m.VERIFY_END))
    # A primary that has sent the promote token sends no log.
    table |= {
        (s.OPEN, primary, m.FAILOVER_PREPARE): s.PREPARING,
        (s.PREPARING, replica, m.FAILOVER_PREPARED): s.PREPARED,
        (s.PREPARING, replica, m.FAILOVER_VOIDED): s.OPEN,
        (s.OPEN, primary, m.FAILOVER_VOID): s.VOIDING,
        (s.PREPARED, primary, m.FAILOVER_VOID): s.VOIDING,
        (s.VOIDING, replica, m.FAILOVER_VOIDED): s.OPEN,
    }
    planned = (s.PREPARING, s.PREPARED, s.VOIDING)
    for state in planned:
        table |= _stay(state, replica, (m.RECEIVED, m.APPLIED))
    for state in (s.OPEN, s.BEGINNING, s.RESYNC, s.COMMITTING, s.CANCELLING, *planned):
        # What belongs to cuts beside the log goes its own way, whatever else the session does.
        table |= _stay(state, primary, (m.CUT_MARK, m.DEFINITION, m.DEFINITION_PART))
        table |= _stay(state, replica, (m.CUT_MARKED, m.DEFINITION_WANTED, m.DEFINITION_KEPT))
    for side in Side:
        for state in s:
            if state is not s.CLOSED:
                table[state, side, m.ERROR] = s.CLOSED
            if state not in (s.NEW, s.HELLO, s.CLOSED):
                table[state, side, m.CLOSE] = s.CLOSED
                table[state, side, m.HEARTBEAT] = state
    return table


TRANSITIONS = _transitions()
"""(state, sender, type) -> next state. What is not in the table is an error that ends the connection."""

STATE_OF_ROLE = {
    Role.CONTROL: SessionState.OPEN,
    Role.BULK: SessionState.BULK,
    Role.PROBE: SessionState.PROBE,
    Role.SAMPLE: SessionState.SAMPLE,
    Role.VERIFY: SessionState.VERIFY,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """How a side introduces itself: software, host name, capabilities it has, and its heartbeat interval in seconds."""

    software: str
    host: str
    heartbeat_seconds: float = 5.0
    capabilities: tuple[str, ...] = ()
    versions: tuple[int, ...] = PROTOCOL_VERSIONS


class Session:
    """One side of one connection; use :class:`PrimarySession` or :class:`ReplicaSession`.

    ``state``, ``role`` (from OPEN on), ``version``, ``capabilities`` and ``token`` (from WELCOME on) are what both
    sides agreed on; ``peer`` is how the other side introduced itself. ``reader`` turns received bytes into frames for
    :meth:`receive`; its limit rises with WELCOME.
    """

    side: Side

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.reader = FrameReader()
        self.state = SessionState.NEW
        self.role: Role | None = None
        self.token = 0
        self.version = 0
        self.capabilities: frozenset[str] = frozenset()
        self.peer: Hello | Welcome | None = None

    @property
    def compresses(self) -> bool:
        """Whether bulk payloads may be compressed: both sides said that they can."""
        return ZSTD in self.capabilities

    @property
    def plans(self) -> bool:
        """Whether both sides know planned failovers."""
        return PLANNED in self.capabilities

    def allows(self, kind: MessageType) -> bool:
        """Whether this side may send ``kind`` now."""
        needed = NEEDED.get(kind)
        return (self.state, self.side, kind) in TRANSITIONS and (needed is None or needed in self.capabilities)

    def receive(self, frame: Frame) -> Message:
        """The message in a frame that the peer sent. Raises ProtocolError; the session is then to be ended."""
        if not self._is_of_this_session(frame):
            raise ProtocolError(f"{frame.type.name} with a token that is not this session's", code="state")
        following = self._following(self.side.other, frame.type)
        if frame.compressed and not self.compresses:
            raise ProtocolError(f"{frame.type.name} is compressed, which was not agreed on")
        if frame.type in BULK_TYPES:
            self.state = following
            return Bulk(frame.type, frame.payload, frame.compressed, frame.raw_length)
        body = decode_body(frame.type, frame.payload)
        if isinstance(body, Hello | Welcome):
            _check_frame_limit(body)
            self._meet(body)
            self.peer = body
        self._step(body, following)
        return body

    def send(self, body: Body) -> list[Buffer]:
        """The bytes of a control message. Raises ProtocolError (code ``state``) where it may not be sent now."""
        kind = TYPE_OF[type(body)]
        following = self._following(self.side, kind)
        payload = encode_body(body)
        header = encode_frame_header(kind, len(payload), self.token)
        self._step(body, following)
        return [header, payload]

    def send_bulk(self, kind: MessageType, pieces: Sequence[Buffer], raw_length: int | None = None) -> list[Buffer]:
        """The bytes of a bulk message. ``raw_length`` is given where the pieces are one zstd frame."""
        if kind not in BULK_TYPES:
            raise ValueError(f"{kind.name} is no bulk message")
        if raw_length is not None and not self.compresses:
            raise ProtocolError(f"{kind.name} may not be compressed: the peer did not agree", code="state")
        following = self._following(self.side, kind)
        header = encode_frame_header(kind, sum(map(len, pieces)), self.token, raw_length=raw_length)
        self.state = following
        return [header, *pieces]

    def _is_of_this_session(self, frame: Frame) -> bool:
        if frame.token == self.token:
            return True
        # A primary that can't go on from WELCOME, or ends before it comes, has no token yet: its reason must be heard.
        return frame.type is MessageType.ERROR and frame.token == 0 and self.state is SessionState.READY

    def _following(self, sender: Side, kind: MessageType) -> SessionState:
        following = TRANSITIONS.get((self.state, sender, kind))
        if following is None:
            raise ProtocolError(f"{kind.name} from the {sender} in state {self.state}", code="state")
        if (needed := NEEDED.get(kind)) is not None and needed not in self.capabilities:
            raise ProtocolError(f"{kind.name} from the {sender}, which was not agreed on: it needs {needed}")
        if kind is MessageType.OPENED and self.role is not None:
            return STATE_OF_ROLE[self.role]
        return following

    def _step(self, body: Body, following: SessionState) -> None:
        self.state = following
        match body:
            case Welcome():
                self.version = body.version
                self.capabilities = frozenset(body.capabilities)
                self.token = body.token
                self.reader.limit = MAX_FRAME_PAYLOAD
            case Open():
                self.role = body.role

    def _meet(self, body: Hello | Welcome) -> None:
        """Judge the peer's introduction. Raises ProtocolError where the two sides can't work together."""
        raise NotImplementedError


class PrimarySession(Session):
    """The side that dials, and sends HELLO and OPEN."""

    side = Side.PRIMARY

    def hello(self) -> Hello:
        """The HELLO to send first."""
        me = self.identity
        return Hello(
            versions=list(me.versions),
            software=me.software,
            host=me.host,
            capabilities=list(me.capabilities),
            max_frame=MAX_FRAME_PAYLOAD,
            heartbeat_seconds=me.heartbeat_seconds,
        )

    def _meet(self, body: Hello | Welcome) -> None:
        assert isinstance(body, Welcome)
        if body.version not in self.identity.versions:
            raise ProtocolError(f"WELCOME chose version {body.version}, which was not offered", code="version")
        extra = set(body.capabilities) - set(self.identity.capabilities)
        if extra:
            raise ProtocolError(f"WELCOME chose capabilities that were not offered: {', '.join(sorted(extra))}")


class ReplicaSession(Session):
    """The side that listens, and answers with WELCOME and OPENED. ``token`` (1 to 2^63 - 1) must be random (R13)."""

    side = Side.REPLICA

    def __init__(self, identity: Identity, token: int) -> None:
        super().__init__(identity)
        self._own_token = token
        self._common_version = 0

    def welcome(self) -> Welcome:
        """The WELCOME that answers the HELLO received: the highest version and the capabilities that both have."""
        assert isinstance(self.peer, Hello)
        me = self.identity
        return Welcome(
            version=self._common_version,
            software=me.software,
            host=me.host,
            capabilities=sorted(set(me.capabilities) & set(self.peer.capabilities)),
            max_frame=MAX_FRAME_PAYLOAD,
            heartbeat_seconds=me.heartbeat_seconds,
            token=self._own_token,
        )

    def _meet(self, body: Hello | Welcome) -> None:
        assert isinstance(body, Hello)
        common = set(body.versions) & set(self.identity.versions)
        if not common:
            offered, spoken = sorted(body.versions), sorted(self.identity.versions)
            raise ProtocolError(f"no common version: offered {offered}, this side speaks {spoken}", code="version")
        self._common_version = max(common)


def _check_frame_limit(body: Hello | Welcome) -> None:
    # A record can't be parted, so a side that can't take the largest one can't take part.
    if body.max_frame < MAX_FRAME_PAYLOAD:
        raise ProtocolError(
            f"the peer takes frames of {body.max_frame} bytes; records need {MAX_FRAME_PAYLOAD}", code="version"
        )
