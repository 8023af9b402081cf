"""Records what two agents say to each other: python -m tests.vectors.session_recorder FILE, for a new protocol version.

Two real agents and a tap replicate a small disk: the initial replication, a cut, a resync and an orderly end. Of each
connection the bytes inside TLS are kept in the order in which they were written, by frames.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol.messages import PROTOCOL_VERSIONS
from shared.admin.verbs import EnableParams
from shared.channel import Channel
from shared.ports import Buffer
from shared.states import ReplicationState
from tests.pair.rig import Pair

KIB = 1 << 10


class Recorder:
    """Stands in the way of what every channel writes."""

    def __init__(self) -> None:
        self.written: list[tuple[Channel, bytes]] = []
        self._write = Channel._write

    def __enter__(self) -> Recorder:
        recorder, write = self, self._write

        def recorded(channel: Channel, buffers: Sequence[Buffer]) -> None:
            recorder.written.append((channel, b"".join(bytes(buffer) for buffer in buffers)))
            write(channel, buffers)

        Channel._write = recorded  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: object) -> None:
        Channel._write = self._write  # type: ignore[method-assign]

    def connections(self) -> list[dict[str, Any]]:
        """Both ends of each connection put together, which have the same token."""
        found: dict[int, list[list[str]]] = {}
        for channel, data in self.written:
            found.setdefault(channel.session.token, []).append([channel.session.side.value, data.hex()])
        return [{"token": token, "frames": frames} for token, frames in found.items()]


async def record(folder: Path) -> list[dict[str, Any]]:
    """A list of connections, each with who wrote which frames."""
    pair = Pair(folder, folder)
    with Recorder() as recorder:
        await pair.start()
        try:
            pair.disk(0).write_bytes(b"vmreplica's disk" * (8 * KIB) + bytes(128 * KIB))
            await pair.primary.enable(
                EnableParams(name="web", disks=[str(pair.disk(0))], replica=f"localhost:{pair.port}")
            )
            await pair.healthy()
            await pair.vm.initial()
            await pair.state(ReplicationState.REPLICATING)
            await pair.write(0, "write -P 7 64k 64k")
            await pair.cut()
            await pair.vm.resume(resynchronize=True)
            await pair.until("another baseline", lambda: len(pair.vm.parts.replication.record.ancestors) > 0)
            await pair.state(ReplicationState.REPLICATING)
            await pair.assert_same()
        finally:
            await pair.stop()
    return recorder.connections()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="vmr-") as made:
        told = asyncio.run(record(Path(made)))
    Path(sys.argv[1]).write_text(json.dumps({"version": max(PROTOCOL_VERSIONS), "connections": told}, indent=0) + "\n")
