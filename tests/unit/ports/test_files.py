"""Tests of real files, on a file system in memory and on one on a disk."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import InvalidStateError, StorageError
from shared.ports import Extent, kernel
from shared.ports import files as files_module
from shared.ports.file_system import RealFileSystem
from shared.ports.files import IOV_MAX, RealFile

PAGE = 4096
MIB = 1 << 20


@pytest.fixture
def files() -> RealFileSystem:
    return RealFileSystem()


@pytest.fixture
def file(files: RealFileSystem, folder: Path) -> RealFile:
    return files.open(str(folder / "disk.raw"), write=True, create=True)


@pytest.fixture
def without_fallocate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system refuse fallocate, as some network file systems do."""

    def refuse(descriptor: int, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(files_module, "fallocate", refuse)


def in_pieces(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the system calls transfer at most 1000 bytes at a time."""
    pread, preadv, pwrite = os.pread, os.preadv, os.pwrite
    short: dict[str, Callable[..., object]] = {
        "pread": lambda fd, length, offset: pread(fd, min(length, 1000), offset),
        "preadv": lambda fd, buffers, offset, *flags: preadv(fd, [memoryview(buffers[0])[:1000]], offset, *flags),
        "pwrite": lambda fd, data, offset: pwrite(fd, memoryview(data)[:1000], offset),
        "pwritev": lambda fd, buffers, offset: pwrite(fd, b"".join(buffers)[:1000], offset),
    }
    for name in names:
        monkeypatch.setattr(os, name, short[name])


def test_read_returns_what_was_written(file: RealFile) -> None:
    data = os.urandom(3 * PAGE)
    file.write(PAGE, data)
    assert file.read(PAGE, len(data)) == data
    assert file.read(0, PAGE) == bytes(PAGE)


def test_read_past_the_end_returns_less(file: RealFile) -> None:
    file.write(0, b"abc")
    assert file.read(1, 100) == b"bc"
    assert file.read(3, 100) == b""
    assert file.read_cached(3, 100) == b""
    buffer = bytearray(b"x" * 10)
    assert file.read_into(1, buffer) == 2
    assert buffer == b"bcxxxxxxxx"


def test_advice_is_for_the_whole_file_and_whoever_refuses_it_reads_as_before(
    file: RealFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, ...]] = []

    def refuse(_descriptor: int, *advice: int) -> None:
        told.append(advice)
        raise OSError(errno.ESPIPE, "no advice is taken here")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    file.write(0, b"as before")
    file.expect_sequential()
    assert told == [(0, 0, os.POSIX_FADV_SEQUENTIAL)]
    assert file.read(0, 9) == b"as before"


def test_short_transfers_are_completed(file: RealFile, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(9999)
    in_pieces(monkeypatch, "pread", "preadv", "pwrite")
    file.write(5, data)
    assert file.read(5, len(data)) == data
    buffer = bytearray(len(data) + 7)
    assert file.read_into(5, buffer) == len(data)
    assert buffer[: len(data)] == data
    assert file.read(5, len(data) + 50) == data


def test_short_vector_writes_are_completed(file: RealFile, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [os.urandom(size) for size in (1, 999, 0, 3000, 17, 2500)]
    in_pieces(monkeypatch, "pwrite", "pwritev")
    file.write_many(10, pieces)
    assert file.read(10, 10000) == b"".join(pieces)


def test_write_that_stores_nothing_ends(file: RealFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="no byte"):
        file.write(0, b"abc")


def test_more_buffers_than_one_call_takes(file: RealFile) -> None:
    pieces = [index.to_bytes(4, "little") for index in range(IOV_MAX * 2 + 3)]
    file.write_many(0, pieces)
    assert file.read(0, 1 << 20) == b"".join(pieces)


def test_all_kinds_of_buffers(file: RealFile) -> None:
    words = memoryview(bytearray(b"12345678")).cast("I")
    file.write_many(0, [b"ab", bytearray(b"cd"), memoryview(b"ef"), words])
    assert file.read(0, 100) == b"abcdef12345678"
    file.write(0, words)
    assert file.read(0, 100) == b"12345678345678"
    target = memoryview(bytearray(8)).cast("I")
    assert file.read_into(0, target) == 8
    assert bytes(target) == b"12345678"


def test_cached_read_returns_hot_data(file: RealFile) -> None:
    data = os.urandom(5 * PAGE)
    file.write(0, data)
    assert file.read_cached(0, len(data)) == data
    assert file.read_cached(PAGE, 100) == data[PAGE : PAGE + 100]
    assert file.read_cached(4 * PAGE, 2 * PAGE) == data[4 * PAGE :]


def test_cached_read_of_cold_data_is_refused(files: RealFileSystem) -> None:
    path = Path("/var/tmp") / f"vmreplica-cold-{os.getpid()}"
    file = files.open(str(path), write=True, create=True)
    try:
        file.write(0, os.urandom(64 * PAGE))
        file.sync()
        with path.open("rb") as other:
            for _ in range(200):
                # Advice only: pages that another core has yet to file away stay for the moment.
                os.posix_fadvise(other.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if file.read_cached(0, 64 * PAGE) is None:
                    break
                time.sleep(0.01)
        assert file.read_cached(0, 64 * PAGE) is None
        data = file.read(0, 64 * PAGE)
        assert file.read_cached(0, 64 * PAGE) == data
    finally:
        file.close()
        path.unlink()


def test_cached_read_without_kernel_support(file: RealFile, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*arguments: object) -> int:
        asked.append(arguments)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    file.write(0, b"abc")
    monkeypatch.setattr(os, "preadv", refuse)
    expected = b"abc" if file.path.startswith("/dev/shm") else None
    assert file.read_cached(0, 3) == expected
    assert file.read_cached(0, 3) == expected
    assert len(asked) == 1


def test_errors_carry_the_path(files: RealFileSystem, folder: Path) -> None:
    path = folder / "disk.raw"
    path.write_bytes(b"abc")
    file = files.open(str(path))
    calls: list[Callable[[], None]] = [
        lambda: file.write(0, b"x"),
        lambda: file.write_many(0, [b"x"]),
        lambda: file.truncate(5),
        lambda: file.punch_hole(0, 1),
        lambda: file.allocate(0, 1),
    ]
    for call in calls:
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.filename == str(path)
    assert path.read_bytes() == b"abc"


def test_punched_hole_reads_as_zeroes_and_frees_space(file: RealFile) -> None:
    file.write(0, b"\xff" * MIB)
    before = os.stat(file.path).st_blocks
    file.punch_hole(PAGE, 64 * PAGE)
    assert file.read(0, MIB) == b"\xff" * PAGE + bytes(64 * PAGE) + b"\xff" * (MIB - 65 * PAGE)
    assert os.stat(file.path).st_blocks < before


def test_written_zeroes_keep_their_space(file: RealFile) -> None:
    file.write(0, b"\xff" * MIB)
    before = os.stat(file.path).st_blocks
    file.write_zeroes(PAGE, 64 * PAGE)
    assert file.read(0, MIB) == b"\xff" * PAGE + bytes(64 * PAGE) + b"\xff" * (MIB - 65 * PAGE)
    assert os.stat(file.path).st_blocks == before


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize("call", ["punch_hole", "write_zeroes"])
def test_zeroing_past_the_end_never_grows_the_file(
    file: RealFile, call: str, supported: bool, request: pytest.FixtureRequest
) -> None:
    if not supported:
        request.getfixturevalue("without_fallocate")
    file.write(0, b"\xff" * 10000)
    getattr(file, call)(9000, 5 * MIB)
    getattr(file, call)(20000, PAGE)
    getattr(file, call)(100, 0)
    assert file.size() == 10000
    assert file.read(0, 20000) == b"\xff" * 9000 + bytes(1000)


@pytest.mark.parametrize("call", ["punch_hole", "write_zeroes"])
def test_zeroing_without_fallocate_writes_zeroes(file: RealFile, without_fallocate: None, call: str) -> None:
    file.write(0, b"\xff" * (3 * MIB))
    getattr(file, call)(1, 3 * MIB - 2)
    assert file.read(0, 3 * MIB) == b"\xff" + bytes(3 * MIB - 2) + b"\xff"


def test_allocated_space_is_there(file: RealFile) -> None:
    file.allocate(0, MIB)
    assert file.size() == MIB
    assert os.stat(file.path).st_blocks * 512 >= MIB
    assert file.read(0, MIB) == bytes(MIB)


def test_allocation_without_fallocate_keeps_data(file: RealFile, without_fallocate: None) -> None:
    file.write(MIB, b"data" * PAGE)
    file.allocate(0, 3 * MIB)
    assert file.size() == 3 * MIB
    assert os.stat(file.path).st_blocks * 512 >= 3 * MIB
    assert file.read(MIB, 4 * PAGE) == b"data" * PAGE


def test_allocation_of_more_than_there_is_fails(file: RealFile) -> None:
    with pytest.raises(OSError) as caught:
        file.allocate(0, 1 << 50)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)


def test_extents_tell_data_from_holes(file: RealFile) -> None:
    file.truncate(4 * MIB)
    file.write(MIB, b"x" * MIB)
    file.write(3 * MIB, b"y" * PAGE)
    assert list(file.extents(0, 4 * MIB)) == [
        Extent(0, MIB, True),
        Extent(MIB, MIB, False),
        Extent(2 * MIB, MIB, True),
        Extent(3 * MIB, PAGE, False),
        Extent(3 * MIB + PAGE, MIB - PAGE, True),
    ]
    assert list(file.extents(MIB + 5, 10)) == [Extent(MIB + 5, 10, False)]
    assert list(file.extents(2 * MIB + 5, 10)) == [Extent(2 * MIB + 5, 10, True)]
    assert list(file.extents(7, 0)) == []


def test_what_lies_past_the_end_is_a_hole(file: RealFile) -> None:
    file.write(0, b"x" * PAGE)
    assert list(file.extents(0, MIB)) == [Extent(0, PAGE, False), Extent(PAGE, MIB - PAGE, True)]
    assert list(file.extents(MIB, MIB)) == [Extent(MIB, MIB, True)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["write", "punch", "zero"]), st.integers(0, 63), st.integers(1, 16), st.integers(0, 3)
        ),
        max_size=12,
    ),
    offset=st.integers(0, 64 * PAGE),
    length=st.integers(0, 70 * PAGE),
)
def test_extents_are_gapless_alternating_and_sound(
    folder: Path, steps: list[tuple[str, int, int, int]], offset: int, length: int
) -> None:
    file = RealFileSystem().open(str(folder / "random.raw"), write=True, create=True)
    file.truncate(0)
    file.truncate(64 * PAGE)
    shadow = bytearray(64 * PAGE)
    for kind, page, count, shift in steps:
        start = page * PAGE + shift
        size = min(count * PAGE, len(shadow) - start)
        if kind == "write":
            file.write(start, b"\xaa" * size)
        elif kind == "punch":
            file.punch_hole(start, size)
        else:
            file.write_zeroes(start, size)
        shadow[start : start + size] = (b"\xaa" if kind == "write" else b"\0") * size
    assert file.read(0, len(shadow)) == shadow
    position, before = offset, None
    for extent in file.extents(offset, length):
        assert extent.offset == position
        assert extent.length > 0
        assert extent.hole is not before
        if extent.hole:
            assert not any(shadow[position : position + extent.length])
        position, before = position + extent.length, extent.hole
    assert position == offset + length
    file.close()


def test_extents_end_while_others_write_and_punch(file: RealFile) -> None:
    file.truncate(MIB)
    done = threading.Event()

    def disturb() -> None:
        while not done.is_set():
            for page in range(0, 256, 2):
                file.write(page * PAGE, b"x")
            file.punch_hole(0, MIB)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(300):
            assert sum(extent.length for extent in file.extents(0, MIB)) == MIB
    finally:
        done.set()
        thread.join()


def test_kernel_is_not_asked_anew_for_each_range_of_a_run(file: RealFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for the next hole far past the range: on a large file that made hashing take most of its time."""
    file.write(0, b"x" * MIB)
    asked = []
    lseek = os.lseek

    def counting(descriptor: int, offset: int, whence: int) -> int:
        asked.append(offset)
        return lseek(descriptor, offset, whence)

    monkeypatch.setattr(os, "lseek", counting)
    for offset in range(0, MIB, PAGE):
        assert list(file.extents(offset, PAGE)) == [Extent(offset, PAGE, False)]
    assert len(asked) < 2 * MIB // PAGE


@pytest.mark.parametrize("call", ["punch_hole", "write_zeroes"])
def test_holes_made_through_the_same_file_show_at_once(file: RealFile, call: str) -> None:
    file.write(0, b"x" * MIB)
    assert [extent.hole for extent in file.extents(0, MIB)] == [False]
    file.punch_hole(PAGE, PAGE)
    assert [extent.hole for extent in file.extents(0, MIB)] == [False, True, False]
    getattr(file, call)(4 * PAGE, PAGE)
    file.punch_hole(6 * PAGE, PAGE)
    holes = [extent.offset // PAGE for extent in file.extents(0, MIB) if extent.hole]
    assert holes[0] == 1
    assert holes[-1] == 6
    file.truncate(0)
    file.truncate(MIB)
    assert list(file.extents(0, MIB)) == [Extent(0, MIB, True)]


def test_data_written_through_another_descriptor_is_never_a_hole(files: RealFileSystem, file: RealFile) -> None:
    file.truncate(MIB)
    file.write(0, b"x" * PAGE)
    other = files.open(file.path, write=True)
    for page in range(1, 64):
        assert next(file.extents(0, 64 * PAGE)) == Extent(0, page * PAGE, False)
        other.write(page * PAGE, b"y")
    other.close()


def test_identity_changes_with_the_file(files: RealFileSystem, folder: Path, file: RealFile) -> None:
    before = file.identity()
    assert before == files.open(file.path).identity()
    os.utime(file.path, ns=(1, 1))
    assert file.identity().mtime_ns == 1
    file.truncate(10)
    after = file.identity()
    assert (after.device, after.inode, after.size) == (before.device, before.inode, 10)
    other = files.open(str(folder / "other"), write=True, create=True)
    assert other.identity().inode != after.inode


def test_created_files_are_private(files: RealFileSystem, folder: Path) -> None:
    before = os.umask(0)
    try:
        files.open(str(folder / "a"), create=True).close()
        files.make_folder(str(folder / "b" / "c"))
    finally:
        os.umask(before)
    assert (folder / "a").stat().st_mode & 0o777 == 0o600
    assert (folder / "b").stat().st_mode & 0o777 == 0o700
    assert (folder / "b" / "c").stat().st_mode & 0o777 == 0o700


def test_missing_file_is_not_made(files: RealFileSystem, folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.open(str(folder / "missing"), write=True)
    assert not files.exists(str(folder / "missing"))


def test_exclusive_creation_refuses_an_existing_file(files: RealFileSystem, folder: Path) -> None:
    (folder / "a").write_bytes(b"keep")
    with pytest.raises(FileExistsError):
        files.open(str(folder / "a"), write=True, create=True, exclusive=True)
    files.open(str(folder / "a"), write=True, create=True).close()
    assert (folder / "a").read_bytes() == b"keep"


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(
    "kind, word", [("symlink", "symbolic link"), ("folder", "folder"), ("fifo", "FIFO"), ("socket", "socket")]
)
def test_only_regular_files_are_opened(files: RealFileSystem, folder: Path, kind: str, word: str, write: bool) -> None:
    path = folder / "planted"
    if kind == "symlink":
        (folder / "target").write_bytes(b"secret")
        path.symlink_to(folder / "target")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    for create in (False, True):
        with pytest.raises(StorageError, match=word) as caught:
            files.open(str(path), write=write, create=create)
        assert caught.value.code == "not_a_file"


def test_device_is_refused(files: RealFileSystem) -> None:
    with pytest.raises(StorageError, match="character device"):
        files.open("/dev/null", write=True)


def test_list_is_sorted_and_empty_for_a_missing_folder(files: RealFileSystem, folder: Path) -> None:
    for name in ("b", "a", "c"):
        (folder / name).touch()
    assert files.list(str(folder)) == ["a", "b", "c"]
    assert files.list(str(folder / "missing")) == []


def test_folder_behind_a_symbolic_link_is_refused(files: RealFileSystem, folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "real" / "precious").touch()
    (folder / "link").symlink_to(folder / "real")
    link = str(folder / "link")
    for call in (files.list, files.sync_folder, files.make_folder):
        with pytest.raises(StorageError, match="link is a symbolic link, not a folder"):
            call(link)
    with pytest.raises(OSError):
        files.remove_tree(link)
    assert (folder / "real" / "precious").exists()


def test_rename_and_remove(files: RealFileSystem, folder: Path) -> None:
    (folder / "a").write_bytes(b"a")
    files.rename(str(folder / "a"), str(folder / "b"))
    files.sync_folder(str(folder))
    assert files.list(str(folder)) == ["b"]
    files.remove(str(folder / "b"))
    files.remove(str(folder / "b"))
    assert files.list(str(folder)) == []


def test_remove_tree(files: RealFileSystem, folder: Path) -> None:
    files.make_folder(str(folder / "a" / "b"))
    (folder / "a" / "b" / "c").touch()
    files.remove_tree(str(folder / "a"))
    files.remove_tree(str(folder / "a"))
    assert files.list(str(folder)) == []


def test_dangling_link_exists(files: RealFileSystem, folder: Path) -> None:
    (folder / "link").symlink_to(folder / "nowhere")
    assert files.exists(str(folder / "link"))


def test_free_space_is_that_of_the_volume(files: RealFileSystem, folder: Path) -> None:
    volume = os.statvfs(folder)
    assert 0 < files.free_space(str(folder)) <= volume.f_blocks * volume.f_frsize


def test_closed_file_is_no_longer_usable(file: RealFile) -> None:
    file.close()
    file.close()
    with pytest.raises(OSError) as caught:
        file.read(0, 1)
    assert caught.value.errno == errno.EBADF


def test_lock_needs_a_writable_file(files: RealFileSystem, folder: Path) -> None:
    (folder / "a").touch()
    with pytest.raises(InvalidStateError, match="reading only"):
        files.open(str(folder / "a")).lock()


def test_memory_is_told_from_disk(files: RealFileSystem) -> None:
    for place, expected in (("/dev/shm", True), ("/var/tmp", False)):
        descriptor = os.open(place, os.O_RDONLY)
        assert kernel.is_tmpfs(descriptor) is expected
        os.close(descriptor)


# --- what belongs to others ---

NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner needs root")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_folder_that_others_may_write_in_is_refused(files: RealFileSystem, folder: Path, mode: int) -> None:
    """A21: with the path, and what to do."""
    path = folder / "shared"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(StorageError, match=f"Others may write in {path}") as caught:
        files.make_folder(str(path))
    assert f"chmod go-w {path}" in caught.value.remedy
    path.chmod(0o755)
    files.make_folder(str(path))
    path.chmod(0o1777)
    files.make_folder(str(path))


@root
def test_folder_of_another_user_is_refused(files: RealFileSystem, folder: Path) -> None:
    (folder / "theirs").mkdir()
    os.chown(folder / "theirs", NOBODY, NOBODY)
    with pytest.raises(StorageError, match="belongs to nobody, not to root") as caught:
        files.make_folder(str(folder / "theirs"))
    assert caught.value.code == "foreign_owner"
    assert "chown root" in caught.value.remedy
    with pytest.raises(StorageError, match="belongs to nobody, not to root"):
        files.make_folder(str(folder / "theirs"), inherited=True)


@root
def test_folder_of_another_user_is_taken_where_its_parent_is_his_too(files: RealFileSystem, folder: Path) -> None:
    """The tap of a VM that was promoted here and reversed: whose copy it was made its folders."""
    path = folder / "theirs/tap"
    path.mkdir(parents=True)
    for each in (path, path.parent):
        os.chown(each, NOBODY, NOBODY)
    files.make_folder(str(path), inherited=True)
    files.make_folder(str(path / "log"), inherited=True)
    with pytest.raises(StorageError, match="belongs to nobody"):
        files.make_folder(str(path))
    path.chmod(0o777)
    with pytest.raises(StorageError, match="Others may write"):
        files.make_folder(str(path), inherited=True)


@root
def test_that_user_leads_nowhere_else_by_a_link_above(files: RealFileSystem, folder: Path) -> None:
    """T8: to the folder of another VM's tap, which root would write into."""
    roots, link = folder / "roots" / "tap", folder / "theirs"
    roots.mkdir(parents=True)
    link.symlink_to(roots.parent)
    # One of root's own is where an administrator has put the folders.
    files.make_folder(str(link / "tap"), inherited=True)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    for name in ("tap", "other"):
        with pytest.raises(StorageError, match="a symbolic link, not a folder"):
            files.make_folder(str(link / name), inherited=True)
    assert os.listdir(roots.parent) == ["tap"]


@root
def test_folder_in_the_place_of_a_service_is_its_own(files: RealFileSystem, folder: Path) -> None:
    """Root's agent looks after a tap whose folders belong to the service that promoted the VM (R41)."""
    tap = folder / "vm" / "tap"
    tap.mkdir(parents=True)
    os.chown(tap, NOBODY, NOBODY)
    with pytest.raises(StorageError, match="belongs to nobody, not to root"):
        files.make_folder(str(tap), inherited=True)
    os.chown(tap.parent, NOBODY, NOBODY)
    files.make_folder(str(tap), inherited=True)
    files.make_folder(str(tap / "log"), inherited=True)
    with pytest.raises(StorageError, match="belongs to nobody, not to root"):
        files.make_folder(str(tap))
    tap.chmod(0o777)
    with pytest.raises(StorageError, match="Others may write"):
        files.make_folder(str(tap), inherited=True)


@root
@pytest.mark.parametrize("write", [False, True])
def test_file_of_another_user_is_refused_unless_the_folder_is_his_too(
    files: RealFileSystem, folder: Path, write: bool
) -> None:
    """A15: whoever could plant it could not plant it as ours."""
    path = folder / "file"
    path.write_bytes(b"theirs")
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(StorageError, match="belongs to nobody"):
        files.open(str(path), write=write)
    with pytest.raises(StorageError, match="belongs to nobody"):
        files.open(str(path), write=True, create=True)
    assert path.read_bytes() == b"theirs"
    # The disk of a VM belongs to whoever runs it.
    files.open_disk(str(path), write=write).close()
    os.chown(folder, NOBODY, NOBODY)
    files.open(str(path), write=write).close()
