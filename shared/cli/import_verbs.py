"""The verb about first copies that come another way than over the link: import."""

from __future__ import annotations

import argparse

from shared.cli.grammar import Verb, json_option, no_wait_option, parsed
from shared.cli.units import parse_path


def parse_seed(text: str) -> tuple[int | None, str]:
    """``PATH``, or ``DISK=PATH`` with the number of a disk. Raises UsageError."""
    number, equals, path = text.partition("=")
    if equals and number.isascii() and number.isdigit() and len(number) <= 5:
        return int(number), parse_path(path)
    return None, parse_path(text)


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", metavar="DIR|VM", help="the folder of an export (`initial VM --export`); with --seed or --stop the VM"
    )
    parser.add_argument(
        "--seed",
        action="append",
        default=[],
        type=parsed(parse_seed),
        metavar="[DISK=]PATH",
        help="raw image on this host that is much like a disk of the VM: a restored backup, an older copy "
        "(repeatable, in the order of the disks); the initial replication then sends only what differs",
    )
    parser.add_argument(
        "--move",
        action="store_true",
        help="with --seed: the file itself becomes the disk, where it lies in the store's file system, and no copy",
    )
    parser.add_argument(
        "--storage",
        default="",
        metavar="FOLDER",
        help="of an export: where the VM is kept, if it is new here and several [[authorize]] entries allow it",
    )
    parser.add_argument("--stop", action="store_true", help="end the one that runs; nothing of it stays")
    no_wait_option(parser)
    json_option(parser)


IMPORT_VERB = Verb(
    "import",
    "bring a first copy into the replica's store: an export that came by courier, or a seed",
    "shared.cli.verbs.importing:import_copy",
    _import,
)
