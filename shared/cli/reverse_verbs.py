"""The verbs that change the direction of replication after a failover: reverse and resolve."""

from __future__ import annotations

import argparse

from shared.cli.grammar import Verb, json_option, vm_argument, yes_option
from shared.defaults import DEFAULT_PORT


def _reverse(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    parser.add_argument(
        "--replica",
        default="",
        metavar="HOST[:PORT]",
        help=f"where the new primary's replica is (default: the host that the VM came from, at port {DEFAULT_PORT})",
    )
    yes_option(parser)
    json_option(parser)


def _resolve(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    parser.add_argument(
        "--keep",
        choices=("primary", "replica"),
        help="whose writes count: the side that was the primary, or the one that the VM was failed over to (without: "
        "only list what was written on this host since the failover)",
    )
    yes_option(parser)
    json_option(parser)


_REVERSING = "shared.cli.verbs.reversing"
REVERSE_VERBS = (
    Verb(
        "reverse", "change the direction after a failover; to be run on both hosts", f"{_REVERSING}:reverse", _reverse
    ),
    Verb("resolve", "end a split brain: say which side counts", f"{_REVERSING}:resolve", _resolve),
)
