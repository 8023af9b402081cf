"""The files of a running verify: the leaves of all blocks, and the contents of those that are brought to the cut.

They stand for nothing once it has ended, and are removed. All methods block.
"""

from __future__ import annotations

from protocol.messages import BLOCK_SIZE
from shared.disks.leaves import LEAF_BYTES
from shared.ports import Buffer, File, FileSystem

NAMES = ("verify.leaves", "verify.kept")


class LeafFile:
    """The leaves of all disks, one behind the other (primary_agent.live_image.Leaves)."""

    def __init__(self, file: File, sizes: dict[int, int]) -> None:
        self._file = file
        self._bases: dict[int, int] = {}
        end = 0
        for disk, size in sorted(sizes.items()):
            self._bases[disk] = end
            end += -(-size // BLOCK_SIZE) * LEAF_BYTES

    def write(self, disk: int, first: int, leaves: Buffer) -> None:
        """Put the leaves of a disk's blocks from ``first`` on."""
        self._file.write(self._bases[disk] + first * LEAF_BYTES, leaves)

    def read(self, disk: int, first: int, count: int) -> bytes:
        """So many leaves. Raises OSError where they were never written."""
        leaves = self._file.read(self._bases[disk] + first * LEAF_BYTES, count * LEAF_BYTES)
        if len(leaves) != count * LEAF_BYTES:
            raise OSError(f"the leaves of disk {disk} end within {count} at {first}")
        return leaves


class KeptFile:
    """Contents of blocks, by slots (primary_agent.live_image.Kept)."""

    def __init__(self, file: File) -> None:
        self._file = file

    def write(self, slot: int, at: int, data: Buffer) -> None:
        self._file.write(slot * BLOCK_SIZE + at, data)

    def read(self, slot: int, length: int) -> bytes:
        data = self._file.read(slot * BLOCK_SIZE, length)
        # The disk's last block is shorter than its slot.
        return data + bytes(length - len(data))


class VerifyFiles:
    """Both, in ``folder``."""

    def __init__(self, files: FileSystem, folder: str, sizes: dict[int, int]) -> None:
        """Make them anew. Raises OSError."""
        self._files = files
        self._folder = folder
        remove_files(files, folder)
        opened: list[File] = []
        try:
            for name in NAMES:
                opened.append(files.open(f"{folder}/{name}", write=True, create=True))
        except OSError:
            for file in opened:
                file.close()
            raise
        self._opened = opened
        self.leaves = LeafFile(opened[0], sizes)
        self.kept = KeptFile(opened[1])

    def close(self) -> None:
        """Remove them."""
        for file in self._opened:
            file.close()
        remove_files(self._files, self._folder)


def remove_files(files: FileSystem, folder: str) -> None:
    """Remove what a verify that did not end has left. Raises OSError."""
    for name in NAMES:
        files.remove(f"{folder}/{name}")
