"""Enabling replication of a VM: every refusal before anything is changed, then the first durable records."""

from __future__ import annotations

import os
import posixpath
import uuid
from collections.abc import Sequence

import msgspec
import structlog

from primary_agent.record import DiskRecord, Record, ReplicationRecord, TapPlace, VmRecord, plain
from primary_agent.vm_folders import lodge
from shared.admin.verbs import DiskParams, EnableParams
from shared.defaults import DEFAULT_PORT
from shared.errors import NoSpaceError, NotFoundError, StorageError, UsageError, VmreplicaError
from shared.events import EventId, make_event
from shared.ports import Clock, FileSystem, Ports, Store
from shared.ports.unix_sockets import PATH_MAX
from shared.rates import size_text
from shared.states import PrimaryEvent, ReplicationState, primary_transition
from shared.tap_config import (
    CONFIG_NAME,
    DEFAULT_HOT_REGION,
    DEFAULT_HOT_REGIONS,
    SECTOR,
    TapConfig,
    TapDisk,
    load_config,
    save_config,
    save_settings,
)

MAX_NAME = 128

log = structlog.get_logger(__name__)


def split_address(text: str) -> tuple[str, int]:
    """``HOST``, ``HOST:PORT`` or ``[ADDRESS]:PORT``. Raises UsageError."""
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else port
    elif text.count(":") == 1:
        host, port = text.split(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{text!r} is not the address of a replica.", "Give HOST or HOST:PORT.")
    return host, int(port)


def plan_vm(params: EnableParams, taken: Sequence[VmRecord], ports: Ports) -> VmRecord:
    """The record of a VM that is to be enabled. Blocks. Raises UsageError, NotFoundError or StorageError."""
    name = params.name
    check_name(name)
    identity = _identity(params.uuid, ports)
    for other in taken:
        if name in (other.name, str(uuid.UUID(bytes=other.vm))):
            raise UsageError(f"A VM named {name} is replicated already.", "Choose another name.")
        if other.vm == identity:
            raise UsageError(f"The VM {other.name} has the UUID {params.uuid} already.", "Choose another UUID.")
    host, port = split_address(params.replica)
    in_use = {disk.path: other.name for other in taken for disk in other.disks}
    disks: list[DiskRecord] = []
    for index, given in enumerate(params.disks):
        disk = given if isinstance(given, DiskParams) else DiskParams(path=given)
        check_disk_path(disk.path, in_use)
        in_use[disk.path] = name
        export = disk.export or f"disk{index}"
        size = disk_size(ports.files, disk.path)
        disks.append(DiskRecord(index=index, uuid=ports.random.bytes(16), path=disk.path, size=size, export=export))
    _check_excluded(params.exclude, in_use)
    return VmRecord(
        vm=identity,
        name=name,
        disks=disks,
        replica_host=host,
        replica_port=port,
        interval_seconds=params.interval_seconds,
        log_limit_bytes=params.log_limit_bytes or 0,
        hot_region_bytes=params.hot_region_bytes or 0,
        hot_regions=params.hot_regions or 0,
        block_device_policy=params.block_device_policy,
        created_time=ports.clock.wall(),
        excluded=list(params.exclude),
    )


def check_disk_path(path: str, in_use: dict[str, str]) -> None:
    """``in_use`` maps paths that are replicated to the VM's name. Raises UsageError."""
    if path in in_use:
        raise UsageError(f"{path} is replicated already, with the VM {in_use[path]}.")


def check_name(name: str) -> None:
    """Raises UsageError for what is no VM's name."""
    if len(name) > MAX_NAME or not name.isprintable() or "/" in name:
        raise UsageError(f"{name!r} is not usable as a VM's name.", f"Choose at most {MAX_NAME} printable characters.")


def _check_excluded(paths: Sequence[str], in_use: dict[str, str]) -> None:
    """Raises UsageError where an excluded disk is not one, or is replicated."""
    for path in paths:
        if not path.startswith("/") or not path.isprintable() or "/../" in path + "/":
            raise UsageError(f"{path!r} is not an absolute path.", "Give the excluded disk's absolute path.")
        if path in in_use:
            raise UsageError(f"{path} is to be replicated and excluded.", f"It is a disk of {in_use[path]}.")
    if len(set(paths)) != len(paths):
        raise UsageError("A disk is excluded twice.", "Name each once.")


def _identity(text: str | None, ports: Ports) -> bytes:
    if text is None:
        return uuid.UUID(bytes=ports.random.bytes(16), version=4).bytes
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise UsageError(f"{text!r} is not a UUID.", "Leave it out, and one is made.") from None


def disk_size(files: FileSystem, path: str) -> int:
    """The size of the raw image or block device at ``path``, judged. Blocks.

    Raises UsageError, NotFoundError or StorageError.
    """
    if not path.startswith("/") or "\0" in path or "/../" in path + "/":
        raise UsageError(f"{path!r} is not an absolute path.", "Give the disk's absolute path.")
    try:
        # For reading only: the agent may not be allowed to write it. Whether the tap can is found by its start.
        file = files.open_disk(path)
    except FileNotFoundError:
        raise NotFoundError(f"The disk {path} does not exist.", "Check the path.") from None
    except OSError as error:
        raise StorageError(
            f"The disk {path} can't be read: {error.strerror or error}.",
            "It must be a regular file or a block device that the service may read, and no symbolic link.",
        ) from error
    try:
        size = file.size()
    finally:
        file.close()
    if size == 0 or size % SECTOR:
        raise UsageError(
            f"The disk {path} has {size} bytes, which is not a whole number of sectors of {SECTOR} bytes.",
            f"Extend it: truncate --size %{SECTOR} {path}" if size else "Give it its size first.",
        )
    return size


def check_sockets(config: TapConfig) -> None:
    """The tap's sockets can have their paths. Raises UsageError."""
    for path in (config.nbd_socket, config.control_socket):
        if len(os.fsencode(path)) > PATH_MAX:
            raise UsageError(
                f"The socket {path} can't be made: its path has more than {PATH_MAX} bytes.",
                "Set runtime_dir in the agent's configuration to a shorter path.",
            )


def check_log_room(config: TapConfig, ports: Ports, folder: str) -> None:
    """The volume has room for the log up to its limit. Blocks. Raises NoSpaceError naming the missing bytes."""
    free, limit = ports.files.free_space(folder), config.log_limit
    if free < limit:
        raise NoSpaceError(
            f"The log of {config.name} may take {size_text(limit)}; the volume of {folder} has {size_text(free)} "
            f"free, {limit - free} bytes too few.",
            "Make room there, or enable the VM with a smaller --log-limit: past the limit a resynchronization "
            "is required.",
        )


def tap_config(vm: VmRecord, folder: str, runtime_folder: str, nbd_group: str = "") -> TapConfig:
    """The tap's configuration that follows from the VM's record."""
    if vm.tap is not None:
        runtime_folder = vm.tap.runtime_folder
    config = TapConfig(
        vm=str(uuid.UUID(bytes=vm.vm)),
        name=vm.name,
        disks=[tap_disk(disk) for disk in vm.disks],
        nbd_socket=f"{runtime_folder}/nbd.sock",
        control_socket=f"{runtime_folder}/control.sock",
        log_folder=f"{vm.tap.folder if vm.tap is not None else f'{folder}/tap'}/log",
        nbd_group=nbd_group,
    )
    return with_settings_of(config, vm)


def tap_disk(disk: DiskRecord) -> TapDisk:
    """A disk as the tap's configuration has it."""
    return TapDisk(
        index=disk.index,
        uuid=disk.uuid.hex(),
        path=disk.path,
        size=disk.size,
        export=disk.export,
        larger=disk.larger or msgspec.UNSET,
    )


def tap_folder(config: TapConfig) -> str:
    """The tap's own folder, with its log in it."""
    return posixpath.dirname(config.log_folder)


def with_settings_of(config: TapConfig, vm: VmRecord) -> TapConfig:
    """The configuration with the settings that the VM's record has."""
    return msgspec.structs.replace(
        config,
        log_limit_bytes=vm.log_limit_bytes,
        interval_seconds=vm.interval_seconds,
        hot_region_bytes=vm.hot_region_bytes or DEFAULT_HOT_REGION,
        hot_regions=vm.hot_regions or DEFAULT_HOT_REGIONS,
        block_device_policy=vm.block_device_policy,
    )


def prepare_tap(files: FileSystem, config: TapConfig, place: TapPlace | None = None) -> None:
    """The tap's folders and its configuration; ``place``: of a tap that lodges with the replica agent. Blocks.

    The configuration follows from the VM's record, which may have changed after the file was last written; folders of
    sockets are gone after a boot. Disks that came or went since then do so later (TapLink).
    """
    lodge(files, place)
    files.make_folder(posixpath.dirname(config.control_socket), inherited=True)
    folder = tap_folder(config)
    try:
        if files.exists(f"{folder}/{CONFIG_NAME}"):
            load_config(files, folder)
    except VmreplicaError:
        log.warning("the tap's configuration is not readable and is written anew", folder=folder)
        save_config(files, folder, config)
    save_settings(files, folder, config)


async def create(store: Store, vm: VmRecord, clock: Clock, text: str) -> None:
    """Write the first records of a VM that is being enabled."""
    state = primary_transition(ReplicationState.DISABLED, PrimaryEvent.ENABLED)
    event = make_event(
        EventId.ADMINISTRATOR,
        text,
        time=clock.wall(),
        cause=PrimaryEvent.ENABLED.value,
        before=ReplicationState.DISABLED.title,
        after=state.title,
    )
    records: dict[str, Record] = {"vm": vm, "replication": ReplicationRecord(state=state)}
    await store.commit({name: plain(record) for name, record in records.items()}, [event])
