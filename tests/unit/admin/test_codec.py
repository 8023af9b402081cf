"""JSON-RPC lines: whole, byte by byte, too long, too deep, and any bytes at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.admin.codec import (
    DEPTH_MAX,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_LENGTH_MAX,
    PARSE_ERROR,
    SERVER_MESSAGE_MAX,
    Failure,
    Malformed,
    Message,
    MessageReader,
    Notification,
    Request,
    Result,
    decode,
    depth,
    encode,
)

# Up to 12 deep, so that with the message around it the limit is not passed.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
PARAMS = st.dictionaries(st.text(max_size=8), JSON, max_size=4)
METHODS = st.text(min_size=1, max_size=METHOD_LENGTH_MAX)
IDS = st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20)
MESSAGES = st.one_of(
    st.builds(Request, IDS, METHODS, PARAMS),
    st.builds(Notification, METHODS, PARAMS),
    st.builds(Result, IDS, JSON),
    st.builds(Failure, IDS | st.none(), st.integers(-(2**31), 2**31), st.text(max_size=40), PARAMS),
)


def deep(message: Message) -> bool:
    return depth(encode(message)) > DEPTH_MAX  # type: ignore[arg-type]  # MESSAGES holds no Malformed


@given(MESSAGES)
def test_message_survives_encoding(message: Any) -> None:
    line = encode(message)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    if not deep(message):
        assert decode(line[:-1]) == message


@given(st.lists(MESSAGES.filter(lambda message: not deep(message)), max_size=5), st.data())
def test_any_split_gives_the_same_messages(messages: list[Any], data: st.DataObject) -> None:
    stream = b"".join(encode(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = MessageReader(SERVER_MESSAGE_MAX)
    received: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += reader.feed(memoryview(stream)[start:end])
    assert received == messages


@given(st.lists(st.binary(max_size=60) | MESSAGES.map(encode), max_size=4).map(b"".join))
def test_byte_by_byte_is_the_same_as_whole(stream: bytes) -> None:
    whole = MessageReader(100).feed(stream)
    reader = MessageReader(100)
    single: list[Message] = []
    for at in range(len(stream)):
        single += reader.feed(stream[at : at + 1])
    assert single == whole


@given(st.binary(max_size=300))
def test_any_line_is_a_message_or_malformed_i18(line: bytes) -> None:
    assert isinstance(decode(line), Request | Notification | Result | Failure | Malformed)


@given(JSON)
def test_depth_is_that_of_the_value(value: Any) -> None:
    def expected(item: Any) -> int:
        match item:
            case list():
                return 1 + max((expected(each) for each in item), default=0)
            case dict():
                return 1 + max((expected(each) for each in item.values()), default=0)
        return 0

    assert depth(json.dumps(value).encode()) == expected(value)


def test_depth_at_the_limit_is_taken_and_one_deeper_refused() -> None:
    def line(levels: int) -> bytes:
        # The message and its params are two of the levels.
        return b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":' + b"[" * levels + b"]" * levels + b"}}"

    assert isinstance(decode(line(DEPTH_MAX - 2)), Request)
    refused = decode(line(DEPTH_MAX - 1))
    assert isinstance(refused, Malformed)
    assert "deeper than 16" in refused.text


@pytest.mark.parametrize("hostile", [b"[" * 60_000, b'"' * 60_000, b'"' + b'\\"' * 30_000, b"\\" * 60_000])
def test_hostile_nesting_and_quotes_are_refused(hostile: bytes) -> None:
    assert isinstance(decode(hostile), Malformed)


def test_longest_line_is_taken_and_one_byte_more_ends_the_stream() -> None:
    empty = len(encode(Request(1, "m", {"a": ""})))
    longest = Request(1, "m", {"a": "x" * (SERVER_MESSAGE_MAX - empty)})
    assert MessageReader(SERVER_MESSAGE_MAX).feed(encode(longest)) == [longest]

    reader = MessageReader(SERVER_MESSAGE_MAX)
    [refused] = reader.feed(encode(Request(1, "m", {"a": "x" * (SERVER_MESSAGE_MAX - empty + 1)})))
    assert isinstance(refused, Malformed)
    assert refused.fatal
    assert "longer than 65536 bytes" in refused.text
    assert reader.feed(encode(Request(2, "m"))) == []


def test_unended_line_takes_no_more_memory_than_the_limit() -> None:
    reader = MessageReader(1000)
    outcomes: list[Message] = []
    for _ in range(20):
        outcomes += reader.feed(b"x" * 100)
    assert [isinstance(each, Malformed) and each.fatal for each in outcomes] == [True]


def test_blank_lines_and_carriage_returns_are_ignored() -> None:
    stream = b"\n\r\n  \n" + encode(Request(1, "m"))[:-1] + b"\r\n"
    assert MessageReader(1000).feed(stream) == [Request(1, "m")]


@pytest.mark.parametrize(
    "line, code, known, words",
    [
        (b"{", PARSE_ERROR, None, "not valid JSON"),
        (b"\xff\xfe", PARSE_ERROR, None, "not valid JSON"),
        (b'{"a":NaN}', PARSE_ERROR, None, "not valid JSON"),
        (b'[{"jsonrpc":"2.0","id":1,"method":"m"}]', INVALID_REQUEST, None, "Batch requests are not supported"),
        (b"3", INVALID_REQUEST, None, "not a JSON object"),
        (b'{"id":7,"method":"m"}', INVALID_REQUEST, 7, 'lacks "jsonrpc": "2.0"'),
        (b'{"jsonrpc":"2.0","id":7,"method":""}', INVALID_REQUEST, 7, "1 to 128 characters"),
        (b'{"jsonrpc":"2.0","id":7,"method":5}', INVALID_REQUEST, 7, "1 to 128 characters"),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"m"}', INVALID_REQUEST, None, "neither an integer nor a string"),
        (b'{"jsonrpc":"2.0","id":true,"method":"m"}', INVALID_REQUEST, None, "neither an integer nor a string"),
        (b'{"jsonrpc":"2.0","id":7,"method":"m","x":1}', INVALID_REQUEST, 7, "unknown fields: x"),
        (b'{"jsonrpc":"2.0","id":7,"method":"m","params":[1]}', INVALID_PARAMS, 7, "go by name"),
        (b'{"jsonrpc":"2.0","id":7}', INVALID_REQUEST, 7, "neither a request nor an answer"),
        (b'{"jsonrpc":"2.0","result":7}', INVALID_REQUEST, None, "neither a request nor an answer"),
        (b'{"jsonrpc":"2.0","id":7,"error":{"code":"x"}}', INVALID_REQUEST, 7, "no code and message"),
    ],
)
def test_malformed_line_says_what_is_wrong(line: bytes, code: int, known: Any, words: str) -> None:
    outcome = decode(line)
    assert isinstance(outcome, Malformed)
    assert (outcome.code, outcome.id, outcome.fatal) == (code, known, False)
    assert words in outcome.text


def test_reader_goes_on_after_a_malformed_line() -> None:
    first, second = MessageReader(1000).feed(b"{\n" + encode(Notification("n")))
    assert isinstance(first, Malformed)
    assert second == Notification("n")
