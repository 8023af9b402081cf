"""AppArmor and the taps' sockets: whether libvirt confines a domain's QEMU with it, and lets that QEMU connect.

libvirt makes a profile for each domain that starts: a template, an abstraction that all domains share with a file for
local additions, and the domain's own files and devices. Sockets of NBD it does not add. ``root`` stands before the
profiles' folder, for an image that is being built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from shared.cli.domain_xml import TAP_SOCKET, Domain, Place
from shared.cli.virsh import Virsh
from shared.errors import ForbiddenError

PROFILES = "/etc/apparmor.d"
ABSTRACTION = "abstractions/libvirt-qemu"
"""What the profiles of all domains have in common; Debian's includes ``local/abstractions/libvirt-qemu``."""
ENABLED = "/sys/module/apparmor/parameters/enabled"
_MODEL = "apparmor"
_INCLUDE = re.compile(r"""^\s*\#?include\s+(?:if\s+exists\s+)?[<"]([^>"]+)[>"]""")
_RULE = re.compile(
    r'(?:^|,)\s*(?:audit\s+)?(allow\s+|deny\s+)?(?:file\s+)?(?:"([^"]+)"|([/@]\S*))\s+([a-zA-Z]+)(?=\s*,)'
)
"""Whether it denies, the path, and the rights. A rule that counts for the socket's owner alone is none for QEMU."""
_GLOB = re.compile(
    r"\\(?P<plain>.)|(?P<all>\*\*)|(?P<name>\*)|(?P<one>\?)|(?P<set>\[[^]]+\])|(?P<mark>[{},])|(?P<rest>.)"
)


def rule_for(runtime_folder: str) -> str:
    """The rule that lets QEMU connect to the taps of an agent that has its sockets in this folder."""
    return f"{runtime_folder}/*/{TAP_SOCKET} rw,"


def local_file(root: str = "") -> Path:
    """Where a rule for all domains goes: what the abstraction includes for that, else the abstraction itself."""
    profiles = Path(f"{root}{PROFILES}")
    found = (name for name in _includes(profiles / ABSTRACTION) if name.startswith("local/"))
    return profiles / next(found, ABSTRACTION)


def allowed(socket: str, profile: str = ABSTRACTION, root: str = "") -> bool | None:
    """Whether a profile has a rule for the socket, itself or in what it includes; None where it can't be read."""
    lines = list(_lines(Path(f"{root}{PROFILES}"), profile, set()))
    if not lines:
        return None
    found = False
    for line in lines:
        for denied, quoted, plain, rights in _RULE.findall(line.partition("#")[0]):
            if re.fullmatch(_pattern(quoted or plain), socket):
                if denied.startswith("deny"):
                    return False
                found = found or {"r", "w"} <= set(rights)
    return found


def check_allowed(virsh: Virsh, domain: Domain, places: Iterable[Place], *, live: bool) -> None:
    """A domain that AppArmor confines may connect to its taps, as far as files tell. Raises ForbiddenError.

    What a profile of somebody's own allows (a static label) is not looked for.
    """
    if _MODEL not in virsh.security_models() or _label(domain) in ("none", "static"):
        return
    profile = f"libvirt/libvirt-{domain.uuid}"
    if not live or not Path(PROFILES, profile).exists():
        # It is made when the domain starts.
        profile = ABSTRACTION
    for socket in sorted({place.socket for place in places}):
        if allowed(socket, profile) is False:
            file, rule = local_file(), rule_for(str(Path(socket).parents[1]))
            again = f", and load the running domain's profile anew: {_load_anew(domain)}" if live else ""
            raise ForbiddenError(
                f"libvirt confines the QEMU of {domain.name} with AppArmor, and nothing there lets it connect to "
                f"{socket}.",
                f"Add the line `{rule}` to {file} (vmreplica setup primary --apparmor does that){again}. "
                "docs/adopting.md tells what it allows.",
            )


def confinement_notes(virsh: Virsh, domain: Domain) -> list[str]:
    """What to look at where QEMU could not connect after all."""
    if _MODEL not in virsh.security_models() or _label(domain) == "none":
        return []
    text = (
        f"libvirt confines QEMU with AppArmor: `journalctl -k -g DENIED` shows what it refused. A rule for the tap's "
        f"socket goes into {local_file()}; a domain that ran before it was there needs its profile loaded anew: "
        f"{_load_anew(domain)}."
    )
    return [text]


def enabled() -> bool:
    """Whether this host's kernel uses AppArmor."""
    try:
        return Path(ENABLED).read_text(encoding="ascii").strip() == "Y"
    except OSError:
        return False


def _load_anew(domain: Domain) -> str:
    return f"apparmor_parser -r {PROFILES}/libvirt/libvirt-{domain.uuid}"


def _label(domain: Domain) -> str:
    """The type of the domain's label for AppArmor; empty where libvirt chooses. One without a model is taken for it."""
    for label in domain.root.iterfind("seclabel"):
        if label.get("model", _MODEL) == _MODEL:
            return label.get("type", "")
    return ""


def _lines(profiles: Path, name: str, seen: set[str]) -> Iterator[str]:
    """The lines of a file and of what it includes, each file once; a folder stands for the files in it."""
    path = profiles / name
    if name in seen:
        return
    seen.add(name)
    if path.is_dir():
        for each in sorted(path.iterdir()):
            yield from _lines(profiles, f"{name}/{each.name}", seen)
        return
    for line in _text(path).splitlines():
        if found := _INCLUDE.match(line):
            yield from _lines(profiles, found[1], seen)
        elif not line.lstrip().startswith("#"):
            yield line


def _includes(path: Path) -> list[str]:
    return [found[1] for line in _text(path).splitlines() if (found := _INCLUDE.match(line))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _pattern(glob: str) -> str:
    """A path of AppArmor's as a regular expression."""
    parts, depth = [], 0
    for found in _GLOB.finditer(glob.replace("@{run}", "/run")):
        match found.lastgroup, found[0]:
            case "all", _:
                parts.append(".*")
            case "name", _:
                parts.append("[^/]*")
            case "one", _:
                parts.append("[^/]")
            case "set", text:
                parts.append(text)
            case "mark", "{":
                depth += 1
                parts.append("(?:")
            case "mark", "}" if depth:
                depth -= 1
                parts.append(")")
            case "mark", "," if depth:
                parts.append("|")
            case _, text:
                parts.append(re.escape(found["plain"] or text))
    # A path that is not whole says nothing.
    return "".join(parts) if not depth else r"(?!)"
