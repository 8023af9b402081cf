"""Block devices over a stop of the tap: when the policy asks for a compare, and the samples of an orderly stop (R18).

A file's times show whether somebody else wrote it; those of a device show nothing. ``docs/tap.md`` says what samples
find, and what they don't.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated

import msgspec

from primary_agent.tap.disks import Disk, Range
from primary_agent.tap.recovery import TrackingLost
from primary_agent.tap.state import Status, TapState
from protocol.hrl import MAX_DISKS
from shared.block_devices import BlockDevicePolicy
from shared.ports import FileIdentity, FileSystem, Random
from shared.replacing import replace_file
from shared.tap_config import SAMPLES_NAME
from shared.tap_control import DiskChange, DiskPart, LostReason

HEAD_BYTES = 4 << 20
"""Taken wholly: partition table, and the superblock of what begins there or in the first partition."""
TAIL_BYTES = 1 << 20
"""Taken wholly: the second partition table, and RAID's superblock."""
PIECE = 64 << 10
PLACE = 4096
PLACES = 512
"""Places that are taken anywhere, and as many in regions that were written lately."""
SAMPLING_SECONDS = 5.0
"""An orderly stop does not take longer for it: of a slow device fewer places are taken."""
FILE_MAX = 8 << 20
TAG_BYTES = 16

Tag = Annotated[bytes, msgspec.Meta(min_length=TAG_BYTES, max_length=TAG_BYTES)]


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """Of one device: offset, length and the first bytes of the SHA-256 of what was read there, for each place."""

    index: int
    places: list[tuple[int, int, Tag]]


_Samples = Annotated[list[Sample], msgspec.Meta(max_length=MAX_DISKS)]


# --- the policy ----------------------------------------------------------------------------------------------------


def check_policy(
    policy: BlockDevicePolicy, state: TapState, disks: Sequence[Disk], identities: Sequence[FileIdentity]
) -> None:
    """Whether devices may be taken for what the tap left, as far as the policy goes (R27). Raises TrackingLost."""
    clean = state.status is Status.CLEAN
    if policy is BlockDevicePolicy.TRUST or (clean and policy is BlockDevicePolicy.COMPARE):
        return
    for disk, identity in zip(disks, identities, strict=True):
        if identity.block:
            how = "was stopped" if clean else "did not stop in order"
            text = f"{disk.config.path} is a block device, and nothing shows what was written to it since the tap {how}"
            raise TrackingLost(LostReason.DISK_UNPROVEN, f"{text} (block-device-policy is {policy})")


def check_last_write(lease_ns: int, newest_ns: int, identities: Sequence[FileIdentity]) -> None:
    """After power loss: the log tells of no write later than the hot regions were vouched for (R30).

    A device tells no time of its last write, as a file does. Raises TrackingLost.
    """
    if newest_ns > lease_ns and any(identity.block for identity in identities):
        text = "a block device was written later than its hot regions were on record"
        raise TrackingLost(LostReason.DISK_UNPROVEN, text)


# --- samples -------------------------------------------------------------------------------------------------------


def take_samples(
    files: FileSystem, folder: str, random: Random, now: Callable[[], float], disks: Sequence[tuple[Disk, list[Range]]]
) -> bytes:
    """Sample the block devices among ``disks``, each with the ranges that were written lately.

    Returns the digest of the file of samples, which is durable then; empty where there is no device, or one can't be
    read, or the file not be written. Then the next start has nothing to compare with. Blocks.
    """
    devices = [(disk, hot) for disk, hot in disks if disk.block]
    if not devices:
        return b""
    until = now() + SAMPLING_SECONDS
    samples = []
    try:
        for number, (disk, hot) in enumerate(devices):
            # Each gets its part of the time that is left.
            until_here = now() + (until - now()) / (len(devices) - number)
            samples.append(
                Sample(disk.index, list(_read_places(disk, _places(disk.size, hot, random), now, until_here)))
            )
        content = msgspec.msgpack.encode(samples)
        replace_file(files, f"{folder}/{SAMPLES_NAME}", content)
    except OSError:
        return b""
    return _tag(content)


def check_samples(files: FileSystem, folder: str, digest: bytes, disks: Sequence[Disk]) -> None:
    """Compare block devices with the samples of the stop whose state says ``digest``. Blocks.

    Raises TrackingLost naming device and place.
    """
    devices = [disk for disk in disks if disk.block]
    if not devices:
        return
    samples = _load(files, folder, digest)
    for disk in devices:
        if disk.index not in samples:
            text = f"{disk.config.path} is a block device, and its samples are missing or damaged"
            raise TrackingLost(LostReason.DISK_UNPROVEN, text)
        for offset, length, tag in samples[disk.index]:
            try:
                found = _tag(disk.file.read(offset, length))
            except OSError as error:
                text = f"{disk.config.path} can't be read at {offset}: {error.strerror or error}"
                raise TrackingLost(LostReason.DISK_FAILED, text) from None
            if found != tag:
                text = f"its {length} bytes at {offset} are not what the tap left there"
                change = DiskChange(disk=disk.index, part=DiskPart.CONTENT, old=tag.hex(), new=found.hex())
                raise TrackingLost(LostReason.DISK_CHANGED, f"{disk.config.path} was changed: {text}", [change])


def _tag(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:TAG_BYTES]


def _places(size: int, hot: Sequence[Range], random: Random) -> Iterator[Range]:
    """What to read of a device: both ends, then by turns places that were written lately, and any."""
    head = min(HEAD_BYTES, size)
    tail = max(head, size - TAIL_BYTES)
    for start, end in ((0, head), (tail, size)):
        for offset in range(start, end, PIECE):
            yield offset, min(PIECE, end - offset)
    anywhere = [(0, size)]
    for _ in range(PLACES):
        for ranges in (hot, anywhere):
            if ranges:
                yield _place_in(ranges, size, random)


def _place_in(ranges: Sequence[Range], size: int, random: Random) -> Range:
    first = int.from_bytes(random.bytes(8), "little")
    at = first % sum(length for _, length in ranges)
    for start, length in ranges:
        if at < length:
            offset = (start + at) // PLACE * PLACE
            return offset, min(PLACE, size - offset)
        at -= length
    raise AssertionError("unreachable")


def _read_places(
    disk: Disk, places: Iterator[Range], now: Callable[[], float], until: float
) -> Iterator[tuple[int, int, bytes]]:
    for offset, length in places:
        yield offset, length, _tag(disk.file.read(offset, length))
        if now() > until:
            return


def _load(files: FileSystem, folder: str, digest: bytes) -> dict[int, list[tuple[int, int, bytes]]]:
    """The places of each device; none of any unless the file is the one that ``digest`` is of."""
    content = b""
    with suppress(OSError):
        file = files.open(f"{folder}/{SAMPLES_NAME}")
        try:
            content = file.read(0, FILE_MAX)
        finally:
            file.close()
    if _tag(content) != digest:
        return {}
    samples = msgspec.msgpack.decode(content, type=_Samples, strict=True)
    return {sample.index: sample.places for sample in samples}
