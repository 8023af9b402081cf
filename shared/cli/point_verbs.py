"""The verbs about the recovery points of a VM at its replica: listing, naming, pinning, proving and exporting them."""

from __future__ import annotations

import argparse

from shared.cli.grammar import Verb, json_option, no_wait_option, parsed, vm_argument
from shared.cli.past import parse_past

MOMENT = "2h (ago), yesterday, 18:30 or '2026-11-28 02:00'"


def point_options(parser: argparse.ArgumentParser, what: str = "which recovery point") -> None:
    """The two ways to name one."""
    parser.add_argument(
        "--point",
        metavar="POINT",
        default="newest",
        help=f"{what}: EPOCH/CUT as `points` has it, a name that was given to it, or newest (the default)",
    )
    parser.add_argument(
        "--at", type=parsed(parse_past), metavar="TIME", help=f"the newest one at or before a time: {MOMENT}"
    )


def _points(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    parser.add_argument(
        "--at",
        type=parsed(parse_past),
        metavar="TIME",
        help=f"tell also which is the newest at or before a time, and the next after it: {MOMENT}",
    )
    json_option(parser)


def _point(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    point_options(parser)
    name = parser.add_mutually_exclusive_group()
    name.add_argument("--name", metavar="NAME", help="give it a name, good wherever a point is named")
    name.add_argument("--no-name", dest="name", action="store_const", const="", help="take its name away")
    pin = parser.add_mutually_exclusive_group()
    pin.add_argument(
        "--pin", dest="pinned", action="store_const", const=True, help="keep it, whatever the rules say, until unpinned"
    )
    pin.add_argument("--unpin", dest="pinned", action="store_const", const=False, help="leave it to the rules again")
    json_option(parser)


def _prove(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    point_options(parser)
    parser.add_argument("--stop", action="store_true", help="end the one that runs")
    no_wait_option(parser)
    json_option(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    point_options(parser)
    parser.add_argument(
        "--writable",
        action="store_true",
        help="let clients write: what they write is kept beside the point, and deleted when the export is ended",
    )
    json_option(parser)


def _unexport(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    parser.add_argument("id", nargs="?", metavar="ID", help="the export (default: all of the VM)")
    json_option(parser)


_POINTS = "shared.cli.verbs.points"
_REPLICA = "shared.cli.verbs.replica"
POINT_VERBS = (
    Verb("points", "list the recovery points of a VM at the replica", f"{_POINTS}:points", _points),
    Verb("point", "name a recovery point, pin it, or no longer", f"{_POINTS}:point", _point),
    Verb(
        "prove",
        "read a recovery point to its end and compare it with what a verify recorded of its cut",
        f"{_POINTS}:prove",
        _prove,
    ),
    Verb(
        "export", "serve a recovery point of the replica over NBD, read-only or writable", f"{_REPLICA}:export", _export
    ),
    Verb("unexport", "end the export of a recovery point", f"{_REPLICA}:unexport", _unexport),
)
