"""The verbs about this host rather than a VM: setting it up, its configuration, what is wrong with it, its alarms."""

from __future__ import annotations

import argparse

from shared.cli.grammar import Verb, add_verbs, json_option, parsed, yes_option
from shared.cli.preparing import parse_authorize, parse_listen


def _setup(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, SETUP_VERBS, "role")


def _setup_role(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pki", default="", metavar="FOLDER", help="this host's folder as pki issue made it; its files are copied"
    )
    parser.add_argument("--host", default="", metavar="NAME", help="name of this host (default: the system's)")
    parser.add_argument(
        "--nbd-group", default="", metavar="GROUP", help="group that QEMU runs as, e.g. kvm; it may use the NBD sockets"
    )
    parser.add_argument("--config", default="", metavar="FILE", help="the configuration (default: in /etc/vmreplica)")
    parser.add_argument("--check", action="store_true", help="only look, and tell what would be made")
    parser.add_argument("--no-units", action="store_true", help="leave systemd's units alone")
    parser.add_argument(
        "--root", default="", metavar="FOLDER", help="put this before all paths, for an image that is being built"
    )
    yes_option(parser)
    json_option(parser)


def _setup_replica(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--authorize",
        action="append",
        default=[],
        type=parsed(parse_authorize),
        metavar="NAME=FOLDER",
        help="the name in a primary's certificate, and the folder for its copies (repeatable)",
    )
    parser.add_argument(
        "--listen", type=parsed(parse_listen), metavar="[HOST][:PORT]", help="where to listen (default 0.0.0.0:8443)"
    )
    _setup_role(parser)


SETUP_VERBS = (
    Verb("primary", "make this host ready to replicate its VMs", "shared.cli.verbs.setup:setup", _setup_role, False),
    Verb("replica", "make this host ready to keep copies", "shared.cli.verbs.setup:setup", _setup_replica, False),
)
HOST_VERBS = (Verb("setup", "make this host ready for an agent; safe to run again", "", _setup, agents=False),)
