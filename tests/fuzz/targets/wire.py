"""Frames, the session that they make, and the bodies of control messages."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from random import Random
from typing import Any
from unittest import mock

import msgpack
import msgspec
import xxhash
from msgpack.fallback import Unpacker

import protocol.frames
import protocol.session
from protocol.errors import ProtocolError
from protocol.frames import MAX_FRAME_PAYLOAD, Frame, FrameReader, encode_frame_header
from protocol.messages import (
    BULK_TYPES,
    MAX_HELLO_BODY,
    MAX_U63,
    TYPE_OF,
    DefinitionFile,
    ErrorCode,
    MessageType,
    Role,
    decode_body,
    encode_body,
)
from protocol.session import Identity, PrimarySession, ReplicaSession, Session
from tests.fuzz import naive
from tests.fuzz.mutators import mutate_frames, set_field, tweak
from tests.fuzz.target import ROOT, Plant, Target
from tests.vectors.messages import EXAMPLES, TOKEN

VECTORS = ROOT / "tests" / "vectors"
CODES = {str(code) for code in ErrorCode}

# --- frames --------------------------------------------------------------------------------------------------------


def shown(frame: Frame) -> naive.PlainFrame:
    return naive.PlainFrame(frame.type, frame.token, frame.compressed, frame.raw_length, bytes(frame.payload))


def receive(reader: FrameReader, data: bytes, sizes: Iterable[int]) -> list[naive.PlainFrame]:
    """Feed the reader as a link does: into its own buffer, so many bytes at a time."""
    frames, at = [], 0
    for size in sizes:
        if at >= len(data) or reader.failure is not None:
            break
        buffer = reader.get_buffer()
        assert 0 < len(buffer) <= max(64 << 10, reader.limit), f"a buffer of {len(buffer)} bytes"
        count = min(size, len(buffer), len(data) - at)
        buffer[:count] = data[at : at + count]
        frames += [shown(frame) for frame in reader.buffer_updated(count)]
        at += count
    return frames


def chunks(data: bytes) -> Iterable[int]:
    """Sizes to cut the input at, always the same ones for it, and without end."""
    random = Random(xxhash.xxh3_64_intdigest(data))
    while True:
        yield random.choice((1, 1, 2, 7, 31, 32, 33, 200, 70_000))


def fuzz_frames(data: bytes) -> None:
    """The same frames and the same end for any chunking, and for a second decoder; frames encode to what came."""
    for limit in (MAX_HELLO_BODY, MAX_FRAME_PAYLOAD):
        expected, code, left = naive.read_frames(data, limit)
        whole = FrameReader(limit)
        frames = [shown(frame) for frame in whole.feed(data)]
        parts = FrameReader(limit)
        for reader, got in ((whole, frames), (parts, receive(parts, data, chunks(data)))):
            assert got == expected
            assert (reader.failure.code if reader.failure is not None else "") == code
            assert reader.begun == left, f"{reader.begun} bytes begun, not {left}"
        at = 0
        for kind, token, compressed, raw, payload in frames:
            header = encode_frame_header(MessageType(kind), len(payload), token, raw_length=raw if compressed else None)
            assert data[at : at + 32 + len(payload)] == header + payload
            at += 32 + len(payload)


def seeds_frames() -> Iterable[bytes]:
    files = sorted(VECTORS.glob("frame-*.bin"))
    yield from (path.read_bytes() for path in files)
    yield b"".join(path.read_bytes() for path in files if "bad" not in path.name)


class AlwaysRight(int):
    """A checksum that equals any other."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def any_check() -> Any:
    fake = mock.Mock(xxh3_64_intdigest=lambda data: AlwaysRight(xxhash.xxh3_64_intdigest(data)))
    return mock.patch.object(protocol.frames, "xxhash", fake)


def no_caps() -> Any:
    return mock.patch.dict(protocol.frames.PAYLOAD_CAPS, dict.fromkeys(MessageType, 1 << 40))


def forgetful_parse() -> Any:
    """The rest of a header that came in two pieces is lost."""
    parse = FrameReader._parse

    def broken(self: FrameReader) -> list[Frame]:
        frames = parse(self)
        if len(frames) > 0 and self._frame is None:
            self._fill = 0
        return frames

    return mock.patch.object(FrameReader, "_parse", broken)


# --- messages ------------------------------------------------------------------------------------------------------

KINDS = sorted(EXAMPLES)
LONG_BYTES = {"digests": 1024, "blocks": 512, "equal": 2, "leaves": 32768, "data": 49152}
"""Fields of bytes that are no id and no key, and how long they may be."""


def check_ranges(value: Any) -> None:
    """No value is outside what docs/protocol.md allows any field of its type."""
    match value:
        case bool() | None | msgspec.UnsetType():
            pass
        case int():
            assert 0 <= value <= MAX_U63
        case float():
            assert 0 <= value <= 31622400, f"{value} is no time"
        case str():
            assert len(value) <= 2048
        case bytes():
            assert 16 <= len(value) <= 32
        case list():
            assert len(value) <= 1024
            for each in value:
                check_ranges(each)
        case msgspec.Struct():
            if "size" in value.__struct_fields__:
                least = 0 if isinstance(value, DefinitionFile) else 1
                assert least <= getattr(value, "size") <= 1 << 46  # noqa: B009 - the type is not known here
            for name in value.__struct_fields__:
                field = getattr(value, name)
                if name in LONG_BYTES and isinstance(field, bytes):
                    assert len(field) <= LONG_BYTES[name]
                else:
                    check_ranges(field)
        case _:
            raise AssertionError(f"{type(value).__name__} in a message")


def fuzz_messages(data: bytes) -> None:
    """A body is refused with a ProtocolError, or is within its ranges and comes back the same when encoded."""
    if not data:
        return
    kind = KINDS[data[0] % len(KINDS)]
    try:
        body = decode_body(kind, data[1:])
    except ProtocolError as error:
        assert error.code == "protocol"
        assert error.text
        return
    assert TYPE_OF[type(body)] is kind
    check_ranges(body)
    again = encode_body(body)
    assert decode_body(kind, again) == body
    assert encode_body(decode_body(kind, again)) == again
    # A second decoder, in pure Python; what came may leave optional fields out, but has no others.
    slow = Unpacker(raw=False, object_pairs_hook=once_each)
    slow.feed(data[1:])
    plain = slow.unpack()
    built = msgspec.to_builtins(body, builtin_types=(bytes,))
    assert set(plain) <= set(built), f"unknown fields were taken: {set(plain) - set(built)}"
    for name, value in plain.items():
        assert is_same(value, built[name]), f"{name}: {value!r} became {built[name]!r}"


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a field that was given twice was taken"
    return dict(pairs)


def is_same(raw: Any, built: Any) -> bool:
    """Whether a value is what it was made from, up to defaults that were filled in."""
    match raw:
        case dict():
            return isinstance(built, dict) and all(is_same(raw[name], built[name]) for name in raw)
        case list():
            return len(raw) == len(built) and all(is_same(one, other) for one, other in zip(raw, built, strict=True))
        case float() | int() if not isinstance(raw, bool):
            return bool(raw == built) and not isinstance(built, bool)
    return type(raw) is type(built) and bool(raw == built)


def seeds_messages() -> Iterable[bytes]:
    for index, kind in enumerate(KINDS):
        body = encode_body(EXAMPLES[kind])
        yield bytes([index]) + body
        yield bytes([index]) + body[:-1] + b"\xc0"
    heartbeat = msgspec.to_builtins(EXAMPLES[MessageType.HEARTBEAT])
    yield bytes([KINDS.index(MessageType.HEARTBEAT)]) + msgpack.packb(heartbeat | {"number": "3"})
    yield bytes([KINDS.index(MessageType.HEARTBEAT)]) + msgpack.packb(heartbeat | {"later": 1})
    yield bytes([0]) + b"\x91" * 3000
    yield bytes([0, 0xDD, 255, 255, 255, 255])
    yield bytes([0, 0xDF, 255, 255, 255, 255])


def mutate_messages(data: bytes, random: Random) -> bytes:
    """Change the msgpack values rather than their bytes."""
    if len(data) < 2:
        return tweak(data, random)
    try:
        plain = msgpack.unpackb(data[1:], raw=False, strict_map_key=False)
        if random.random() < 0.05 and isinstance(plain, dict) and 0 < len(plain) < 15:
            pair = random.choice(list(plain.items()))
            return data[:1] + bytes([data[1] + 1]) + data[2:] + b"".join(map(msgpack.packb, pair))
        return data[:1] + bytes(msgpack.packb(change_value(plain, random), use_bin_type=True))
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        return tweak(data, random)


ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 255, 65535, 65536, 2**32, 2**46, 2**46 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5, -0.0,
    float("inf"), float("nan"), "", "a", "x" * 129, b"", bytes(15), bytes(16), bytes(32), bytes(33), [], {}, [None],
    "\n", "0" * 32 + "\n", 1e308,
)  # fmt: skip


def change_value(value: Any, random: Random) -> Any:
    """The plain value with something in it changed."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        name = random.choice(list(value))
        match random.randrange(6):
            case 0:
                return {key: each for key, each in value.items() if key != name}
            case 1:
                return value | {random.choice(("extra", "version", 7, b"key")): random.choice(ODD)}
        return value | {name: change_value(value[name], random)}
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        match random.randrange(5):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value + value[at : at + 1] * random.choice((1, 2, 70))
        return [*value[:at], change_value(value[at], random), *value[at + 1 :]]
    if isinstance(value, bytes) and value and random.random() < 0.6:
        return tweak(value, random)
    if isinstance(value, str) and value and random.random() < 0.6:
        at = random.randrange(len(value) + 1)
        return value[:at] + random.choice(("", "\n", "é", "0", "\0")) + value[at + random.randrange(2) :]
    if isinstance(value, int) and not isinstance(value, bool) and random.random() < 0.6:
        return value + random.choice((-1, 1, 1 << 16))
    return random.choice(ODD)


def loose_decode() -> Any:
    """Unknown fields are dropped."""
    import protocol.messages as module

    fields = module._fields

    def dropping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        known = {name for body in module.BODIES.values() for name in body.__struct_fields__}
        known |= {"disk", "index", "uuid", "size", "segment", "entry", "chain", "parent"}
        return fields([pair for pair in pairs if pair[0] in known])

    return mock.patch.object(module, "_fields", dropping)


def doubled_fields() -> Any:
    """Of a field that is given twice the last one counts."""
    import protocol.messages as module

    return mock.patch.object(module, "_fields", dict)


def lax_types() -> Any:
    """Texts that look like numbers are taken as such."""
    import protocol.messages as module

    def convert(plain: Any, kind: Any, **_more: Any) -> Any:
        return msgspec.convert(plain, kind, strict=False, builtin_types=(bytes,))

    fake = mock.Mock(convert=convert, ValidationError=msgspec.ValidationError, to_builtins=msgspec.to_builtins)
    return mock.patch.object(module, "msgspec", fake)


# --- session -------------------------------------------------------------------------------------------------------


def read_table() -> dict[tuple[str, str, str], str]:
    """The table of states as docs/protocol.md has it: (state, sender, type) to the next state."""
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    rows = re.search(r"<!-- table: states -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert rows is not None
    table = {}
    for row in rows[1].splitlines()[2:]:
        state, *senders = (cell.strip() for cell in row.strip("|").split("|"))
        state = state.strip("`")
        for side, cell in zip(("primary", "replica"), senders, strict=True):
            for name, target in re.findall(r"([A-Z_]+)(?: → `(\w+)`)?", cell.partition(", by the role")[0]):
                table[state, side, name] = target or state
            if state != "closed":
                table[state, side, "ERROR"] = "closed"
            if state not in ("new", "hello", "closed"):
                table[state, side, "CLOSE"] = "closed"
                table[state, side, "HEARTBEAT"] = state
    return table


TABLE = read_table()
STATE_OF_ROLE = {Role.CONTROL: "open", Role.BULK: "bulk", Role.PROBE: "probe", Role.VERIFY: "verify"}
ME = Identity("fuzz", "fuzz", capabilities=("definition", "marks", "planned", "zstd"))
ALL = sorted(MessageType)
# Chooses the message that a byte stands for; the first bytes of the input lead to the states behind OPENED.
PAYLOAD = b"payload "


class Model:
    """A session as the page describes it."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.state = "new"
        self.token = 0
        self.role = Role.CONTROL

    def following(self, sender: str, kind: MessageType) -> str | None:
        following = TABLE.get((self.state, sender, kind.name))
        if following is not None and kind is MessageType.OPENED:
            return STATE_OF_ROLE[self.role]
        return following

    def step(self, following: str, body: Any) -> None:
        self.state = following
        if TYPE_OF.get(type(body)) is MessageType.WELCOME:
            self.token = body.token
        if TYPE_OF.get(type(body)) is MessageType.OPEN:
            self.role = body.role


def body_to_send(session: Session, kind: MessageType, role: Role) -> Any:
    if kind is MessageType.HELLO and isinstance(session, PrimarySession):
        return session.hello()
    if kind is MessageType.WELCOME and isinstance(session, ReplicaSession) and session.peer is not None:
        return session.welcome()
    body = EXAMPLES[kind]
    return msgspec.structs.replace(body, role=role) if kind is MessageType.OPEN else body


class Wire:
    """Two sessions and the frames under way between them."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {"primary": PrimarySession(ME), "replica": ReplicaSession(ME, TOKEN)}
        self.models = {side: Model(side) for side in self.sessions}
        self.queues: dict[str, deque[bytes]] = {side: deque() for side in self.sessions}

    def check(self, side: str) -> None:
        session, model = self.sessions[side], self.models[side]
        assert (session.state.value, session.token) == (model.state, model.token)
        limit = MAX_HELLO_BODY if model.token == 0 else MAX_FRAME_PAYLOAD
        assert session.reader.limit == limit, "the limit rises with WELCOME, and only then"

    def send(self, side: str, kind: MessageType, role: Role) -> None:
        session, model = self.sessions[side], self.models[side]
        following = model.following(side, kind)
        body = None if kind in BULK_TYPES else body_to_send(session, kind, role)
        assert session.allows(kind) is (following is not None)
        try:
            pieces = session.send_bulk(kind, [PAYLOAD]) if body is None else session.send(body)
        except ProtocolError as error:
            assert error.code == "state"
            assert following is None, f"{kind.name} may be sent in {model.state}"
        else:
            assert following is not None, f"{kind.name} was sent in {model.state}"
            model.step(following, body)
            other = "replica" if side == "primary" else "primary"
            self.queues[other].append(b"".join(map(bytes, pieces)))
        self.check(side)

    def deliver(self, side: str) -> None:
        """What the peer's session let pass is never an error, however messages cross; but after the end it may be."""
        if not self.queues[side]:
            return
        session, model = self.sessions[side], self.models[side]
        (frame,) = session.reader.feed(self.queues[side].popleft())
        if model.state == "closed":
            return
        body = session.receive(frame)
        following = model.following(session.side.other.value, frame.type)
        assert following is not None, f"{frame.type.name} was taken in {model.state}"
        model.step(following, body)
        self.check(side)

    def forge(self, side: str, kind: MessageType, *, token: int, compressed: bool) -> None:
        """A frame that the peer's session never sent."""
        session, model = self.sessions[side], self.models[side]
        payload = PAYLOAD if kind in BULK_TYPES else encode_body(EXAMPLES[kind])
        frame = Frame(kind, payload, token, compressed, 100 if compressed else len(payload))
        following = model.following(session.side.other.value, kind)
        # The primary may have sent its ERROR before it saw the token, or because of what came with it.
        early = kind is MessageType.ERROR and token == 0 and model.state == "ready"
        ours = early or token == model.token
        try:
            body = session.receive(frame)
        except ProtocolError as error:
            assert error.code in CODES
            refused = compressed and "zstd" not in session.capabilities
            if not refused:
                assert following is None or not ours, f"{kind.name} was refused in {model.state}: {error}"
        else:
            assert ours, "a frame of another session was taken"
            assert following is not None, f"{kind.name} was taken in {model.state}"
            model.step(following, body)
        self.check(side)


def fuzz_session(data: bytes) -> None:
    """Both sides do what the table of the page says, for every sequence of sending, receiving and forging.

    Two bytes are one step: what to do to which side, and with which message.
    """
    wire = Wire()
    for at in range(0, min(len(data), 400) - 1, 2):
        what, which = data[at], data[at + 1]
        side = "replica" if what & 1 else "primary"
        kind = ALL[which % len(ALL)]
        match what >> 1 & 7:
            case 0 | 1 | 2:
                wire.send(side, kind, list(Role)[what >> 4 & 3])
            case 3 | 4 | 5:
                wire.deliver(side)
            case 6:
                token = wire.models[side].token
                wire.forge(side, kind, token=token, compressed=bool(what & 64))
                # What was forged is unknown to the peer: from here on nothing is promised about what crosses.
                wire.queues[side].clear()
                if wire.models[side].state != "closed":
                    return
            case 7:
                token = wire.models[side].token ^ (1 << (what >> 4))
                wire.forge(side, kind, token=token, compressed=False)


def step(side: str, kind: MessageType | None, role: int = 0) -> bytes:
    """Two bytes: send ``kind``, or receive what comes next."""
    what = (side == "replica") | (0 if kind is not None else 3 << 1) | role << 4
    return bytes([what, ALL.index(kind) if kind is not None else 0])


def said(side: str, kind: MessageType, role: int = 0) -> bytes:
    """Sent and received."""
    return step(side, kind, role) + step("replica" if side == "primary" else "primary", None)


def greeting(role: int) -> bytes:
    m = MessageType
    return (
        said("primary", m.HELLO)
        + said("replica", m.WELCOME)
        + said("primary", m.OPEN, role)
        + said("replica", m.OPENED)
    )


def seeds_session() -> Iterable[bytes]:
    m, p, r = MessageType, "primary", "replica"
    control = greeting(0)
    log = said(p, m.LOG) + said(p, m.SEAL) + said(r, m.RECEIVED) + said(r, m.APPLIED)
    resync = said(p, m.RESYNC_BEGIN) + said(r, m.RESYNC_READY) + log + said(p, m.COMMIT)
    yield control + log + said(p, m.HEARTBEAT) + said(r, m.CLOSE)
    yield control + resync + step(r, m.COMMITTED) + step(r, m.APPLIED) + step(p, None) * 2
    yield control + step(p, m.RESYNC_BEGIN) + step(p, m.RESYNC_CANCEL) + step(r, None) + step(r, m.RESYNC_READY)
    yield greeting(1) + said(p, m.MANIFEST_REQUEST) + said(r, m.MANIFEST) + said(p, m.BLOCKS) + said(p, m.RANGE_DONE)
    yield greeting(2) + said(p, m.CLOSE)
    yield control + resync + step(p, m.LOG) + said(r, m.APPLIED)
    told = said(p, m.RESYNC_BEGIN) + said(r, m.RESYNC_READY) + said(p, m.UNSETTLE) + said(r, m.UNSETTLED)
    yield control + told + said(r, m.RESYNC_READY) + step(p, m.UNSETTLE) + step(p, m.COMMIT)
    crossed = step(p, m.RESYNC_BEGIN) + step(r, None) + step(r, m.RESYNC_READY) + step(p, m.RESYNC_CANCEL)
    yield control + crossed + step(p, None) + step(r, None) + said(r, m.RESYNC_CANCELLED)
    for kind in MessageType:
        yield control + bytes([6 << 1, ALL.index(kind)]) + bytes([6 << 1 | 1, ALL.index(kind)])
        yield bytes([6 << 1, ALL.index(kind)]) + bytes([6 << 1 | 1, ALL.index(kind)])
        yield control + bytes([7 << 1 | 64, ALL.index(kind)])
    yield bytes([6 << 1 | 1, 0])


def mutate_session(data: bytes, random: Random) -> bytes:
    if random.random() < 0.5:
        return data[: len(data) // 2 * 2] + b"".join(random.randbytes(2) for _ in range(random.randrange(1, 6)))
    return set_field(data, (random.randrange(len(data)), 1), random) if data else random.randbytes(8)


def token_unchecked() -> Any:
    receive_ = Session.receive

    def receive(self: Session, frame: Frame) -> Any:
        return receive_(self, Frame(frame.type, frame.payload, self.token, frame.compressed, frame.raw_length))

    return mock.patch.object(Session, "receive", receive)


def table_with(state: str, side: str, kind: str, following: str) -> Any:
    s, m = protocol.session.SessionState, MessageType
    entry = {(s(state), protocol.session.Side(side), m[kind]): s(following)}
    return mock.patch.dict(protocol.session.TRANSITIONS, entry)


def no_crossing() -> Any:
    """READY after CANCEL is an error."""
    s = protocol.session.SessionState
    table = {
        key: value
        for key, value in protocol.session.TRANSITIONS.items()
        if key != (s.CANCELLING, protocol.session.Side.REPLICA, MessageType.RESYNC_READY)
    }
    return mock.patch.object(protocol.session, "TRANSITIONS", table)


TARGETS = {
    "frames": Target(
        fuzz_frames,
        seeds_frames,
        mutate_frames,
        (
            Plant("any_check", any_check),
            Plant("no_caps", no_caps),
            Plant("forgetful_parse", forgetful_parse),
        ),
    ),
    "messages": Target(
        fuzz_messages,
        seeds_messages,
        mutate_messages,
        (
            Plant("loose_decode", loose_decode),
            Plant("doubled_fields", doubled_fields),
            Plant("lax_types", lax_types),
        ),
        max_bytes=4096,
    ),
    "session": Target(
        fuzz_session,
        seeds_session,
        mutate_session,
        (
            Plant("token_unchecked", token_unchecked),
            Plant("log_while_committing", lambda: table_with("committing", "primary", "LOG", "committing")),
            Plant("no_crossing", no_crossing),
        ),
        max_bytes=400,
    ),
}
