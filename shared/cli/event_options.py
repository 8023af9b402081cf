"""The options of the verb that prints events."""

from __future__ import annotations

import argparse

from shared.cli.grammar import json_option, limit_option, parsed, vm_argument
from shared.cli.past import parse_past
from shared.cli.units import parse_event
from shared.events import LEVELS

_MOMENT = "2h (ago), yesterday, today, 18:30 or '2026-11-28 02:00'"


def events_options(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, optional=True)
    parser.add_argument("--vm", dest="named", metavar="VM", help="the same as VM")
    parser.add_argument("--since", type=parsed(parse_past), metavar="TIME", help=f"not older than that: {_MOMENT}")
    parser.add_argument("--until", type=parsed(parse_past), metavar="TIME", help="not newer than that")
    parser.add_argument(
        "--id",
        action="append",
        default=[],
        type=parsed(parse_event),
        metavar="EVENT",
        help="only events of that number or name, e.g. 29242 or resync_started (repeatable)",
    )
    parser.add_argument("--level", choices=LEVELS, help="only events that are at least so bad")
    parser.add_argument(
        "--follow", action="store_true", help="print what happens from now on as well, also after an agent's restart"
    )
    limit_option(parser)
    json_option(parser)
