"""Replaces a small file as a whole: atomically, and durably when it returns."""

from __future__ import annotations

from shared.ports import FileSystem


def replace_file(files: FileSystem, path: str, data: bytes) -> None:
    """Give the file at ``path``, whose folder exists, this content; a crash leaves the old one or the new one.

    Blocks. Raises OSError or StorageError.
    """
    part = f"{path}.part"
    files.remove(part)
    file = files.open(part, write=True, create=True, exclusive=True)
    try:
        file.write(0, data)
        file.sync()
    finally:
        file.close()
    files.rename(part, path)
    files.sync_folder(path.rpartition("/")[0])
