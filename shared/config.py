"""Reading an agent's configuration from its TOML file: every mistake is told with file, line and remedy."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from shared.config_sections import (
    AbsolutePath,
    AgentSection,
    AuthorizeSection,
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
from shared.errors import UsageError

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_AT = re.compile(r"(?P<complaint>.*?)(?: - at `(?P<place>.*)`)?", re.DOTALL)
_TABLE = re.compile(r"\s*\[\[?\s*(?P<name>[^\]]+?)\s*\]")


C = TypeVar("C", bound=PrimaryConfig | ReplicaConfig)


def load_config(path: str, kind: type[C]) -> C:
    """Read and check a configuration file. Raises UsageError naming file, line, key and remedy."""
    text, plain = _read(path)
    return _checked(_Source(path, text), plain, kind)


def _read(path: str) -> tuple[str, dict[str, Any]]:
    """The file as text and as TOML. Raises UsageError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"The configuration {path} can't be read: {error.strerror}.", "See docs/config.md.") from error
    except (ValueError, RecursionError) as error:
        # Beside its own error the library lets those through that numbers of thousands of digits, or values nested
        # as deep, bring about.
        raise UsageError(f"{path} is not valid TOML: {error}.", "Mend that place.") from error


def _checked(source: _Source, plain: dict[str, Any], kind: type[C]) -> C:
    """The configuration that the file's content makes. Raises UsageError for the first mistake."""
    _refuse_unknown(source, plain, kind, ())
    try:
        config = msgspec.convert(plain, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _wrong_value(source, str(error)) from error
    _check_paths(source, config, ())
    _check_common(source, config)
    if not config.host:
        config = msgspec.structs.replace(config, host=os.uname().nodename)
    if isinstance(config, ReplicaConfig):
        _check_authorization(source, config)
        entries = [_normalized(entry) for entry in config.authorize]
        return msgspec.structs.replace(config, authorize=entries)
    return config


Place = tuple[str | int, ...]
"""Where in a configuration: keys, and the numbers of entries from 0."""

MISTAKES_MAX = 50
"""So many mistakes of a file are told; who made more of them mends these first."""


def find_mistakes(path: str, kind: type[PrimaryConfig] | type[ReplicaConfig]) -> list[UsageError]:
    """All mistakes of a file, in the order in which the agent would meet them; none where it would start with it.

    Whatever a mistake is found in is taken out before the next look, so that one can't hide another.
    """
    try:
        text, plain = _read(path)
    except UsageError as error:
        return [error]
    source, found, places = _Source(path, text), list[UsageError](), set[Place]()
    while len(found) < MISTAKES_MAX:
        try:
            _checked(source, plain, kind)
            break
        except UsageError as error:
            found.append(error)
            if source.told in places or not _taken_out(plain, source.told):
                break
            places.add(source.told)
    # An unknown key may be found before one that stands above it.
    return sorted(found, key=source.line_in)


def _taken_out(plain: dict[str, Any], place: Place) -> bool:
    """Take the value at ``place`` out; one that is required and missing gets a plausible one. False: not possible."""
    *parents, last = place or ("",)
    parent: Any = plain
    for part in parents:
        try:
            parent = parent[part]
        except (KeyError, IndexError, TypeError):
            return False
    if isinstance(parent, list):
        if not isinstance(last, int) or last >= len(parent):
            return False
        if not isinstance(parent[last], dict):
            # A value of a plain list: the whole list goes.
            return _taken_out(plain, tuple(parents))
        # The entries behind keep their numbers, by which their lines are found.
        parent[last] = {"name": "x", "vms": ["*"], "storage": f"/mistaken/{last}"}
        return True
    if not isinstance(parent, dict):
        return False
    if last not in parent and last not in _STAND_INS:
        return False
    parent.pop(last, None)
    if last in _STAND_INS:
        number = next((part for part in parents if isinstance(part, int)), 0)
        parent[last] = _STAND_INS[last](number)
    return True


_STAND_INS: dict[str | int, Any] = {
    "tls": lambda _: {"ca": "/mistaken", "certificate": "/mistaken", "key": "/mistaken"},
    "ca": lambda _: "/mistaken",
    "certificate": lambda _: "/mistaken",
    "key": lambda _: "/mistaken",
    "vms": lambda _: ["*"],
    "storage": lambda number: f"/mistaken/{number}",
    "dead_after_seconds": lambda _: 3600.0,
}
"""What stands in for keys that are required, or whose default is the mistake, while others are looked for."""


class _Source:
    """A file's text, to say on which line a key stands."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.told: Place = ()
        """The place that was named last: that of a mistake, right after it was raised."""
        self._lines = text.splitlines()

    def line_in(self, mistake: UsageError) -> int:
        """The line that a mistake names; those that name none come last."""
        found = re.match(re.escape(self.path) + r":(\d+): ", mistake.text)
        return int(found[1]) if found is not None else len(self._lines) + 1

    def at(self, place: Place) -> str:
        """File, line as far as it can be told, and key."""
        self.told = place
        line = self._line(place)
        return f"{self.path}:{line}: {_shown(place)}" if line else f"{self.path}: {_shown(place)}"

    def _line(self, place: Place) -> int | None:
        *parents, last = (part for part in place if isinstance(part, str))
        entry = next((part for part in place if isinstance(part, int)), 0)
        table, seen = "", -1
        assignment = re.compile(rf"""\s*["']?{re.escape(last)}["']?\s*=""")
        for number, line in enumerate(self._lines, 1):
            if (header := _TABLE.match(line)) is not None:
                table = header["name"]
                seen += table == (parents[0] if parents else last)
                if not parents and table == last and seen == entry:
                    return number
            elif table == ".".join(parents) and (not table or seen == entry):
                if assignment.match(line):
                    return number
        return None


def _shown(place: Place) -> str:
    text = ""
    for part in place:
        text += f" entry {part + 1}" if isinstance(part, int) else f".{part}" if text else part
    return text


def _refuse_unknown(source: _Source, plain: dict[str, Any], kind: type[Section], place: Place) -> None:
    """Raises UsageError for the first key that the section does not have, with the nearest one that it has."""
    sections = keys_of(kind)
    for key, value in plain.items():
        here = (*place, key)
        if key not in sections:
            near = difflib.get_close_matches(key, sorted(sections), n=1)
            elsewhere = [".".join(known) for known in _all_keys() if known[-1] == key]
            remedy = f"Did you mean {near[0]}?" if near else "docs/config.md has all keys."
            if elsewhere:
                # The very same name in another section is a better guess than a similar one here.
                remedy = f"Did you mean {elsewhere[0]}?"
            raise UsageError(f"{source.at(here)} is no known key.", remedy)
        section, repeated = section_of(sections[key])
        if section is None:
            continue
        if not repeated and isinstance(value, dict):
            _refuse_unknown(source, value, section, here)
        elif repeated and isinstance(value, list):
            for number, each in enumerate(value):
                if isinstance(each, dict):
                    _refuse_unknown(source, each, section, (*here, number))


def _all_keys() -> Iterator[tuple[str, ...]]:
    for kind in (PrimaryConfig, ReplicaConfig):
        for key, annotation in keys_of(kind).items():
            section, _ = section_of(annotation)
            if section is not None:
                yield from ((key, each) for each in keys_of(section))
            else:
                yield (key,)


def _wrong_value(source: _Source, complaint: str) -> UsageError:
    """msgspec's complaint with the line of the key."""
    found = _AT.fullmatch(complaint)
    assert found is not None
    place: list[str | int] = []
    for name, number in re.findall(r"\.([A-Za-z_]+)|\[(\d+)\]", found["place"] or ""):
        place.append(name or int(number))
    missing = re.search(r"missing required field `([^`]+)`", found["complaint"])
    if missing is not None:
        return UsageError(f"{source.at((*place, missing[1]))} is missing.", "docs/config.md says what it is.")
    # A number behind a plain list is that of one of its values, which has no line of its own.
    key = tuple(place)
    remedy = "docs/config.md has each key with its type, unit and range."
    return UsageError(f"{source.at(key)}: {found['complaint']}.", remedy)


_PATHS = (AbsolutePath, OptionalPath, SocketPath, IdentityPath, OptionalIdentityPath)


def _check_paths(source: _Source, section: Section, place: Place) -> None:
    """Raises UsageError for a path that would mean another one once it is resolved."""
    for field in msgspec.structs.fields(section):
        value = getattr(section, field.name)
        here = (*place, field.name)
        if isinstance(value, Section):
            _check_paths(source, value, here)
        elif field.name in ("authorize", "alarms"):
            for number, entry in enumerate(value):
                _check_paths(source, entry, (*here, number))
        elif field.type in _PATHS and value.startswith("/"):
            if os.path.normpath(value) != value or "\0" in value:
                raise UsageError(
                    f"{source.at(here)}: {value!r} is not a plain path.", "Leave out '..', '//', a last '/' and zeroes."
                )


def _check_common(source: _Source, config: AgentSection) -> None:
    if config.heartbeat_seconds * 2 > config.dead_after_seconds:
        raise UsageError(
            f"{source.at(('dead_after_seconds',))} = {config.dead_after_seconds:g} is less than two heartbeats of "
            f"{config.heartbeat_seconds:g} s.",
            "Give at least three heartbeats.",
        )
    names = [alarm.name for alarm in config.alarms]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UsageError(
                f"{source.at(('alarms', number, 'name'))}: {name!r} is another alarm's name too.",
                "Name each by its own.",
            )
    if config.tap_command and not any("%i" in word for word in config.tap_command):
        raise UsageError(
            f"{source.at(('tap_command',))} does not say which tap: it has no %i.",
            'For systemd: ["systemctl", "start", "vmreplica-tap@%i"]',
        )


def _check_authorization(source: _Source, config: ReplicaConfig) -> None:
    """Raises UsageError for an entry that names nobody, a wrong fingerprint or UUID, or paths that meet."""
    for number, entry in enumerate(config.authorize):
        place = ("authorize", number)
        if not entry.fingerprint and not entry.name:
            raise UsageError(f"{source.at(place)} names nobody.", "Give fingerprint, name, or both.")
        if entry.fingerprint and not _FINGERPRINT.fullmatch(_plain_hex(entry.fingerprint)):
            raise UsageError(
                f"{source.at((*place, 'fingerprint'))}: {entry.fingerprint!r} has not 64 hex digits.",
                "vmreplica pki show prints it.",
            )
        for text in entry.vms if entry.vms != ["*"] else []:
            _check_uuid(source.at((*place, "vms")), text)
        for key in ("state_dir", "runtime_dir"):
            folder = getattr(config, key)
            if _meet(entry.storage, folder):
                raise UsageError(
                    f"{source.at((*place, 'storage'))}: {entry.storage} and {key} = {folder} overlap.",
                    "Keep the copies in a folder of their own.",
                )
        for other in config.authorize[:number]:
            _check_storages(source.at((*place, "storage")), entry, other)


def _check_storages(where: str, entry: AuthorizeSection, other: AuthorizeSection) -> None:
    if entry.storage == other.storage:
        if not entry.trust_group or entry.trust_group != other.trust_group:
            raise UsageError(
                f"{where}: {entry.storage} is another entry's storage too: one peer could reach the other's VMs.",
                "Give each a storage of its own, or both the same trust_group.",
            )
    elif _meet(entry.storage, other.storage):
        raise UsageError(f"{where}: {entry.storage} and {other.storage} overlap.", "Keep storage locations apart.")


def _meet(one: str, other: str) -> bool:
    """Whether one path is, or lies within, the other."""
    return os.path.commonpath([one, other]) in (one, other)


def _check_uuid(where: str, text: str) -> None:
    try:
        uuid.UUID(text)
    except ValueError:
        raise UsageError(f"{where}: {text!r} is no UUID of a VM.", 'Give UUIDs, or ["*"] alone for all.') from None


def _plain_hex(fingerprint: str) -> str:
    return fingerprint.lower().removeprefix("sha256:").replace(":", "")


def _normalized(entry: AuthorizeSection) -> AuthorizeSection:
    """The entry as it is compared later: plain hex, lower-case name, UUIDs in their usual form."""
    vms = entry.vms if entry.vms == ["*"] else [str(uuid.UUID(text)) for text in entry.vms]
    return msgspec.structs.replace(entry, fingerprint=_plain_hex(entry.fingerprint), name=entry.name.lower(), vms=vms)
