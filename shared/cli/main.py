"""The vmreplica command: reads its arguments, runs one verb, and turns every error into text and exit code."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence

from shared.cli.arguments import build_parser
from shared.cli.console import Console
from shared.cli.context import Context, Handler, version
from shared.cli.exit_codes import INTERRUPTED, NO_READER, SUCCESS
from shared.errors import UsageError, VmreplicaError

COLLECTED_AFTER = 200_000
"""Objects: more than the status of some hundred VMs has."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    # Nearly all that a verb makes is needed until it ends, and looking through it again and again finds no garbage.
    gc.set_threshold(COLLECTED_AFTER)
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal can't show must not end the command.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are text files here
    console = Console.of_process(os.environ)
    try:
        return run(arguments, Context(console, os.environ))
    except VmreplicaError as error:
        console.complain(error)
        return type(error).exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes at its end and must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER


def run(arguments: Sequence[str] | None, context: Context) -> int:
    """Parse and run one verb. Raises VmreplicaError."""
    parser = build_parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:
        # Only --help gets here; wrong usage is a UsageError.
        return int(end.code or SUCCESS)
    if options.version:
        context.console.print(f"vmreplica {version()}")
        return SUCCESS
    handler = getattr(options, "handler", None)
    if handler is None:
        words = " ".join(["vmreplica", *filter(None, [options.verb])])
        raise UsageError("No verb was given.", f"See: {words} --help")
    module, _, function = handler.partition(":")
    verb: Handler = getattr(importlib.import_module(module), function)
    return verb(options, context)


if __name__ == "__main__":
    sys.exit(main())
