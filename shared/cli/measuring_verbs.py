"""The grammar of the verbs that measure: measure, churn, metrics."""

from __future__ import annotations

import argparse

from shared.admin.bounds import CHURN_TOP, CHURN_TOP_MAX
from shared.cli.grammar import Verb, json_option, parsed, vm_argument
from shared.cli.units import parse_duration, parse_path
from shared.errors import UsageError

ESTIMATE_SECONDS = 60.0
_MEASURING = "shared.cli.verbs.measuring"


def _measure(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, optional=True)
    parser.add_argument(
        "--reset", action="store_true", help="begin a new monitoring interval, and so clear a Warning that rests on it"
    )
    json_option(parser)


def _churn(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, optional=True, role=False)
    parser.add_argument(
        "--top",
        type=parsed(_parse_top),
        default=CHURN_TOP,
        metavar="N",
        help=f"so many regions of each disk, up to {CHURN_TOP_MAX} (default {CHURN_TOP})",
    )
    parser.add_argument(
        "--estimate",
        type=parsed(parse_path),
        metavar="DISK",
        help="read an image or block device twice, before it is replicated, and tell how much changed meanwhile",
    )
    parser.add_argument(
        "--for",
        dest="seconds",
        type=parsed(parse_duration),
        default=ESTIMATE_SECONDS,
        metavar="TIME",
        help="with --estimate: at least so long from one reading to the other (default 60s)",
    )
    json_option(parser)


def _metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--role", choices=("primary", "replica"), help="which agent, where both run on this host")


def _parse_top(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= CHURN_TOP_MAX):
        raise UsageError(f"{text!r} is not a number from 1 to {CHURN_TOP_MAX}.")
    return int(text)


MEASURING_VERBS = (
    Verb("measure", "print the statistics of a VM", f"{_MEASURING}:measure", _measure),
    Verb("churn", "tell what of the VMs' disks is written most, or estimate it", f"{_MEASURING}:churn", _churn),
    Verb("metrics", "print the agent's metrics as Prometheus reads them", f"{_MEASURING}:metrics", _metrics),
)
