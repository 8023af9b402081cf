"""The Debian package of this checkout, built once for all tests that install it, and one with a higher version."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "test-packages"
PARTS = ("primary_agent", "replica_agent", "protocol", "shared", "packaging", "docs", "scripts/debian_package.py")
FILES = ("pyproject.toml", "requirements.lock", "requirements-dev.lock", "README.md", "LICENSE", "CHANGELOG.md")


def package() -> Path:
    """The package, as ``scripts/build-deb`` builds it; built anew only when something of it has changed."""
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = BUILT / _key()
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=BUILT) as unfinished:
                _run(str(ROOT / "scripts/build-deb"), "--out", f"{unfinished}/out")
                Path(unfinished, "out").rename(folder)
            for former in BUILT.iterdir():
                if former.is_dir() and former != folder:
                    shutil.rmtree(former)
        (found,) = folder.glob("vmreplica_*[0-9]_*.deb")
        return found


def newer(built: Path) -> Path:
    """The same package with a higher version number."""
    target = built.with_name("newer.deb")
    with (BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=BUILT) as folder:
                _run("dpkg-deb", "--raw-extract", str(built), f"{folder}/tree")
                control = Path(folder, "tree/DEBIAN/control")
                control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1+next", control.read_text()))
                _run("dpkg-deb", "--root-owner-group", "-Znone", "--build", f"{folder}/tree", f"{folder}/deb")
                Path(folder, "deb").rename(target)
    return target


def _key() -> str:
    """A name for what the package is made of."""
    digest = hashlib.sha256()
    paths = [ROOT / name for name in FILES]
    for part in PARTS:
        there = ROOT / part
        paths += [there] if there.is_file() else there.rglob("*")
    for path in sorted(paths):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}{done.stderr}"
