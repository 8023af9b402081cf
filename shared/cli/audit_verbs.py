"""The grammar of the verb ``audit``."""

from __future__ import annotations

import argparse

from shared.cli.grammar import Verb, json_option, limit_option, vm_argument


def _audit(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, optional=True)
    parser.add_argument(
        "--since", metavar="TIME", default="", help="from then on: 2h or 7d ago, 2026-11-28 or '2026-11-28 02:00'"
    )
    parser.add_argument(
        "--verify", action="store_true", help="follow the chain of digests, and tell where the log was changed"
    )
    parser.add_argument(
        "--folder", metavar="PATH", default="", help="read the files in that folder, rather than ask the agents"
    )
    limit_option(parser)
    json_option(parser)


AUDIT_VERBS = (Verb("audit", "print who ordered what, or check that record", "shared.cli.verbs.audit:audit", _audit),)
