"""What bounds a resync is kept from a late round on: durably, with all that earlier rounds kept (R32)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest

from primary_agent.kept_scope import ROUNDS, drop, is_to_be_kept, keep, kept
from primary_agent.record import ResyncRecord
from primary_agent.scope import JOIN_BYTES
from protocol.hrl import Geometry
from protocol.messages import ResyncKind
from shared.errors import StorageError
from shared.map_file import MapFile, MapKind
from shared.tap_config import DIRTY_BLOCK_BITS
from tests.simulation.disk import SimulatedFileSystem, Volume
from tests.simulation.loop import Process, SimulationLoop

VM = bytes(range(16))
BLOCK = 1 << DIRTY_BLOCK_BITS
FAR = 2 * JOIN_BYTES
DISKS = [Geometry(0, 100 * FAR, bytes(16)), Geometry(3, FAR, bytes(16))]
RESYNC = ResyncRecord(
    id=b"i" * 16, kind=ResyncKind.BOUNDED, epoch=b"e" * 16, parent=b"p" * 16, parent_segment=3, started_time=1.0,
    round=ROUNDS + 1,
)  # fmt: skip
CAN_KEEP = ("/vm/tap", "/vm", VM, DISKS)


@pytest.fixture
def volume() -> Volume:
    return Volume(random.Random(0), lambda: 0.0)


@pytest.fixture
def files(volume: Volume) -> Iterator[SimulatedFileSystem]:
    loop = SimulationLoop()
    files = SimulatedFileSystem(volume, Process("test", loop))
    files.make_folder("/vm/tap")
    yield files
    loop.dismantle()


def doubt(files: SimulatedFileSystem, *places: tuple[int, int]) -> None:
    """The tap's map, in which these blocks (disk, offset) are in doubt."""
    made = MapFile.create(files, "/vm/tap/dirty.map", MapKind.DIRTY, VM, DIRTY_BLOCK_BITS, DISKS)
    for disk, offset in places:
        made.set_range(disk, offset, 1)
    made.write()
    made.close()


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, True),
        ({"kept_round": ROUNDS}, True),
        ({"round": ROUNDS}, False),
        ({"kept_round": ROUNDS + 1}, False),
        ({"kind": ResyncKind.RESYNC}, False),
    ],
    ids=["late", "kept for a round before", "early", "kept", "whole"],
)
def test_a_late_round_keeps_what_bounds_it(changed: dict[str, object], wanted: bool) -> None:
    assert is_to_be_kept(msgspec.structs.replace(RESYNC, **changed)) == wanted


def test_each_round_adds_to_what_was_kept_and_power_loss_takes_nothing(
    files: SimulatedFileSystem, volume: Volume
) -> None:
    assert kept(files, "/vm", VM, DISKS, RESYNC) == {0: [], 3: []}
    doubt(files, (0, 4 * FAR), (3, BLOCK))
    keep(files, *CAN_KEEP, RESYNC)
    third = msgspec.structs.replace(RESYNC, kept_round=RESYNC.round)
    doubt(files, (0, 4 * FAR + BLOCK), (0, 50 * FAR))
    fourth = msgspec.structs.replace(third, round=third.round + 1)
    keep(files, *CAN_KEEP, fourth)
    volume.lose_power()
    assert kept(files, "/vm", VM, DISKS, fourth) == {0: [(4 * FAR, BLOCK)], 3: [(BLOCK, BLOCK)]}, "not on record yet"
    fourth = msgspec.structs.replace(fourth, kept_round=fourth.round)
    everything = {0: [(4 * FAR, 2 * BLOCK), (50 * FAR, BLOCK)], 3: [(BLOCK, BLOCK)]}
    assert kept(files, "/vm", VM, DISKS, fourth) == everything
    drop(files, "/vm", fourth)
    assert kept(files, "/vm", VM, DISKS, fourth) == everything
    assert len([name for name in files.list("/vm") if name.startswith("scope-")]) == 1
    drop(files, "/vm", None)
    assert not [name for name in files.list("/vm") if name.startswith("scope-")]


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_what_was_kept_and_cannot_be_read_is_no_empty_scope(files: SimulatedFileSystem, how: str) -> None:
    doubt(files, (0, 0))
    keep(files, *CAN_KEEP, RESYNC)
    (name,) = (name for name in files.list("/vm") if name.startswith("scope-"))
    if how == "missing":
        files.remove(f"/vm/{name}")
    else:
        files.open(f"/vm/{name}", write=True).write(0, bytes(16))
    with pytest.raises(StorageError):
        kept(files, "/vm", VM, DISKS, msgspec.structs.replace(RESYNC, kept_round=RESYNC.round))
