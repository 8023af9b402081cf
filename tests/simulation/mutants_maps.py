"""Planted bugs of the hot-region map, the dirty map, and the resync that they bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import primary_agent.resync
import primary_agent.scope
import primary_agent.tap.map_tracking
import primary_agent.tap.start
from primary_agent.tap.changes import LoggedChanges
from primary_agent.tap.control import TapControl
from primary_agent.tap.dirty_map import DirtyMap
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.hot_regions import HotNote, HotRegions
from primary_agent.tap.tracker import Tracker
from shared.map_file import MapFile, MapKind
from shared.tap_control import KnowsCut
from tests.simulation.disk import SimulatedFile
from tests.simulation.mutants_kit import Patch, nothing, nothing_async, unsynced


def hot_nosync() -> Sequence[Patch]:
    """R2: a write goes to the disk although its region is not durably on record."""
    return [(SimulatedFile, "sync", unsynced("hot.map"))]


def no_hot_regions() -> Sequence[Patch]:
    """R3: after power loss only what the log tells is compared."""

    def make(original: Any) -> Any:
        def ranges(found: MapFile, index: int) -> Any:
            return iter(()) if found.kind is MapKind.HOT else original(found, index)

        return ranges

    return [(MapFile, "ranges", make), (HotRegions, "ranges", lambda _original: lambda _hot: ())]


def cooled_unsynced() -> Sequence[Patch]:
    """R4, R29: regions are let go of although what was written into them is not durable."""

    def make(_original: Any) -> Any:
        async def checkpoint(engine: TapEngine) -> HotNote:
            log = engine.tracker.log
            return HotNote(0, *log.place, log.epoch) if log is not None else HotNote()

        return checkpoint

    return [(TapEngine, "_checkpoint", make), (primary_agent.tap.start, "read_changes", _forgiving)]


def _forgiving(original: Any) -> Any:
    """What a checkpoint promised of the log is not insisted upon: that would give the bug away."""

    def read(*arguments: Any, **options: Any) -> Any:
        return original(*arguments, **{**options, "durable": (0, 0)})

    return read


def begun_over_unsynced() -> Sequence[Patch]:
    """R6: tracking begins over changes that power loss would take from the disk again."""
    return [(TapEngine, "_heat_before_tracking", nothing_async)]


def map_forgets_log() -> Sequence[Patch]:
    """R28: the dirty map is said to be complete without what the log knew."""

    def make(original: Any) -> Any:
        def read(*arguments: Any, **options: Any) -> LoggedChanges:
            changes: LoggedChanges = original(*arguments, **options)
            changes.ranges.clear()
            return changes

        return read

    return [(primary_agent.tap.map_tracking, "read_changes", make)]


def map_unmarked() -> Sequence[Patch]:
    """R28: what is written in the dirty map's time is not marked in it."""
    return [(DirtyMap, "mark", nothing)]


def map_dropped_early() -> Sequence[Patch]:
    """R32: the dirty map goes when the resync begins, so that a second one knows only what came after."""

    def make(original: Any) -> Any:
        def begin(tracker: Tracker, epoch: bytes) -> None:
            original(tracker, epoch)
            if tracker.maps.dirty is not None and tracker.maps.dirty.in_force:
                note = tracker.maps.dirty.note
                tracker.maps.dirty.clear()
                tracker.maps.dirty.note = note

        return begin

    return [(Tracker, "begin", make)]


def stale_map() -> Sequence[Patch]:
    """R28: a compare is limited to the map although the replica does not stand where the map begins."""

    def position(_original: Any) -> Any:
        return lambda doubt, replica, _causes: replica.received if doubt is not None else None

    def knows(_original: Any) -> Any:
        async def anything(_control: TapControl, _params: Any, _client: Any) -> KnowsCut:
            return KnowsCut(known=True)

        return anything

    return [(primary_agent.scope, "position_to_prove", position), (TapControl, "_knows_cut", knows)]


def small_scope() -> Sequence[Patch]:
    """R3: a bounded resync leaves out the last range that is in doubt."""

    def make(original: Any) -> Any:
        def read(*arguments: Any) -> Any:
            return {index: ranges[:-1] or ranges for index, ranges in original(*arguments).items()}

        return read

    return [(primary_agent.resync, "read_scope", make)]


def lease_ignored() -> Sequence[Patch]:
    """R30: the map fails, the guest goes on, and a start after power loss trusts the map all the same."""

    def sync(original: Any) -> Any:
        def failing(found: MapFile) -> None:
            if found.kind is MapKind.HOT and found.note and found._sequence > 40:
                raise OSError(5, "simulated failure of the map")
            original(found)

        return failing

    return [(MapFile, "sync", sync), (primary_agent.tap.start, "check_lease", nothing)]
