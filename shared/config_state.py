"""What of a configuration is in force: which keys take effect by a reload, and which wait for the next start.

Pure: two configurations in, what holds and what differs out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from shared.config_sections import PrimaryConfig, ReplicaConfig, Section
from shared.status import StatusStruct, to_plain

C = TypeVar("C", PrimaryConfig, ReplicaConfig)

AT_START_ONLY = frozenset(
    {
        "host",
        "admin_group",
        "viewer_group",
        "audit_bytes",
        "limits",
        "metrics",
        "monitoring_seconds",
        "nbd_group",
        "worker_threads",
        "tap_command",
        "state_dir",
        "runtime_dir",
        "admin_socket",
        "tls",
        "listen",
    }
)
"""Keys of the file's top, with all below them, that are read at the start alone: others take effect by a reload. (The
files that [tls] names are read again by every reload; it is their names that wait.)"""


class KeyStatus(StatusStruct):
    """One key: the value in force, whether that is the default, and what the file has where it is another one."""

    key: str
    value: Any
    default: bool
    by_reload: bool
    """Whether a change takes effect by a reload; else at the next start."""
    changed: bool = False
    """Whether the file has another value than the one in force."""
    file_value: Any = None


class ConfigStatus(StatusStruct):
    """The configuration of a running agent, beside the file as it is now."""

    role: str
    path: str
    started_time: float
    loaded_time: float
    """When it was read last and taken over: at the start, or by a reload."""
    refused: str = ""
    """Why the last reload was refused; empty where it was not. What was in force before is still."""
    file_mistakes: list[str] = []  # noqa: RUF012 - msgspec copies it.
    """What is wrong with the file as it is now."""
    keys: list[KeyStatus] = []  # noqa: RUF012 - msgspec copies it.


class ConfigState:
    """An agent's configuration over its life. Times are in seconds since the Unix epoch."""

    def __init__(self, path: str, config: PrimaryConfig | ReplicaConfig, now: float) -> None:
        self.path = path
        self.current = config
        """What is in force: of the file as loaded last, all but what waits for the next start."""
        self.started_time = self.loaded_time = now
        self.refused = ""

    def take_over(self, loaded: PrimaryConfig | ReplicaConfig, now: float) -> tuple[list[str], list[str]]:
        """A reload: the keys that changed and are in force now, and those that wait for the next start."""
        before, after = dict(flat(self.current)), dict(flat(loaded))
        changed = [key for key in after if before.get(key) != after[key]]
        self.current = in_force(self.current, loaded)
        self.loaded_time = now
        self.refused = ""
        return [key for key in changed if by_reload(key)], [key for key in changed if not by_reload(key)]

    def status(self, role: str, found: PrimaryConfig | ReplicaConfig | None, mistakes: list[str]) -> ConfigStatus:
        """All keys; ``found`` is the file as it is now, None where it has ``mistakes``."""
        there = dict(flat(found)) if found is not None else {}
        return ConfigStatus(
            role=role,
            path=self.path,
            started_time=self.started_time,
            loaded_time=self.loaded_time,
            refused=self.refused,
            file_mistakes=mistakes,
            keys=key_statuses(self.current, there),
        )


def key_statuses(config: PrimaryConfig | ReplicaConfig, there: dict[str, Any]) -> list[KeyStatus]:
    """All keys of a configuration, in the order of the page on them; ``there`` has the file's own values, if known."""
    defaults = dict(flat_defaults(type(config)))
    statuses = []
    for key, value in flat(config):
        changed = key in there and there[key] != value
        statuses.append(
            KeyStatus(
                key=key,
                value=_shown(key, value),
                default=key in defaults and defaults[key] == value,
                by_reload=by_reload(key),
                changed=changed,
                file_value=_shown(key, there[key]) if changed else None,
            )
        )
    return statuses


def by_reload(key: str) -> bool:
    """Whether a change of the key takes effect by a reload."""
    return key.partition(".")[0] not in AT_START_ONLY


def in_force(current: PrimaryConfig | ReplicaConfig, loaded: PrimaryConfig | ReplicaConfig) -> Any:
    """``loaded``, with what waits for the next start as it is in ``current``."""
    kept = {name: getattr(current, name) for name in current.__struct_fields__ if name in AT_START_ONLY}
    return msgspec.structs.replace(loaded, **kept)


def flat(config: Section) -> Iterator[tuple[str, Any]]:
    """Each key with its plain value; those of a table as ``table.key``, a list of tables as one."""
    for field in msgspec.structs.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Section):
            yield from ((f"{field.name}.{key}", inner) for key, inner in flat(value))
        else:
            yield field.name, to_plain(value)


def flat_defaults(kind: type[Section]) -> Iterator[tuple[str, Any]]:
    """Each key that has a default, as :func:`flat` has them."""
    for field in msgspec.structs.fields(kind):
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if isinstance(default, Section):
            yield from ((f"{field.name}.{key}", inner) for key, inner in flat(default))
        elif default is msgspec.NODEFAULT:
            if isinstance(field.type, type) and issubclass(field.type, Section):
                yield from ((f"{field.name}.{key}", inner) for key, inner in flat_defaults(field.type))
        else:
            yield field.name, to_plain(default)


def _shown(key: str, value: Any) -> Any:
    """A value without what may be a secret: an alarm's address or command line often has a token in it."""
    if key == "alarms" and isinstance(value, list):
        return [
            {**entry, "webhook": safe_url(entry.get("webhook", "")), "command": [*entry.get("command", [])[:1], "..."]}
            if entry.get("command")
            else {**entry, "webhook": safe_url(entry.get("webhook", ""))}
            for entry in value
        ]
    return value


def safe_url(url: str) -> str:
    """An address without user, path and query, which may be secrets."""
    if not url:
        return ""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}/..."
