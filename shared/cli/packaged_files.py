"""What a system needs beside the programs: units, users, folders, examples, completion. They come with the package.

The same files, packaging/ of the checkout, are in the Debian package and in a wheel: ``install`` puts those of a wheel
or a checkout where a system has what its administrator installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "packaged"
"""A link to packaging/ in a checkout, a folder of its own once installed."""


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """One file: ``name`` below packaging/, and the path where it takes effect when it was not a package that put it."""

    name: str
    place: str

    @property
    def source(self) -> Path:
        return FOLDER / self.name

    def text(self) -> str:
        return self.source.read_text(encoding="utf-8")


UNITS = tuple(
    PackagedFile(f"systemd/{name}", f"/etc/systemd/system/{name}")
    for name in (
        "vmreplica-primary.service",
        "vmreplica-replica.service",
        "vmreplica-tap@.service",
        "vmreplica-watch.service",
    )
)
SYSTEM_FILES = (
    *UNITS,
    PackagedFile("sysusers.d/vmreplica.conf", "/etc/sysusers.d/vmreplica.conf"),
    PackagedFile("tmpfiles.d/vmreplica.conf", "/etc/tmpfiles.d/vmreplica.conf"),
)
"""What both roles need. After a change: systemd-sysusers, systemd-tmpfiles --create, systemctl daemon-reload."""
EXAMPLES = {
    role: PackagedFile(f"examples/{role}.toml", f"/etc/vmreplica/{role}.toml") for role in ("primary", "replica")
}


def brought_by_a_package(root: Path = Path("/")) -> bool:
    """Whether a distribution's package put the units there: then nothing of it is to be installed once more."""
    return (root / "usr/lib/systemd/system/vmreplica-tap@.service").exists()


def install(files: tuple[PackagedFile, ...] = SYSTEM_FILES, root: Path = Path("/")) -> list[str]:
    """Put files where they take effect, below ``root``; returns the paths of those that were absent or differed."""
    changed = []
    for each in files:
        target = root / each.place.lstrip("/")
        if target.exists() and target.read_text(encoding="utf-8") == each.text():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(each.text(), encoding="utf-8")
        target.chmod(0o644)
        changed.append(each.place)
    return changed
