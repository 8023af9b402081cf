"""Block devices as disks: what the kernel tells of them, and the claim that keeps mounts and volume managers away.

A device is claimed with O_EXCL, as a mount, LVM, RAID and dm-crypt claim it: whoever claims it, or a part of it, first
keeps the others out, whatever name of the device they use. A program that opens it without asking (dd) is not kept out.
Its times prove nothing: the kernel and udev set those of the node, not of the content.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from shared.errors import DiskInUseError
from shared.ports import FileIdentity

BLKGETSIZE64 = 0x80081272
BLKGETDISKSEQ = 0x80081280
DEVICES = "/dev/"
"""Below this folder, which only root writes, a link to a device is followed: volume managers name theirs so."""


def is_device(path: str) -> bool:
    """Whether ``path`` is a block device, or a link to one below /dev. A missing file is none."""
    try:
        mode = os.stat(path, follow_symlinks=path.startswith(DEVICES)).st_mode
    except OSError:
        return False
    return stat.S_ISBLK(mode)


def open_device(path: str, *, write: bool) -> int:
    """A descriptor of the device, which is not claimed by this. Raises OSError."""
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | (0 if path.startswith(DEVICES) else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK), path)
    return descriptor


def device_size(descriptor: int) -> int:
    """Bytes of the device as it is now. Raises OSError."""
    return _number(descriptor, BLKGETSIZE64)


def device_identity(descriptor: int) -> FileIdentity:
    """Device number, the kernel's number of this attachment (``inode``; 0 where it has none), and size; no times.

    Within one boot another attachment has another number: a loop device of another file, a disk that was pulled and
    put back. Neither number means anything after another boot. Raises OSError.
    """
    try:
        attachment = _number(descriptor, BLKGETDISKSEQ)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
        attachment = 0
    return FileIdentity(os.fstat(descriptor).st_rdev, attachment, device_size(descriptor), 0, 0, block=True)


def _number(descriptor: int, request: int) -> int:
    answer = array.array("Q", [0])
    fcntl.ioctl(descriptor, request, answer)
    return answer[0]


def claim_device(descriptor: int, path: str) -> None:
    """Claim the device for this open file description, which replaces the one behind ``descriptor``.

    Raises DiskInUseError, naming who has it as far as the kernel tells, and OSError.
    """
    try:
        claimed = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise DiskInUseError(
            f"The disk {path} is in use: {_users(descriptor)}.",
            "Unmount it, or remove it from what uses it, and try again: its writes would miss the log.",
        ) from error
    try:
        os.dup2(claimed, descriptor, inheritable=False)
    finally:
        os.close(claimed)


def _users(descriptor: int) -> str:
    number = os.fstat(descriptor).st_rdev
    name = f"{os.major(number)}:{os.minor(number)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split(" ")
            if len(fields) > 4 and fields[2] == name:
                return f"it is mounted at {fields[4]}"
    with contextlib.suppress(OSError):
        holders = sorted(os.listdir(f"/sys/dev/block/{name}/holders"))
        if holders:
            return f"it is a part of {', '.join(holders)}"
    return "it, or a part of it, is mounted or claimed by another program"


def seek_in_device(offset: int, whence: int, size: int) -> int:
    """What lseek would answer of a file of ``size`` bytes without holes: the kernel tells of none in a device."""
    if offset < size:
        return size if whence == os.SEEK_HOLE else offset
    return offset if whence == os.SEEK_HOLE else (1 << 63) - 1
