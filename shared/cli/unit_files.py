"""The units of systemd, where the package's installer did not bring them: an installation by pipx, or a checkout."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from shared.cli.findings import Finding, Level, note, ok

PACKAGED_FOLDERS = ("/usr/lib/systemd/system", "/lib/systemd/system")
"""Where a distribution's package has its units: these are left alone, and nothing is put over them."""
OWN_FOLDER = "/etc/systemd/system"
UNITS = {"primary": ("vmreplica-primary.service", "vmreplica-tap@.service"), "replica": ("vmreplica-replica.service",)}

_PROGRAM = re.compile(r"^(Exec\w+=[-+!:@]*)\S*/(vmreplica(?:-\w+)?)(?=\s|$)", re.MULTILINE)


def unit_steps(role: str, root: str) -> Iterator[tuple[Finding, Callable[[], None] | None]]:
    """Each unit of the role: what was found, and what puts it in place, where that is to be done."""
    source = unit_source()
    for name in unit_names(role, source):
        yield _unit_step(name, source, root)


def unit_source() -> Path | None:
    """The folder with the units that came with this program; None where it has none."""
    import shared

    package = Path(shared.__file__).parent
    for folder in (package / "systemd", package / "units", package.parent / "packaging" / "systemd",
                   package.parent / "packaging"):  # fmt: skip
        if any(folder.glob("vmreplica-*.service")):
            return folder
    return None


def unit_names(role: str, source: Path | None) -> tuple[str, ...]:
    """The units of a role; the replica's host has the tap's as well where it comes with the program."""
    names = UNITS[role]
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
    if target.exists():
        if target.read_text(encoding="utf-8", errors="replace") == text:
            return ok(name, f"{target} is what this version brings."), None
        return (
            note(
                name,
                f"{target} differs from what this version brings, and stays as it is.",
                f"Compare it with {source / name}; put your own settings into {target}.d/*.conf and remove the file, "
                "then this writes it anew.",
            ),
            None,
        )
    found = Finding(name, Level.TO_DO, f"It is put into {target.parent}, with the programs of {program_folder()}.")

    def write() -> None:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(0o644)

    return found, write
