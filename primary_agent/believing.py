"""Judges a hand-over by this host's own files: what another user's agent says leads root to nothing else.

The replica agent runs as a user of its own, and may have been taken over; what it says of a VM comes to this agent,
which is root, by ``vmreplica reverse``. So every path in it has to be one that follows from the replica agent's
configuration, which is root's, or that this agent knew itself when it let the VM go; and of settings only its own
record counts.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from primary_agent.handing_over import kept_settings
from primary_agent.record import VmRecord
from shared.config import load_config
from shared.config_sections import ReplicaConfig
from shared.errors import ForbiddenError, StoreDamagedError
from shared.handover import HandOver, copy_disk
from shared.ports import FileSystem
from shared.ports.ownership import require_copy, require_own_settings
from shared.replacing import replace_file

CODE = "handover_refused"
KEPT_VERSION = 1
KEPT_MAX = 1 << 20
"""Bytes of such a record."""

_AGAIN = "If you did not do that, look for who did: the account of this host's replica agent may be taken over."


@dataclass(frozen=True, slots=True)
class Places:
    """Where this host's replica agent has copies and sockets, as ``source``, its configuration, says."""

    source: str
    storages: tuple[str, ...]
    runtime_folder: str


class KeptDisk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A disk of a VM that was let go."""

    index: int
    uuid: str
    path: str


class KeptVm(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What this agent knew of a VM that it let go: its ``disks``, and settings as ``vmreplica set`` takes them."""

    vm: str
    name: str
    disks: list[KeptDisk]
    settings: dict[str, Any]
    version: Annotated[int, msgspec.Meta(ge=1, le=KEPT_VERSION)] = KEPT_VERSION


# --- what this host's own files say ------------------------------------------------------------------------------


def read_places(path: str) -> Places:
    """Where the replica agent has its copies, by its configuration. Blocks.

    Raises StorageError where anybody but root and this agent could have written that, UsageError where it is not valid.
    """
    require_own_settings(path)
    config = load_config(path, ReplicaConfig)
    return Places(path, tuple(dict.fromkeys(entry.storage for entry in config.authorize)), config.runtime_dir)


def kept_path(state_folder: str, vm: bytes) -> str:
    """The file with what was known of the VM when it was let go."""
    return f"{state_folder}/handed/{uuid.UUID(bytes=vm)}.json"


def keep(files: FileSystem, state_folder: str, record: VmRecord) -> None:
    """Put on record what is known of a VM that is let go, durably. Blocks."""
    path = kept_path(state_folder, record.vm)
    disks = [KeptDisk(index=disk.index, uuid=disk.uuid.hex(), path=disk.path) for disk in record.disks]
    kept = KeptVm(vm=record.vm.hex(), name=record.name, disks=disks, settings=kept_settings(record))
    files.make_folder(path.rpartition("/")[0])
    replace_file(files, path, msgspec.json.encode(kept))


def read_kept(files: FileSystem, state_folder: str, vm: bytes) -> KeptVm | None:
    """What was known of the VM when it was let go; None where it never was. Blocks. Raises StoreDamagedError."""
    path = kept_path(state_folder, vm)
    try:
        file = files.open(path)
    except FileNotFoundError:
        return None
    try:
        kept = msgspec.json.decode(file.read(0, min(file.size(), KEPT_MAX)), type=KeptVm, strict=True)
        if kept.vm != vm.hex():
            raise msgspec.ValidationError(f"it is about the VM {kept.vm}")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreDamagedError(
            f"{path}, which has the settings and disks of the VM, can't be used: {error}.",
            f"Move it aside: mv {path} {path}.damaged. The VM then comes back with default settings, and only with "
            "disks in the replica agent's storage locations.",
        ) from error
    finally:
        file.close()
    return kept


def drop(files: FileSystem, state_folder: str, vm: bytes) -> None:
    """Forget it: the VM's own record has it all again. Blocks."""
    files.remove(kept_path(state_folder, vm))


# --- judging -----------------------------------------------------------------------------------------------------


def judge_order(handed: HandOver, vm: str) -> None:
    """Raises ForbiddenError unless it is of the VM, by UUID, that the order is about: that one is put on record."""
    if vm not in (handed.vm, str(uuid.UUID(bytes=handed.vm_id))):
        raise _refused(handed, "vm", handed.vm, f"the order is about {vm}")


def judge(handed: HandOver, places: Places, kept: KeptVm | None) -> None:
    """Raises ForbiddenError, naming the field, unless all that a hand-over leads to is this host's own. Blocks."""
    identity = str(uuid.UUID(bytes=handed.vm_id))
    for field in ("name", "peer", "reason"):
        if not (value := getattr(handed, field)).isprintable():
            raise _refused(handed, field, value, "that is not for people to read")
    if kept is not None and handed.name != kept.name:
        raise _refused(handed, "name", handed.name, f"this agent let the VM go as {kept.name}")
    folders = [f"{storage}/{identity}" for storage in places.storages]
    copy = next((folder for folder in folders if handed.tap_folder == f"{folder}/tap"), None)
    if copy is None:
        known = " or ".join(f"{folder}/tap" for folder in folders) or "nothing: it has no [[authorize]] entry"
        raise _refused(handed, "tap_folder", handed.tap_folder, f"{places.source} allows {known}")
    sockets = f"{places.runtime_folder}/{identity}"
    if handed.runtime_folder != sockets:
        raise _refused(handed, "runtime_folder", handed.runtime_folder, f"{places.source} makes it {sockets}")
    _judge_disks(handed, copy, kept)
    for folder in (copy, handed.tap_folder):
        require_copy(folder, copy, folder=True)
    for disk in handed.disks:
        size = require_copy(disk.path, copy, folder=False)
        if size != disk.size:
            raise _refused(handed, f"disks[{disk.index}].size", disk.size, f"{disk.path} has {size} bytes")


def _judge_disks(handed: HandOver, copy: str, kept: KeptVm | None) -> None:
    known = {(disk.index, disk.uuid): disk.path for disk in kept.disks} if kept is not None else {}
    for field in ("index", "uuid", "path", "export"):
        values = [getattr(disk, field) for disk in handed.disks]
        if len(set(values)) != len(values):
            raise _refused(handed, f"disks[].{field}", values, "no two disks of a VM have the same")
    for disk in handed.disks:
        own = copy_disk(copy, disk.index)
        if disk.path not in (own, known.get((disk.index, disk.uuid))):
            raise _refused(
                handed,
                f"disks[{disk.index}].path",
                disk.path,
                f"it is neither {own} nor where this agent had that disk when it let the VM go",
            )


def _refused(handed: HandOver, field: str, value: object, reason: str) -> ForbiddenError:
    return ForbiddenError(
        f"The hand-over of {handed.name!r} is refused: its {field} is {value!r}, but {reason}.",
        f"The VM stays with the replica agent, and nothing was changed. Was `storage` or `runtime_dir` of the replica "
        f"agent changed, or another file named by `replica_config` in the primary agent's configuration? {_AGAIN}",
        code=CODE,
    )
