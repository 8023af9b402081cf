"""A tap's configuration: the file that an agent writes into the tap's folder, and its defaults."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Sequence
from typing import Annotated

import msgspec

from protocol.hrl import FILE_HEADER_BYTES, MAX_DISK_BYTES, MAX_DISKS, MAX_RECORD, Geometry
from shared.block_devices import BlockDevicePolicy
from shared.errors import NotFoundError, StorageError, UsageError
from shared.ports import FileSystem
from shared.replacing import replace_file

CONFIG_NAME = "tap.json"
STATE_NAME = "tap.state"
LOCK_NAME = "tap.lock"
ERROR_NAME = "tap.error"
"""What the last start failed with: JSON with ``code``, ``text`` and ``remedy``; absent after a successful start."""
DISK_SIZE = "disk_size"
"""The code of a start that was refused since a disk has another size than configured."""
MAX_CONFIG_BYTES = 1 << 20

SECTOR = 512
LEAST_LOG_LIMIT = 8 << 20
"""Less can't be set: a log needs two files."""
MIN_LOG_LIMIT = 64 << 20
MIN_LOG_FILE = 4 << 20
MAX_LOG_FILE = 64 << 20
LOG_FILE_UNIT = 1 << 20
# The longest record and the end-of-file record must fit a file beside its header, with room to spare.
assert MIN_LOG_FILE > 2 * (FILE_HEADER_BYTES + MAX_RECORD)

MAP_NAME = "dirty.map"
HOT_NAME = "hot.map"
SAMPLES_NAME = "tap.samples"
REFUSED_NAME = "tap.refused"
"""While it is there the tap takes no writes (primary_agent.tap.refusal)."""
DIRTY_BLOCK_BITS = 16
"""A bit of the dirty map stands for 64 KiB, the block of a resync's compare."""
MIN_HOT_REGION = 1 << 20
MAX_HOT_REGION = 64 << 20
MAX_REQUEST_BYTES = 4 << 30
"""One NBD request is shorter than that, and all its regions have to be hot at once."""

DEFAULT_HOT_REGION = 4 << 20
DEFAULT_HOT_REGIONS = 4096
MAX_HOT_REGIONS = 1 << 24

MAX_LAYERS = 2048

DEFAULT_INTERVAL = 300.0
"""Seconds, as Hyper-V Replica's default."""

AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/[^\0]*\Z", max_length=4096)]
DiskSize = Annotated[int, msgspec.Meta(ge=SECTOR, le=MAX_DISK_BYTES, multiple_of=SECTOR)]
# A name travels in URIs and in NBD's options; what is safe in both is enough.
ExportName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,255}\Z")]


class ConfigStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base: a field that nobody reads is a mistake worth refusing."""


class TapOverlay(ConfigStruct, frozen=True):
    """What lies over a disk: the overlay's data file, and the 32 hex digits that its block map has to name."""

    path: AbsolutePath
    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


class TapLayer(ConfigStruct, frozen=True):
    """An undo log that the disks are read through: its file, with length in bytes and last chain (32 hex digits)."""

    path: AbsolutePath
    length: Annotated[int, msgspec.Meta(gt=0, lt=1 << 62)]
    chain: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


class TapDisk(ConfigStruct, frozen=True):
    """One disk: ``uuid`` is 32 hex digits, ``size`` bytes (a multiple of 512), ``export`` its NBD export name.

    ``overlay``: of a disk in layers; it is written in the place of the file at ``path``. ``larger``: while a file is
    being enlarged, the bytes that it may have instead. ``served``: the bytes that clients see of a disk that they saw
    smaller at the point that is served. The three are not written where they are not set, so that an older program
    reads the configuration of a plain disk.
    """

    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    uuid: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    path: AbsolutePath
    size: DiskSize
    export: ExportName
    overlay: TapOverlay | msgspec.UnsetType = msgspec.UNSET
    larger: DiskSize | msgspec.UnsetType = msgspec.UNSET
    served: DiskSize | msgspec.UnsetType = msgspec.UNSET

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.index, self.size, bytes.fromhex(self.uuid))

    @property
    def larger_size(self) -> int:
        """The bytes that its file may have instead; 0 while it is not being enlarged."""
        return 0 if self.larger is msgspec.UNSET else self.larger

    @property
    def served_size(self) -> int:
        """Bytes that clients see."""
        return self.size if self.served is msgspec.UNSET else min(self.size, self.served)


class TapConfig(ConfigStruct, frozen=True):
    """The configuration of the tap of one VM.

    ``vm`` is the VM's UUID with dashes. A limit or file size of 0 bytes stands for its default. ``nbd_tcp`` is a
    ``host:port`` on loopback to listen on beside the socket; port 0 takes any. Members of the group ``nbd_group`` may
    connect to the socket as well; empty for the tap's own user only.
    """

    vm: Annotated[str, msgspec.Meta(min_length=36, max_length=36)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    disks: Annotated[list[TapDisk], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]
    nbd_socket: AbsolutePath
    control_socket: AbsolutePath
    log_folder: AbsolutePath
    log_limit_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] = 0
    log_file_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0
    interval_seconds: Annotated[float, msgspec.Meta(ge=1, le=86400)] = DEFAULT_INTERVAL
    nbd_tcp: str = ""
    nbd_group: str = ""
    hot_region_bytes: Annotated[int, msgspec.Meta(ge=MIN_HOT_REGION, le=MAX_HOT_REGION)] = DEFAULT_HOT_REGION
    """Size of a region of the hot-region map, a power of two."""
    hot_regions: Annotated[int, msgspec.Meta(gt=0, le=MAX_HOT_REGIONS)] = DEFAULT_HOT_REGIONS
    """The most regions that are hot at a time: what a power loss may leave in doubt."""
    block_device_policy: BlockDevicePolicy = BlockDevicePolicy.COMPARE
    fenced: Annotated[str, msgspec.Meta(max_length=256)] = ""
    """Why the disks are served for reading only: the VM was failed over to another host. Empty while it was not."""
    layers: Annotated[list[TapLayer], msgspec.Meta(max_length=MAX_LAYERS)] | msgspec.UnsetType = msgspec.UNSET
    """The undo logs that disks in layers are read through, the oldest first. Like ``overlay`` it is not written where
    it is not set, so that an older program reads the configuration of a plain disk."""

    other_sizes: dict[int, int] | msgspec.UnsetType = msgspec.UNSET
    """Sizes in bytes, by index, of disks that are not served, and that the undo logs may be about as well: they were
    added, or removed, after the point that is served."""

    @property
    def undo_layers(self) -> list[TapLayer]:
        return [] if self.layers is msgspec.UNSET else self.layers

    @property
    def hot_region_bits(self) -> int:
        return self.hot_region_bytes.bit_length() - 1

    @property
    def vm_id(self) -> bytes:
        return uuid.UUID(self.vm).bytes

    @property
    def log_limit(self) -> int:
        """Bytes that log files may take: half of the disks by default, as Hyper-V Replica's log."""
        return self.log_limit_bytes or max(MIN_LOG_LIMIT, sum(disk.size for disk in self.disks) // 2)

    @property
    def log_file_size(self) -> int:
        """Bytes of one log file: an eighth of the limit by default, within bounds."""
        if self.log_file_bytes:
            return self.log_file_bytes
        eighth = self.log_limit // 8 // LOG_FILE_UNIT * LOG_FILE_UNIT
        return min(max(eighth, MIN_LOG_FILE), MAX_LOG_FILE)

    def check(self) -> None:
        """What the types can't say. Raises UsageError naming the field."""
        try:
            if str(uuid.UUID(self.vm)) != self.vm:
                raise ValueError
        except ValueError:
            raise UsageError(f"The tap's VM {self.vm!r} is no UUID in lower case with dashes.") from None
        for field in ("index", "uuid", "path", "export"):
            values = [getattr(disk, field) for disk in self.disks]
            if len(set(values)) != len(values):
                raise UsageError(f"Two disks of {self.name} have the same {field}.")
        overlays = [disk.overlay is not msgspec.UNSET for disk in self.disks]
        if any(overlays) != all(overlays) or (self.undo_layers and not all(overlays)):
            raise UsageError(f"Of {self.name} all disks are in layers, or none is.")
        region = self.hot_region_bytes
        if region & (region - 1):
            raise UsageError(f"Hot regions of {region} bytes are not possible.", "Choose a power of two.")
        if self.hot_regions < 2 * (MAX_REQUEST_BYTES // region):
            least = 2 * (MAX_REQUEST_BYTES // region)
            text = f"{self.hot_regions} hot regions of {region} bytes are too few for the longest requests."
            raise UsageError(text, f"Choose at least {least}.")
        size = self.log_file_size
        if size < MIN_LOG_FILE or size % 4096 or 2 * size > self.log_limit:
            raise UsageError(
                f"Log files of {size} bytes with a limit of {self.log_limit} are not possible.",
                f"Choose a multiple of 4096, at least {MIN_LOG_FILE}, and a limit that holds two files or more.",
            )


def sizes_of(disks: Sequence[TapDisk]) -> dict[int, int]:
    """Index and size: two taps that differ in these do not serve the same set of disks."""
    return {disk.index: disk.size for disk in disks}


def encode_config(config: TapConfig) -> bytes:
    """The configuration as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"


def decode_config(data: bytes, path: str) -> TapConfig:
    """The checked configuration; ``path`` is for the error. Raises UsageError naming the field."""
    try:
        config = msgspec.json.decode(data, type=TapConfig, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid: {error}.", "Let the agent write it anew.") from None
    config.check()
    return config


def load_config(files: FileSystem, folder: str) -> TapConfig:
    """Read the folder's configuration. Blocks. Raises NotFoundError, StorageError or UsageError."""
    path = f"{folder}/{CONFIG_NAME}"
    try:
        file = files.open(path)
        try:
            data = file.read(0, MAX_CONFIG_BYTES)
        finally:
            file.close()
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist.", "Name a folder that an agent prepared for a tap.") from None
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}.", "Check its permissions.") from error
    return decode_config(data, path)


def save_config(files: FileSystem, folder: str, config: TapConfig) -> None:
    """Replace the folder's configuration atomically and durably. Blocks. Raises UsageError or OSError."""
    config.check()
    path = f"{folder}/{CONFIG_NAME}"
    data = encode_config(config)
    if len(data) > MAX_CONFIG_BYTES:
        raise OSError(errno.EFBIG, f"a configuration of {len(data)} bytes", path)
    files.make_folder(folder, inherited=True)
    replace_file(files, path, data)


def save_settings(files: FileSystem, folder: str, config: TapConfig) -> None:
    """The same, but that the file keeps its disks where ``config`` has others: an agent replaces these in order.

    Blocks. Raises UsageError or OSError.
    """
    try:
        former = load_config(files, folder)
    except (NotFoundError, StorageError, UsageError):
        former = config
    if sizes_of(former.disks) != sizes_of(config.disks):
        config = msgspec.structs.replace(config, disks=former.disks)
    if not files.exists(f"{folder}/{CONFIG_NAME}") or config != former:
        save_config(files, folder, config)
