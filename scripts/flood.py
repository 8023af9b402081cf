"""Strangers at a port: connections that never finish their TLS handshake, kept up as fast as a rate allows.

A third of them say nothing, a third send the first bytes of a real handshake one at a time, and a third stop in the
middle of it. Each that the other side ends is opened again, until this process is ended; then it prints what it did as
one line of JSON. Sources are addresses 127.0.0.10 and up, so that they are not those of a peer on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import signal
import ssl
from collections import Counter

TRICKLE_SECONDS = 0.5
"""Between two bytes of a connection that sends them one at a time."""
KINDS = ("silent", "trickle", "half")


def client_hello() -> bytes:
    """What a client of TLS says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


class Flood:
    """``count`` connections at a time; after the first of each, ``rate`` a second of all together."""

    def __init__(self, port: int, count: int, rate: float, sources: int) -> None:
        self.counts: Counter[str] = Counter()
        self._port = port
        self._count = count
        self._pause = 1 / rate
        self._sources = [f"127.0.0.{10 + number}" for number in range(sources)]
        self._hello = client_hello()
        self._turn = asyncio.Lock()
        self._seen_all = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._again_and_again(number))
            await self._seen_all.wait()
            print("ready", flush=True)

    async def _again_and_again(self, number: int) -> None:
        source, kind = self._sources[number % len(self._sources)], KINDS[number % len(KINDS)]
        first = True
        while True:
            if not first:
                async with self._turn:
                    await asyncio.sleep(self._pause)
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(source, 0))
            except OSError as error:
                self.counts[type(error).__name__] += 1
                continue
            finally:
                self.counts["tried"] += 1
                first = False
                if self.counts["tried"] >= self._count:
                    self._seen_all.set()
            self.counts["opened"] += 1
            try:
                await self._behave(kind, reader, writer)
            except OSError:
                pass
            finally:
                self.counts["ended"] += 1
                writer.transport.abort()

    async def _behave(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold the connection until the other side ends it."""
        if kind == "half":
            writer.write(self._hello)
        ending = asyncio.ensure_future(_read_to_end(reader))
        try:
            for at in range(len(self._hello) if kind == "trickle" else 0):
                if ending.done():
                    break
                writer.write(self._hello[at : at + 1])
                await asyncio.sleep(TRICKLE_SECONDS)
            await ending
        finally:
            ending.cancel()


async def _read_to_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(65536):
            pass


async def _main(options: argparse.Namespace) -> None:
    flood = Flood(options.port, options.count, options.rate, options.sources)
    task = asyncio.ensure_future(flood.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    print(json.dumps(flood.counts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, default=1000, help="connections at a time")
    parser.add_argument("--rate", type=float, default=10_000 / 60, help="further connections a second, of all together")
    parser.add_argument("--sources", type=int, default=16, help="addresses that they come from, at most 200")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
