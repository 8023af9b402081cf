"""What a power cut leaves of files that a real process wrote: the shim's trace, undone where nothing was synced.

The process is killed first. Of what it wrote since the last sync of each file every page of 4096 bytes is then kept,
lost or torn at a sector, each by itself; of the names that it made, moved and removed since the last sync of their
folder only the first so many stay. Inodes stay the same. A file's times stay those of its last write: no earlier ones
are known here (the simulation in tests/simulation tries those, too).
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
SECTOR = 512
_RECORD = struct.Struct("<5q4i")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the trace. ``kind``: W written or resized, S synced, C created, U unlinked, R renamed, D folder.

    For W ``old`` and ``new`` are what lay at ``offset`` before and after, ``before`` and ``after`` the file's sizes.
    For S and D ``offset`` is the number of the newest record that they cover. For R ``new`` names the target, and
    ``offset`` is the inode that it had before.
    """

    sequence: int
    inode: int
    offset: int
    before: int
    after: int
    kind: str
    path: str
    old: bytes
    new: bytes


def read_trace(folder: Path) -> list[Record]:
    """All records of all processes, in their order."""
    records = []
    for path in sorted(folder.glob("trace.*")):
        content, at = path.read_bytes(), 0
        while at + _RECORD.size <= len(content):
            sequence, inode, offset, before, after, kind, name, old, new = _RECORD.unpack_from(content, at)
            at += _RECORD.size
            parts = []
            for length in (name, old, new):
                parts.append(content[at : at + length])
                at += length
            if at <= len(content):
                numbers = (sequence, inode, offset, before, after)
                records.append(Record(*numbers, chr(kind), parts[0].decode(), parts[1], parts[2]))
    return sorted(records, key=lambda record: record.sequence)


@dataclass(slots=True)
class Loss:
    """What a power cut took."""

    pages_kept: int = 0
    pages_lost: int = 0
    pages_torn: int = 0
    names_undone: int = 0
    files: set[str] = field(default_factory=set)
    """Paths of files that something was lost of."""

    @property
    def pages(self) -> int:
        return self.pages_lost + self.pages_torn


def cut_power(trace: Path, tree: Path, rng: random.Random) -> Loss:
    """Take from the files below ``tree`` what was not synced; the trace begins anew. No process may have them open."""
    records, loss = read_trace(trace), Loss()
    places = _places(tree, trace / "graves")
    writes: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.kind == "W":
            writes[record.inode].append(record)
        elif record.kind == "S":
            writes[record.inode] = [write for write in writes[record.inode] if write.sequence > record.offset]
    for inode, pending in sorted(writes.items()):
        if pending and inode in places:
            _lose_pages(places[inode], pending, rng, loss)
    _lose_names(records, trace / "graves", rng, loss)
    for path in trace.glob("trace.*"):
        path.unlink()
    for grave in (trace / "graves").iterdir():
        grave.unlink()
    for shared in tree.rglob("*-shm"):
        # SQLite's memory that its processes share: it is no more.
        shared.unlink()
    return loss


def _places(*folders: Path) -> dict[int, Path]:
    places: dict[int, Path] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                places.setdefault(path.stat().st_ino, path)
    return places


def undone(content: bytes, writes: list[Record]) -> bytes:
    """A file's content without these last writes of it."""
    result = bytearray(content)
    for write in reversed(writes):
        old = write.old.ljust(min(len(write.new), max(0, write.before - write.offset)), b"\0")
        del result[write.before :]
        result.extend(bytes(write.before - len(result)))
        result[write.offset : write.offset + len(old)] = old
        del result[write.before :]
    return bytes(result)


def _lose_pages(path: Path, writes: list[Record], rng: random.Random, loss: Loss) -> None:
    state = path.stat()
    now = path.read_bytes()
    then = undone(now, writes)
    size = rng.choice((len(now), len(then)))
    pages: set[int] = set()
    for write in writes:
        length = max(len(write.old), len(write.new))
        if length:
            pages.update(range(write.offset // PAGE, (write.offset + length - 1) // PAGE + 1))
    left = bytearray(now)
    for page in sorted(pages):
        start = page * PAGE
        old = then[start : start + PAGE].ljust(PAGE, b"\0")
        new = now[start : start + PAGE].ljust(PAGE, b"\0")
        fate = rng.random()
        if fate < 0.45:
            loss.pages_kept += 1
            continue
        loss.files.add(str(path))
        if fate > 0.9:
            torn = SECTOR * rng.randrange(1, PAGE // SECTOR)
            old = new[:torn] + old[torn:]
            loss.pages_torn += 1
        else:
            loss.pages_lost += 1
        left.extend(bytes(max(0, start + PAGE - len(left))))
        left[start : start + PAGE] = old
    del left[size:]
    left.extend(bytes(size - len(left)))
    with path.open("r+b") as file:
        file.write(left)
        file.truncate(size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def _lose_names(records: list[Record], graves: Path, rng: random.Random, loss: Loss) -> None:
    changes = [record for record in records if record.kind in "CUR"]
    for synced in (record for record in records if record.kind == "D"):
        changes = [one for one in changes if one.sequence > synced.offset or not _is_in(one, synced.path)]
    for change in reversed(changes[rng.randint(0, len(changes)) :]):
        loss.names_undone += 1
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            match change.kind:
                case "C":
                    if Path(change.path).stat().st_ino == change.inode:
                        Path(change.path).unlink()
                case "U":
                    os.link(graves / str(change.inode), change.path)
                case "R":
                    target = change.new.decode()
                    os.rename(target, change.path)
                    if change.offset:
                        os.link(graves / str(change.offset), target)


def _is_in(change: Record, folder: str) -> bool:
    names = [change.path, *([change.new.decode()] if change.kind == "R" else [])]
    return any(os.path.dirname(name) == folder.rstrip("/") for name in names)
