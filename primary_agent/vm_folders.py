"""The folders of VMs at the primary: which names are theirs, and how one is deleted."""

from __future__ import annotations

import uuid

from shared.ports import FileSystem


def is_vm_folder(name: str) -> bool:
    """Whether a folder of this name is a VM's: a UUID in its usual form."""
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def is_empty(files: FileSystem, folder: str) -> bool:
    """Whether nothing is in the folder. Blocks."""
    return not files.list(folder)


def forget(files: FileSystem, folder: str, runtime_folder: str) -> None:
    """Delete a VM's folder and that of its sockets. Blocks."""
    files.remove_tree(folder)
    files.sync_folder(folder.rpartition("/")[0])
    files.remove_tree(runtime_folder)
