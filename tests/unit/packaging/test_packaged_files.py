"""What comes with the package beside the programs, wherever the package lies."""

from __future__ import annotations

from pathlib import Path

from shared.cli import packaged_files
from shared.cli.packaged_files import EXAMPLES, FOLDER, SYSTEM_FILES
from shared.config import load_config
from shared.config_sections import PrimaryConfig, ReplicaConfig

PACKAGING = Path(__file__).parents[3] / "packaging"


def test_a_checkout_has_the_same_files() -> None:
    assert FOLDER.resolve() == PACKAGING.resolve()


def test_everything_for_the_system_is_installed() -> None:
    """A unit or a file for users or folders that is added is not forgotten."""
    patterns = ("systemd/*.service", "sysusers.d/*", "tmpfiles.d/*", "examples/*")
    there = {path.relative_to(PACKAGING).as_posix() for pattern in patterns for path in PACKAGING.glob(pattern)}
    assert {each.name for each in (*SYSTEM_FILES, *EXAMPLES.values())} == there


def test_installing_twice_changes_nothing(tmp_path: Path) -> None:
    assert packaged_files.install(root=tmp_path) == [each.place for each in SYSTEM_FILES]
    unit = tmp_path / "etc/systemd/system/vmreplica-tap@.service"
    assert unit.read_text() == (PACKAGING / "systemd/vmreplica-tap@.service").read_text()
    assert unit.stat().st_mode & 0o777 == 0o644
    assert packaged_files.install(root=tmp_path) == []
    unit.write_text("[Unit]\n")
    assert packaged_files.install(root=tmp_path) == ["/etc/systemd/system/vmreplica-tap@.service"]


def test_a_package_is_seen(tmp_path: Path) -> None:
    assert not packaged_files.brought_by_a_package(tmp_path)
    name = "vmreplica-tap@.service"
    packaged = packaged_files.PackagedFile(f"systemd/{name}", f"/usr/lib/systemd/system/{name}")
    packaged_files.install((packaged,), tmp_path)
    assert packaged_files.brought_by_a_package(tmp_path)


def test_the_examples_are_valid_configurations() -> None:
    for config in (
        load_config(str(EXAMPLES["primary"].source), PrimaryConfig),
        load_config(str(EXAMPLES["replica"].source), ReplicaConfig),
    ):
        assert config.tls.key == "/etc/vmreplica/pki/key.pem"
