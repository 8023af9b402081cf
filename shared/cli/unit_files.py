"""The units of systemd, where the package's installer did not bring them: an installation by pipx, or a checkout."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shared.cli.findings import Finding, Level, note, ok, warning

FOLDER = Path(__file__).parents[1] / "packaged"
"""Units, users, folders, examples and completion, as they come with the program: a link to packaging/ in a checkout, a
folder of its own once installed.
"""
PACKAGED_FOLDERS = ("/usr/lib/systemd/system", "/lib/systemd/system")
"""Where a distribution's package has its units: these are left alone, and nothing is put over them."""
OWN_FOLDER = "/etc/systemd/system"
UNITS = {
    "primary": ("vmreplica-primary.service", "vmreplica-tap@.service", "vmreplica-watch.service"),
    "replica": ("vmreplica-replica.service",),
}

HIDDEN_FOLDERS = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 - nothing is made there.
"""Where a unit with ProtectHome and PrivateTmp finds no program."""
DROP_IN = "vmreplica-setup.conf"
OWN_STATE = {
    "primary": ("/var/lib/vmreplica/primary/", "/var/lib/vmreplica/replica/"),
    "replica": ("/var/lib/vmreplica/replica-agent/", "/var/lib/vmreplica/replica/"),
}
"""What a role's units may write by themselves (StateDirectory=, and the primary's ReadWritePaths=)."""

MARK = "# Made by vmreplica setup, which brings it up to date unless it is changed (use drop-ins). SHA-256: "
"""Begins the first line of a unit that we wrote; the digest of all that follows ends it."""
DIFFERENCE_LINES = 8
"""So much of a difference is told; all of it is in the evidence."""

_PROGRAM = re.compile(r"^(Exec\w+=[-+!:@]*)(?:\S*/)?(vmreplica(?:-\w+)?)(?=\s|$)", re.MULTILINE)


def unit_steps(role: str, root: str) -> Iterator[tuple[Finding, Callable[[], None] | None]]:
    """Each unit of the role: what was found, and what puts it in place, where that is to be done."""
    source = unit_source()
    for name in unit_names(role, source):
        yield _unit_step(name, source, root)
    programs = f"{program_folder()}/"
    if source is not None and programs.startswith(HIDDEN_FOLDERS) and not root:
        yield (
            warning(
                "programs",
                f"They are in {programs}, which units that are locked down can't see.",
                "Install vmreplica elsewhere: the Debian package, or PIPX_HOME=/opt/pipx pipx install.",
            ),
            None,
        )


def unit_source() -> Path | None:
    """The folder with the units that came with this program; None where it has none."""
    folder = FOLDER / "systemd"
    return folder if any(folder.glob("vmreplica-*.service")) else None


def installed_unit(name: str, root: str) -> Path | None:
    """The unit that systemd would read, where there is one."""
    places = [Path(f"{root}{folder}/{name}") for folder in (OWN_FOLDER, *PACKAGED_FOLDERS)]
    return next((path for path in places if path.exists()), None)


def unit_user(role: str, root: str) -> str:
    """The user that the role's unit runs as, root where it names none; so do its folders and its key belong to it."""
    path, source = installed_unit(f"vmreplica-{role}.service", root), unit_source()
    if path is None and source is not None:
        path = source / f"vmreplica-{role}.service"
    found = re.search(r"^User=(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE) if path is not None else None
    return found[1] if found is not None else "root"


def reach_steps(role: str, root: str, folders: Sequence[str]) -> Iterator[tuple[Finding, Callable[[], None] | None]]:
    """Drop-ins that let the units write where the configuration has its folders; none where they may anyway.

    A VM's tap writes its log below the primary's ``state_dir``, too. ``folders`` of a primary are also where this host
    keeps copies: a VM that was failed over to this host, and reversed, keeps its tap's folder there.
    """
    outside = [folder for folder in folders if not f"{folder}/".startswith(OWN_STATE[role])]
    for name in (f"vmreplica-{role}.service", *(("vmreplica-tap@.service",) if role == "primary" else ())):
        step = _reach_step(name, root, outside)
        if step is not None:
            yield step


def _reach_step(name: str, root: str, outside: Sequence[str]) -> tuple[Finding, Callable[[], None] | None] | None:
    target = Path(f"{root}{OWN_FOLDER}/{name}.d/{DROP_IN}")
    text = "# Made by vmreplica setup: what the configuration has outside of the unit's own folders.\n[Service]\n"
    text += "".join(f"ReadWritePaths=-{_quoted(folder)}\n" for folder in outside)
    known = target.read_text(encoding="utf-8") if target.exists() else None
    if not outside and known is None:
        return None
    if known == text:
        return ok(f"{name}.d/{DROP_IN}", f"The unit may write {', '.join(outside)}."), None

    def write() -> None:
        if not outside:
            target.unlink()
            return
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(0o644)

    what = f"The unit is to write {', '.join(outside)}." if outside else "It is not needed any more, and goes."
    return Finding(f"{name}.d/{DROP_IN}", Level.TO_DO, what), write


def _quoted(path: str) -> str:
    """A path as a word of a unit: percent signs and spaces mean something there."""
    escaped = path.replace("\\", "\\\\").replace("%", "%%").replace('"', '\\"')
    return f'"{escaped}"' if escaped != path or " " in path else path


def unit_names(role: str, source: Path | None) -> tuple[str, ...]:
    """The units of a role; the replica's host has the tap's as well where it comes with the program."""
    names = UNITS[role]
    if source is not None:
        # Another version may have fewer of them.
        names = tuple(name for name in names if (source / name).exists())
    if role == "replica" and source is not None and (source / "vmreplica-tap@.service").exists():
        # A promoted VM is served by a tap, too.
        names = (*names, "vmreplica-tap@.service")
    return names


def unit_text(source: Path, name: str) -> str:
    """The unit with the programs where they are installed here."""
    programs = program_folder()
    text = (source / name).read_text(encoding="utf-8")
    return _PROGRAM.sub(lambda match: f"{match[1]}{programs}/{match[2]}", text)


def program_folder() -> str:
    """Where the commands of this installation are."""
    beside = Path(sys.argv[0]).resolve().parent
    if (beside / "vmreplica-primary").exists():
        return str(beside)
    return os.path.join(sys.prefix, "bin")


def _unit_step(name: str, source: Path | None, root: str) -> tuple[Finding, Callable[[], None] | None]:
    packaged = [f"{root}{folder}/{name}" for folder in PACKAGED_FOLDERS]
    for path in packaged:
        if os.path.exists(path):
            return ok(name, f"The package brought it: {path}."), None
    target = Path(f"{root}{OWN_FOLDER}/{name}")
    if source is None:
        if target.exists():
            return ok(name, f"{target} is there."), None
        return note(
            name, "This installation has no units with it.", "Take them from the package or the checkout."
        ), None
    text = unit_text(source, name)
    if not target.exists():
        what = f"It is put into {target.parent}, with the programs of {program_folder()}."
    else:
        known = target.read_text(encoding="utf-8", errors="replace")
        body = unchanged(known)
        if body == text:
            return ok(name, f"{target} is what this version brings."), None
        if body is None and known != text:
            return _changed_unit(name, target, known, text), None
        # Without a mark, and yet the same: a version before marks wrote it.
        what = f"{target} is as setup made it, and is brought up to date; what runs takes it at its next start."

    def write() -> None:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        part = target.with_name(f".{name}.part")
        part.write_text(marked(text), encoding="utf-8")
        part.chmod(0o644)
        part.replace(target)

    return Finding(name, Level.TO_DO, what), write


def marked(text: str) -> str:
    """A unit with the line before it by which it is known again."""
    return f"{MARK}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def unchanged(known: str) -> str | None:
    """The text of a unit that we wrote and nobody changed since; None for any other."""
    first, _, body = known.partition("\n")
    return body if first.startswith(MARK) and known == marked(body) else None


def _changed_unit(name: str, target: Path, known: str, text: str) -> Finding:
    body = known.partition("\n")[2] if known.startswith(MARK) else known
    lines = difflib.unified_diff(body.splitlines(), text.splitlines(), "installed", "this version", lineterm="", n=0)
    difference = [line for line in lines if line[:1] in "+-" and not line.startswith(("---", "+++"))]
    shown = " | ".join(difference[:DIFFERENCE_LINES]) or "only its first line"
    more = len(difference) - DIFFERENCE_LINES
    return warning(
        name,
        f"{target} is not what this version brings, and stays: somebody changed it, or a version wrote it that left "
        f"no mark. The difference (- installed, + this version): {shown}{f' | {more} lines more' if more > 0 else ''}.",
        f"Put settings of your own into {target}.d/*.conf, remove {target}, and run this again: it writes it anew, and "
        "later ones by itself.",
        difference=difference,
    )
