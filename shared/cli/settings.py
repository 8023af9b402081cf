"""What the agents' configuration consists of, read from its structs: keys, types, ranges, defaults and what they mean.

docs/config.md and vmreplica.toml(5) are made from this.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import EnumType
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from shared import config_sections
from shared.config_sections import (
    AbsolutePath,
    AgentSection,
    IdentityPath,
    OptionalIdentityPath,
    OptionalPath,
    PrimaryConfig,
    ReplicaConfig,
    Section,
    SocketPath,
    keys_of,
    section_of,
)

ROLES: dict[type[Section], str] = {PrimaryConfig: "primary", ReplicaConfig: "replica"}
REQUIRED = "required"
SYSTEM_HOST = "the system's host name"

_PATHS: dict[Any, str] = {
    AbsolutePath: "path",
    OptionalPath: 'path or `""`',
    SocketPath: "path, at most 107 bytes",
    IdentityPath: "path or `credential:NAME`",
    OptionalIdentityPath: 'path, `credential:NAME` or `""`',
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One key; texts are Markdown without line breaks."""

    key: str
    type: str
    default: str
    meaning: str


@dataclass(slots=True)
class Table:
    """One table of the file: ``name`` as TOML has it without brackets, empty for the keys outside of any table."""

    name: str
    roles: tuple[str, ...]
    """Which agents have it."""
    repeated: bool
    """Whether it may stand several times, in double brackets."""
    text: list[str]
    """Paragraphs on the whole of it."""
    settings: list[Setting] = field(default_factory=list)

    @property
    def written(self) -> str:
        """As it is in the file; empty for what is outside of any table."""
        name = f"[{self.name}]" if self.name else ""
        return f"[{name}]" if self.repeated else name

    @property
    def holder(self) -> str:
        """The agent that has it; empty where both do."""
        return self.roles[0] if len(self.roles) == 1 else ""


def tables() -> list[Table]:
    """All tables, that of the keys outside of any first."""
    top = Table("", tuple(ROLES.values()), repeated=False, text=_paragraphs(AgentSection))
    found: dict[str, Table] = {}
    for kind, role in ROLES.items():
        for name, annotation in keys_of(kind).items():
            section, repeated = section_of(annotation)
            if section is None:
                continue
            if name in found:
                found[name].roles += (role,)
            else:
                settings = [_setting({role: section}, key) for key in keys_of(section)]
                found[name] = Table(name, (role,), repeated, _paragraphs(section), settings)
    kinds = {role: kind for kind, role in ROLES.items()}
    for key in dict.fromkeys(key for kind in ROLES for key in keys_of(kind)):
        if key not in found:
            top.settings.append(_setting({role: kind for role, kind in kinds.items() if _has(kind, key)}, key))
    return [top, *found.values()]


def _has(kind: type[Section], key: str) -> bool:
    return key in keys_of(kind)


def _setting(kinds: dict[str, type[Section]], key: str) -> Setting:
    """One key of one section, or of both agents' own ones."""
    types = {_type_text(keys_of(kind)[key]) for kind in kinds.values()}
    (type_text,) = types
    defaults = dict.fromkeys(_default_text(kind, key) for kind in kinds.values())
    meanings = {role: _field_texts(kind)[key] for role, kind in kinds.items()}
    if len(set(meanings.values())) == 1:
        meaning = next(iter(meanings.values()))
        if len(kinds) < len(ROLES) and all(kind in ROLES for kind in kinds.values()):
            meaning = f"{next(iter(kinds))}: {meaning}"
    else:
        meaning = "; ".join(f"{role}: {text}" for role, text in meanings.items())
    return Setting(key, type_text, ", ".join(defaults), meaning)


def _default_text(kind: type[Section], key: str) -> str:
    (info,) = (info for info in msgspec.structs.fields(kind) if info.name == key)
    if info.required:
        return REQUIRED
    default = info.default_factory() if info.default is msgspec.NODEFAULT else info.default
    if key == "host" and default == "":
        return SYSTEM_HOST
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    if isinstance(default, str) and not default.startswith("/"):
        return f'`"{default}"`'
    if isinstance(default, list):
        return f"`{json.dumps(default)}`"
    return f"`{default}`"


def _type_text(annotation: Any) -> str:
    """A type with its range, in words."""
    if annotation in _PATHS:
        return _PATHS[annotation]
    meta = next((each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, msgspec.Meta)), None)
    plain = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if get_origin(plain) is Literal:
        return _choices(str(choice) for choice in get_args(plain))
    if isinstance(plain, EnumType):
        members: list[Any] = list(plain)
        return _choices(str(member.value) for member in members)
    if get_origin(plain) is list:
        if get_origin(get_args(plain)[0]) is Literal:
            return f"list of {_type_text(get_args(plain)[0])}"
        inner = _type_text(get_args(plain)[0]).partition(",")[0]
        most = f"up to {_number_word(meta.max_length)} " if meta is not None and meta.max_length is not None else ""
        return f"list of {most}{inner}s"
    name = {str: "string", bool: "boolean", int: "integer", float: "number"}[plain]
    return f"{name}{_range_text(meta)}" if meta is not None else name


def _range_text(meta: msgspec.Meta) -> str:
    low, high = meta.ge, meta.le
    if low is not None and high is not None:
        return f", {low} to {high}"
    parts = []
    if low is not None:
        parts.append(f"at least {low}")
    if meta.gt is not None:
        parts.append(f"above {meta.gt}")
    if high is not None:
        parts.append(f"at most {high}")
    if meta.max_length is not None:
        parts.append(f"at most {meta.max_length} characters")
    return "".join(f", {part}" for part in parts)


def _number_word(number: int) -> str:
    words = ("no", "one", "two", "three", "four")
    return words[number] if number < len(words) else str(number)


def _choices(values: Iterator[str]) -> str:
    *some, last = (f'`"{value}"`' for value in values)
    return f"{', '.join(some)} or {last}" if some else last


# --- texts of the source


def _paragraphs(kind: type[Section]) -> list[str]:
    return [_markdown(text) for text in re.split(r"\n\s*\n", inspect.getdoc(kind) or "")]


def _field_texts(kind: type[Section]) -> dict[str, str]:
    """Each field's docstring, those of its bases too."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__ == config_sections.__name__:
            texts |= _own_texts(base)
    return texts


def _own_texts(kind: type[Any]) -> dict[str, str]:
    (definition,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts, name = {}, ""
    for statement in definition.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)):
                continue
            case ast.Expr(value=ast.Constant(value=str(text))) if name:
                # A row of a table, not a sentence.
                texts[name] = _row(_markdown(text))
        name = ""
    return texts


def _row(text: str) -> str:
    first = text.split(" ", 1)[0]
    # TCP, SHA-256, UUIDs stay as they are.
    lowered = text if first[1:2].isupper() else text[:1].lower() + text[1:]
    return lowered.removesuffix(".")


def _markdown(text: str) -> str:
    return " ".join(text.replace("``", "`").split())
