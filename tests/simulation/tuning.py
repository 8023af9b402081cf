"""Constants of the product made small, so that small disks and short runs get to what takes gigabytes in life."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import primary_agent.compare
import primary_agent.handing_over
import primary_agent.kept_scope
import primary_agent.live_image
import primary_agent.scope
import primary_agent.tap.batches
import primary_agent.tap.engine
import primary_agent.tap.hot_regions
import primary_agent.tap.layered
import primary_agent.verify_comparing
import primary_agent.verify_reading
import replica_agent.answers
import replica_agent.apply
import replica_agent.bulk
import replica_agent.control
import replica_agent.retention
import replica_agent.saving
import replica_agent.undo_writer
import replica_agent.walk
from primary_agent.tap.hot_regions import HotRegions
from shared.tap_config import TapConfig
from tests.simulation.hooks import replaced


class FewHotRegions(HotRegions):
    """At most as many hot regions as the longest change needs, and a few more."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.limit = max(len(heat) for heat in self._heat) + 2


SMALL: list[tuple[Any, str, Any]] = [
    (primary_agent.compare, "RANGE_BYTES", 128 << 10),
    (primary_agent.compare, "HOLE_BYTES", 192 << 10),
    (primary_agent.handing_over, "CLOCKS_SECONDS", 0.0),
    (primary_agent.live_image, "KEEP_FEW", 2),
    (primary_agent.scope, "JOIN_BYTES", 0),
    (primary_agent.tap.engine, "HotRegions", FewHotRegions),
    (primary_agent.tap.hot_regions, "CHECKPOINT_SECONDS", 0.3),
    (primary_agent.tap.hot_regions, "LEASE_SECONDS", 2.0),
    (primary_agent.tap.layered, "WINDOW", 64 << 10),
    (primary_agent.tap.layered, "RANGES_MAX", 3),
    (TapConfig, "hot_region_bits", property(lambda _config: 14)),
    (primary_agent.tap.batches, "INLINE_ZEROES", 32 << 10),
    (primary_agent.tap.engine, "INLINE_ZEROES", 32 << 10),
    (primary_agent.tap.engine, "STEP_MIN", 32 << 10),
    (primary_agent.verify_reading, "PIECE_BLOCKS", 2),
    (primary_agent.verify_reading, "KEEP_BLOCKS", 1),
    (primary_agent.verify_comparing, "RANGE_BLOCKS", 3),
    (replica_agent.apply, "GROUP_SEGMENTS", 3),
    (replica_agent.apply, "STEP_BYTES", 64 << 10),
    (replica_agent.bulk, "TAKE_BYTES", 128 << 10),
    (replica_agent.control, "TAKE_BYTES", 64 << 10),
    (replica_agent.answers, "MAX_HOLES", 2),
    (replica_agent.answers, "SHORT_HOLE", 0),
    (replica_agent.retention, "HOUR", 4.0),
    (replica_agent.retention, "DAY", 8.0),
    (replica_agent.retention, "WEEK", 24.0),
    (replica_agent.retention, "MONDAY", 0.0),
    (replica_agent.retention, "MERGE_AT_ONCE", 3),
    (replica_agent.saving, "BATCH_BYTES", 16 << 10),
    (replica_agent.undo_writer, "BATCH_BYTES", 16 << 10),
]


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda _original: value


@contextmanager
def small_constants(seed: int) -> Iterator[None]:
    """Run with small constants for a while. In every other seed what bounds a resync is kept in its second round."""
    with ExitStack() as stack:
        if seed % 2:
            stack.enter_context(replaced(primary_agent.kept_scope, "ROUNDS", _constant(1)))
        for owner, name, value in SMALL:
            stack.enter_context(replaced(owner, name, _constant(value)))
        yield
