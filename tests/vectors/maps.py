"""The test vectors of map files: one of each kind, made from fixed values; ``docs/maps.md`` says what they hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

from primary_agent.tap.dirty_map import DirtyMap, DirtyNote, Force
from primary_agent.tap.hot_regions import HotNote
from protocol.hrl import Geometry
from shared.map_file import MapFile, MapKind
from shared.ports.file_system import RealFileSystem
from tests.vectors.logs import EPOCH, OTHER_EPOCH, VM

FOLDER = Path(__file__).parent
DISKS = [Geometry(0, 10 << 30, bytes(16)), Geometry(2, (1 << 20) + 512, bytes(16))]
HOT_BITS = 22
DIRTY_BITS = 16
CUTS = [(3, bytes(range(16))), (4, bytes(range(16, 32)))]
HOT_NOTE = HotNote(1_750_000_000_123_456_789, 7, 4096 + 640, EPOCH)
DIRTY_NOTE = DirtyNote(Force.COMPLETE, True, 3, 5, EPOCH, OTHER_EPOCH)


def hot(path: str) -> None:
    """Three hot regions, the last one shorter than the others."""
    made = MapFile.create(RealFileSystem(), path, MapKind.HOT, VM, HOT_BITS, DISKS)
    made.set_range(0, 5 << 22, 2 << 22)
    made.set_range(2, 0, 1)
    made.write()
    made.write_note(HOT_NOTE.encode())
    made.close()


def dirty(path: str) -> None:
    """Blocks in both bitmap pages of the first disk, two cuts, complete after power loss."""
    made = MapFile.create(RealFileSystem(), path, MapKind.DIRTY, VM, DIRTY_BITS, DISKS)
    kept = DirtyMap(made)
    made.write_note(DIRTY_NOTE.encode())
    kept.add(0, [(0, 1), (32703 << 16, 2 << 16)])
    kept.add(2, [(1 << 20, 512)])
    kept.write()
    kept.keep_cuts(CUTS)
    made.close()


VECTORS = {"hot.map": hot, "dirty.map": dirty}


def content(name: str) -> bytes:
    """The bytes of a vector, made anew."""
    with tempfile.TemporaryDirectory(prefix="vmr-") as folder:
        path = f"{folder}/{name}"
        VECTORS[name](path)
        return Path(path).read_bytes()


def write_all() -> None:
    for name in VECTORS:
        (FOLDER / name).write_bytes(content(name))
