"""Standard input and output as the end of a serial line at a unix socket: how a guest under libvirt is spoken to."""

from __future__ import annotations

import os
import socket
import sys
import threading


def main() -> None:
    """Ends when either side does."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(sys.argv[1])

    def speak() -> None:
        while said := os.read(0, 4096):
            line.sendall(said)
        line.shutdown(socket.SHUT_WR)

    threading.Thread(target=speak, daemon=True).start()
    while heard := line.recv(4096):
        os.write(1, heard)


main()
