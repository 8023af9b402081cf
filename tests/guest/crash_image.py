"""Judges an image of the guest's disk at one moment of its work: as a crash would have left it, and nothing worse."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.guest.initramfs import host_program

PAGE = 4096
SLOTS = 16
LINE = 64
PLAIN = {"LC_ALL": "C"}

MOUNTING_DOES_THIS = re.compile(
    r"""
    ^e2fsck\ \d.*\n
    | ^.*:\ recovering\ journal\n
    | ^(Clearing|Truncating)\ orphaned\ inode\ .*\n
    # Counts for the whole file system, which the kernel works out anew at each mount; not those of a group.
    | ^Setting\ free\ (inodes|blocks)\ count\ to\ .*\n
    | ^Free\ (blocks|inodes)\ count\ wrong\ \(\d+,\ counted=\d+\)\.\nFix\?\ yes\n
    | ^Feature\ orphan_present\ is\ set\ but\ orphan\ file\ is\ clean\.\nClear\?\ yes\n
    | ^Pass\ \d.*\n
    | ^.*:\ \*{5}\ FILE\ SYSTEM\ WAS\ MODIFIED\ \*{5}\n
    | ^.*:\ \d+/\d+\ files\ \(.*\),\ \d+/\d+\ blocks\n
    | ^\n
    """,
    re.VERBOSE | re.MULTILINE,
)
"""What e2fsck may say of an image whose journal is to be replayed; a mount does no less."""


class Damaged(AssertionError):
    """The image is not what a sound disk holds after a crash."""


def recover(image: Path) -> None:
    """Replay the journal, in place. Raises Damaged if e2fsck finds anything that a mount would not mend."""
    code, text = _e2fsck(image, "-y", "-E", "journal_only")
    if code not in (0, 1):
        raise Damaged(f"the journal was not replayed: {code}, {text}")
    # A full check would wipe off the mark of an error that the guest's kernel met.
    if "errors" in (state := _state(image)):
        raise Damaged(f"the file system is marked: {state}")
    code, text = _e2fsck(image, "-fy")
    if code not in (0, 1) or MOUNTING_DOES_THIS.sub("", text):
        raise Damaged(f"e2fsck -fy ended with {code}: {text}")
    assert_clean(image)


def assert_clean(image: Path) -> None:
    """Raises Damaged if e2fsck finds anything to do or to say; nothing is changed."""
    code, text = _e2fsck(image, "-fn")
    state = _state(image)
    if code != 0 or state != "clean" or "recovering" in text or MOUNTING_DOES_THIS.sub("", text):
        raise Damaged(f"e2fsck -fn ended with {code}, the file system is {state}: {text}")


def judge(image: Path, durable: Sequence[str], kept: int = 0) -> list[str]:
    """What the recovered image holds, against what the guest had said before the moment of the image.

    ``durable`` are the notes that it had said, and ``kept`` is how many older ones its journal had before. Returns all
    that the image has, of which there may be more. Raises Damaged for a note that is missing, and for anything that a
    note of the image promises and is not so.
    """
    with tempfile.TemporaryDirectory(prefix="vmr-image-") as folder:
        _debugfs(image, f"rdump / {folder}")
        journal = (Path(folder) / "journal").read_bytes()
        notes = [line.decode().rstrip() for line in journal.splitlines()]
        if len(journal) % LINE or notes[kept : kept + len(durable)] != list(durable):
            raise Damaged(f"the journal holds {len(notes)} notes, {notes[-2:]} at its end, and not all durable ones")
        _judge_files(Path(folder) / "files", notes)
        _judge_slots(Path(folder) / "slots", notes)
        return notes


def _judge_files(files: Path, notes: Sequence[str]) -> None:
    sums: dict[str, str] = {}
    for note in notes:
        match note.split():
            case ["has", number, digest]:
                sums[number] = digest
            case ["gone", number]:
                del sums[number]
            case _:
                raise Damaged(f"the journal holds {note!r}")
    for number, digest in sums.items():
        path = files / number
        if not path.exists():
            raise Damaged(f"files/{number} is missing")
        if hashlib.md5(path.read_bytes()).hexdigest() != digest:
            raise Damaged(f"files/{number} is not what was written")


def _judge_slots(path: Path, notes: Sequence[str]) -> None:
    """Each page holds the newest number that a note promises, or the one that was being written."""
    numbers = [int(note.split()[1]) for note in notes if note.startswith("has ")]
    content = path.read_bytes()
    for number in numbers[-SLOTS:]:
        page = content[number % SLOTS * PAGE :][:PAGE]
        held = page[:16]
        if page != held * (PAGE // 16) or int(held) not in (number, _under_way(number, numbers[-1])):
            raise Damaged(f"page {number % SLOTS} of the slots holds {held!r}, and not {number}")


def _under_way(number: int, newest: int) -> int:
    """The number that may have overwritten this one already, without a note yet."""
    return newest + 1 if (newest + 1 - number) % SLOTS == 0 else number


def _state(image: Path) -> str:
    """``clean``, ``not clean``, and either may be followed by ``with errors``."""
    match = re.search(r"^Filesystem state: +(.*?) *$", _debugfs(image, "show_super_stats -h"), re.MULTILINE)
    assert match is not None
    return match[1]


def _debugfs(image: Path, command: str) -> str:
    debugfs = host_program("debugfs")
    assert debugfs is not None
    result = subprocess.run([debugfs, "-R", command, str(image)], capture_output=True, text=True, check=True, env=PLAIN)
    return result.stdout


def _e2fsck(image: Path, *options: str) -> tuple[int, str]:
    e2fsck = host_program("e2fsck")
    assert e2fsck is not None
    result = subprocess.run(
        [e2fsck, *options, str(image)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=PLAIN
    )
    return result.returncode, result.stdout + result.stderr
