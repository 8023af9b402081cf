"""The verbs that change which disks of a VM are replicated."""

from __future__ import annotations

import argparse

from shared.cli.grammar import Verb, add_verbs, json_option, parsed, vm_argument, yes_option
from shared.cli.units import parse_disk, parse_size


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
    json_option(parser)


def _present(parser: argparse.ArgumentParser) -> None:
    """A disk that the VM has."""
    vm_argument(parser, role=False)
    parser.add_argument("disk", metavar="DISK", help="its number, its name over NBD or its path")


def _remove(parser: argparse.ArgumentParser) -> None:
    _present(parser)
    parser.add_argument(
        "--exclude", action="store_true", help="the VM keeps the disk: it stays on record as one that is not replicated"
    )
    yes_option(parser)
    json_option(parser)


def _resize(parser: argparse.ArgumentParser) -> None:
    _present(parser)
    parser.add_argument(
        "--size",
        type=parsed(parse_size),
        metavar="SIZE",
        help="its new size, for instance 80GiB; of a block device, which is enlarged before, it is known",
    )
    json_option(parser)


_DISKS = "shared.cli.verbs.disks"
ACTIONS = (
    Verb("add", "replicate one more disk of a VM; only that one is copied", f"{_DISKS}:add", _add),
    Verb("remove", "replicate a disk of a VM no longer; its file stays", f"{_DISKS}:remove", _remove),
    Verb("resize", "enlarge a disk of a VM and its replica, without comparing it", f"{_DISKS}:resize", _resize),
)
DISK_VERBS = (Verb("disk", "add a disk to a replicated VM, remove or enlarge one", "", _disk, agents=False),)
