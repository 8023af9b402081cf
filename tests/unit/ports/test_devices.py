"""Real block devices as disks, on loop devices: sizes, zeroing, identity, claims, and what is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shared.errors import DiskInUseError, StorageError
from shared.ports import Extent
from shared.ports import files as files_module
from shared.ports.file_system import RealFileSystem
from shared.ports.files import RealFile
from tests.pair.loop_device import LoopDevice, loop_device, mounted

KIB = 1 << 10
MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def device(tmp_path: Path) -> Iterator[LoopDevice]:
    with loop_device(tmp_path, SIZE) as device:
        yield device


def opened(device: LoopDevice) -> RealFile:
    return RealFileSystem().open_disk(device.path, write=True)


def test_reads_what_was_written(device: LoopDevice) -> None:
    with closing(opened(device)) as disk:
        assert disk.size() == SIZE
        disk.write_many(SIZE - 1024, [b"a" * 512, b"b" * 512])
        disk.sync()
        assert disk.read(SIZE - 1024, 4096) == b"a" * 512 + b"b" * 512
        assert disk.read_cached(SIZE - 512, 512) == b"b" * 512
        assert device.file.read_bytes()[-1024:] == b"a" * 512 + b"b" * 512


@pytest.mark.parametrize("zero", [RealFile.punch_hole, RealFile.write_zeroes])
@pytest.mark.parametrize("works", [True, False], ids=["by the device", "as bytes"])
@pytest.mark.parametrize("dirty", [True, False])
@pytest.mark.parametrize("offset, length", [(64 * KIB, 3 * MIB), (512, 1024), (100, 77)])
def test_zeroed_ranges_read_as_zeroes(
    device: LoopDevice,
    monkeypatch: pytest.MonkeyPatch,
    zero: object,
    works: bool,
    dirty: bool,
    offset: int,
    length: int,
) -> None:
    """Whether or not what was there had reached the device, and parts of a sector as well; nothing else changes."""
    assert callable(zero)
    if not works:

        def refuse(descriptor: int, mode: int, offset: int, length: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(files_module, "fallocate", refuse)
    content = bytearray(os.urandom(4 * MIB))
    with closing(opened(device)) as disk:
        disk.lock()
        disk.write(0, bytes(content))
        if not dirty:
            disk.sync()
        zero(disk, offset, length)
        content[offset : offset + length] = bytes(length)
        assert disk.read(0, 4 * MIB) == content
        disk.sync()
    assert device.file.read_bytes()[: 4 * MIB] == content


def test_what_lies_past_the_end_is_left_alone(device: LoopDevice) -> None:
    with closing(opened(device)) as disk:
        disk.punch_hole(SIZE - 4096, 1 << 30)
        disk.allocate(0, 1 << 30)
        assert disk.size() == SIZE
        with pytest.raises(OSError, match="No space left"):
            disk.write(SIZE, b"x" * 512)


def test_extents_tell_of_no_holes(device: LoopDevice) -> None:
    with closing(opened(device)) as disk:
        disk.punch_hole(0, SIZE)
        assert list(disk.extents(4096, MIB)) == [Extent(4096, MIB, False)]
        assert list(disk.extents(4096, MIB)) == [Extent(4096, MIB, False)], "asked again, it is known already"
        ends = [Extent(SIZE - 4096, 4096, False), Extent(SIZE, 4096, True)]
        assert list(disk.extents(SIZE - 4096, 8192)) == ends


def test_identity_has_no_times_and_another_attachment_has_another_number(device: LoopDevice) -> None:
    with closing(opened(device)) as disk:
        before = disk.identity()
        disk.write(0, b"x" * 4096)
        disk.sync()
        assert disk.identity() == before
    assert (before.block, before.size, before.mtime_ns, before.ctime_ns) == (True, SIZE, 0, 0)
    device.detach()
    device.attach()
    with closing(opened(device)) as disk:
        after = disk.identity()
    assert (after.device, after.size) == (before.device, before.size)
    assert after.inode != before.inode


def test_size_follows_the_device(device: LoopDevice) -> None:
    with closing(opened(device)) as disk:
        for size in (SIZE + MIB, SIZE // 2):
            device.resize(size)
            assert (disk.size(), disk.identity().size) == (size, size)


def test_locked_it_is_claimed_under_every_name(device: LoopDevice, tmp_path: Path) -> None:
    """Also a node of another name: its locks are others, but the device is one. Reading is not kept out."""
    other = tmp_path / "node"
    os.mknod(other, 0o600 | 0o060000, os.stat(device.path).st_rdev)
    files = RealFileSystem()
    with closing(opened(device)) as disk:
        disk.lock()
        disk.write(0, b"x" * 4096)
        for path in (device.path, str(other)):
            with closing(files.open_disk(path, write=True)) as second, pytest.raises(DiskInUseError, match="in use"):
                second.lock()
        with closing(files.open_disk(device.path)) as reader:
            assert reader.read(0, 4096) == b"x" * 4096
    with closing(opened(device)) as disk:
        disk.lock()


def test_a_mounted_device_is_refused_by_its_mount(device: LoopDevice, tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    with mounted(device, folder), closing(opened(device)) as disk:
        with pytest.raises(DiskInUseError, match=f"mounted at {folder}"):
            disk.lock()
    with closing(opened(device)) as disk:
        disk.lock()


def test_links_to_devices_are_followed_below_dev_alone(device: LoopDevice, tmp_path: Path) -> None:
    """Volume managers name devices by links there; elsewhere whoever may write a folder could exchange one."""
    files = RealFileSystem()
    outside = tmp_path / "link"
    outside.symlink_to(device.path)
    with pytest.raises(StorageError, match="symbolic link"):
        files.open_disk(str(outside))
    inside = Path(f"/dev/vmreplica-test-{os.getpid()}")
    inside.symlink_to(device.path)
    try:
        with closing(files.open_disk(str(inside), write=True)) as disk:
            assert disk.identity().block
        inside.unlink()
        inside.symlink_to(tmp_path / "file")
        (tmp_path / "file").write_bytes(bytes(512))
        with pytest.raises(StorageError, match="symbolic link"):
            files.open_disk(str(inside))
    finally:
        inside.unlink(missing_ok=True)


def test_only_as_a_disk_a_device_is_opened(device: LoopDevice) -> None:
    with pytest.raises(StorageError, match="a block device, not a regular file"):
        RealFileSystem().open(device.path)
