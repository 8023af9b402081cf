"""How a VM's guest is frozen, and where its definition lies: the two settings as texts, parsed and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.errors import UsageError

NONE = "none"
LIBVIRT_FOLDER = "/etc/libvirt/qemu"
"""Where libvirt keeps what it defined, as domains start the next time."""
FILES_MAX = 31
"""Small files beside the definition."""
HOURS_MAX = 12
NAME_MAX, PATH_MAX = 128, 512


class FreezeKind(StrEnum):
    """How a guest is frozen. The values are those of the setting."""

    AGENT = "agent"
    LIBVIRT = "libvirt"
    PROGRAM = "program"


@dataclass(frozen=True, slots=True)
class FreezeSetting:
    """How the guest is frozen; ``target`` is a socket, a domain or a program."""

    kind: FreezeKind
    target: str


def parse_consistency(text: str) -> FreezeSetting | None:
    """``none`` (None), ``agent:/SOCKET``, ``libvirt:DOMAIN`` or ``program:/PATH``. Raises UsageError."""
    if text == NONE:
        return None
    word, _, target = text.partition(":")
    if word not in set(FreezeKind) or not _is_target(target, path=word != FreezeKind.LIBVIRT):
        raise UsageError(
            f"{text!r} does not say how the guest is frozen.",
            "Write none, agent:/PATH/OF/SOCKET, libvirt:DOMAIN or program:/PATH/OF/PROGRAM.",
        )
    return FreezeSetting(FreezeKind(word), target)


def parse_definition(text: str) -> str:
    """The path of the definition of ``libvirt:DOMAIN`` or ``file:/PATH``; empty for ``none``. Raises UsageError."""
    if text == NONE:
        return ""
    word, _, target = text.partition(":")
    if word not in ("libvirt", "file") or not _is_target(target, path=word == "file"):
        raise UsageError(f"{text!r} names no definition.", "Write none, libvirt:DOMAIN or file:/PATH.")
    return f"{LIBVIRT_FOLDER}/{target}.xml" if word == "libvirt" else target


def check_files(paths: Sequence[str]) -> None:
    """Raises UsageError unless all are absolute paths, each named once, and not too many."""
    for path in paths:
        if not _is_target(path, path=True):
            raise UsageError(f"{path!r} is not a plain absolute path.", "Leave out '..', '//' and a last '/'.")
    if len(set(paths)) != len(paths):
        raise UsageError("A file of the definition is named twice.", "Name each once.")
    if len(paths) > FILES_MAX:
        raise UsageError(f"{len(paths)} files are too many.", f"Name at most {FILES_MAX}.")


def _is_target(text: str, *, path: bool) -> bool:
    if not text.isprintable() or not 0 < len(text) <= (PATH_MAX if path else NAME_MAX):
        return False
    if path:
        return text.startswith("/") and all(part not in ("", ".", "..") for part in text[1:].split("/"))
    return "/" not in text and not text.startswith((".", "-"))
