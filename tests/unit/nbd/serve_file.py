"""Serves one file over NBD in a process of its own: ``python -m tests.unit.nbd.serve_file FILE SOCKET``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from shared.nbd.server import NbdServer
from tests.unit.nbd.file_backend import Directory, FileBackend


async def serve(path: Path, socket: Path) -> None:
    """Serve until killed; one line of output says that the socket is there."""
    server = NbdServer(Directory(FileBackend(path)))
    await server.start_unix(socket)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
