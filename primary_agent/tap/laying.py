"""Puts disks into their layers at a start of the tap, and knows the times of a disk that has come out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from primary_agent.tap.disks import Disk
from primary_agent.tap.ports import TapPorts
from primary_agent.tap.state import StateFile, Witness
from primary_agent.tap.watch import why
from shared.errors import StorageError
from shared.overlay import Overlay, Phase
from shared.ports import File
from shared.tap_config import TapConfig, TapDisk
from shared.undo_log import UndoDamagedError, UndoLog


def lay(ports: TapPorts, config: TapConfig, disks: Sequence[Disk]) -> list[File]:
    """Put the disks into the layers that are configured, if any; the files that came to them. Blocks.

    Raises StorageError, after closing them: nothing else than what is configured can be served.
    """
    layers: tuple[UndoLog, ...] | None = None
    laid: list[File] = []
    try:
        for disk in disks:
            try:
                overlay = _open_overlay(ports, config, disk.config)
                if overlay is None:
                    continue
                try:
                    if layers is None and overlay.phase is not Phase.SETTLED:
                        layers = _open_layers(ports, config)
                    disk.lay(overlay, layers or ())
                except BaseException:
                    overlay.close()
                    raise
            except OSError as error:
                text = f"What lies over {disk.config.path} can't be opened: {why(error)}."
                raise StorageError(text, "Check the volume of the VM's folder.") from error
            if disk.layers is not None:
                laid.append(disk.layers)
    except BaseException:
        for file in laid:
            file.close()
        raise
    return laid


def _open_overlay(ports: TapPorts, config: TapConfig, disk: TapDisk) -> Overlay | None:
    """The overlay of a disk in layers; None for a plain one."""
    if disk.overlay is msgspec.UNSET:
        return None
    identity, boot = bytes.fromhex(disk.overlay.id), ports.clock.boot_id()
    return Overlay.open(ports.files, disk.overlay.path, config.vm_id, disk.geometry, identity, boot)


def _open_layers(ports: TapPorts, config: TapConfig) -> tuple[UndoLog, ...]:
    """The undo logs that all disks are read through, the oldest first, each the very one that is named."""
    others = config.other_sizes if config.other_sizes is not msgspec.UNSET else {}
    sizes = others | {disk.index: disk.size for disk in config.disks}
    opened: list[UndoLog] = []
    for order, layer in enumerate(config.undo_layers):
        log = UndoLog(ports.files, layer.path, config.vm_id, sizes, order)
        opened.append(log)
        if (log.length, log.chain.hex()) != (layer.length, layer.chain):
            raise UndoDamagedError(
                f"The undo log {layer.path} is not the one that was written.",
                "Undo the failover, and fail over to a newer recovery point; find out who replaced the file.",
            )
    return tuple(opened)


def read_witnesses(state_file: StateFile, disks: Sequence[Disk]) -> list[Witness | None]:
    """What the tap last knew of each disk. Raises OSError.

    A disk that has come out of its layers has other times since, which nobody but us gave it.
    """
    witnesses = []
    for disk in disks:
        witness = state_file.read_witness(disk.slot)
        if witness is not None and disk.renamed is not None:
            told, base = disk.renamed
            if (witness.mtime_ns, witness.ctime_ns) == told:
                witness = replace(witness, mtime_ns=base[0], ctime_ns=base[1])
        witnesses.append(witness)
    return witnesses
