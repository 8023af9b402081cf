"""Tests of the disk locks against each other and against QEMU's own tools."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from shared.errors import DiskInUseError
from shared.ports.file_system import RealFileSystem
from shared.ports.files import RealFile

SIZE = 1 << 20

needs_qemu = pytest.mark.skipif(
    not (shutil.which("qemu-io") and shutil.which("qemu-img")), reason="needs qemu-io and qemu-img (qemu-utils)"
)


@pytest.fixture
def path(folder: Path) -> str:
    path = folder / "disk.raw"
    path.write_bytes(bytes(SIZE))
    return str(path)


def writer(path: str) -> RealFile:
    return RealFileSystem().open(path, write=True)


def qemu(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def qemu_io(path: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A qemu-io that has the disk open."""
    process = subprocess.Popen(
        ["qemu-io", "-f", "raw", *options, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # Its answer shows that the disk is open and locked.
        process.stdin.write("length\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert "1 MiB" in answer
        yield process
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def test_second_writer_is_refused_and_told_who_holds_it(path: str) -> None:
    with closing(writer(path)) as first, closing(writer(path)) as second:
        first.lock()
        with pytest.raises(DiskInUseError) as caught:
            second.lock()
        assert path in caught.value.text
        assert f"process {os.getpid()}" in caught.value.text
        assert caught.value.remedy


def test_lock_ends_with_its_descriptor(path: str) -> None:
    with closing(writer(path)) as first:
        first.lock()
        # Unlike a POSIX lock it outlives the closing of another descriptor of the same file.
        writer(path).close()
        with closing(writer(path)) as second, pytest.raises(DiskInUseError):
            second.lock()
    with closing(writer(path)) as third:
        third.lock()


def test_locking_twice_is_no_error(path: str) -> None:
    with closing(writer(path)) as first:
        first.lock()
        first.lock()


def test_refused_lock_leaves_nothing_locked(path: str) -> None:
    with closing(writer(path)) as holder, closing(writer(path)) as refused:
        holder.lock()
        with pytest.raises(DiskInUseError):
            refused.lock()
        holder.close()
        with closing(writer(path)) as third:
            third.lock()


def test_readers_of_ours_need_no_lock(path: str) -> None:
    with closing(writer(path)) as holder, closing(RealFileSystem().open(path)) as reader:
        holder.lock()
        holder.write(0, b"abc")
        assert reader.read(0, 3) == b"abc"
        reader.close()
        with closing(writer(path)) as second, pytest.raises(DiskInUseError):
            second.lock()


def test_lock_of_a_killed_process_is_free(path: str) -> None:
    code = (
        "import sys, time; from shared.ports.file_system import RealFileSystem\n"
        "file = RealFileSystem().open(sys.argv[1], write=True); file.lock()\n"
        "print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with closing(writer(path)) as file:
            with pytest.raises(DiskInUseError, match=rf"process {process.pid}"):
                file.lock()
            process.send_signal(signal.SIGKILL)
            process.wait()
            file.lock()


@pytest.mark.parametrize("byte", [0, 99, 300, 1 << 40])
def test_other_programs_whole_file_lock_is_respected(path: str, byte: int) -> None:
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    with open(path, "r+b") as other, closing(writer(path)) as file:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, lock)
        with pytest.raises(DiskInUseError, match="as a whole"):
            file.lock()


@needs_qemu
def test_qemu_refuses_a_disk_that_we_hold(path: str) -> None:
    with closing(writer(path)) as file:
        file.lock()
        for words in (
            ("qemu-io", "-f", "raw", "-c", "write -P 0xee 0 4k", path),
            ("qemu-io", "-f", "raw", "-c", "read 0 4k", path),
            ("qemu-img", "resize", "-f", "raw", path, "2M"),
            ("qemu-img", "convert", "-f", "raw", "-O", "raw", path, f"{path}.copy"),
            ("qemu-nbd", "-f", "raw", "-k", f"{path}.sock", path),
        ):
            refused = qemu(*words)
            assert refused.returncode != 0, words
            assert "lock" in refused.stderr, refused.stderr
        assert file.read(0, SIZE) == bytes(SIZE)


@needs_qemu
def test_qemu_may_look(path: str) -> None:
    with closing(writer(path)) as file:
        file.lock()
        # Copied as if it stood still it is only on request.
        copy = ("qemu-img", "convert", "-f", "raw", "-O", "raw")
        assert qemu(*copy, path, f"{path}.copy").returncode != 0
        assert qemu(*copy, "-U", path, f"{path}.copy").returncode == 0
        shared = qemu("qemu-img", "info", "-U", "-f", "raw", path)
        assert shared.returncode == 0, shared.stderr
        shared = qemu("qemu-io", "-U", "-r", "-f", "raw", "-c", "read -P 0 0 4k", path)
        assert shared.returncode == 0, shared.stderr
        # It has come and gone, and we still hold the disk.
        assert qemu("qemu-io", "-f", "raw", "-c", "read 0 4k", path).returncode != 0


@needs_qemu
def test_disk_that_qemu_has_open_for_writing_is_refused(path: str) -> None:
    with closing(writer(path)) as file:
        with qemu_io(path) as process:
            with pytest.raises(DiskInUseError) as caught:
                file.lock()
            assert f"qemu-io (process {process.pid})" in caught.value.text
            # Our attempt has not disturbed it.
            assert process.stdin is not None
            process.stdin.write("write -P 0x55 0 4k\n")
            process.stdin.flush()
        file.lock()
        assert file.read(0, 4096) == b"\x55" * 4096


@needs_qemu
def test_disk_that_qemu_exports_is_refused(path: str) -> None:
    # With --fork it returns when the export is ready.
    done = qemu("qemu-nbd", "--fork", f"--pid-file={path}.pid", "-t", "-f", "raw", "-k", f"{path}.sock", path)
    assert done.returncode == 0, done.stderr
    process = int(Path(f"{path}.pid").read_text())
    try:
        with closing(writer(path)) as file, pytest.raises(DiskInUseError, match=rf"qemu-nbd \(process {process}\)"):
            file.lock()
    finally:
        os.kill(process, signal.SIGKILL)


@needs_qemu
def test_disk_that_qemu_only_reads_is_taken(path: str) -> None:
    with closing(writer(path)) as file, qemu_io(path, "-r"):
        file.lock()


@needs_qemu
def test_qemu_works_again_after_us(path: str) -> None:
    with closing(writer(path)) as file:
        file.lock()
    done = qemu("qemu-io", "-f", "raw", "-c", "write -P 0x55 0 4k", path)
    assert done.returncode == 0, done.stderr
