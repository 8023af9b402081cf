"""A client of a served disk that keeps to its one connection: run at a host, by the system's Python and its libnbd.

It writes and reads back without a pause, and ends with an error where anything fails or the connection ends: it never
connects again. On standard input and output it talks as tests.systemd.host.Conversation expects: ``go``, ``end``.
"""

from __future__ import annotations

import os
import select
import sys

import nbd

BYTES = 64 << 10


def main() -> None:
    uri, offset = sys.argv[1], int(sys.argv[2])
    handle = nbd.NBD()
    handle.connect_uri(uri)
    assert sys.stdin.readline() == "go\n"
    print("going", flush=True)
    orders = select.poll()
    orders.register(sys.stdin.fileno(), select.POLLIN)
    rounds = 0
    while not orders.poll(5):
        data = os.urandom(BYTES)
        handle.pwrite(data, offset)
        handle.flush()
        if bytes(handle.pread(BYTES, offset)) != data:
            raise SystemExit("what was read is not what was written")
        rounds += 1
    # Nothing is proven by a client that stood still.
    print("bye" if rounds else "it did nothing", flush=True)


if __name__ == "__main__":
    main()
