"""Whether both sides have the same disks, of the same sizes (I9)."""

from __future__ import annotations

from protocol.hrl import Geometry


def compare_geometry(primary: tuple[Geometry, ...], replica: tuple[Geometry, ...]) -> str:
    """Empty if the replica has no disks yet or the same ones (I9); else what differs, naming disk and both
    sizes.
    """
    if not replica:
        return ""
    theirs = {disk.index: disk for disk in replica}
    differences = []
    for disk in primary:
        other = theirs.pop(disk.index, None)
        if other is None:
            differences.append(f"disk {disk.index} ({disk.size} bytes) is missing at the replica")
        elif other.uuid != disk.uuid:
            differences.append(
                f"disk {disk.index} is {disk.uuid.hex()} at the primary and {other.uuid.hex()} at the replica"
            )
        elif other.size != disk.size:
            differences.append(
                f"disk {disk.index} has {disk.size} bytes at the primary, {other.size} bytes at the replica"
            )
    differences += [f"disk {index} ({disk.size} bytes) is only at the replica" for index, disk in theirs.items()]
    return "; ".join(differences)


def is_growth(primary: tuple[Geometry, ...], replica: tuple[Geometry, ...]) -> bool:
    """Whether the disks are the same ones, and none is smaller at the primary: a resync grows the others."""
    theirs = {disk.index: disk for disk in replica}
    return len(theirs) == len(primary) and all(
        (other := theirs.get(disk.index)) is not None and other.uuid == disk.uuid and disk.size >= other.size
        for disk in primary
    )


def is_other_set(primary: tuple[Geometry, ...], replica: tuple[Geometry, ...]) -> bool:
    """Whether disks came or went, while those that both sides have are the same ones, and none is smaller.

    That says nothing about which of the two sets is the newer one.
    """
    theirs = {disk.index: disk for disk in replica}
    both = [(disk, theirs[disk.index]) for disk in primary if disk.index in theirs]
    same = all(ours.uuid == other.uuid and ours.size >= other.size for ours, other in both)
    return bool(both) and same and {disk.index for disk in primary} != set(theirs)


def is_newer_set(
    primary: tuple[Geometry, ...], number: int, replica: tuple[Geometry, ...], replica_number: int | None
) -> bool:
    """Whether disks came or went at the primary, or were enlarged by order there, after the replica took its set over,
    which it can (None: it can't).
    """
    if replica_number is None or number <= replica_number:
        return False
    return is_other_set(primary, replica) or (is_growth(primary, replica) and compare_geometry(primary, replica) != "")
