"""What Python does not offer: fallocate with its modes, the type of a file system, malloc's thresholds, precedence."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import threading
from pathlib import Path

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
SYNC_FILE_RANGE_WRITE = 2

TMPFS_MAGIC = 0x01021994
STATFS_BYTES = 256
"""More than struct statfs has on any architecture; its first word is f_type."""

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 64 << 20
"""Free memory at the end of a heap that is kept rather than given back."""
LARGEST_ON_HEAP = 32 << 20
"""The most that glibc takes as its threshold for mappings of their own, in bytes."""

SCHEDSTAT = Path("/proc/thread-self/schedstat")
AUTOGROUP = Path("/proc/self/autogroup")
BACKGROUND_NICE = 10
"""Beside an ordinary thread one with this gets a tenth of a processor, and a whole one where that is idle."""
SESSION_NICE = 7
"""The same for a whole session: a sixth beside an ordinary one, for what talks to the replica is in it as well."""
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_LOWEST = 2 << 13 | 7
"""Best effort, the last of its levels."""

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_fallocate.restype = ctypes.c_int
_sync_file_range = getattr(_libc, "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_fstatfs = _libc.fstatfs
_fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]
_fstatfs.restype = ctypes.c_int


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2), again after EINTR; raises OSError."""
    while _fallocate(descriptor, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


BLOCK_UNIT = 512
"""What stat counts a file's space in."""


def is_tmpfs(descriptor: int) -> bool:
    """Whether the file lies in memory, so that no read of it waits for a disk."""
    buffer = ctypes.create_string_buffer(STATFS_BYTES)
    if _fstatfs(descriptor, buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return ctypes.c_long.from_buffer(buffer).value == TMPFS_MAGIC


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Begin to write the range's dirty pages to the disk and do not wait; a failure is left for fsync to report.

    Does nothing where the C library or the file system has no such call (sync_file_range(2)).
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, length, SYNC_FILE_RANGE_WRITE)


def keep_freed_memory() -> None:
    """Let malloc use freed buffers again instead of giving them back to the kernel, up to KEPT_BYTES a heap.

    Otherwise buffers of some hundred KiB come back as new pages again and again, and each page costs a fault. Does
    nothing where the C library has no such setting.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)


def allow_descriptors() -> int:
    """Take as many descriptors as the system allows this process at most; how many that are.

    An agent has half a dozen for each VM, and a shell's usual limit of 1024 would end at some two hundred VMs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def is_full_in_memory(descriptor: int, end: int) -> bool:
    """Whether a file of at least ``end`` bytes lies on tmpfs and has all its pages.

    Other file systems find the next hole at once; tmpfs looks at every page before it (30 ms for 2 GiB).
    """
    state = os.fstat(descriptor)
    return end <= state.st_size <= BLOCK_UNIT * state.st_blocks and is_tmpfs(descriptor)


def starved_seconds() -> float:
    """How long the calling thread could have run and had no processor, since it began; 0 where that is not told."""
    try:
        return int(SCHEDSTAT.read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def stand_back(nice: int) -> bool:
    """Give the session of this process that nice value, if it leads a session of its own, as a service does.

    Where the kernel groups processes by session (autogroup), the nice values of threads count only among those of one
    session, and this one counts between sessions: the tap and QEMU have others. Returns whether it was taken or does
    not apply: the kernel takes it only now and then.
    """
    if os.getsid(0) != os.getpid() or not AUTOGROUP.exists():
        return True
    try:
        AUTOGROUP.write_text(str(nice), encoding="ascii")
    except OSError:
        return False
    return True


def take_background_precedence() -> None:
    """From now on the calling thread gets processor and disks after threads of ordinary precedence.

    Both are per thread on Linux. What the system does not allow or know is left as it is.
    """
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, BACKGROUND_NICE)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        _libc.syscall(number, _IOPRIO_WHO_PROCESS, thread, _IOPRIO_LOWEST)
