"""Builds vmreplica's Debian package: its own virtual environment in /opt, and what belongs to a system around it.

The same checkout gives the same package, byte for byte (SOURCE_DATE_EPOCH, else the last commit's time). Packages from
PyPI are wheels with the hashes of requirements.lock; they are kept in build/wheels, so that only the first time needs
a network. Nothing but Python with venv, and dpkg-deb, is needed.
"""

from __future__ import annotations

import argparse
import base64
import compileall
import gzip
import hashlib
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "build/wheels"
HOME = Path("opt/vmreplica")
PROGRAMS = ("vmreplica", "vmreplica-primary", "vmreplica-replica", "vmreplica-tap")
PACKAGES = ("primary_agent", "replica_agent", "protocol", "shared", "packaging")
SOURCES = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE")

# What of packaging/ goes where; folders with all that is in them.
PLACES = {
    "packaging/systemd/*.service": "usr/lib/systemd/system",
    "packaging/systemd/drop-ins/*": "usr/share/doc/vmreplica/examples/drop-ins",
    "packaging/sysusers.d/*": "usr/lib/sysusers.d",
    "packaging/tmpfiles.d/*": "usr/lib/tmpfiles.d",
    "packaging/examples/*": "usr/share/doc/vmreplica/examples",
    "packaging/prometheus/*": "usr/share/doc/vmreplica/examples/prometheus",
    "packaging/grafana/*": "usr/share/doc/vmreplica/examples/grafana",
    "packaging/debian/copyright": "usr/share/doc/vmreplica",
    "packaging/vmreplica.cdx.json": "usr/share/doc/vmreplica",
    "docs/*.md": "usr/share/doc/vmreplica",
}
RENAMED = {
    "packaging/completion/vmreplica.bash": "usr/share/bash-completion/completions/vmreplica",
    "packaging/completion/_vmreplica": "usr/share/zsh/vendor-completions/_vmreplica",
    "packaging/completion/vmreplica.fish": "usr/share/fish/vendor_completions.d/vmreplica.fish",
}
SCRIPTS = ("postinst", "prerm", "postrm")

CONTROL = """\
Package: vmreplica
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {kib}
Depends: python3 (>= {python}), python3 (<< {next_python}~), libc6 (>= 2.28), libgcc-s1, libstdc++6, systemd (>= 252), init-system-helpers (>= 1.54)
Suggests: libvirt-clients, qemu-utils
Section: admin
Priority: optional
Description: asynchronous replication of virtual machine disks between two hosts
 A second copy of each VM's disks on another host, never more than seconds or
 minutes old, always consistent over all disks of the VM, and ready to start.
 .
 This package has both agents, the tap in front of a VM's disks, and the command.
"""  # noqa: E501 - a field is one line


class BuildError(Exception):
    """A step of the build failed; the text says which and why."""


def build(out: Path) -> Path:
    """Build the package into the folder ``out``; returns its path. Raises BuildError."""
    os.umask(0o022)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _commit_time())
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    architecture = _run("dpkg", "--print-architecture").strip()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmreplica-deb-") as folder:
        work, stage = Path(folder), Path(folder) / "stage"
        tools = _make_tools(work / "tools")
        wheel = _own_wheel(tools, work)
        _fetch_wheels(tools)
        _make_environment(tools, stage, wheel)
        _place_files(stage)
        _write_manual(stage, work)
        _compress_docs(stage)
        kib = sum(-(-path.lstat().st_size // 1024) for path in stage.rglob("*") if path.is_file())
        _write_control(stage, project["version"], architecture, kib)
        _settle(stage, epoch)
        package = out / f"vmreplica_{project['version']}_{architecture}.deb"
        _run(
            "dpkg-deb",
            "--root-owner-group",
            "--uniform-compression",
            "-Zzstd",
            "-z9",
            "--build",
            str(stage),
            str(package),
        )
    return package


def _make_tools(folder: Path) -> Path:
    """An environment with pip and the setuptools that the lock pins; returns its Python."""
    _run(sys.executable, "-m", "venv", str(folder))
    python = folder / "bin/python"
    lock = (ROOT / "requirements-dev.lock").read_text()
    found = re.search(r"^setuptools==.*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL)
    if found is None:
        raise BuildError("requirements-dev.lock has no setuptools")
    pinned = folder / "setuptools.txt"
    pinned.write_text(found[0])
    _download(python, pinned)
    _pip(python, "install", "--no-index", f"--find-links={WHEELS}", "--require-hashes", "-r", str(pinned))
    return python


def _fetch_wheels(python: Path) -> None:
    _download(python, ROOT / "requirements.lock")


def _download(python: Path, requirements: Path) -> None:
    """Bring what the file names into build/wheels, unless it is all there."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    chosen = ("--only-binary=:all:", "--no-deps", "--require-hashes", "-r", str(requirements), f"--dest={WHEELS}")
    try:
        _pip(python, "download", "--no-index", f"--find-links={WHEELS}", *chosen)
    except BuildError:
        _pip(python, "download", *chosen)


def _own_wheel(python: Path, work: Path) -> Path:
    """Our own wheel, built from a copy: what earlier builds left in the checkout has no part in it."""
    source = work / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source / name)
    _pip(
        python, "wheel", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={work}", str(source)
    )  # fmt: skip
    (wheel,) = work.glob("vmreplica-*.whl")
    return wheel


def _make_environment(tools: Path, stage: Path, wheel: Path) -> None:
    """The environment that is installed: no pip, no traces of where it was made, everything compiled."""
    home = stage / HOME
    _run("/usr/bin/python3", "-m", "venv", "--without-pip", "--symlinks", str(home))
    for stray in home.glob("bin/[Aa]ctivate*"):
        stray.unlink()
    chosen = ("--no-compile", "--no-deps", "--no-index", f"--find-links={WHEELS}")
    into = f"--python={home}/bin/python"
    _pip(tools, into, "install", *chosen, "--require-hashes", "-r", str(ROOT / "requirements.lock"))
    _pip(tools, into, "install", *chosen, str(wheel))
    for tests in [path for path in home.glob("lib/*/site-packages/*/**/tests") if path.is_dir()]:
        # Other packages' own tests: a third of what would be installed.
        shutil.rmtree(tests)
    for program in sorted(home.glob("bin/*")):
        if program.is_symlink():
            continue
        if program.name not in PROGRAMS:
            # Of other packages.
            program.unlink()
            continue
        first, _, rest = program.read_text().partition("\n")
        program.write_text(f"#!/{HOME}/bin/python -P\n{rest}")
        if not first.startswith(f"#!{home}/bin/"):
            raise BuildError(f"{program} begins with {first}")
    config = home / "pyvenv.cfg"
    kept = [line for line in config.read_text().splitlines() if not line.startswith("command")]
    config.write_text("\n".join(kept) + "\n")
    (home / "bin/python").unlink()
    (home / "bin/python").symlink_to("/usr/bin/python3")
    for record in home.rglob("*.dist-info/RECORD"):
        _correct_record(record)
    # Of direct installations from a path, which existed only here.
    for trace in home.rglob("*.dist-info/direct_url.json"):
        trace.unlink()
    compiled = compileall.compile_dir(
        str(home / "lib"),
        quiet=1,
        stripdir=str(stage),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        raise BuildError("the environment could not be compiled")


def _correct_record(record: Path) -> None:
    """Hashes and sizes of what was changed behind pip's back; what was taken away is left out."""
    lines = []
    for line in record.read_text().splitlines():
        name, hashed, _size = line.rsplit(",", 2)
        path = record.parents[1] / name.strip('"')
        if name.endswith("direct_url.json") or not path.exists():
            continue
        if hashed and "bin/" in name:
            data = path.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            line = f"{name},sha256={digest},{len(data)}"
        lines.append(line)
    record.write_text("\n".join(lines) + "\n")


def _place_files(stage: Path) -> None:
    for pattern, folder in PLACES.items():
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                _copy(path, stage / folder / path.name)
    for name, target in RENAMED.items():
        _copy(ROOT / name, stage / target)
    _copy(ROOT / "CHANGELOG.md", stage / "usr/share/doc/vmreplica/changelog")
    (stage / "usr/bin").mkdir(parents=True)
    for program in PROGRAMS:
        (stage / "usr/bin" / program).symlink_to(f"/{HOME}/bin/{program}")


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _write_manual(stage: Path, work: Path) -> None:
    """The man pages, made by the program that is installed."""
    pages = work / "manual"
    _run(str(stage / HOME / "bin/python"), "-P", "-m", "shared.cli.manual", str(pages))
    for page in sorted(pages.iterdir()):
        _copy(page, stage / f"usr/share/man/man{page.suffix[1:]}" / page.name)


def _compress_docs(stage: Path) -> None:
    for path in [*stage.glob("usr/share/man/*/*"), stage / "usr/share/doc/vmreplica/changelog"]:
        with open(f"{path}.gz", "wb") as target, gzip.GzipFile("", "wb", 9, target, mtime=0) as packed:
            packed.write(path.read_bytes())
        path.unlink()


def _write_control(stage: Path, version: str, architecture: str, kib: int) -> None:
    folder = stage / "DEBIAN"
    folder.mkdir()
    version_info = _run("/usr/bin/python3", "-c", "import sys; print(sys.version_info.major, sys.version_info.minor)")
    major, minor = map(int, version_info.split())
    maintainer = os.environ.get("DEBEMAIL", "the authors of vmreplica <root@localhost>")
    text = CONTROL.format(
        version=version, architecture=architecture, kib=kib, maintainer=maintainer,
        python=f"{major}.{minor}", next_python=f"{major}.{minor + 1}",
    )  # fmt: skip
    (folder / "control").write_text(text)
    for name in SCRIPTS:
        shutil.copy(ROOT / "packaging/debian" / name, folder / name)
    files = sorted(path for path in stage.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(stage)}\n"
        for path in files
        if folder not in path.parents
    ]
    (folder / "md5sums").write_text("".join(sums))


def _settle(stage: Path, epoch: int) -> None:
    """Modes and times that do not depend on who built it, and when."""
    for path in [stage, *stage.rglob("*")]:
        if not path.is_symlink():
            runs = path.is_dir() or (path.parent.name in ("bin", "DEBIAN") and path.name in (*PROGRAMS, *SCRIPTS))
            path.chmod(0o755 if runs else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _commit_time() -> str:
    try:
        return _run("git", "-C", str(ROOT), "log", "-1", "--format=%ct").strip()
    except BuildError:
        return str(int((ROOT / "CHANGELOG.md").stat().st_mtime))


def _pip(python: Path, *words: str) -> None:
    _run(str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *words)


def _run(*words: str) -> str:
    """Run a program; returns what it printed. Raises BuildError with that where it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        raise BuildError(f"{words[0]} can't be run: {error.strerror}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    """Build the package, and print where it is."""
    parser = argparse.ArgumentParser(prog="build-deb", description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist/ of the checkout")
    try:
        print(build(parser.parse_args().out))
    except BuildError as error:
        print(f"build-deb: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
