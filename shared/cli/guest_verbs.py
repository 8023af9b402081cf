"""The verbs about a VM beside its disks: an application-consistent cut, and its definition at the replica."""

from __future__ import annotations

import argparse

from shared.cli.grammar import Verb, json_option, parsed, vm_argument
from shared.cli.point_verbs import point_options
from shared.cli.units import parse_path


def _cut(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    parser.add_argument(
        "--consistent",
        action="store_true",
        help="freeze the guest for it, as its setting `consistency` says: an application-consistent point",
    )
    json_option(parser)


def _definition(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    point_options(parser)
    parser.add_argument(
        "--output", type=parsed(parse_path), metavar="DIR", help="write it there, with the small files that go with it"
    )
    parser.add_argument(
        "--test",
        action="store_true",
        help='for a test: "NAME - Test", with a UUID, MAC addresses and networks of its own',
    )
    parser.add_argument("--define", action="store_true", help="define it in libvirt (it is not started)")
    parser.add_argument("--security-info", action="store_true", help="leave passwords in it")
    parser.add_argument(
        "--as-it-is", action="store_true", help="as it is at the primary: nothing is mapped, nothing left out"
    )
    json_option(parser)


_GUEST = "shared.cli.verbs.guest"
CUT_VERB = Verb("cut", "take a cut now, by --consistent an application-consistent one", f"{_GUEST}:cut", _cut)
DEFINITION_VERB = Verb(
    "definition", "print what the VM needs to start here, as of a recovery point", f"{_GUEST}:definition", _definition
)
