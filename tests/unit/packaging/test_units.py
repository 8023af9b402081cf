"""The units: systemd understands them, they are locked down as far as promised, and their times fit the programs'."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from primary_agent.tap import process as tap
from shared import service

UNITS = Path(__file__).parents[3] / "packaging/systemd"
SERVING = ("vmreplica-primary.service", "vmreplica-replica.service", "vmreplica-tap@.service")
NAMES = (*SERVING, "vmreplica-watch.service")
EXPOSURE_MAX = {
    "vmreplica-primary.service": 20,
    "vmreplica-replica.service": 15,
    "vmreplica-tap@.service": 20,
    "vmreplica-watch.service": 20,
}
"""Tenths, as systemd-analyze counts them."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def settings(name: str) -> list[tuple[str, str]]:
    lines = (UNITS / name).read_text().splitlines()
    return [(key, value) for key, found, value in (line.partition("=") for line in lines) if found and key[0] != "#"]


def seconds(name: str, key: str) -> float:
    (value,) = (value for each, value in settings(name) if each == key)
    return float(value)


def test_every_unit_is_checked() -> None:
    assert sorted(path.name for path in UNITS.glob("*.service")) == sorted(NAMES)


def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    """Nothing but that the programs are not installed here, which are given a place for it."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(re.sub(r"^ExecStart=(\S+)", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = analyze("verify", "--man=no", *(str(tmp_path / name) for name in NAMES))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_mistake_in_a_unit_is_found(tmp_path: Path) -> None:
    name = "vmreplica-primary.service"
    (tmp_path / name).write_text((UNITS / name).read_text() + "\n[Service]\nProtectEverything=yes\n")
    assert "ProtectEverything" in analyze("verify", "--man=no", str(tmp_path / name)).stderr


@pytest.mark.parametrize("name", NAMES)
def test_exposure_is_as_small_as_promised(name: str, tmp_path: Path) -> None:
    shutil.copy(UNITS / name, tmp_path)
    limit = EXPOSURE_MAX[name]
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={limit}", str(tmp_path / name))
    assert done.returncode == 0, done.stdout


def test_exposure_of_a_laxer_unit_is_found(tmp_path: Path) -> None:
    name = "vmreplica-replica.service"
    text = (UNITS / name).read_text()
    (tmp_path / name).write_text(text.replace("User=vmreplica\n", ""))
    assert analyze("security", "--offline=true", "--no-pager", "--threshold=15", str(tmp_path / name)).returncode == 1


@pytest.mark.parametrize("name", SERVING)
def test_an_orderly_stop_fits_into_its_time(name: str) -> None:
    longest = tap.STOP_SECONDS if "tap" in name else 5 * service.STOP_SECONDS
    assert seconds(name, "TimeoutStopSec") > longest


@pytest.mark.parametrize("name", SERVING)
def test_a_service_says_when_it_is_ready_and_that_it_lives(name: str) -> None:
    assert ("Type", "notify") in settings(name)
    assert seconds(name, "WatchdogSec") >= 30
    restart = dict(settings(name))
    assert restart["Restart"] == "on-failure"
    assert "2" in restart["RestartPreventExitStatus"].split()


@pytest.mark.parametrize("name", SERVING)
def test_guests_find_their_disks_served_at_boot(name: str) -> None:
    assert {"libvirtd.service", "virtqemud.service", "libvirt-guests.service"} <= set(
        dict(settings(name))["Before"].split()
    )
