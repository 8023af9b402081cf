"""The folders of VMs at the primary: which names are theirs, and how one is deleted."""

from __future__ import annotations

import uuid

from primary_agent.record import TapPlace
from primary_agent.scope import REVERSE_MAP
from shared.ports import FileSystem
from shared.ports.store import STATE_FILE

REMOVED = ".removed"
"""What the name of a VM's folder ends with while it is deleted."""
SOCKETS = ("nbd.sock", "control.sock")
"""What a tap makes in its runtime folder."""


def is_vm_folder(name: str) -> bool:
    """Whether a folder of this name is a VM's: a UUID in its usual form."""
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def is_empty(files: FileSystem, folder: str) -> bool:
    """Whether nothing is in the folder. Blocks."""
    return not files.list(folder)


def is_remains(name: str) -> bool:
    """Whether a folder of this name is what is left of a VM that was being deleted."""
    return name.endswith(REMOVED)


def is_barely_begun(files: FileSystem, folder: str) -> bool:
    """Whether nothing is in the folder but a state, and what came with a hand-over. Blocks."""
    return all(name.startswith((STATE_FILE, REVERSE_MAP)) for name in files.list(folder))


def remove_folder(files: FileSystem, folder: str) -> None:
    """Delete a VM's folder at once: half of one would be a damaged VM's to the next start. Blocks."""
    aside, parent = f"{folder}{REMOVED}", folder.rpartition("/")[0]
    files.remove_tree(aside)
    if files.exists(folder):
        files.rename(folder, aside)
        files.sync_folder(parent)
    files.remove_tree(aside)
    files.sync_folder(parent)


def lodge(files: FileSystem, place: TapPlace | None) -> None:
    """What is in the folder of the copy that the VM is served from, and among its sockets, is another user's."""
    if place is not None:
        files.lodge(place.folder.rpartition("/")[0])
        files.lodge(place.runtime_folder)


def forget(files: FileSystem, folder: str, runtime_folder: str, place: TapPlace | None) -> None:
    """Delete a VM's folder and that of its sockets, where its stopped tap had them elsewhere also there. Blocks."""
    lodge(files, place)
    remove_folder(files, folder)
    files.remove_tree(runtime_folder)
    if place is not None:
        # After a boot that folder was made by this agent, and the replica agent, which needs it, may be another user.
        # A link there, to the sockets of another VM, say, is refused by the first look.
        for name in {*SOCKETS} & {*files.list(place.runtime_folder)}:
            files.remove(f"{place.runtime_folder}/{name}")
        if is_empty(files, place.runtime_folder):
            files.remove_tree(place.runtime_folder)
