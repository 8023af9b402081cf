"""A client of the tap, for Debian's Python with libnbd: random overlapping writes, zeroes and discards, many in flight.

Started with a plan as JSON: ``uris`` of the disks, ``shadows`` (files that hold what the disks hold at the start),
``journal``, ``seed``, and perhaps ``depth``, ``longest`` (bytes), ``pause`` (seconds), ``align``. Reads orders from
standard input: ``go``, ``stop``, ``end``.

The data of each write is its own (tests/pair/content.py), so that of every sector can be told who wrote it.

Each write is done in the shadow when it is sent. A connection that ends is made anew, and everything that was not
answered on it is sent again in its order, before anything else: what a driver with a reconnect delay does. Any error
that the server answers ends the process, for a guest would have seen it.

The journal has one line for each write that was answered: ``disk, kind, offset, length, number``, ``sent`` and ``done``
(steps of one counter for all disks), ``sent_ns`` and ``done_ns`` (the clock, before sending and after the answer).
"""

from __future__ import annotations

import errno
import json
import mmap
import random
import select
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import nbd

from tests.pair.content import SECTOR, content

PATIENCE_SECONDS = 100.0
LOST = (errno.ENOTCONN, errno.ESHUTDOWN)
"""What libnbd says of commands whose connection ended; everything else was said by the server."""


class Disk:
    """One connection, in its order."""

    def __init__(self, index: int, uri: str, shadow: str) -> None:
        self.index = index
        self.uri = uri
        with Path(shadow).open("r+b") as file:
            self.shadow = mmap.mmap(file.fileno(), 0)
        self.in_flight: list[dict[str, Any]] = []
        self.buffers: dict[int, Any] = {}
        """What libnbd is sending, by the step at which it was sent: libnbd keeps no hold of it."""
        self.again: list[dict[str, Any]] = []
        self.handle: Any = None
        self.deadline = 0.0
        self.reconnects = -1

    def connect(self) -> None:
        """Connect, waiting for the server; everything unanswered is to be sent again."""
        self.again = [*self.in_flight, *self.again]
        self.in_flight = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.handle = nbd.NBD()
            try:
                self.handle.connect_uri(self.uri)
                break
            except nbd.Error:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self.reconnects += 1

    def drop(self) -> None:
        self.handle = None
        self.connect()


class Client:
    """All disks, and the journal."""

    def __init__(self, plan: dict[str, Any], journal: TextIO) -> None:
        self.random = random.Random(plan["seed"])
        self.depth = plan.get("depth", 8)
        self.longest = plan.get("longest", 256 << 10)
        self.pause = plan.get("pause", 0.0)
        self.align = plan.get("align", SECTOR)
        self.journal = journal
        self.step = 0
        self.number = plan["seed"] << 32
        self.disks = [
            Disk(index, uri, shadow)
            for index, (uri, shadow) in enumerate(zip(plan["uris"], plan["shadows"], strict=True))
        ]
        for disk in self.disks:
            disk.connect()

    def tick(self) -> int:
        self.step += 1
        return self.step

    def invent(self, disk: Disk) -> dict[str, Any]:
        """The next write: half of them small, and half within the first tenth of the disk so that they overlap."""
        units = len(disk.shadow) // self.align
        longest = max(1, min(units, (4096 if self.random.random() < 0.5 else self.longest) // self.align))
        length = self.random.randint(1, longest)
        last = units - length
        if self.random.random() < 0.5:
            last = min(last, units // 10)
        self.number += 1
        kind = self.random.choices(("data", "zero", "discard"), (8, 1, 1))[0]
        return {
            "disk": disk.index,
            "kind": kind,
            "offset": self.random.randint(0, last) * self.align,
            "length": length * self.align,
            "number": self.number,
        }

    def send(self, disk: Disk, write: dict[str, Any]) -> None:
        """Send it, do it in the shadow."""
        offset, length = write["offset"], write["length"]
        write = {**write, "sent": self.tick(), "done": None, "sent_ns": time.time_ns()}
        data = content(write["number"], length) if write["kind"] == "data" else bytes(length)
        disk.shadow[offset : offset + length] = data
        disk.in_flight.append(write)

        def done(error: Any) -> int:
            code = getattr(error, "value", error)
            if code == 0:
                write["done_ns"] = time.time_ns()
                write["done"] = self.tick()
            elif code not in LOST:
                write["error"] = code
            return 1

        handle = disk.handle
        if write["kind"] == "data":
            buffer = disk.buffers[write["sent"]] = nbd.Buffer.from_bytearray(data)
            handle.aio_pwrite(buffer, offset, completion=done)
        elif write["kind"] == "zero":
            handle.aio_zero(length, offset, completion=done)
        else:
            handle.aio_trim(length, offset, completion=done)

    def collect(self, disk: Disk) -> None:
        """Journal what was answered."""
        for write in disk.in_flight:
            if "error" in write:
                raise SystemExit(f"the server answered an error: {write}")
            if write["done"] is not None:
                disk.buffers.pop(write["sent"], None)
                self.journal.write(json.dumps(write) + "\n")
        disk.in_flight = [write for write in disk.in_flight if write["done"] is None]

    def fill(self, disk: Disk, more: bool) -> None:
        while disk.again:
            self.send(disk, disk.again[0])
            disk.again.pop(0)
        while more and len(disk.in_flight) < self.depth:
            self.send(disk, self.invent(disk))

    def turn(self, *, more: bool, wait: float) -> None:
        """Send, then receive what is there."""
        for disk in self.disks:
            self.guarded(disk, lambda disk=disk: self.fill(disk, more))
        poll = select.poll()
        by_fd = {}
        for disk in self.disks:
            fd = disk.handle.aio_get_fd()
            direction = disk.handle.aio_get_direction()
            events = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | (
                select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
            )
            by_fd[fd] = disk
            poll.register(fd, events)
        for fd, happened in poll.poll(wait * 1000):
            disk = by_fd[fd]
            self.guarded(disk, lambda disk=disk, happened=happened: self.receive(disk, happened))

    def receive(self, disk: Disk, happened: int) -> None:
        direction = disk.handle.aio_get_direction()
        if happened & (select.POLLIN | select.POLLHUP | select.POLLERR) and direction & nbd.AIO_DIRECTION_READ:
            disk.handle.aio_notify_read()
        elif happened & select.POLLOUT and direction & nbd.AIO_DIRECTION_WRITE:
            disk.handle.aio_notify_write()
        self.collect(disk)

    def guarded(self, disk: Disk, work: Any) -> None:
        """Do it; a connection that ended meanwhile is made anew."""
        try:
            work()
        except nbd.Error as error:
            if not (disk.handle.aio_is_dead() or disk.handle.aio_is_closed()):
                raise SystemExit(f"libnbd: {error}") from error
        if disk.handle.aio_is_dead() or disk.handle.aio_is_closed():
            self.collect(disk)
            disk.drop()

    def settle(self) -> None:
        """Have everything answered, then flush."""
        while any(disk.in_flight or disk.again for disk in self.disks):
            self.turn(more=False, wait=1.0)
        for disk in self.disks:
            while True:
                try:
                    disk.handle.flush()
                    break
                except nbd.Error:
                    if not (disk.handle.aio_is_dead() or disk.handle.aio_is_closed()):
                        raise
                    disk.drop()
        self.journal.flush()
        for disk in self.disks:
            disk.shadow.flush()


def main() -> None:
    plan = json.loads(sys.argv[1])
    with Path(plan["journal"]).open("w", encoding="utf-8") as journal:
        client = Client(plan, journal)
        going = False
        orders = select.poll()
        orders.register(sys.stdin.fileno(), select.POLLIN)
        while True:
            if orders.poll(0 if going else None):
                match sys.stdin.readline().strip():
                    case "go":
                        going = True
                        print("going", flush=True)
                    case "stop":
                        client.settle()
                        going = False
                        print("idle", flush=True)
                    case _:
                        print("bye", flush=True)
                        break
            if going:
                client.turn(more=True, wait=0.1)
                if client.pause:
                    time.sleep(client.pause)


if __name__ == "__main__":
    main()
