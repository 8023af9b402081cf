"""What shows that a disk is not as the tap left it: which disk, what of it, the old value and the new one (I10)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from primary_agent.tap.state import Stamp
from shared.ports import FileIdentity
from shared.tap_control import DiskChange, DiskPart

_WORDS = {DiskPart.SIZE: "size", DiskPart.MTIME: "mtime", DiskPart.CTIME: "ctime"}


def changes_since(stamp: Stamp, identity: FileIdentity, *, same_boot: bool, times: bool) -> list[DiskChange]:
    """How the file is another one, or not as it was, since it was stamped; empty where nothing shows that.

    Device numbers may differ after a boot, and then all numbers of a block device; times are compared only where
    nothing was written since.
    """
    if stamp.block is not identity.block:
        kinds = ("block device", "file") if stamp.block else ("file", "block device")
        return [DiskChange(disk=stamp.index, part=DiskPart.KIND, old=kinds[0], new=kinds[1])]
    number = DiskPart.ATTACHMENT if stamp.block else DiskPart.INODE
    fields = [
        *([(number, stamp.inode, identity.inode)] if same_boot or not stamp.block else []),
        (DiskPart.SIZE, stamp.size, identity.size),
        *([(DiskPart.DEVICE, stamp.device, identity.device)] if same_boot else []),
        *([(DiskPart.MTIME, stamp.mtime_ns, identity.mtime_ns)] if times else []),
        *([(DiskPart.CTIME, stamp.ctime_ns, identity.ctime_ns)] if times else []),
    ]
    return [DiskChange(disk=stamp.index, part=part, old=old, new=new) for part, old, new in fields if old != new]


def changes_text(changes: Sequence[DiskChange]) -> str:
    """The changes of one disk as the rest of a sentence."""
    return "; ".join(_text(change) for change in changes)


def _text(change: DiskChange) -> str:
    match change.part, change.old, change.new:
        case DiskPart.KIND, old, new:
            return f"it was a {old} and is a {new}"
        case (DiskPart.MTIME | DiskPart.CTIME) as part, int(old), int(new):
            return f"its {_WORDS[part]} was {show_time(old)} and is {show_time(new)}"
        case part, old, new:
            return f"its {_WORDS.get(part, part.value)} was {old} and is {new}"


def show_time(time_ns: int) -> str:
    """A time of a file with all its digits, in UTC."""
    seconds, fraction = divmod(time_ns, 10**9)
    try:
        shown = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
    except (OverflowError, ValueError):
        return f"{time_ns} ns"
    return f"{shown}.{fraction:09d}Z"
