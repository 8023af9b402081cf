"""The verbs that change which disks of a VM are replicated."""

from __future__ import annotations

import argparse

from shared.cli.grammar import Verb, add_verbs, parsed, vm_argument, yes_option
from shared.cli.units import parse_disk


def _disk(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, ACTIONS, "action")


def _add(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    parser.add_argument(
        "disk",
        type=parsed(parse_disk),
        metavar="PATH[,export=NAME]",
        help="raw image or block device, also one that was excluded, and its name over NBD",
    )


def _remove(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    parser.add_argument("disk", metavar="DISK", help="its number, its name over NBD or its path")
    parser.add_argument(
        "--exclude", action="store_true", help="the VM keeps the disk: it stays on record as one that is not replicated"
    )
    yes_option(parser)


_DISKS = "shared.cli.verbs.disks"
ACTIONS = (
    Verb("add", "replicate one more disk of a VM; only that one is copied", f"{_DISKS}:add", _add),
    Verb("remove", "replicate a disk of a VM no longer; its file stays", f"{_DISKS}:remove", _remove),
)
DISK_VERBS = (Verb("disk", "add a disk to a replicated VM, or remove one", "", _disk, agents=False),)
