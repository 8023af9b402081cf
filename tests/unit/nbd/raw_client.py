"""A small NBD client that sends exactly the bytes it is told to, for what real clients would never do."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from pathlib import Path

from shared.nbd.constants import Command, Option

SIMPLE, STRUCTURED = 0x67446698, 0x668E33EF


@dataclass(frozen=True, slots=True)
class Reply:
    """One finished reply. ``data`` are what a READ got, or the payload of another chunk."""

    cookie: int
    error: int = 0
    data: bytes = b""
    text: str = ""


class RawClient:
    """One connection. Requests are queued by ``send`` and go out without waiting; ``reply`` takes the next answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._reads: dict[int, int] = {}

    @classmethod
    async def open(cls, path: Path) -> RawClient:
        """Connect; nothing is sent."""
        return cls(*await asyncio.open_unix_connection(str(path), limit=1 << 16))

    @classmethod
    async def attach(
        cls, path: Path, name: str = "disk", *, structured: bool = True, allocation: bool = False
    ) -> RawClient:
        """Connect and go through the handshake."""
        client = await cls.open(path)
        await client.greet()
        if structured:
            await client.option(Option.STRUCTURED_REPLY)
        encoded = struct.pack(">I", len(name)) + name.encode()
        if allocation:
            query = b"base:allocation"
            data = encoded + struct.pack(">II", 1, len(query)) + query
            await client.option(Option.SET_META_CONTEXT, data)
        replies = await client.option(Option.GO, encoded + bytes(2))
        assert replies[-1][0] == 1, f"GO was refused: {replies}"
        return client

    async def greet(self) -> None:
        """Take the greeting and agree to it."""
        assert await self.reader.readexactly(18) == b"NBDMAGICIHAVEOPT\x00\x03"
        self.writer.write(struct.pack(">I", 3))

    async def option(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; returns type and data of each reply up to the last."""
        self.writer.write(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        replies = []
        while True:
            _, answered, kind, length = struct.unpack(">QIII", await self.reader.readexactly(20))
            assert answered == number
            replies.append((kind, await self.reader.readexactly(length)))
            if kind == 1 or kind >> 31:
                return replies

    def send(
        self,
        command: int,
        cookie: int,
        offset: int = 0,
        length: int = 0,
        *,
        payload: bytes = b"",
        flags: int = 0,
    ) -> None:
        """Queue a request; the length of a payload is its own."""
        if payload:
            length = len(payload)
        if command == Command.READ:
            self._reads[cookie] = length
        header = struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)
        self.writer.write(header + payload)

    async def reply(self) -> Reply:
        """The next answer. Raises IncompleteReadError at the end of the connection."""
        (magic,) = struct.unpack(">I", await self.reader.readexactly(4))
        if magic == SIMPLE:
            error, cookie = struct.unpack(">IQ", await self.reader.readexactly(12))
            length = self._reads.pop(cookie, 0)
            return Reply(cookie, error, b"" if error else await self.reader.readexactly(length))
        assert magic == STRUCTURED
        flags, kind, cookie, length = struct.unpack(">HHQI", await self.reader.readexactly(16))
        assert flags == 1, "this server answers every request with one chunk"
        payload = await self.reader.readexactly(length)
        wanted = self._reads.pop(cookie, 0)
        match kind:
            case 0:
                return Reply(cookie)
            case 1:
                assert len(payload) == wanted + 8
                return Reply(cookie, 0, payload[8:])
            case 2:
                (size,) = struct.unpack_from(">I", payload, 8)
                assert size == wanted
                return Reply(cookie, 0, bytes(size))
            case 0x8001:
                error, size = struct.unpack_from(">IH", payload)
                return Reply(cookie, error, b"", payload[6 : 6 + size].decode())
            case _:
                return Reply(cookie, 0, payload)

    async def ask(self, command: int, cookie: int, offset: int = 0, length: int = 0, **more: object) -> Reply:
        """Send one request and take one answer, which must be its own."""
        self.send(command, cookie, offset, length, **more)  # type: ignore[arg-type]
        reply = await self.reply()
        assert reply.cookie == cookie
        return reply

    async def wait_ended(self) -> bytes:
        """Everything up to the end of the connection."""
        try:
            return await self.reader.read(-1)
        except ConnectionError:
            return b""

    def drop(self) -> None:
        """Be gone at once, as a killed client is."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close without a goodbye."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass
