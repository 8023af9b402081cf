"""The man pages, made from the grammar, the error classes and the configuration's structs.

``python -m shared.cli.manual FOLDER`` writes vmreplica.1, a page for each verb, the programs' pages in section 8, and
vmreplica.toml.5.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from shared.cli.agents import SOCKETS_VARIABLE
from shared.cli.arguments import DESCRIPTION, build_parser
from shared.cli.exit_codes import exit_codes
from shared.cli.grammar import sentence, verb_parsers
from shared.cli.manual_programs import PROGRAMS, Program
from shared.cli.reference import usage, written
from shared.cli.settings import REQUIRED, Setting, tables

Lines = Iterator[str]


def pages() -> dict[str, str]:
    """All pages: file name, such as ``vmreplica.1``, to roff."""
    made = {"vmreplica.1": _page("VMREPLICA", 1, _command())}
    for name, parser in verb_parsers(build_parser()):
        made[f"vmreplica-{name}.1"] = _page(f"VMREPLICA-{name.upper()}", 1, _verb(name, parser))
    for program in PROGRAMS:
        made[f"{program.name}.8"] = _page(program.name.upper(), 8, _program(program))
    made["vmreplica.toml.5"] = _page("VMREPLICA.TOML", 5, _settings())
    return made


def _page(title: str, section: int, body: Iterable[str]) -> str:
    version = metadata.version("vmreplica")
    # The same source makes the same pages (reproducible-builds.org).
    day = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())))
    head = f'.TH "{title}" {section} "{day}" "vmreplica {version}" "vmreplica"'
    return "\n".join([head, ".ad l", ".nh", *body]) + "\n"


# --- the command and its verbs


def _command() -> Lines:
    yield from _name("vmreplica", DESCRIPTION)
    yield from _section("SYNOPSIS")
    yield r"\fBvmreplica\fR \fIVERB\fR [\fIARGUMENTS\fR...]"
    yield from _section("DESCRIPTION")
    yield from _paragraph(
        "The command speaks to the agents of this host, vmreplica-primary(8) and vmreplica-replica(8), over their "
        "sockets. Each verb has a page of its own, vmreplica-VERB(1), and --help."
    )
    yield from _section("VERBS")
    for name, parser in verb_parsers(build_parser()):
        yield from _item(f"vmreplica-{name}(1)", parser.description or "")
    yield from _section("OPTIONS")
    yield from _item("--help", "Print help and exit; of each verb too.")
    yield from _item("--version", "Print the command's version and exit.")
    yield from _exit_status()
    yield from _section("ENVIRONMENT")
    yield from _item(SOCKETS_VARIABLE, "Paths of the agents' sockets, separated by colons.")
    yield from _item("NO_COLOR", "Set to anything: no colours.")
    yield from _see_also("vmreplica-primary(8)", "vmreplica-replica(8)", "vmreplica-tap(8)", "vmreplica.toml(5)")


def _verb(name: str, parser: argparse.ArgumentParser) -> Lines:
    leaves = list(_leaves(parser))
    yield from _name(f"vmreplica-{name}", parser.description or "")
    yield from _section("SYNOPSIS")
    for number, leaf in enumerate(leaves):
        if number:
            yield ".br"
        yield _usage(leaf)
    if len(leaves) == 1:
        yield from _section("DESCRIPTION")
        yield from _paragraph(parser.description or "")
        yield from _section("OPTIONS")
        yield from _arguments(parser)
    else:
        yield from _section("VERBS")
        for leaf in leaves:
            yield f".SS {_escaped(leaf.prog)}"
            yield from _paragraph(leaf.description or "")
            yield from _arguments(leaf)
    yield from _exit_status()
    yield from _see_also("vmreplica(1)", "vmreplica.toml(5)")


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = list(verb_parsers(parser))
    if not below:
        yield parser
    for _, own in below:
        yield from _leaves(own)


def _arguments(parser: argparse.ArgumentParser) -> Lines:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            yield from _item("--help", "Print help and exit.")
        else:
            yield from _item(written(action), sentence(action.help or ""))


def _usage(parser: argparse.ArgumentParser) -> str:
    text = _escaped(usage(parser))
    program = _escaped(parser.prog)
    return f"\\fB{program}\\fR{text.removeprefix(program)}"


def _exit_status() -> Lines:
    yield from _section("EXIT STATUS")
    for each in exit_codes():
        yield from _item(str(each.number), each.meaning)


# --- the programs


def _program(program: Program) -> Lines:
    yield from _name(program.name, program.purpose)
    yield from _section("SYNOPSIS")
    yield f"\\fB{_escaped(program.name)}\\fR {_escaped(program.arguments)}"
    yield from _section("DESCRIPTION")
    for paragraph in program.description:
        yield from _paragraph(paragraph)
    for title, items in program.sections.items():
        yield from _section(title)
        for term, text in items:
            yield from _item(term, text)
    yield from _exit_status()
    yield from _see_also(*program.see)


# --- the configuration


def _settings() -> Lines:
    yield from _name("vmreplica.toml", "configuration of vmreplica's agents")
    yield from _section("SYNOPSIS")
    yield "/etc/vmreplica/primary.toml"
    yield ".br"
    yield "/etc/vmreplica/replica.toml"
    yield from _section("DESCRIPTION")
    yield from _paragraph(
        "Each agent reads one TOML file. A key that is not listed here is refused, and so is a value of another type "
        "or out of range; the message names file, line and key. Times are in seconds, sizes in bytes, and the names of "
        "the keys say so. Paths are absolute and plain (no .., no //, no / at the end)."
    )
    yield from _paragraph(
        "Nothing but [tls] has to be configured on a primary, and nothing but [tls] and an [[authorize]] entry on a "
        "replica."
    )
    for table in tables():
        holder = f" ({table.holder})" if table.holder else ""
        yield f".SH {_quoted(f'{table.written}{holder}' if table.name else 'BOTH AGENTS')}"
        for paragraph in table.text:
            yield from _paragraph(paragraph)
        for setting in table.settings:
            yield from _item(setting.key, _meaning(setting))
    yield from _section("FILES")
    yield from _item("/etc/vmreplica/primary.toml", "The primary agent's.")
    yield from _item("/etc/vmreplica/replica.toml", "The replica agent's.")
    yield from _see_also("vmreplica(1)", "vmreplica-primary(8)", "vmreplica-replica(8)")


def _meaning(setting: Setting) -> str:
    default = "required" if setting.default == REQUIRED else f"default: {setting.default}"
    return f"{sentence(setting.meaning)} ({setting.type}; {default})"


# --- roff


def _name(name: str, purpose: str) -> Lines:
    yield ".SH NAME"
    yield f"{_escaped(name)} \\- {_escaped(purpose.rstrip('.'))}"


def _section(title: str) -> Lines:
    yield f".SH {_quoted(title)}"


def _paragraph(text: str) -> Lines:
    yield ".PP"
    yield _escaped(text)


def _item(term: str, text: str) -> Lines:
    yield ".TP"
    yield f"\\fB{_escaped(term)}\\fR"
    for number, line in enumerate(text.split("\n")):
        if number:
            yield ".br"
        yield _escaped(line)


def _see_also(*names: str) -> Lines:
    yield from _section("SEE ALSO")
    yield ", ".join(
        re.sub(r"^(.*)(\(\d\))$", lambda found: f"\\fB{_escaped(found[1])}\\fR{found[2]}", name) for name in names
    )


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """Text as roff: Markdown's marks become what they mean, and nothing is taken for a request."""
    plain = re.sub(r"\[([^\]]+)\]\([^)]+\.md\)", r"\1", " ".join(text.split())).replace("`", "")
    escaped = plain.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def main() -> None:
    """Write all pages into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (folder / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
