"""What a failed over VM shows, read past the product: overlays over undo logs over the disks, or the plain disks.

It parses the block maps itself, so that neither the product's reader nor its writer is trusted.
"""

from __future__ import annotations

from typing import Any

import msgspec
import xxhash

from tests.simulation.hosts import Host
from tests.simulation.oracle import Violation

PAGE = 4096
BITS = (PAGE - 16) * 8
SETTLED = 2


class BlockMap:
    """A block map as its file says: the note, and which blocks are the overlay's."""

    def __init__(self, data: bytes) -> None:
        self.shift = data[8]
        note = self._slot(data, 1)
        if note is None:
            raise Violation("R42: a block map has no valid note")
        length = int.from_bytes(note[:4], "little")
        self.phase, _base, _told, self.boot = msgspec.msgpack.decode(note[4 : 4 + length])
        self.blocks: list[int] = []
        for number in range((len(data) // PAGE - 3) // 2):
            bits = self._slot(data, 3 + 2 * number)
            if bits is not None:
                value = int.from_bytes(bits, "little")
                self.blocks += [number * BITS + bit for bit in range(value.bit_length()) if value >> bit & 1]

    @staticmethod
    def _slot(data: bytes, first: int) -> bytes | None:
        """The newer valid one of two slots."""
        best: tuple[int, bytes] | None = None
        for number in (first, first + 1):
            page = data[number * PAGE : (number + 1) * PAGE]
            if page and int.from_bytes(page[-8:], "little") == xxhash.xxh3_64_intdigest(page[:-8], number):
                found = int.from_bytes(page[:8], "little"), page[8:-8]
                best = max(best, found) if best is not None else found
        return best[1] if best is not None else None


def laid_over(host: Host, folder: str, plain: list[bytes], below: list[bytes]) -> list[bytes]:
    """The disks that a failed over VM shows: ``plain`` are its disks, ``below`` what lies below its overlays."""
    entries, shown = host.volume.entries, []
    for index, (disk, under) in enumerate(zip(plain, below, strict=True)):
        path = f"{folder}/tap/overlay-{index}.raw"
        data, durable, live = (entries.get(f"{path}{suffix}") for suffix in ("", ".map", ".live"))
        if data is None or durable is None:
            raise Violation(f"R42: the overlay {path} is on record, and is not there")
        blocks = BlockMap(durable.image())
        if blocks.phase == SETTLED:
            shown.append(disk)
            continue
        if live is not None:
            # Nobody ever syncs it: after power loss it may be anything.
            try:
                found = BlockMap(live.image())
            except Violation:
                found = None
            if found is not None and found.boot == host.boot_id():
                blocks = found
        image, size = bytearray(under), 1 << blocks.shift
        for block in blocks.blocks:
            start, end = block * size, min((block + 1) * size, len(image))
            image[start:end] = data.read(start, end - start).ljust(end - start, b"\0")
        shown.append(bytes(image))
    return shown


def remains(host: Host, folder: str) -> list[str]:
    """What is left of a failover that would survive a power loss."""
    wanted = (f"{folder}/tap/", f"{folder}/reverse.map")
    return sorted(path for path in host.volume.entries if path.startswith(wanted))


def same_position(first: dict[str, Any] | None, second: dict[str, Any] | None) -> bool:
    """Whether both are one cut."""
    return (
        first is not None
        and second is not None
        and (first["epoch"], first["segment"])
        == (
            second["epoch"],
            second["segment"],
        )
    )
