"""What comes with the package beside the programs, wherever the package lies."""

from __future__ import annotations

from pathlib import Path

from shared.cli.unit_files import FOLDER, unit_names
from shared.config import load_config
from shared.config_sections import PrimaryConfig, ReplicaConfig

PACKAGING = Path(__file__).parents[3] / "packaging"


def test_a_checkout_has_the_same_files() -> None:
    assert FOLDER.resolve() == PACKAGING.resolve()


def test_every_unit_is_put_in_place_for_one_of_the_roles() -> None:
    """A unit that is added is not forgotten; test_setup has how it is put there."""
    units = PACKAGING / "systemd"
    named = {name for role in ("primary", "replica") for name in unit_names(role, units)}
    assert named == {path.name for path in units.glob("*.service")}


def test_the_examples_are_valid_configurations() -> None:
    for config in (
        load_config(str(FOLDER / "examples/primary.toml"), PrimaryConfig),
        load_config(str(FOLDER / "examples/replica.toml"), ReplicaConfig),
    ):
        assert config.tls.key == "/etc/vmreplica/pki/key.pem"
