"""Newline-delimited JSON-RPC 2.0: bytes in, messages out, and back; no I/O.

One message is one line of UTF-8 JSON ended by a line feed. ``params`` are always an object (by name); batch
requests (arrays of requests) are refused. Blank lines are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from shared.ports import Buffer

SERVER_MESSAGE_MAX = 64 << 10
"""Bytes of one line that a server takes, line feed included."""
CLIENT_MESSAGE_MAX = 16 << 20
"""Bytes of one line that a client takes, line feed included; a server never sends a longer one."""
DEPTH_MAX = 16
"""Objects and arrays may be nested this deep, the message itself included."""
METHOD_LENGTH_MAX = 128
"""Characters of a method's name."""

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

RequestId = int | str


@dataclass(frozen=True, slots=True)
class Request:
    """A call that wants an answer."""

    id: RequestId
    method: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notification:
    """A message without an answer."""

    method: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a request that succeeded."""

    id: RequestId
    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer to a request that failed; ``id`` is None where the request could not be read."""

    id: RequestId | None
    code: int
    message: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no message. ``fatal``: where the next line begins is unknown, so the stream has to end.

    ``id`` is that of the request where it could still be read.
    """

    code: int
    text: str
    id: RequestId | None = None
    fatal: bool = False


Message = Request | Notification | Result | Failure | Malformed

# A string, closed or running to the end of the line, so that the search stays linear on any bytes.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))


def depth(line: bytes) -> int:
    """How deep objects and arrays are nested in a line of JSON, without building any of them."""
    deepest = current = 0
    if b"\\" not in line:
        # Without escapes every string is between two quotes, and a status of hundreds of VMs is through in a tenth of
        # the time when all else is gone first.
        line = line.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    for bracket in _STRING.sub(b"", line).translate(None, _NOT_BRACKETS):
        if bracket in b"[{":
            current += 1
            deepest = max(deepest, current)
        else:
            current -= 1
    return deepest


def encode(message: Request | Notification | Result | Failure) -> bytes:
    """The line of a message, line feed included. Raises TypeError for values that JSON can't carry."""
    body: dict[str, Any] = {"jsonrpc": "2.0"}
    match message:
        case Request():
            body |= {"id": message.id, "method": message.method, "params": message.params}
        case Notification():
            body |= {"method": message.method, "params": message.params}
        case Result():
            body |= {"id": message.id, "result": message.value}
        case Failure():
            error = {"code": message.code, "message": message.message, "data": message.data}
            body |= {"id": message.id, "error": error}
    return msgspec.json.encode(body) + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line without its line feed; what can't be used comes back as Malformed."""
    # Most lines have so few brackets that they can't be nested too deep, wherever these are.
    if line.count(b"{") + line.count(b"[") > DEPTH_MAX and depth(line) > DEPTH_MAX:
        return Malformed(INVALID_REQUEST, f"The message is nested deeper than {DEPTH_MAX} levels.")
    try:
        body = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        return Malformed(PARSE_ERROR, f"The message is not valid JSON: {error}")
    match body:
        case dict():
            return _message(body)
        case list():
            return Malformed(INVALID_REQUEST, "Batch requests are not supported; send one request per line.")
        case _:
            return Malformed(INVALID_REQUEST, "The message is not a JSON object.")


def _message(body: dict[str, Any]) -> Message:
    identity = body.get("id")
    known = identity if isinstance(identity, int | str) and not isinstance(identity, bool) else None
    if body.get("jsonrpc") != "2.0":
        return Malformed(INVALID_REQUEST, 'The message lacks "jsonrpc": "2.0".', known)
    if identity is not None and known is None:
        return Malformed(INVALID_REQUEST, "The message's id is neither an integer nor a string.")
    if "method" in body:
        return _call(body, known)
    if "error" in body:
        return _failure(body["error"], known)
    if "result" in body and known is not None:
        return Result(known, body["result"])
    return Malformed(INVALID_REQUEST, "The message is neither a request nor an answer.", known)


def _call(body: dict[str, Any], identity: RequestId | None) -> Message:
    method = body["method"]
    if not isinstance(method, str) or not 0 < len(method) <= METHOD_LENGTH_MAX:
        text = f"The method is not a text of 1 to {METHOD_LENGTH_MAX} characters."
        return Malformed(INVALID_REQUEST, text, identity)
    unknown = sorted(body.keys() - {"jsonrpc", "id", "method", "params"})
    if unknown:
        text = f"The request has unknown fields: {', '.join(unknown)[:200]}."
        return Malformed(INVALID_REQUEST, text, identity)
    params = body.get("params", {})
    if not isinstance(params, dict):
        return Malformed(INVALID_PARAMS, "The params are not an object; parameters go by name.", identity)
    if identity is None:
        return Notification(method, params)
    return Request(identity, method, params)


def _failure(error: Any, identity: RequestId | None) -> Message:
    match error:
        case {"code": int(code), "message": str(message)}:
            data = error.get("data")
            return Failure(identity, code, message, data if isinstance(data, dict) else {})
    return Malformed(INVALID_REQUEST, "The answer's error has no code and message.", identity)


class MessageReader:
    """Cuts a stream of bytes into messages; keeps at most one unfinished line of ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._line = bytearray()
        self._ended = False

    def feed(self, data: Buffer) -> list[Message]:
        """The messages that ``data`` completes. After a fatal Malformed everything further is ignored."""
        messages: list[Message] = []
        whole = bytes(data)
        start = 0
        while start < len(whole) and not self._ended:
            end = whole.find(b"\n", start) + 1
            piece = whole[start : end or len(whole)]
            start += len(piece)
            if len(self._line) + len(piece) > self.limit:
                self._ended = True
                self._line.clear()
                text = f"The message is longer than {self.limit} bytes."
                messages.append(Malformed(INVALID_REQUEST, text, fatal=True))
                break
            self._line += piece
            if end:
                line = bytes(self._line).strip()
                self._line.clear()
                if line:
                    messages.append(decode(line))
        return messages
