"""The NBD server: its handshake and its request parser alone, and whole connections over a transport in memory."""

from __future__ import annotations

import asyncio
import atexit
import struct
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import shared.nbd.changing
import shared.nbd.handshake
import shared.nbd.requests
import shared.nbd.server
from shared.nbd.backend import Mutation
from shared.nbd.connection import Connection
from shared.nbd.ending import EndReason
from shared.nbd.handshake import Handshake, Phase
from shared.nbd.requests import Batch, RequestParser
from shared.nbd.server import NbdServer
from shared.ports import Extent
from tests.fuzz.mutators import tweak
from tests.fuzz.target import Plant, Target
from tests.fuzz.targets.wire import chunks

SIZE = 64 << 10
EDGES = (0, 1, 511, 512, 1024, SIZE - 512, SIZE, SIZE + 512, 1 << 20, 32 << 20, (32 << 20) + 512, (1 << 32) - 512)


class MemoryDisk:
    """An export in memory. ``slow``: every change and read waits for a turn of the loop first."""

    def __init__(self, name: str, *, read_only: bool = False, slow: bool = False) -> None:
        self.name = name
        self.size = SIZE
        self.read_only = read_only
        self.description = f"the {name}"
        self.content = bytearray(SIZE)
        self._slow = slow

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return None if self._slow else bytes(self.content[offset : offset + length])

    async def read(self, offset: int, length: int) -> bytes:
        await asyncio.sleep(0)
        return bytes(self.content[offset : offset + length])

    def mutate(self, batch: list[Mutation]) -> Awaitable[None] | None:
        for mutation in batch:
            assert mutation.offset >= 0 and 0 < mutation.length <= SIZE - mutation.offset, "a range outside the disk"
            assert not (mutation.offset | mutation.length) % 512
        if self._slow:
            return self._later(batch)
        self._perform(batch)
        return None

    async def _later(self, batch: list[Mutation]) -> None:
        await asyncio.sleep(0)
        self._perform(batch)

    def _perform(self, batch: list[Mutation]) -> None:
        for mutation in batch:
            data = bytes(mutation.length) if mutation.payload is None else bytes(mutation.payload)
            assert len(data) == mutation.length
            self.content[mutation.offset : mutation.offset + mutation.length] = data

    async def flush(self) -> int:
        await asyncio.sleep(0)
        return 0

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        await asyncio.sleep(0)
        half = length // 2
        return [Extent(offset, half, True), Extent(offset + half, length - half, False)] if half else []

    async def cache(self, offset: int, length: int) -> None:
        await asyncio.sleep(0)


class Exports:
    """Two exports, so that there is no default one."""

    def __init__(self, *, slow: bool = False) -> None:
        self.disks = {"disk": MemoryDisk("disk", slow=slow), "other": MemoryDisk("other", read_only=True, slow=slow)}

    def find(self, name: str) -> MemoryDisk | None:
        return self.disks.get(name)

    def names(self) -> list[tuple[str, str]]:
        return [(disk.name, disk.description) for disk in self.disks.values()]


# --- handshake -----------------------------------------------------------------------------------------------------

ACK, UNSUP, INVALID, UNKNOWN, SHUTDOWN, TOO_BIG = (
    1,
    (1 << 31) + 1,
    (1 << 31) + 3,
    (1 << 31) + 6,
    (1 << 31) + 7,
    (1 << 31) + 9,
)


@dataclass
class Talk:
    """What a handshake came to: replies, bytes taken, why it ended, and what was selected."""

    reply: bytes = b""
    taken: int = 0
    ending: EndReason | None = None
    selection: tuple[str, bool, bool] | None = None


def shake_hands(content: bytes, exports: Exports, sizes: Iterable[int], *, closing: bool) -> Talk:
    """Give a handshake the bytes as they come; it sees no more of them than are there."""
    handshake = Handshake(exports, lambda: closing)
    talk = Talk()
    view = memoryview(content)
    end = 0
    for size in sizes:
        end = min(end + size, len(content))
        while handshake.selection is None and talk.ending is None:
            step = handshake.advance(view, talk.taken, end)
            if step is None:
                break
            assert 0 <= step.consumed <= end - talk.taken
            assert step.consumed or step.ending is not None, "a step that takes nothing"
            assert len(step.reply) <= 16 << 10
            talk.taken += step.consumed
            talk.reply += step.reply
            talk.ending = step.ending.reason if step.ending is not None else None
        if end == len(content) or handshake.selection is not None or talk.ending is not None:
            break
    if handshake.selection is not None:
        chosen = handshake.selection
        talk.selection = (chosen.export.name, chosen.structured, chosen.allocation)
    assert (handshake.phase is Phase.ENDED) is (talk.ending is not None and talk.selection is None)
    return talk


class PlainHandshake:
    """The server's side as the NBD specification and docs/nbd.md have it: the final reply to each option."""

    def __init__(self, closing: bool) -> None:
        self.closing = closing
        self.structured = False
        self.context_of = ""
        self.answers: list[tuple[int, int]] = []
        self.ending: EndReason | None = None
        self.selection: tuple[str, bool, bool] | None = None

    def run(self, content: bytes) -> None:
        if len(content) < 4:
            return
        flags = int.from_bytes(content[:4], "big")
        if flags & ~3:
            self.ending = EndReason.BAD_CLIENT_FLAGS
            return
        at = 4
        while len(content) - at >= 16 and self.ending is None and self.selection is None:
            magic, option, length = struct.unpack_from(">8sII", content, at)
            if magic != b"IHAVEOPT":
                self.ending = EndReason.BAD_OPTION_MAGIC
            elif len(self.answers) >= 1024:
                self.ending = EndReason.TOO_MANY_OPTIONS
            elif not flags & 1 and option != 1:
                self.ending = EndReason.OPTION_NOT_ALLOWED
            elif (option == 1 and length > 4096) or length > 1 << 20:
                self.ending = EndReason.OPTION_TOO_LARGE
            elif length > 65536:
                # It is answered at once; no input is so long that its data end.
                self.answers.append((option, TOO_BIG))
                return
            elif len(content) - at - 16 < length:
                return
            else:
                self.option(option, content[at + 16 : at + 16 + length])
                at += 16 + length

    def option(self, option: int, data: bytes) -> None:
        if option == 1:
            name = data.decode("utf-8", "replace")
            if self.closing or name not in ("disk", "other"):
                self.ending = EndReason.UNKNOWN_EXPORT
            else:
                self.select(name)
            return
        answer = self.answer(option, data)
        self.answers.append((option, answer))
        if option == 2:
            self.ending = EndReason.DISCONNECTED
        if option == 7 and answer == ACK:
            self.select(self.named(data))

    def select(self, name: str) -> None:
        self.selection = (name, self.structured, self.structured and self.context_of == name)

    def answer(self, option: int, data: bytes) -> int:
        match option:
            case 2:
                return ACK
            case 3:
                return INVALID if data else ACK
            case 5:
                return INVALID if data else UNSUP
            case 6:
                return self.info(data)
            case 7:
                return SHUTDOWN if self.closing else self.info(data)
            case 8:
                self.structured = self.structured or not data
                return INVALID if data else ACK
            case 9:
                return self.contexts(data)[0]
            case 10:
                self.context_of = ""
                answer, queries = self.contexts(data)
                if answer == ACK and "base:allocation" in queries:
                    self.context_of = self.named(data)
                return answer
        return UNSUP

    @staticmethod
    def text(data: bytes, at: int) -> tuple[int, str, int]:
        """What is wrong with the text at ``at`` (0 for nothing), the text, and where it ends."""
        length = int.from_bytes(data[at : at + 4], "big")
        if len(data) - at < 4 or length > len(data) - at - 4:
            return INVALID, "", at
        if length > 4096:
            return TOO_BIG, "", at
        try:
            return 0, data[at + 4 : at + 4 + length].decode(), at + 4 + length
        except UnicodeDecodeError:
            return INVALID, "", at

    def named(self, data: bytes) -> str:
        return self.text(data, 0)[1]

    def info(self, data: bytes) -> int:
        wrong, name, at = self.text(data, 0)
        if wrong:
            return wrong
        if len(data) - at < 2 or len(data) - at - 2 != 2 * int.from_bytes(data[at : at + 2], "big"):
            return INVALID
        return ACK if name in ("disk", "other") else UNKNOWN

    def contexts(self, data: bytes) -> tuple[int, list[str]]:
        if not self.structured:
            return INVALID, []
        wrong, name, at = self.text(data, 0)
        if wrong or len(data) - at < 4:
            return wrong or INVALID, []
        count = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if count > (len(data) - at) // 4:
            return INVALID, []
        queries = []
        for _ in range(count):
            wrong, query, at = self.text(data, at)
            if wrong:
                return wrong, []
            queries.append(query)
        if at != len(data):
            return INVALID, []
        return (ACK if name in ("disk", "other") else UNKNOWN), queries


def read_answers(reply: bytes) -> tuple[list[tuple[int, int]], bytes]:
    """Option and type of every final reply, and what follows the last (the answer to EXPORT_NAME)."""
    answers, at = [], 0
    while len(reply) - at >= 20 and int.from_bytes(reply[at : at + 8], "big") == 0x3E889045565A9:
        option, kind, length = struct.unpack_from(">III", reply, at + 8)
        assert len(reply) - at - 20 >= length, "a reply that is cut off"
        if kind == 1 or kind >> 31:
            answers.append((option, kind))
        at += 20 + length
    return answers, reply[at:]


def fuzz_nbd_handshake(data: bytes) -> None:
    """Each option gets the one final answer that the specification has for it, for any chunking."""
    closing, content = bool(data[:1] and data[0] & 1), data[1:]
    exports = Exports()
    whole = shake_hands(content, exports, [len(content)], closing=closing)
    assert shake_hands(content, exports, chunks(content), closing=closing) == whole
    plain = PlainHandshake(closing)
    plain.run(content)
    answers, rest = read_answers(whole.reply)
    assert answers == plain.answers
    assert (whole.ending, whole.selection) == (plain.ending, plain.selection)
    assert len(rest) in ((0, 10, 134) if whole.selection is not None else (0,))


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


FLAGS = struct.pack(">I", 3)
STRUCTURED = option(8)
CONTEXT = option(10, text(b"disk") + struct.pack(">I", 1) + text(b"base:allocation"))
GO = option(7, text(b"disk") + bytes(2))


def seeds_nbd_handshake() -> Iterable[bytes]:
    for closing in (b"\0", b"\1"):
        yield closing + FLAGS + option(3) + STRUCTURED + CONTEXT + GO
        yield closing + bytes(4) + option(1, b"disk")
        yield closing + FLAGS + option(1, b"nothing")
        yield closing + FLAGS + option(6, text(b"other") + struct.pack(">HHHH", 3, 0, 1, 2)) + option(2)
    yield b"\0" + FLAGS + CONTEXT + option(5) + option(11) + option(3, b"x") + option(9, text(b"disk") + bytes(4)) + GO
    yield b"\0" + FLAGS + STRUCTURED + option(9, text(b"disk") + struct.pack(">I", 1 << 31) + bytes(8))
    yield b"\0" + FLAGS + STRUCTURED + option(9, text(b"disk") + struct.pack(">I", 2) + text(b"base:") + text(b"x"))
    yield b"\0" + FLAGS + b"IHAVEOPT" + struct.pack(">II", 7, 65537) + bytes(300)
    yield b"\0" + FLAGS + b"IHAVEOPT" + struct.pack(">II", 7, 1 << 31)
    yield b"\0" + FLAGS + option(6, text(b"\xff") + bytes(2)) + option(6, text(b"x" * 4097) + bytes(2))
    yield b"\0" + FLAGS + STRUCTURED + CONTEXT + option(7, text(b"other") + bytes(2))
    yield b"\0" + struct.pack(">I", 7) + GO
    yield b"\0" + FLAGS + option(4) * 600 + option(4) * 600


def split_options(content: bytes) -> list[bytes]:
    pieces, at = [content[:4]], 4
    while len(content) - at >= 16 and content[at : at + 8] == b"IHAVEOPT":
        end = at + 16 + min(int.from_bytes(content[at + 12 : at + 16], "big"), len(content) - at - 16)
        pieces.append(content[at:end])
        at = end
    return [*pieces, content[at:]] if at < len(content) else pieces


def mutate_nbd_handshake(data: bytes, random: Random) -> bytes:
    pieces = split_options(data[1:])
    at = random.randrange(len(pieces))
    match random.randrange(5):
        case 0:
            number = random.randrange(13)
            known = (b"", text(b"disk") + bytes(2), text(b"disk") + bytes(4), text(b"other") + b"\0\1\0\1", b"disk")
            pieces.insert(at + 1, option(number, random.choice(known)))
        case 1:
            pieces.insert(at, pieces[random.randrange(len(pieces))])
        case 2 if len(pieces[at]) >= 16:
            body = tweak(pieces[at][16:], random)
            pieces[at] = pieces[at][:12] + struct.pack(">I", len(body)) + body
        case _:
            pieces[at] = tweak(pieces[at], random)
    return data[:1] + b"".join(pieces)


def data_allowed() -> Any:
    return mock.patch.object(shared.nbd.handshake, "_refuse_data", lambda data: None)


def any_context() -> Any:
    """A context that was selected for one export counts for another."""
    select = Handshake._select

    def lax(self: Handshake, export: Any) -> None:
        self._allocation_of = export if self._allocation_of is not None else None
        select(self, export)

    return mock.patch.object(Handshake, "_select", lax)


def long_texts() -> Any:
    return mock.patch.object(shared.nbd.handshake, "MAXIMUM_NAME", 1 << 20)


# --- requests ------------------------------------------------------------------------------------------------------


@dataclass
class Requests:
    """What requests came to: by list, each in order."""

    changes: list[tuple[bytes, str, int, int, bytes | None, bool, bool, bool]] = field(default_factory=list)
    reads: list[tuple[bytes, int, int]] = field(default_factory=list)
    queries: list[tuple[bytes, int, int, int, bool]] = field(default_factory=list)
    flushes: list[bytes] = field(default_factory=list)
    refusals: list[tuple[bytes, int]] = field(default_factory=list)
    ending: EndReason | None = None


EPERM, EINVAL, ENOSPC, ESHUTDOWN = 1, 22, 28, 108
COMMANDS = {0: 1 | 4, 1: 1, 3: 1, 4: 1, 5: 1, 6: 1 | 2 | 16, 7: 1 | 8}
"""The flags of each command that is answered."""
KINDS = {1: "write", 4: "trim", 6: "zeroes"}


@dataclass(frozen=True)
class Surroundings:
    """What a parser was told."""

    read_only: bool
    structured: bool
    allocation: bool
    draining: bool


def plain_requests(content: bytes, around: Surroundings) -> Requests:
    """The requests as docs/nbd.md has them, one after another."""
    found, at = Requests(), 0
    while len(content) - at >= 28:
        magic, flags, command, cookie, offset, length = struct.unpack_from(">IHH8sQI", content, at)
        if magic != 0x25609513:
            found.ending = EndReason.BAD_REQUEST_MAGIC
            break
        if command == 2:
            found.ending = EndReason.DISCONNECTED
            break
        after = at + 28 + (length if command == 1 else 0)
        if after > len(content):
            break
        error = refusal(flags, command, offset, length, around)
        if error:
            found.refusals.append((cookie, error))
        elif command in KINDS:
            payload = content[at + 28 : after] if command == 1 else None
            more = bool(flags & 1), bool(flags & 2), bool(flags & 16)
            found.changes.append((cookie, KINDS[command], offset, length, payload, *more))
        elif command == 0:
            found.reads.append((cookie, offset, length))
        elif command == 3:
            found.flushes.append(cookie)
        else:
            found.queries.append((cookie, command, offset, length, bool(flags & 8)))
        at = after
    return found


def refusal(flags: int, command: int, offset: int, length: int, around: Surroundings) -> int:
    """The error that a request is refused with, 0 for none."""
    if command not in COMMANDS or flags & ~COMMANDS[command]:
        return EINVAL
    if (flags & 4 and not around.structured) or (command == 7 and not around.allocation):
        return EINVAL
    if command == 3:
        return EINVAL if offset or length else 0
    if command in KINDS and around.read_only:
        return EPERM
    if not length or offset % 512 or length % 512 or (command in (0, 1) and length > 32 << 20):
        return EINVAL
    if offset + length > SIZE:
        return ENOSPC if command in (1, 6) else EINVAL
    return ESHUTDOWN if command in KINDS and around.draining else 0


def parse(content: bytes, around: Surroundings, sizes: Iterable[int]) -> Requests:
    """Give a parser the bytes as they come, each time as many as it says that it needs."""
    parser = RequestParser(SIZE, read_only=around.read_only, structured=around.structured, allocation=around.allocation)
    found, position, end = Requests(), 0, 0
    view = memoryview(content)
    for size in sizes:
        end = min(end + size, len(content))
        while end - position >= parser.needed and found.ending is None:
            batch = Batch()
            before = position
            position = parser.parse(view, position, end, batch, draining=around.draining)
            assert before <= position <= end
            assert position > before or parser.needed > end - position or batch.ending, "a pass that does nothing"
            assert parser.needed <= 28 + (32 << 20)
            collect(found, batch)
        if end == len(content) or found.ending is not None:
            break
    return found


def collect(found: Requests, batch: Batch) -> None:
    assert len(batch.mutations) == len(batch.cookies)
    assert batch.fua is any(mutation.fua for mutation in batch.mutations)
    for mutation, cookie in zip(batch.mutations, batch.cookies, strict=True):
        payload = None if mutation.payload is None else bytes(mutation.payload)
        more = mutation.fua, mutation.no_hole, mutation.fast
        found.changes.append((cookie, mutation.kind.value, mutation.offset, mutation.length, payload, *more))
    found.reads += batch.reads
    found.queries += [(each.cookie, each.command, each.offset, each.length, each.one) for each in batch.queries]
    found.flushes += batch.flushes
    found.refusals += [(each.cookie, int(each.error)) for each in batch.refusals]
    found.ending = batch.ending.reason if batch.ending is not None else None


def fuzz_nbd_requests(data: bytes) -> None:
    """The same requests, payloads and refusals as a second parser, for any chunking."""
    if not data:
        return
    around = Surroundings(*(bool(data[0] >> bit & 1) for bit in range(4)))
    content = data[1:]
    expected = plain_requests(content, around)
    assert parse(content, around, [len(content)]) == expected
    assert parse(content, around, chunks(content)) == expected


def request(
    command: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b"", cookie: int = 7
) -> bytes:
    length = len(payload) or length
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + payload


REQUESTS = (
    request(1, 512, payload=b"a" * 512, cookie=1) + request(0, 0, 1024, cookie=2) + request(3, cookie=3)
    + request(6, 1024, 512, flags=1 | 2, cookie=4) + request(4, 0, 512, cookie=5) + request(5, 0, SIZE, cookie=6)
    + request(7, 0, SIZE, flags=8, cookie=7) + request(1, 0, payload=b"b" * 1024, flags=1, cookie=8)
)  # fmt: skip
REFUSED = (
    request(1, SIZE, payload=b"c" * 512, cookie=1) + request(1, 3, payload=b"d" * 3, cookie=2) + request(9, cookie=3)
    + request(0, SIZE - 512, 1024, cookie=4) + request(3, 0, 512, cookie=5) + request(1, cookie=6)
    + request(0, 0, 512, flags=4, cookie=7) + request(6, SIZE, 512, cookie=8) + request(4, 0, 512, flags=2, cookie=9)
)  # fmt: skip


def seeds_nbd_requests() -> Iterable[bytes]:
    for around in range(16):
        yield bytes([around]) + REQUESTS + REFUSED + request(2)
    yield b"\2" + REQUESTS + b"garbage" * 10
    yield b"\0" + request(1, 0, (32 << 20) + 512) + bytes(600)
    yield b"\0" + request(1, 0, 1 << 20) + bytes(600)
    yield b"\0" + request(3) * 400


def split_requests(content: bytes) -> list[bytes]:
    pieces, at = [], 0
    while len(content) - at >= 28 and content[at : at + 4] == b"\x25\x60\x95\x13":
        payload = int.from_bytes(content[at + 24 : at + 28], "big") if content[at + 6 : at + 8] == b"\0\1" else 0
        end = at + 28 + min(payload, len(content) - at - 28)
        pieces.append(content[at:end])
        at = end
    return [*pieces, content[at:]] if at < len(content) or not pieces else pieces


def mutate_requests(content: bytes, random: Random) -> bytes:
    pieces = split_requests(content)
    at = random.randrange(len(pieces))
    match random.randrange(6):
        case 0:
            pieces.insert(at, pieces[random.randrange(len(pieces))])
        case 1 if len(pieces) > 1:
            del pieces[at]
        case 2:
            length, offset = random.choice((512, 1024, 3, 0)), random.choice((0, 512, 4096, SIZE - 512, SIZE, 100))
            flags = random.choice((0, 0, 1, 2, 4, 8, 16, 3, 255))
            if random.random() < 0.5:
                new = request(1, offset, flags=flags, payload=random.randbytes(length), cookie=random.getrandbits(64))
            else:
                new = request(random.randrange(10), offset, random.choice(EDGES), flags=flags)
            pieces.insert(at, new)
        case 3 if len(pieces[at]) >= 28:
            piece = bytearray(pieces[at])
            struct.pack_into(">Q", piece, 16, random.choice(EDGES))
            pieces[at] = bytes(piece)
        case 4 if len(pieces[at]) >= 28:
            piece = bytearray(pieces[at])
            struct.pack_into(">H", piece, random.choice((4, 6)), random.randrange(10))
            pieces[at] = bytes(piece)
        case _:
            pieces[at] = tweak(pieces[at], random)
    return b"".join(pieces)


def mutate_nbd_requests(data: bytes, random: Random) -> bytes:
    return bytes([random.randrange(16)]) + mutate_requests(data[1:], random)


def past_end() -> Any:
    """A range may end behind the export."""
    judge = RequestParser._judge_range

    def lax(self: RequestParser, *arguments: Any, draining: bool) -> Any:
        self._size, before = self._size + 512, self._size
        try:
            return judge(self, *arguments, draining=draining)
        finally:
            self._size = before

    return mock.patch.object(RequestParser, "_judge_range", lax)


def payload_stays() -> Any:
    """The payload of a refused WRITE is read as requests."""

    def skip(self: RequestParser, position: int, end: int, batch: Batch) -> int:
        if self._pending is not None:
            batch.refusals.append(self._pending)
            self._pending = None
        return position

    return mock.patch.object(RequestParser, "_skip_payload", skip)


def early_refusal() -> Any:
    """A refusal is answered before the payload has arrived."""

    skip_ = RequestParser._skip_payload

    def skip(self: RequestParser, position: int, end: int, batch: Batch) -> int:
        if self._pending is not None and self._skip > end - position:
            batch.refusals.append(self._pending)
        return skip_(self, position, end, batch)

    return mock.patch.object(RequestParser, "_skip_payload", skip)


# --- connections ---------------------------------------------------------------------------------------------------


class MemoryTransport(asyncio.Transport):
    """The other end takes everything at once."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.out = bytearray()
        self.paused = False
        self._protocol = protocol
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._closing, "something was written behind the end"
        self.out += data

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()


class QuietServer(NbdServer):
    """The server without sockets."""

    def describe(self, transport: asyncio.BaseTransport) -> str:
        return "fuzz"


TURNS = 20_000
"""Turns of the loop after which a connection that takes nothing counts as stuck."""


async def converse(content: bytes, sizes: Iterable[int], exports: Exports) -> tuple[Connection, bytes]:
    """One client that sends the content and closes; returns when nothing of it is left."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: problems.append(context))
    server = QuietServer(exports)
    connection = Connection(server)
    transport = MemoryTransport(connection)
    connection.connection_made(transport)
    at = turns = 0
    for size in sizes:
        while transport.paused and not transport.is_closing():
            turns += 1
            assert turns < TURNS, "the connection does not read on"
            await asyncio.sleep(0)
        if transport.is_closing() or at == len(content):
            break
        room = connection.get_buffer(-1)
        count = min(size, len(room), len(content) - at)
        assert count, "no room although it reads"
        room[:count] = content[at : at + count]
        at += count
        connection.buffer_updated(count)
        if size % 3 == 0:
            await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    while transport.paused and not transport.is_closing():
        turns += 1
        assert turns < TURNS, "the connection does not read on"
        await asyncio.sleep(0)
    if not transport.is_closing():
        # After a DISC the server closes by itself, when everything is answered.
        for _ in range(TURNS if connection._goodbye is not None else 0):
            if transport.is_closing():
                break
            await asyncio.sleep(0)
        assert connection._goodbye is None or transport.is_closing(), "DISC was not answered by the end"
    if not transport.is_closing():
        connection.eof_received()
    await connection.wait_closed()
    await server.close(grace=1.0)
    assert server.budget.used == 0, "memory of the budget is still held"
    assert not problems, problems
    return connection, bytes(transport.out)


LOOP = asyncio.new_event_loop()
atexit.register(LOOP.close)
SILENCE = SimpleNamespace(info=lambda *_event, **_more: None, warning=lambda *_event, **_more: None)


def read_replies(reply: bytes, found: Requests) -> Counter[tuple[bytes, int]]:
    """Cookie and error of every answer, its data judged by the request that it answers."""
    asked = {cookie: length for cookie, _offset, length in found.reads}
    answers: Counter[tuple[bytes, int]] = Counter()
    at = 0
    while at < len(reply):
        magic = int.from_bytes(reply[at : at + 4], "big")
        if magic == 0x67446698:
            error, cookie = struct.unpack_from(">I8s", reply, at + 4)
            at += 16 + (asked.get(cookie, 0) if not error and is_read(cookie, found) else 0)
        else:
            assert magic == 0x668E33EF, f"no reply begins with {reply[at : at + 4]!r}"
            flags, kind, cookie, length = struct.unpack_from(">HH8sI", reply, at + 4)
            assert flags == 1
            error = int.from_bytes(reply[at + 20 : at + 24], "big") if kind >> 15 else 0
            if kind == 5:
                pairs = struct.iter_unpack(">II", reply[at + 24 : at + 20 + length])
                assert sum(size for size, _state in pairs) <= SIZE
            at += 20 + length
        answers[cookie, error] += 1
    assert at == len(reply), "the last reply is cut off"
    return answers


def is_read(cookie: bytes, found: Requests) -> bool:
    """Whether a simple reply with this cookie is one to a READ: only asked where cookies are told apart."""
    return any(cookie == each[0] for each in found.reads)


def expected_answers(found: Requests) -> Counter[tuple[bytes, int]]:
    good = [each[0] for each in found.changes] + [each[0] for each in found.reads]
    good += [each[0] for each in found.queries] + found.flushes
    return Counter([(cookie, 0) for cookie in good] + found.refusals)


def apply(content: bytearray, change: tuple[Any, ...]) -> None:
    _cookie, _kind, offset, length, payload, *_flags = change
    content[offset : offset + length] = bytes(length) if payload is None else payload


def fuzz_nbd_connection(data: bytes) -> None:
    """Whatever a client sends: each request is answered once, by its own cookie, the disk holds the changes in order.

    The connection ends for a reason that is the client's doing, and nothing of it is left behind.
    """
    if not data:
        return
    slow, content = bool(data[0] & 1), data[1:]
    exports = Exports(slow=slow)
    sizes = chunks(content) if data[0] & 2 else iter(lambda: 1 << 20, 0)
    with mock.patch.object(shared.nbd.server, "log", SILENCE):
        connection, out = LOOP.run_until_complete(converse(content, sizes, exports))
    reason = connection.ending.reason if connection.ending is not None else None
    assert reason is not None
    assert reason not in (EndReason.INTERNAL_ERROR, EndReason.STALLED, EndReason.HANDSHAKE_TIMEOUT)
    talk = shake_hands(content, exports, [len(content)], closing=False)
    greeting = b"NBDMAGICIHAVEOPT\0\3" + talk.reply
    assert out[: len(greeting)] == greeting
    if talk.selection is None:
        assert out == greeting
        assert reason in (talk.ending, EndReason.CLOSED_BY_CLIENT)
        assert not any(any(disk.content) for disk in exports.disks.values())
        return
    name, structured, allocation = talk.selection
    around = Surroundings(name == "other", structured, allocation, False)
    found = plain_requests(content[talk.taken :], around)
    assert reason in (found.ending, EndReason.CLOSED_BY_CLIENT)
    check_disk(bytes(exports.disks[name].content), found, whole=not slow or reason is EndReason.DISCONNECTED)
    expected = expected_answers(found)
    cookies = [cookie for cookie, _error in expected.elements()]
    if len(set(cookies)) < len(cookies):
        # Simple replies of one cookie can't be told apart, and so not be parted.
        return
    answers = read_replies(out[len(greeting) :], found)
    assert not answers - expected, f"answers that nobody asked for: {answers - expected}"
    if reason is EndReason.DISCONNECTED:
        assert answers == expected, f"never answered: {expected - answers}"


def check_disk(content: bytes, found: Requests, *, whole: bool) -> None:
    """The disk holds the changes in order: all of them, or a first part where the client was gone too soon."""
    disk = bytearray(SIZE)
    states = [bytes(disk)]
    for change in found.changes:
        apply(disk, change)
        states.append(bytes(disk))
    assert content == states[-1] if whole else content in states


HELLO = FLAGS + STRUCTURED + CONTEXT + GO


def seeds_nbd_connection() -> Iterable[bytes]:
    for mode in range(4):
        yield bytes([mode]) + HELLO + REQUESTS + REFUSED[28 + 512 :] + request(2)
        yield bytes([mode]) + HELLO + REQUESTS
        yield bytes([mode]) + FLAGS + GO + REQUESTS[: 28 + 512] + request(2)
        yield bytes([mode]) + FLAGS + option(1, b"other") + REQUESTS + request(2)
    many = b"".join(request(1, 512 * (each % 128), payload=bytes([each]) * 512, cookie=each) for each in range(20))
    yield b"\1" + HELLO + many + request(2)
    yield b"\3" + HELLO + many + b"".join(request(0, 0, 512, cookie=100 + each) for each in range(20)) + request(2)
    yield b"\0" + HELLO + REQUESTS + b"garbage" * 5
    yield b"\1" + HELLO + many + b"garbage" * 5
    yield b"\0" + HELLO + request(0, 0, 1 << 20) + request(1, 0, 3 << 20) + bytes(1000)
    yield b"\0" + FLAGS + option(2)


def mutate_nbd_connection(data: bytes, random: Random) -> bytes:
    mode, content = bytes([random.randrange(4)]), data[1:]
    at = content.find(b"\x25\x60\x95\x13")
    if at < 0 or random.random() < 0.15:
        return mutate_nbd_handshake(mode + content, random)
    pieces = split_requests(mutate_requests(content[at:], random))
    # Cookies of their own, so that answers can be told apart.
    for index, piece in enumerate(pieces if random.random() < 0.9 else []):
        if len(piece) >= 28:
            pieces[index] = piece[:8] + struct.pack(">Q", index) + piece[16:]
    return mode + content[:at] + b"".join(pieces)


def out_of_order() -> Any:
    """Changes that come while others wait overtake them."""
    queue = shared.nbd.changing.ChangeQueue

    def enqueue(self: Any, batch: Batch) -> None:
        for mutation in batch.mutations:
            self._export._perform([mutation])
        batch.mutations.clear()
        self._answer(shared.nbd.changing.Changes([], batch.cookies, False, batch.flushes))

    return mock.patch.object(queue, "_enqueue", enqueue)


def lost_answers() -> Any:
    """Of a batch with a FUA among them only those with FUA are answered."""
    answer_ = Connection._answer_changes

    def answer(self: Connection, changes: Any) -> None:
        if changes.fua:
            pairs = list(zip(changes.mutations, changes.cookies, strict=True))
            kept = [pair for pair in pairs if pair[0].fua]
            changes.mutations, changes.cookies = [pair[0] for pair in kept], [pair[1] for pair in kept]
        answer_(self, changes)

    return mock.patch.object(Connection, "_answer_changes", answer)


TARGETS = {
    "nbd_handshake": Target(
        fuzz_nbd_handshake,
        seeds_nbd_handshake,
        mutate_nbd_handshake,
        (
            Plant("data_allowed", data_allowed),
            Plant("any_context", any_context),
            Plant("long_texts", long_texts),
        ),
        max_bytes=1 << 15,
    ),
    "nbd_requests": Target(
        fuzz_nbd_requests,
        seeds_nbd_requests,
        mutate_nbd_requests,
        (
            Plant("past_end", past_end),
            Plant("payload_stays", payload_stays),
            Plant("early_refusal", early_refusal),
        ),
        max_bytes=1 << 14,
    ),
    "nbd_connection": Target(
        fuzz_nbd_connection,
        seeds_nbd_connection,
        mutate_nbd_connection,
        (
            Plant("out_of_order", out_of_order),
            Plant("lost_answers", lost_answers),
            Plant("past_end", past_end),
        ),
        max_bytes=1 << 14,
    ),
}
