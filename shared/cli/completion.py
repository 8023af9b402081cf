"""Completion scripts for bash, zsh and fish, made from the command's grammar."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from shared.cli.arguments import build_parser
from shared.cli.grammar import verb_parsers

FILES = "files"
VMS = "vms"
SHOWS_VMS = "vmreplica completion vms 2>/dev/null"
FILE_METAVARS = ("PATH", "PATH[,export=NAME]", "FILE", "FOLDER")


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a verb: ``values`` is what follows it: nothing (None), words, FILES, or free text (empty)."""

    name: str
    help: str
    values: str | None


@dataclass(frozen=True, slots=True)
class Completed:
    """What may follow the words ``path``, e.g. ``pki issue``: options, and the first argument's values."""

    path: tuple[str, ...]
    help: str
    verbs: tuple[tuple[str, str], ...]
    options: tuple[Option, ...]
    argument: str


def grammar() -> list[Completed]:
    """The whole command, verbs before what is below them."""
    return list(_walk(build_parser(), (), ""))


def script(shell: str) -> str:
    """The completion script for a shell, to be put where it looks for such scripts."""
    match shell:
        case "bash":
            return _bash(grammar())
        case "zsh":
            return _zsh(grammar())
        case "fish":
            return _fish(grammar())
    raise AssertionError(f"no completion for {shell}")


def _walk(parser: argparse.ArgumentParser, path: tuple[str, ...], text: str) -> Iterator[Completed]:
    below = list(verb_parsers(parser))
    helps = {name: _first_words(own.description or "") for name, own in below}
    options = tuple(
        Option(name, _first_words(action.help or ""), None if action.nargs == 0 else _values(action))
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--")
    )
    arguments = [a for a in parser._actions if not a.option_strings and not isinstance(a, argparse._SubParsersAction)]
    argument = _values(arguments[0]) if arguments else ""
    yield Completed(path, text, tuple(helps.items()), options, argument)
    for name, own in below:
        yield from _walk(own, (*path, name), helps[name])


def _values(action: argparse.Action) -> str:
    if action.choices is not None:
        return " ".join(str(choice) for choice in action.choices)
    if action.metavar == "VM":
        return VMS
    return FILES if action.metavar in FILE_METAVARS else ""


def _first_words(text: str) -> str:
    """One plain line for a menu: up to a semicolon or a remark in brackets."""
    plain = text.partition(";")[0].partition(" (")[0]
    return plain.rstrip(".").replace("'", "").replace("`", "").replace(":", ",")


def _bash(everything: list[Completed]) -> str:
    lines = [
        "# bash completion for vmreplica; printed by: vmreplica completion bash",
        "_vmreplica_vms() {",
        "    # Names come from other hosts: compgen -W would expand them, and run what is in them.",
        "    local name",
        "    while IFS= read -r name; do",
        '        [[ $name == "$1"* ]] && COMPREPLY+=("$(printf %q "$name")")',
        f"    done < <({SHOWS_VMS})",
        "}",
        "_vmreplica() {",
        '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"',
        '    local verb="" word',
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        '        case "$verb $word" in',
        f'            {_bash_cases(everything)}) verb="${{verb:+$verb }}$word" ;;',
        "        esac",
        "    done",
        "    COMPREPLY=()",
        '    case "$verb:$previous" in',
    ]
    for each in everything:
        for option in each.options:
            if option.values is not None:
                lines.append(f"        '{' '.join(each.path)}:{option.name}') {_bash_reply(option.values)}; return ;;")
    lines += ["    esac", '    case "$verb" in']
    for each in everything:
        words = " ".join([name for name, _ in each.verbs] + [option.name for option in each.options])
        lines.append(f"        '{' '.join(each.path)}')")
        lines.append(f"            [[ $current == -* ]] && {{ {_bash_reply(words)}; return; }}")
        values = " ".join(name for name, _ in each.verbs) if each.verbs else each.argument
        lines.append(f"            {_bash_reply(values)} ;;")
    lines += ["    esac", "}", "complete -F _vmreplica vmreplica", ""]
    return "\n".join(lines)


def _bash_cases(everything: list[Completed]) -> str:
    return " | ".join(f"'{' '.join(each.path[:-1])} {each.path[-1]}'" for each in everything if each.path)


def _bash_reply(values: str) -> str:
    match values:
        case "":
            return ":"
        case "files":
            return 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current")'
        case "vms":
            return '_vmreplica_vms "$current"'
    return f'mapfile -t COMPREPLY < <(compgen -W "{values}" -- "$current")'


def _zsh(everything: list[Completed]) -> str:
    lines = [
        "#compdef vmreplica",
        "# zsh completion for vmreplica; printed by: vmreplica completion zsh",
        "_vmreplica_vms() {",
        f'    local -a names=("${{(@f)$({SHOWS_VMS})}}")',
        "    compadd -a names",
        "}",
    ]
    for each in reversed(everything):
        lines += _zsh_function(each)
    lines += ['_vmreplica "$@"', ""]
    return "\n".join(lines)


def _zsh_function(each: Completed) -> list[str]:
    name = "_".join(["_vmreplica", *(word.replace("-", "_") for word in each.path)])
    specs = [f"'{option.name}[{_zsh_text(option.help)}]{_zsh_action(option.values)}'" for option in each.options]
    if not each.verbs:
        specs += [f"'*:{each.argument or 'value'}:{_zsh_values(each.argument)}'"]
        return [f"{name}() {{", "    _arguments \\", *_continued(specs), "}"]
    verbs = [f"        '{verb}:{text}'" for verb, text in each.verbs]
    cases = [f"        {verb}) {name}_{verb.replace('-', '_')} ;;" for verb, _ in each.verbs]
    return [
        f"{name}() {{",
        "    local state line",
        "    local -a verbs=(",
        *verbs,
        "    )",
        "    _arguments -C \\",
        *_continued([*specs, "'1: :->verb'", "'*:: :->rest'"]),
        '    case "$state" in',
        "        verb) _describe verb verbs ;;",
        "    esac",
        '    [[ "$state" == rest ]] && case "$words[1]" in',
        *cases,
        "    esac",
        "}",
    ]


def _continued(specs: list[str]) -> list[str]:
    return [f"        {spec} \\" for spec in specs[:-1]] + [f"        {specs[-1]}"]


def _zsh_text(text: str) -> str:
    return text.replace("[", "(").replace("]", ")")


def _zsh_action(values: str | None) -> str:
    return "" if values is None else f":value:{_zsh_values(values)}"


def _zsh_values(values: str) -> str:
    match values:
        case "":
            return " "
        case "files":
            return "_files"
        case "vms":
            return "_vmreplica_vms"
    return f"({values})"


def _fish(everything: list[Completed]) -> str:
    lines = [
        "# fish completion for vmreplica; printed by: vmreplica completion fish",
        "complete -c vmreplica -f",
    ]
    for each in everything:
        below = " ".join(name for name, _ in each.verbs)
        place = [f"__fish_seen_subcommand_from {word}" for word in each.path]
        if below:
            place.append(f"not __fish_seen_subcommand_from {below}")
        condition = "; and ".join(place)
        base = f"complete -c vmreplica -n '{condition}'" if condition else "complete -c vmreplica"
        lines += [f"{base} -a {name} -d '{text}'" for name, text in each.verbs]
        for option in each.options:
            values = _fish_values(option.values, " -x", " -r -F")
            lines.append(f"{base} -l {option.name[2:]} -d '{option.help}'{values}")
        if not each.verbs:
            lines += [base + values for values in [_fish_values(each.argument, "", " -F")] if values]
    return "\n".join([*lines, ""])


def _fish_values(values: str | None, exclusive: str, files: str) -> str:
    match values:
        case None:
            return ""
        case "":
            return exclusive
        case "files":
            return files
        case "vms":
            return f"{exclusive} -a '({SHOWS_VMS})'"
    return f"{exclusive} -a '{values}'"
