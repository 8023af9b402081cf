"""The Debian package and the wheel: complete, and running away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.systemd.package import package as built_package

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("packages"),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not here"),
]


def run(*words: str, **more: str) -> str:
    """Run a program away from the checkout and without what leads there; what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/", env={**environment, **more})
    assert done.returncode == 0, f"{words}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def package() -> Path:
    """The package, as the tests with a real systemd install it: built once for all of them."""
    return built_package()


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    run("dpkg-deb", "-R", str(package), str(root))
    return root


def test_everything_is_where_a_system_looks_for_it(unpacked: Path) -> None:
    for path in (
        "usr/lib/systemd/system/vmreplica-primary.service",
        "usr/lib/systemd/system/vmreplica-replica.service",
        "usr/lib/systemd/system/vmreplica-tap@.service",
        "usr/lib/sysusers.d/vmreplica.conf",
        "usr/lib/tmpfiles.d/vmreplica.conf",
        "usr/share/man/man1/vmreplica.1.gz",
        "usr/share/man/man1/vmreplica-enable.1.gz",
        "usr/share/man/man5/vmreplica.toml.5.gz",
        "usr/share/man/man8/vmreplica-tap.8.gz",
        "usr/share/bash-completion/completions/vmreplica",
        "usr/share/zsh/vendor-completions/_vmreplica",
        "usr/share/fish/vendor_completions.d/vmreplica.fish",
        "usr/share/doc/vmreplica/copyright",
        "usr/share/doc/vmreplica/vmreplica.cdx.json",
        "usr/share/doc/vmreplica/install.md",
        "usr/share/doc/vmreplica/examples/primary.toml",
        "usr/share/doc/vmreplica/examples/drop-ins/credential.conf",
    ):
        assert (unpacked / path).is_file(), path
    for program in ("vmreplica", "vmreplica-primary", "vmreplica-replica", "vmreplica-tap"):
        link = unpacked / "usr/bin" / program
        assert str(link.readlink()) == f"/opt/vmreplica/bin/{program}"
        target = unpacked / "opt/vmreplica/bin" / program
        assert target.stat().st_mode & 0o777 == 0o755
        assert target.read_text().startswith("#!/opt/vmreplica/bin/python -P\n")


def test_nothing_tells_where_it_was_built(unpacked: Path) -> None:
    for path in unpacked.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix in ("", ".cfg", ".pyc", ".txt"):
            data = path.read_bytes()
            assert b"vmreplica-deb-" not in data, path
            assert str(ROOT).encode() + b"/" not in data, path


def test_it_asks_for_the_python_that_it_was_built_with(package: Path) -> None:
    major, minor = map(int, run("/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])").split())
    depends = run("dpkg-deb", "--field", str(package), "Depends")
    assert f"python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1}~)" in depends


def test_its_scripts_are_sound_and_never_touch_a_running_tap(unpacked: Path) -> None:
    for name in ("postinst", "prerm", "postrm"):
        script = unpacked / "DEBIAN" / name
        assert script.stat().st_mode & 0o777 == 0o755
        run("sh", "-n", str(script))
        for line in script.read_text().splitlines():
            stops = any(word in line for word in ("deb-systemd-invoke", "systemctl stop", "systemctl restart", "kill"))
            assert not (stops and "tap" in line), line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has namespaces of its own")
def test_it_runs_where_it_is_installed(package: Path, unpacked: Path) -> None:
    """In a mount namespace in which /opt is the package's; nothing of the checkout's environment is needed."""
    script = (
        f"mount --bind {unpacked}/opt /opt && "
        "/opt/vmreplica/bin/vmreplica --version && /opt/vmreplica/bin/vmreplica-primary --version && "
        "/opt/vmreplica/bin/vmreplica-replica --version && /opt/vmreplica/bin/vmreplica-tap --help >/dev/null && "
        "/opt/vmreplica/bin/python -c 'import shared, sys; print(shared.__file__, *sys.path)'"
    )
    *versions, places = run("unshare", "--mount", "sh", "-ec", script).splitlines()
    version = run("dpkg-deb", "--field", str(package), "Version").strip()
    assert [line.split()[:2] for line in versions] == [
        [program, version] for program in ("vmreplica", "vmreplica-primary", "vmreplica-replica")
    ]
    assert places.startswith("/opt/vmreplica/lib/") and str(ROOT) not in places


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".*", "build", "dist", "tests", "scripts", "docs", "*.egg-info", "__pycache__"),
    )
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        f"--wheel-dir={tmp_path}", str(source),
    )  # fmt: skip
    (made,) = tmp_path.glob("*.whl")
    return made


def test_a_wheel_has_everything_and_runs_elsewhere(wheel: Path, tmp_path: Path) -> None:
    """As pipx installs it: an environment of its own; the packages that it needs are those of the checkout's."""
    names = set(zipfile.ZipFile(wheel).namelist())
    packaging = ROOT / "packaging"
    for pattern in ("systemd/**/*.*", "sysusers.d/*", "tmpfiles.d/*", "examples/*", "completion/*"):
        for path in packaging.glob(pattern):
            assert f"shared/packaged/{path.relative_to(packaging)}" in names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "packaging/"))]
    # With it whoever has the wheel alone installs exactly what it was tried with.
    assert zipfile.ZipFile(wheel).read("shared/packaged/requirements.lock") == (ROOT / "requirements.lock").read_bytes()
    # And whoever has to tell what runs here finds the bill of materials.
    assert "shared/packaged/vmreplica.cdx.json" in names

    home = tmp_path / "home"
    run(sys.executable, "-m", "venv", "--without-pip", str(home))
    python = home / "bin/python"
    (site,) = home.glob("lib/python*/site-packages")
    (others,) = Path(sys.prefix).glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    (site / "needed.pth").write_text(f"{others}\n")
    assert run(str(home / "bin/vmreplica"), "--version").startswith("vmreplica ")
    program = "from shared.cli.unit_files import FOLDER; print(*FOLDER.glob('systemd/*.service'))"
    units = run(str(python), "-P", "-c", program).split()
    assert units and all(unit.startswith(str(site)) for unit in units)
    run(str(python), "-P", "-m", "shared.cli.manual", str(tmp_path / "manual"))
    assert (tmp_path / "manual/vmreplica.1").is_file()
