"""Which replica a bounded compare fits, and what of the map it compares (R28, R34)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from msgspec import structs

from primary_agent.scope import JOIN_BYTES, Turned, common_to_prove, is_joined, position_to_prove, read_scope
from protocol.hrl import Geometry
from protocol.position import NO_EPOCH, Position
from shared.errors import StorageError
from shared.map_file import MapFile, MapKind
from shared.planning import ResyncCause
from shared.sides import ReplicaView
from shared.tap_config import DIRTY_BLOCK_BITS
from shared.tap_control import Doubt
from tests.simulation.disk import SimulatedFileSystem, Volume
from tests.simulation.loop import Process, SimulationLoop

EPOCH, OTHER = bytes(range(16)), bytes(range(16, 32))
DOUBT = Doubt(base_epoch=EPOCH.hex(), base_segment=3, end_segment=7, complete=True, catch_up=False, bytes=1 << 16)
LOST = [ResyncCause.TRACKING_LOST.value]
VM = bytes(16)
BLOCK = 1 << DIRTY_BLOCK_BITS


def cut(segment: int, epoch: bytes = EPOCH) -> Position:
    return Position(epoch, segment, 100 * segment, segment.to_bytes(16, "big"))


def view(segment: int, epoch: bytes = EPOCH) -> ReplicaView:
    return ReplicaView(disks=(), epoch=epoch, cut=cut(segment, epoch))


@pytest.mark.parametrize("segment", [3, 4, 7])
def test_replica_at_or_after_the_base(segment: int) -> None:
    assert position_to_prove(DOUBT, view(segment), LOST) == cut(segment)


@pytest.mark.parametrize("segment", [0, 2, 8, 1 << 40], ids=["initial", "before base", "after end", "far"])
def test_replica_outside_of_the_map(segment: int) -> None:
    """Before the base the map lacks changes; behind the end stands what this log never sealed."""
    assert position_to_prove(DOUBT, view(segment), LOST) is None


@pytest.mark.parametrize(
    "doubt, replica, causes",
    [
        (None, view(4), LOST),
        (DOUBT, view(4, OTHER), LOST),
        (DOUBT, view(4, NO_EPOCH), LOST),
        (DOUBT, replace(view(4), cut=cut(4, OTHER)), LOST),
        (DOUBT, replace(view(4), cut=None), LOST),
        (DOUBT, replace(view(4), needs_resync=True), LOST),
        (DOUBT, view(4), [*LOST, ResyncCause.REPLICA_BEHIND.value]),
        (DOUBT, view(4), [ResyncCause.REPLICA_REQUEST.value]),
    ],
    ids=["no map", "epoch", "no epoch", "epoch of cut", "no cut", "asks for it", "one more cause", "another cause"],
)
def test_everything_else_needs_whole_disks(doubt: Doubt | None, replica: ReplicaView, causes: list[str]) -> None:
    assert position_to_prove(doubt, replica, causes) is None


# --- what is compared -----------------------------------------------------------------------------------------------


@pytest.fixture
def files() -> Iterator[SimulatedFileSystem]:
    loop = SimulationLoop()
    files = SimulatedFileSystem(Volume(random.Random(0), lambda: 0.0), Process("test", loop))
    files.make_folder("/tap")
    yield files
    loop.dismantle()


def test_scope_is_the_map_with_small_gaps_filled(files: SimulatedFileSystem) -> None:
    disks = [Geometry(0, 100 * BLOCK + 512, bytes(16)), Geometry(3, BLOCK, bytes(16))]
    made = MapFile.create(files, "/tap/dirty.map", MapKind.DIRTY, VM, DIRTY_BLOCK_BITS, disks)
    apart = JOIN_BYTES // BLOCK
    made.set_range(0, BLOCK, 1)
    made.set_range(0, (2 + apart) * BLOCK, 1)
    made.set_range(0, (4 + 2 * apart) * BLOCK, 1)
    made.set_range(0, 100 * BLOCK, 512)
    made.write()
    assert read_scope(files, "/tap", VM, disks) == {
        0: [(BLOCK, (2 + apart) * BLOCK), ((4 + 2 * apart) * BLOCK, BLOCK), (100 * BLOCK, 512)],
        3: [],
    }


@pytest.mark.parametrize("how", ["missing", "damaged", "of other disks"])
def test_scope_that_cannot_be_read(files: SimulatedFileSystem, how: str) -> None:
    """It is an error, never an empty scope."""
    disks = [Geometry(0, 100 * BLOCK, bytes(16))]
    if how != "missing":
        MapFile.create(files, "/tap/dirty.map", MapKind.DIRTY, VM, DIRTY_BLOCK_BITS, disks)
    if how == "damaged":
        files.open("/tap/dirty.map", write=True).write(0, bytes(16))
    if how == "of other disks":
        disks = [Geometry(0, 101 * BLOCK, bytes(16))]
    with pytest.raises(StorageError, match=r"dirty"):
        read_scope(files, "/tap", VM, disks)


# --- after a reversal -----------------------------------------------------------------------------------------------

REVERSED = [ResyncCause.REVERSED.value]
TURNED = Turned(OTHER, cut(5))
SINCE = Doubt(base_epoch=OTHER.hex(), base_segment=0, end_segment=9, complete=True, catch_up=False, bytes=1 << 16)
FORMER = replace(view(5), common=cut(5), cut=None, needs_resync=True, causes=(("reversed", "so it is"),))


def test_a_former_primary_is_joined_at_the_cut_that_both_have() -> None:
    """R41: the map names all since the failover, and the other side stands at exactly the cut that was received."""
    assert is_joined(SINCE, FORMER, REVERSED, TURNED)
    assert is_joined(SINCE, FORMER, [*REVERSED, *LOST], TURNED)


@pytest.mark.parametrize(
    "doubt, replica, causes",
    [
        (None, FORMER, REVERSED),
        (structs.replace(SINCE, base_segment=1), FORMER, REVERSED),
        (structs.replace(SINCE, base_epoch=EPOCH.hex()), FORMER, REVERSED),
        (SINCE, replace(FORMER, common=None), REVERSED),
        (SINCE, replace(FORMER, common=cut(4)), REVERSED),
        (SINCE, replace(FORMER, common=cut(5)._replace(chain=bytes(16))), REVERSED),
        (SINCE, replace(FORMER, causes=(("reversed", ""), ("disk_changed", ""))), REVERSED),
        (SINCE, FORMER, [*REVERSED, ResyncCause.REPLICA_REVERTED.value]),
    ],
    ids=["no map", "later base", "epoch", "no cut", "other cut", "other chain", "changed disks", "one more cause"],
)
def test_everything_else_after_a_reversal_needs_whole_disks(
    doubt: Doubt | None, replica: ReplicaView, causes: list[str]
) -> None:
    assert not is_joined(doubt, replica, causes, TURNED)


def test_a_failover_that_was_given_up_has_to_be_at_a_cut_of_the_map() -> None:
    assert common_to_prove(DOUBT, FORMER, REVERSED) == cut(5)
    for common in (cut(2), cut(8), cut(5, OTHER)):
        assert common_to_prove(DOUBT, replace(FORMER, common=common), REVERSED) is None
    assert common_to_prove(DOUBT, FORMER, [*REVERSED, ResyncCause.GAP.value]) is None
    assert common_to_prove(DOUBT, replace(FORMER, causes=(("spool_damaged", ""),)), REVERSED) is None
