"""Planted bugs of what follows a failover: overlays, undo, commit, settling, and what the old primary is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import replica_agent.promoted_layers
import replica_agent.promoted_tap
import replica_agent.promotion
import replica_agent.settled
import replica_agent.vm
from primary_agent.tap.layered import LayeredFile
from protocol.messages import ErrorCode
from replica_agent.parts import VmParts
from replica_agent.promoted_layers import layer_records
from replica_agent.promoted_tap import PromotedTap
from replica_agent.promotion import Promotion
from replica_agent.record import PromotionRecord
from replica_agent.refusals import Refusal
from shared.map_file import MapFile
from shared.overlay import Overlay
from shared.overlay_map import OverlayMap
from tests.simulation.disk import SimulatedFile
from tests.simulation.hooks import replaced
from tests.simulation.mutants_kit import Patch, nothing


def map_before_data() -> Sequence[Patch]:
    """I4: FLUSH makes durable which blocks are the overlay's, and not what they hold."""

    def make(original: Any) -> Any:
        def sync(overlay: Overlay) -> None:
            data = overlay.data
            overlay.data = _Unsynced()  # type: ignore[assignment]
            try:
                original(overlay)
            finally:
                overlay.data = data

        return sync

    return [(Overlay, "sync", make)]


class _Unsynced:
    """A file of which nobody notices that it is never synced."""

    def sync(self) -> None:
        return None


def live_map_late() -> Sequence[Patch]:
    """I2: which blocks are the overlay's is known in memory only until the next FLUSH."""

    def make(original: Any) -> Any:
        def put(owner: OverlayMap, pages: Any) -> None:
            if not owner.file.path.endswith(".live"):
                original(owner, pages)

        return put

    return [(OverlayMap, "put", make)]


def block_unfilled() -> Sequence[Patch]:
    """R1: of a block that a promoted guest writes in part, the rest is not taken from below."""
    return [(LayeredFile, "_edge", lambda _original: lambda _file, start, end: bytes(end - start))]


def point_unlayered() -> Sequence[Patch]:
    """I6: a failover to an older point serves the disks without the undo logs that lead to it."""
    return [(replica_agent.promoted_tap, "tap_layers", lambda _original: lambda _parts, _record: [])]


def reverse_map_of_points() -> Sequence[Patch]:
    """R41: what was received and not applied is not named for a reversal of a failover to an older point."""

    def make(original: Any) -> Any:
        del original

        def touched(parts: VmParts, record: PromotionRecord) -> Iterator[tuple[int, int, int]]:
            for log in layer_records(parts, record):
                for disk, start, end in parts.history.log(log).spans():
                    yield disk, start, end - start

        return touched

    return [(replica_agent.promoted_layers, "_touched", make)]


def reverse_map_unsynced() -> Sequence[Patch]:
    """R41: an older point is served before it is durable what a reversal has to compare."""

    def make(original: Any) -> Any:
        def write(parts: VmParts, record: PromotionRecord) -> None:
            with replaced(MapFile, "sync", nothing):
                original(parts, record)

        return write

    return [(replica_agent.promotion, "write_reverse_map", make)]


def undo_leaves_overlay() -> Sequence[Patch]:
    """R42: an undo leaves what was written since the failover beside the disks."""

    def make(original: Any) -> Any:
        del original
        return lambda parts: parts.disks.close()

    return [(replica_agent.settled, "_drop", make)]


def undo_keeps_epoch() -> Sequence[Patch]:
    """R42: an undo leaves the replica in the epoch that the failover began."""

    def make(original: Any) -> Any:
        async def finish_undo(parts: VmParts) -> None:
            record, replication = parts.ledger.promotion, parts.ledger.replication
            if record is not None and record.before is not None:
                record.before.epoch, record.before.lineage = replication.epoch, replication.lineage
            await original(parts)

        return finish_undo

    return [(replica_agent.vm, "finish_undo", make)]


def settled_uncommitted() -> Sequence[Patch]:
    """R42: what was written settles in the disks before it is on record that it can't be undone any more."""

    def make(original: Any) -> Any:
        async def commit(promotion: Promotion) -> None:
            if promotion.tap is not None and promotion.tap.status is not None:
                client = await promotion.tap.dial()
                try:
                    await client.settle()
                finally:
                    client.close()
                await asyncio.sleep(1)
            await original(promotion)

        return commit

    return [(Promotion, "commit", make)]


def settled_unsynced() -> Sequence[Patch]:
    """R42: an overlay counts no more although the disk that has it all is not synced."""
    settling: list[Any] = []

    def mirror(original: Any) -> Any:
        def begun(file: LayeredFile) -> None:
            original(file)
            settling.append(file.base)

        return begun

    def close_layers(original: Any) -> Any:
        def done(file: LayeredFile) -> None:
            settling[:] = [base for base in settling if base is not file.base]
            original(file)

        return done

    def sync(original: Any) -> Any:
        def synced(file: SimulatedFile) -> None:
            if any(file is base for base in settling):
                file.process.operation()
            else:
                original(file)

        return synced

    return [
        (LayeredFile, "mirror", mirror),
        (LayeredFile, "close_layers", close_layers),
        (SimulatedFile, "sync", sync),
    ]


def settled_unmirrored() -> Sequence[Patch]:
    """R42: what is written while an overlay settles does not go into the disk below."""
    return [(LayeredFile, "_below", nothing)]


def overlay_dropped_early() -> Sequence[Patch]:
    """R42: once a failover is committed its overlays are deleted, whatever has settled."""

    def make(original: Any) -> Any:
        async def settle(tap: PromotedTap, client: Any, status: Any) -> None:
            await original(tap, client, status)
            record = tap._parts.ledger.promotion
            if record is not None and record.committed_time is not None:
                tap.settled.set()

        return settle

    return [(PromotedTap, "_settle", make)]


def fence_untold() -> Sequence[Patch]:
    """I8: an old primary is sent away after a failover, and not told of it."""

    def make(original: Any) -> Any:
        del original
        return lambda _record, name, _body, **_options: Refusal(ErrorCode.BUSY, f"{name} is busy.")

    return [(replica_agent.vm, "refused_after_failover", make)]
