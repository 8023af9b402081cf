"""The judge of crash images finds what is planted: otherwise the tests with a guest would show nothing."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.crash_image import LINE, PAGE, SLOTS, Damaged, assert_clean, judge, recover
from tests.guest.initramfs import host_program, missing

MIB = 1 << 20
COUNT = 20


class Disk:
    """An image as the guest would have written it, with one file removed."""

    def __init__(self, folder: Path) -> None:
        content = random.Random(7)
        source = folder / "source"
        (source / "files").mkdir(parents=True)
        self.notes = []
        slots = bytearray(SLOTS * PAGE)
        for number in range(1, COUNT + 1):
            data = content.randbytes(2 * PAGE)
            (source / "files" / str(number)).write_bytes(data)
            slots[number % SLOTS * PAGE : (number % SLOTS + 1) * PAGE] = page(number)
            self.notes.append(f"has {number} {hashlib.md5(data).hexdigest()}")
        (source / "files" / "1").unlink()
        self.notes.append("gone 1")
        (source / "slots").write_bytes(slots)
        (source / "journal").write_bytes(b"".join(line(note) for note in self.notes))
        self.newest = data
        self.path = folder / "disk.raw"
        self.path.write_bytes(bytes(8 * MIB))
        mke2fs = host_program("mke2fs")
        assert mke2fs is not None
        subprocess.run([mke2fs, "-q", "-t", "ext4", "-b", str(PAGE), "-d", str(source), str(self.path)], check=True)

    def replace(self, old: bytes, new: bytes) -> None:
        """Write other bytes where these are, of which there is one place."""
        image = self.path.read_bytes()
        assert image.count(old) == 1 and len(old) == len(new)
        self.path.write_bytes(image.replace(old, new))

    def debugfs(self, *commands: str) -> None:
        debugfs = host_program("debugfs")
        assert debugfs is not None
        for command in commands:
            subprocess.run([debugfs, "-w", "-R", command, str(self.path)], check=True, capture_output=True)


def page(number: int) -> bytes:
    return b"%015d\n" % number * (PAGE // 16)


def line(note: str) -> bytes:
    return f"{note:<{LINE - 1}}\n".encode()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    tools = {"mke2fs", "e2fsck", "debugfs"}
    if absent := tools & set(missing()):
        pytest.skip(f"needs {', '.join(sorted(absent))}")
    return Disk(tmp_path)


def test_sound_image_passes(disk: Disk) -> None:
    recover(disk.path)
    assert judge(disk.path, disk.notes) == disk.notes
    assert judge(disk.path, disk.notes[:5]) == disk.notes
    assert judge(disk.path, disk.notes[3:5], 3) == disk.notes


PLANTED: dict[str, tuple[str, Callable[[Disk], object]]] = {
    "a byte of a file": (
        "files/20 is not what was written",
        lambda disk: disk.replace(disk.newest, disk.newest[:-1] + bytes([disk.newest[-1] ^ 1])),
    ),
    "a file that is not there": (
        "files/9 is missing",
        lambda disk: disk.debugfs("rm /files/9"),
    ),
    "a page from before": (
        "of the slots holds",
        lambda disk: disk.replace(page(18), page(2)),
    ),
    "half a page": (
        "of the slots holds",
        lambda disk: disk.replace(page(18), page(18)[: PAGE // 2] + page(2)[PAGE // 2 :]),
    ),
    "a note that was durable": (
        "not all durable ones",
        lambda disk: disk.notes.append("has 21 00"),
    ),
    "a note of another run": (
        "not all durable ones",
        lambda disk: disk.replace(line(disk.notes[4]), line(disk.notes[4].replace("has 5", "has 6"))),
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_damage_to_content_is_found(disk: Disk, planted: str) -> None:
    text, plant = PLANTED[planted]
    plant(disk)
    with pytest.raises(Damaged, match=text):
        judge(disk.path, disk.notes)


@pytest.mark.parametrize(
    "command",
    [
        "set_inode_field /files/9 block[0] 0",
        "set_inode_field /files/9 links_count 2",
        "unlink /files/9",
        "freeb 40 100",
        "set_super_value state 3",
    ],
)
def test_damage_to_the_file_system_is_found(disk: Disk, command: str) -> None:
    """Also a kernel's mark that it met an error, which a full check alone would wipe off without a word."""
    disk.debugfs(command)
    with pytest.raises(Damaged):
        recover(disk.path)


def test_count_that_every_mount_works_out_is_no_damage(disk: Disk) -> None:
    disk.debugfs("set_super_value free_inodes_count 77", "set_super_value state 0")
    recover(disk.path)
    with pytest.raises(Damaged):
        disk.debugfs("set_super_value free_inodes_count 77")
        assert_clean(disk.path)
