"""Planted bugs of the rounds of a resync, whose log was lost and whose writes a map names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

import primary_agent.resync
import primary_agent.rounds
from primary_agent.comparing import Comparing
from primary_agent.record import ResyncRecord
from primary_agent.resync import ResyncDriver
from primary_agent.tap_link import Connection, TapLink
from protocol.hrl import Geometry, Settled
from protocol.messages import ResyncBegin, Unsettle
from replica_agent.baseline import Baseline
from replica_agent.differencing import DifferencingFile
from replica_agent.resync import OpenResync
from shared.map_file import MapFile, MapKind
from shared.ports import FileSystem, ReadableFile
from shared.tap_config import DIRTY_BLOCK_BITS
from shared.tap_control import TapStatus, Tracking
from tests.simulation.mutants_kit import Patch


def _late(seconds: float) -> Callable[[Any], Any]:
    """A step that takes its time, as it does with large disks: what is open for so long may be interrupted."""

    def make(original: Any) -> Any:
        async def late(*arguments: Any) -> Any:
            await asyncio.sleep(seconds)
            result = await original(*arguments)
            await asyncio.sleep(seconds)
            return result

        return late

    return make


def round_settles_all() -> Sequence[Patch]:
    """R32: what was written before a round stays settled, although its log is lost."""

    def make(original: Callable[..., Iterator[Unsettle]]) -> Any:
        return lambda resync, _scope: original(resync, {})

    return [(primary_agent.resync, "unsettle_messages", make)]


def unsettled_told_early() -> Sequence[Patch]:
    """R35: what is not settled any more is told while only the replica's memory has it."""

    def make(_original: Any) -> Any:
        def unsettle(file: DifferencingFile, ranges: Sequence[Settled], *, last: bool) -> None:
            del last
            for unsettled in ranges:
                file._unmark(unsettled)

        return unsettle

    return [(DifferencingFile, "unsettle", make), (Comparing, "_compare_disks", _late(0.4))]


def unsettled_noted_early() -> Sequence[Patch]:
    """R35: that all is told is on record before it is: a crash in between leaves it settled."""

    def make(original: Any) -> Any:
        async def next_round(baseline: Baseline, former: OpenResync, body: ResyncBegin) -> OpenResync:
            opened: OpenResync = await original(baseline, former, body)
            async with baseline.parts.ledger.transaction() as draft:
                draft.resync = msgspec.structs.replace(opened.record, unsettle=False)
            return opened

        return next_round

    return [
        (Baseline, "_next_round", make),
        (ResyncDriver, "_unsettle", _late(0.4)),
        (Comparing, "_compare_disks", _late(0.4)),
    ]


def round_reads_the_base() -> Sequence[Patch]:
    """R32: a round answers from the disk below, where blocks of an earlier one lie over it."""

    def make(_original: Any) -> Any:
        def over(_file: DifferencingFile, _disk: int, base: ReadableFile) -> ReadableFile:
            return base

        return over

    return [(DifferencingFile, "over", make)]


def map_forgotten_early() -> Sequence[Patch]:
    """R32: the map that bounds a resync goes before its commit: and nobody asks whether it still bounds it."""

    def forget(_original: Any) -> Any:
        async def forget_map(tap: TapLink, connection: Connection, resync: ResyncRecord) -> None:
            if connection.status.doubt is not None:
                await connection.client.forget(resync.epoch)
                await tap.refresh()

        return forget_map

    def covered(_original: Any) -> Any:
        def is_covered(status: TapStatus, *_others: Any) -> bool:
            return status.tracking is Tracking.MAP and status.doubt is not None and status.doubt.complete

        return is_covered

    return [
        (primary_agent.resync, "forget_map", forget),
        (primary_agent.rounds, "is_covered", covered),
        (Comparing, "_compare_disks", _late(0.4)),
    ]


def kept_empty() -> Sequence[Patch]:
    """R32: what bounds a late round is on record as kept, but the file does not say it."""

    def make(_original: Any) -> Any:
        def keep(
            files: FileSystem, _tap_folder: str, folder: str, vm: bytes, disks: Sequence[Geometry], resync: ResyncRecord
        ) -> None:
            path = f"{folder}/scope-{resync.id.hex()}-{resync.round}.map"
            MapFile.create(files, path, MapKind.DIRTY, vm, DIRTY_BLOCK_BITS, disks).close()

        return keep

    return [(primary_agent.resync, "keep", make), (Comparing, "_compare_disks", _late(0.4))]
