"""How a verb is described: name, help, handler and options, and the options that several verbs share."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from shared.cli.units import parse_count
from shared.defaults import DEFAULT_PORT
from shared.errors import UsageError, VmreplicaError

EVENTS_LIMIT = 50
LOG_LIMIT_TEXT = "size of the log above which a resync is required: 10GiB (default: half of the disks, 64MiB at least)"
REPLICA_TEXT = f"where the replica agent listens (default port {DEFAULT_PORT})"


class Parser(argparse.ArgumentParser):
    """Wrong usage is a UsageError like any other, in two lines instead of a page.

    A verb's options are put in when its parser is first used: those of all verbs take longer than most verbs do.
    """

    verb: Verb | None = None
    """Whose options are still to be put in."""

    def complete(self) -> None:
        """Put the verb's own options in."""
        verb, self.verb = self.verb, None
        if verb is not None:
            verb.define(self)
            if verb.agents:
                socket_option(self)
            if verb.handler:
                self.set_defaults(handler=verb.handler)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.complete()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(sentence(message), f"See: {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if not isinstance(action, argparse._SubParsersAction) or value in action.choices:
            super()._check_value(action, value)
            return
        near = difflib.get_close_matches(value, list(action.choices), n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"There is no verb {value!r}.", f"{hint}See: {self.prog} --help")


class LinesFormatter(argparse.HelpFormatter):
    """Each line of a help text begins a line of its own."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in text.split("\n") for line in super(LinesFormatter, self)._split_lines(part, width)]


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: ``handler`` is what runs it, ``define`` adds its own options."""

    name: str
    help: str
    handler: str
    define: Callable[[argparse.ArgumentParser], None]
    agents: bool = True
    """Whether the verb speaks to agents, and so takes --socket."""


def parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of one value whose UsageError keeps its own words."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except VmreplicaError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def verb_parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each verb below ``parser`` with its own parser, in the order of the help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, own in action.choices.items():
                own.complete()
                yield name, own


def add_verbs(parser: argparse.ArgumentParser, verbs: tuple[Verb, ...], place: str) -> None:
    below = parser.add_subparsers(dest=place, metavar=place.upper(), parser_class=Parser)
    for verb in verbs:
        own = below.add_parser(
            verb.name,
            help=verb.help,
            description=sentence(verb.help),
            allow_abbrev=False,
            formatter_class=LinesFormatter,
        )
        own.verb = verb


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


# --- options that several verbs share


def socket_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket",
        action="append",
        default=[],
        metavar="PATH",
        help="socket of an agent (repeatable; default: VMREPLICA_SOCKETS, else those in /run/vmreplica)",
    )


def vm_argument(parser: argparse.ArgumentParser, *, optional: bool = False, role: bool = True) -> None:
    parser.add_argument("vm", metavar="VM", nargs="?" if optional else None, help="name or UUID of the VM")
    if role:
        parser.add_argument(
            "--role", choices=("primary", "replica"), help="which agent, where both on this host have the VM"
        )


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON with raw numbers, units in the names")


def yes_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do it without asking")


def no_wait_option(parser: argparse.ArgumentParser, when: str = "") -> None:
    """``when`` says with what it may be given, where that is not always."""
    parser.add_argument("--no-wait", action="store_true", help=f"{when}return at once, rather than show the progress")


def limit_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit",
        type=parsed(parse_count),
        default=EVENTS_LIMIT,
        metavar="N",
        help=f"how many (default {EVENTS_LIMIT})",
    )
