"""The grammar of the verbs for libvirt's domains: ``adopt``, ``release`` and ``libvirt-hook``."""

from __future__ import annotations

import argparse

from shared.cli.grammar import LOG_LIMIT_TEXT, REPLICA_TEXT, Verb, json_option, parsed, yes_option
from shared.cli.units import parse_interval, parse_path, parse_size

INTERVAL_SECONDS = 300.0


def _domain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="name or UUID of libvirt's domain")
    parser.add_argument(
        "--connect", default="", metavar="URI", help="connection of virsh (default: what virsh takes by itself)"
    )


def _live(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--live", action="store_true", help=text)
    parser.add_argument(
        "--copy-to",
        type=parsed(parse_path),
        metavar="FOLDER",
        help="with --live: where the new images are made (default: beside the disks)",
    )


def _adopt(parser: argparse.ArgumentParser) -> None:
    _domain(parser)
    parser.add_argument("--replica", default="", metavar="HOST[:PORT]", help=f"{REPLICA_TEXT}; of a VM that is new")
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="TARGET",
        help="disk of the domain, e.g. vda, that is replicated (repeatable; default: all)",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="TARGET",
        help="disk of the domain that stays as it is and is not replicated (repeatable)",
    )
    parser.add_argument(
        "--interval",
        type=parsed(parse_interval),
        default=INTERVAL_SECONDS,
        metavar="TIME",
        help="time between two cuts: 30s, 5m, 15m or any from 1s (default 5m)",
    )
    parser.add_argument(
        "--log-limit",
        type=parsed(parse_size),
        metavar="SIZE",
        help=LOG_LIMIT_TEXT,
    )
    _live(parser, "the domain runs: copy its disks onto new raw images behind the tap, and switch it over")
    parser.add_argument("--start", action="store_true", help="start the domain, and check how QEMU has its disks")
    parser.add_argument(
        "--check",
        action="store_true",
        help="adopt nothing: check how the running domain has its disks from a tap, and set right what can be",
    )
    json_option(parser)


def _release(parser: argparse.ArgumentParser) -> None:
    _domain(parser)
    _live(parser, "the domain runs: copy its disks out of the tap into new raw images, and switch it over")
    yes_option(parser)
    json_option(parser)


def _hook(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--install", action="store_true", help="write it to /etc/libvirt/hooks/qemu.d/vmreplica")


_ADOPT = "shared.cli.verbs.adopt"
ADOPT_VERBS = (
    Verb("adopt", "put the disks of a libvirt domain behind a tap, under replication", f"{_ADOPT}:adopt", _adopt),
    Verb("release", "put them back without the tap, and end the replication", f"{_ADOPT}:release", _release),
    Verb(
        "libvirt-hook",
        "print the hook for libvirt: it checks domains at their start, and refuses migrations",
        f"{_ADOPT}:libvirt_hook",
        _hook,
        agents=False,
    ),
)
