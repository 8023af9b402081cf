"""Control bodies: each message accepted, not allowed, too large and truncated, and any bytes but those an error."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.messages import (
    BODIES,
    BULK_TYPES,
    MAX_CONTROL_BODY,
    MAX_HELLO_BODY,
    MAX_SETTLED_RUNS,
    MAX_U63,
    RETRYABLE,
    TYPE_OF,
    Body,
    ErrorCode,
    Hello,
    MessageType,
    Open,
    RangeSettled,
    Received,
    Role,
    Run,
    WirePosition,
    decode_body,
    encode_body,
    read_lineage,
    wire_lineage,
)
from protocol.position import MAX_LINEAGE, NO_EPOCH, Ancestor, Position
from tests.unit.protocol.strategies import bodies
from tests.vectors.messages import EXAMPLES, LINEAGE, POSITION, REVERSED_EXAMPLES, SEEDED_EXAMPLES, SET_EXAMPLES

CONTROL = sorted(BODIES)


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def plain(body: Body) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(body, builtin_types=(bytes,))
    return fields


def test_every_type_is_control_or_bulk_and_numbers_stay() -> None:
    assert set(MessageType) == set(BODIES) | BULK_TYPES
    assert not set(BODIES) & BULK_TYPES
    assert {kind.name: int(kind) for kind in MessageType} == {
        "CUT_MARK": 80, "CUT_MARKED": 81, "DEFINITION": 82, "DEFINITION_WANTED": 83, "DEFINITION_PART": 84,
        "DEFINITION_KEPT": 85,
        "HELLO": 1, "WELCOME": 2, "ERROR": 3, "OPEN": 4, "OPENED": 5, "HEARTBEAT": 6, "CLOSE": 7,
        "LOG": 16, "SEAL": 17, "RECEIVED": 18, "APPLIED": 19,
        "RESYNC_BEGIN": 32, "RESYNC_READY": 33, "MANIFEST_REQUEST": 34, "MANIFEST": 35, "BLOCKS": 36,
        "RANGE_DONE": 37, "RANGE_SETTLED": 38, "COMMIT": 39, "COMMITTED": 40, "RESYNC_CANCEL": 41,
        "RESYNC_CANCELLED": 42,
            "DETAIL_REQUEST": 43, "DETAIL": 44, "HOLES_REQUEST": 45, "HOLES": 46,
            "UNSETTLE": 47, "UNSETTLED": 48,
        "VERIFY_BEGIN": 49, "VERIFY_READY": 50, "VERIFY_CUT": 51, "VERIFY_HELD": 52, "VERIFY_REQUEST": 53,
        "VERIFY_ANSWER": 54, "VERIFY_END": 55, "VERIFY_ENDED": 56, "VERIFY_LOST": 57,
        "SAMPLE_REQUEST": 64, "SAMPLE": 65,
        "FAILOVER_PREPARE": 72, "FAILOVER_PREPARED": 73, "FAILOVER_VOID": 74, "FAILOVER_VOIDED": 75,
    }  # fmt: skip


def test_error_codes_stay_and_some_can_heal() -> None:
    assert [code.value for code in ErrorCode] == [
        "protocol", "version", "unauthorized", "busy", "geometry", "unrelated", "fenced", "gap", "chain", "state",
        "no_space", "storage", "damaged", "stale", "shutdown", "queued",
    ]  # fmt: skip
    assert set(ErrorCode) >= RETRYABLE
    assert not RETRYABLE & {ErrorCode.UNAUTHORIZED, ErrorCode.FENCED, ErrorCode.GEOMETRY, ErrorCode.CHAIN}


@given(bodies)
def test_body_comes_back(body: Body) -> None:
    assert decode_body(TYPE_OF[type(body)], encode_body(body)) == body


@pytest.mark.parametrize("kind", CONTROL)
def test_example_is_accepted_from_any_buffer(kind: MessageType) -> None:
    data = encode_body(EXAMPLES[kind])
    for buffer in (data, bytearray(data), memoryview(data)):
        assert decode_body(kind, buffer) == EXAMPLES[kind]


@pytest.mark.parametrize("kind", CONTROL)
def test_truncated_body_is_an_error_at_every_byte(kind: MessageType) -> None:
    data = encode_body(EXAMPLES[kind])
    for count in range(len(data)):
        with pytest.raises(ProtocolError, match=kind.name):
            decode_body(kind, data[:count])


@pytest.mark.parametrize("kind", CONTROL)
def test_body_with_more_behind_it_is_an_error(kind: MessageType) -> None:
    with pytest.raises(ProtocolError, match=kind.name):
        decode_body(kind, encode_body(EXAMPLES[kind]) + b"\xc0")


@pytest.mark.parametrize("kind", CONTROL)
def test_too_large_body_is_an_error(kind: MessageType) -> None:
    limit = MAX_HELLO_BODY if kind in (MessageType.HELLO, MessageType.WELCOME) else MAX_CONTROL_BODY
    with pytest.raises(ProtocolError, match="limit"):
        decode_body(kind, bytes(limit + 1))


@pytest.mark.parametrize("kind", CONTROL)
def test_unknown_field_is_an_error(kind: MessageType) -> None:
    with pytest.raises(ProtocolError, match="surprise"):
        decode_body(kind, pack(plain(EXAMPLES[kind]) | {"surprise": 1}))


@pytest.mark.parametrize(
    "kind, field",
    [(kind, field.name) for kind in CONTROL for field in msgspec.structs.fields(BODIES[kind]) if field.required],
)
def test_missing_field_is_an_error(kind: MessageType, field: str) -> None:
    fields = plain(EXAMPLES[kind])
    del fields[field]
    with pytest.raises(ProtocolError, match=field):
        decode_body(kind, pack(fields))


@pytest.mark.parametrize(
    "kind, field", [(kind, field.name) for kind in CONTROL for field in msgspec.structs.fields(BODIES[kind])]
)
def test_field_of_another_type_is_an_error(kind: MessageType, field: str) -> None:
    """Types are strict: no text for a number, no number for a text, no number for a bool."""
    wrong: Any
    for wrong in ({"a": 1}, [[]], -1, 1.5e300, "\x00" * 5000, b"short", True):
        whole = plain(EXAMPLES[kind])
        for further in (SEEDED_EXAMPLES, REVERSED_EXAMPLES, SET_EXAMPLES):
            whole |= plain(further.get(kind, EXAMPLES[kind]))
        value = whole[field]
        if type(wrong) is type(value) or (wrong == [[]] and value == []):
            continue
        with pytest.raises(ProtocolError, match=kind.name):
            decode_body(kind, pack(whole | {field: wrong}))


@pytest.mark.parametrize(
    "kind, example",
    [(kind, of[kind]) for of in (REVERSED_EXAMPLES, SEEDED_EXAMPLES, SET_EXAMPLES) for kind in sorted(of)],
)
def test_what_an_older_peer_does_not_know_is_left_out(kind: MessageType, example: Body) -> None:
    """A field that goes by a capability is not there at all without it, and a peer that has it gets it back whole."""
    without, whole = plain(EXAMPLES[kind]), plain(example)
    (field,) = whole.keys() - without.keys()
    assert field in ("fence", "common", "doubt", "disk_set", "seeded")
    assert decode_body(kind, pack(whole)) == example
    del whole[field]
    assert getattr(decode_body(kind, pack(whole)), field) is msgspec.UNSET


@pytest.mark.parametrize(
    "kind, change",
    [
        (MessageType.HELLO, {"versions": []}),
        (MessageType.HELLO, {"versions": [1] * 17}),
        (MessageType.HELLO, {"versions": [65536]}),
        (MessageType.HELLO, {"host": ""}),
        (MessageType.HELLO, {"host": "h" * 129}),
        (MessageType.HELLO, {"heartbeat_seconds": float("nan")}),
        (MessageType.HELLO, {"heartbeat_seconds": float("inf")}),
        (MessageType.HELLO, {"capabilities": ["c"] * 65}),
        (MessageType.WELCOME, {"token": 0}),
        (MessageType.WELCOME, {"token": MAX_U63 + 1}),
        (MessageType.ERROR, {"code": "other"}),
        (MessageType.ERROR, {"text": "t" * 2049}),
        (MessageType.OPEN, {"vm": bytes(15)}),
        (MessageType.OPEN, {"vm": bytes(17)}),
        (MessageType.OPEN, {"vm": "0123456789abcdef"}),
        (MessageType.OPEN, {"role": "admin"}),
        (MessageType.OPEN, {"disks": [{"index": 0, "uuid": bytes(16), "size": 0}]}),
        (MessageType.OPEN, {"disks": [{"index": 0, "uuid": bytes(16), "size": (64 << 40) + 1}]}),
        (MessageType.OPEN, {"disks": [{"index": 0, "uuid": bytes(16), "size": 512}] * 65}),
        (MessageType.OPEN, {"lineage": [plain(LINEAGE[0])] * (MAX_LINEAGE + 1)}),
        (MessageType.HEARTBEAT, {"number": -1}),
        (MessageType.HEARTBEAT, {"number": 1 << 63}),
        (MessageType.HEARTBEAT, {"number": (1 << 64) - 1}),
        (MessageType.RECEIVED, {"position": None}),
        (MessageType.RESYNC_BEGIN, {"key": bytes(15)}),
        (MessageType.RESYNC_BEGIN, {"key": bytes(33)}),
        (MessageType.MANIFEST_REQUEST, {"offset": 1 << 63}),
    ],
)  # fmt: skip
def test_value_out_of_range_is_an_error(kind: MessageType, change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=kind.name):
        decode_body(kind, pack(plain(EXAMPLES[kind]) | change))


def test_most_settled_runs_fit_one_message() -> None:
    runs = [Run(disk=65535, offset=MAX_U63, length=MAX_U63)] * MAX_SETTLED_RUNS
    body = RangeSettled(id=bytes(16), round=1, ranges=runs)
    data = encode_body(body)
    assert len(data) <= MAX_CONTROL_BODY
    assert decode_body(MessageType.RANGE_SETTLED, data) == body
    with pytest.raises(ProtocolError):
        decode_body(MessageType.RANGE_SETTLED, pack(plain(body) | {"ranges": [plain(run) for run in [*runs, runs[0]]]}))


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x91" * 60000,
        b"\x81\xa1a" * 20000,
        b"\xc7\x00\x05",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\x81\xc4\x01a\x01",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\xc1",
        b"\xa1\xff",
    ],
    ids=[
        "array", "map", "bin", "str", "ext", "deep-array", "deep-map", "extension", "timestamp", "bytes-key", "twice",
        "reserved", "no-utf8",
    ],
)  # fmt: skip
def test_hostile_msgpack_is_a_typed_error(bomb: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_body(MessageType.CLOSE, bomb)


def test_field_given_twice_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="twice"):
        decode_body(MessageType.CLOSE, b"\x82\xa4text\xa1a\xa4text\xa1b")


@given(st.sampled_from(CONTROL), st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_typed_error(kind: MessageType, data: bytes) -> None:
    """I18 for the bodies."""
    try:
        body = decode_body(kind, data)
    except ProtocolError:
        return
    assert type(body) is BODIES[kind]


@given(st.sampled_from(CONTROL), st.data())
def test_changed_bytes_are_a_message_or_a_typed_error(kind: MessageType, choices: st.DataObject) -> None:
    data = bytearray(encode_body(EXAMPLES[kind]))
    for _ in range(choices.draw(st.integers(1, 3))):
        data[choices.draw(st.integers(0, len(data) - 1))] = choices.draw(st.integers(0, 255))
    try:
        body = decode_body(kind, data)
    except ProtocolError:
        return
    assert type(body) is BODIES[kind]
    assert decode_body(kind, encode_body(body)) == body


def test_positions_and_lineages_cross_the_wire_unchanged() -> None:
    position = Position(bytes(range(16)), 7, 9, bytes(range(16, 32)))
    assert WirePosition.of(position).position() == position
    lineage = (Ancestor(bytes(range(16)), NO_EPOCH, 0), Ancestor(bytes(range(16, 32)), bytes(range(16)), 3))
    assert read_lineage(wire_lineage(lineage)) == lineage


def test_defaults_of_open_need_not_be_sent() -> None:
    fields = {"role": "probe", "vm": bytes(16), "name": "web", "disks": [], "epoch": bytes(16)}
    body = decode_body(MessageType.OPEN, pack(fields))
    assert body == Open(role=Role.PROBE, vm=bytes(16), name="web", disks=[], epoch=bytes(16))


def test_messages_can_not_be_changed() -> None:
    for body in (EXAMPLES[MessageType.HELLO], Received(position=POSITION)):
        with pytest.raises(AttributeError):
            body.host = "x"  # type: ignore[attr-defined]
    assert isinstance(EXAMPLES[MessageType.HELLO], Hello)
