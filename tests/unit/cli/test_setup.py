"""Setting a host up, below a folder that stands for its root: everything is made once, and a second run finds it so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from shared import pki
from shared.cli.findings import Level
from shared.cli.unit_files import marked, reach_steps, unit_text
from shared.cli.units import parse_authorize, parse_listen
from shared.config import load_config
from shared.config_sections import ReplicaConfig
from shared.errors import UsageError
from tests.unit.cli.conftest import Command, Ran

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("systemd-sysusers") is None, reason="needs root and systemd-sysusers"
)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    pki.init_ca(tmp_path / "ca")
    pki.issue_hosts(tmp_path / "ca", [["alpha"], ["beta"]], tmp_path / "pki")
    return tmp_path / "pki"


def levels(ran: Ran) -> dict[str, str]:
    """The worst level of each subject."""
    order = list(Level)
    found: dict[str, str] = {}
    for each in json.loads(ran.out)["findings"]:
        known = found.get(each["subject"], Level.OK)
        found[each["subject"]] = max(known, each["level"], key=lambda level: order.index(Level(level)))
    return found


def replica(vmreplica: Command, root: Path, certificates: Path, *more: str) -> Ran:
    return vmreplica(
        "setup", "replica", "--root", str(root), "--yes", "--json", "--pki", str(certificates / "beta"),
        "--authorize", "alpha=/srv/copies/alpha", "--listen", ":9443", *more,
    )  # fmt: skip


def everything(root: Path) -> dict[str, tuple[int, Any]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in root.rglob("*")
    }


def test_replica_is_made_and_a_second_run_changes_nothing(
    vmreplica: Command, tmp_path: Path, certificates: Path
) -> None:
    root = tmp_path / "root"
    first = replica(vmreplica, root, certificates)
    assert first.code == 0, first.out
    assert levels(first)["group vmreplica-admin"] == "changed"
    config = load_config(str(root / "etc/vmreplica/replica.toml"), ReplicaConfig)
    assert (config.listen.port, config.authorize[0].name, config.authorize[0].storage) == (
        9443, "alpha", "/srv/copies/alpha",
    )  # fmt: skip
    assert config.tls.crl == "/etc/vmreplica/pki/crl.pem"
    assert (root / "etc/vmreplica/pki/key.pem").stat().st_mode & 0o777 == 0o600
    assert (root / "srv/copies/alpha").stat().st_mode & 0o777 == 0o700
    assert "vmreplica-viewer:" in (root / "etc/group").read_text()
    assert (root / "etc/systemd/system/vmreplica-replica.service").exists()
    before = everything(root)
    second = replica(vmreplica, root, certificates)
    assert second.code == 0
    assert not json.loads(second.out)["changed"]
    assert set(levels(second).values()) <= {"ok", "note", "warning"}
    assert everything(root) == before


def test_check_changes_nothing(vmreplica: Command, tmp_path: Path, certificates: Path) -> None:
    root = tmp_path / "root"
    ran = replica(vmreplica, root, certificates, "--check")
    assert levels(ran)["group vmreplica-admin"] == "to do"
    assert not root.exists()


def test_both_roles_live_on_one_host(vmreplica: Command, tmp_path: Path, certificates: Path) -> None:
    root = tmp_path / "root"
    assert replica(vmreplica, root, certificates).code == 0
    ran = vmreplica("setup", "primary", "--root", str(root), "--yes", "--nbd-group", "kvm")
    assert ran.code == 0, ran.out
    assert 'nbd_group = "kvm"' in (root / "etc/vmreplica/primary.toml").read_text()
    assert (root / "var/lib/vmreplica/primary").is_dir()
    assert (root / "var/lib/vmreplica/replica-agent").is_dir()


def test_configuration_is_never_written_over(vmreplica: Command, tmp_path: Path, certificates: Path) -> None:
    root = tmp_path / "root"
    assert replica(vmreplica, root, certificates).code == 0
    path = root / "etc/vmreplica/replica.toml"
    path.write_text(path.read_text().replace("9443", "9444"))
    before = path.read_bytes()
    ran = replica(vmreplica, root, certificates, "--authorize", "gamma=/srv/copies/gamma")
    assert path.read_bytes() == before
    (told,) = [each for each in json.loads(ran.out)["findings"] if each["subject"] == str(path)]
    assert "listen.port = 9443" in told["text"]
    assert "the entry of gamma" in told["text"]


def test_mistake_in_what_is_asked_for_leaves_no_file(vmreplica: Command, tmp_path: Path, certificates: Path) -> None:
    root = tmp_path / "root"
    ran = replica(vmreplica, root, certificates, "--authorize", "gamma=/srv/copies/alpha")
    assert ran.code == 1
    assert "another entry's storage" in ran.out
    assert not (root / "etc/vmreplica/replica.toml").exists()
    assert replica(vmreplica, root, certificates).code == 0


def test_key_that_others_may_read_is_mended(vmreplica: Command, tmp_path: Path, certificates: Path) -> None:
    root = tmp_path / "root"
    assert replica(vmreplica, root, certificates).code == 0
    key = root / "etc/vmreplica/pki/key.pem"
    key.chmod(0o644)
    ran = vmreplica("setup", "replica", "--root", str(root), "--yes")
    assert ran.code == 0, ran.out
    assert key.stat().st_mode & 0o777 == 0o600


def test_folder_of_a_stranger_is_a_problem(vmreplica: Command, tmp_path: Path, certificates: Path) -> None:
    root = tmp_path / "root"
    assert replica(vmreplica, root, certificates).code == 0
    os.chown(root / "srv/copies/alpha", 4242, 4242)
    ran = replica(vmreplica, root, certificates)
    assert ran.code == 1
    assert levels(ran)[f"folder {root}/srv/copies/alpha"] == "problem"


def test_unit_names_the_programs_of_this_installation(tmp_path: Path) -> None:
    (tmp_path / "x.service").write_text("[Service]\nExecStart=/usr/local/bin/vmreplica-tap %f\n")
    text = unit_text(tmp_path, "x.service")
    assert "/usr/local/bin" not in text
    assert text.endswith("/vmreplica-tap %f\n")


@pytest.mark.parametrize("text", ["alpha", "=/x", "alpha=x", "alpha="])
def test_authorization_that_says_too_little_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_authorize(text)


def test_where_to_listen_is_read() -> None:
    assert parse_listen(":9") == ("", 9)
    assert parse_listen("[::1]:9") == ("::1", 9)
    assert parse_listen("[::1]") == ("::1", None)
    assert parse_listen("beta") == ("beta", None)
    with pytest.raises(UsageError):
        parse_listen("beta:99999")


def test_what_the_unit_runs_as_owns_folders_and_key(vmreplica: Command, tmp_path: Path, certificates: Path) -> None:
    root = tmp_path / "root"
    unit = root / "usr/lib/systemd/system/vmreplica-replica.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nUser=vmreplica\nExecStart=vmreplica-replica\n")
    ran = replica(vmreplica, root, certificates)
    assert ran.code == 0, ran.out
    (line,) = [line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("vmreplica:")]
    owner = int(line.split(":")[2])
    for path in ("var/lib/vmreplica/replica-agent", "srv/copies/alpha", "etc/vmreplica/pki/key.pem"):
        assert (root / path).stat().st_uid == owner, path
    drop_in = root / "etc/systemd/system/vmreplica-replica.service.d/vmreplica-setup.conf"
    assert "ReadWritePaths=-/srv/copies/alpha\n" in drop_in.read_text()
    assert not (root / "etc/systemd/system/vmreplica-tap@.service.d").exists()
    assert not (root / "etc/systemd/system/vmreplica-replica.service").exists(), "the package's unit is left alone"
    before = everything(root)
    assert not json.loads(replica(vmreplica, root, certificates).out)["changed"]
    assert everything(root) == before


@pytest.mark.parametrize(
    ("role", "folders", "reached"),
    [
        ("replica", ["/var/lib/vmreplica/replica-agent", "/var/lib/vmreplica/replica/alpha"], {}),
        ("replica", ["/var/lib/vmreplica/copies"], {"vmreplica-replica.service": "/var/lib/vmreplica/copies"}),
        ("primary", ["/var/lib/vmreplica/primary"], {}),
        (
            "primary",
            ["/data/vmreplica"],
            {"vmreplica-primary.service": "/data/vmreplica", "vmreplica-tap@.service": "/data/vmreplica"},
        ),
    ],
)
def test_units_may_write_where_the_configuration_has_its_folders(
    tmp_path: Path, role: str, folders: list[str], reached: dict[str, str]
) -> None:
    """Only the unit's own folders are writable by themselves; a tap writes its log below the primary's state."""
    for _, write in reach_steps(role, str(tmp_path), folders):
        assert write is not None
        write()
    written = {
        path.parent.name.removesuffix(".d"): path.read_text() for path in tmp_path.rglob("*.conf") if path.is_file()
    }
    assert set(written) == set(reached)
    for name, folder in reached.items():
        assert f"ReadWritePaths=-{folder}\n" in written[name]
    assert all(write is None for _, write in reach_steps(role, str(tmp_path), folders))


def test_a_primary_may_write_where_its_host_keeps_copies(
    vmreplica: Command, tmp_path: Path, certificates: Path
) -> None:
    """A VM that was failed over to this host, and reversed, keeps its tap's folder with the copy; in either order."""
    roots = [tmp_path / "primary-last", tmp_path / "replica-last"]
    for root, roles in zip(roots, (("replica", "primary"), ("primary", "replica")), strict=True):
        for role in roles:
            more = ("--authorize", "alpha=/srv/copies/alpha") if role == "replica" else ()
            words = ("setup", role, "--root", str(root), "--yes", "--json", "--pki", str(certificates / "beta"))
            ran = vmreplica(*words, *more)
            assert ran.code == 0, ran.out
        for unit in ("vmreplica-primary.service", "vmreplica-tap@.service", "vmreplica-replica.service"):
            text = (root / f"etc/systemd/system/{unit}.d/vmreplica-setup.conf").read_text()
            assert "ReadWritePaths=-/srv/copies/alpha\n" in text
    assert everything(roots[0]).keys() == everything(roots[1]).keys()


def test_unit_of_an_older_version_that_nobody_changed_is_brought_up_to_date(
    vmreplica: Command, tmp_path: Path, certificates: Path
) -> None:
    root = tmp_path / "root"
    assert replica(vmreplica, root, certificates).code == 0
    path = root / "etc/systemd/system/vmreplica-replica.service"
    new = path.read_text()
    path.write_text(marked("[Service]\nExecStart=/opt/older/bin/vmreplica-replica\n"))
    assert levels(replica(vmreplica, root, certificates, "--check"))[path.name] == "to do"
    assert levels(replica(vmreplica, root, certificates))[path.name] == "changed"
    assert path.read_text() == new
    assert levels(replica(vmreplica, root, certificates))[path.name] == "ok"
    # One without a mark, but the same otherwise, gets it.
    path.write_text(new.partition("\n")[2])
    assert levels(replica(vmreplica, root, certificates))[path.name] == "changed"
    assert path.read_text() == new


@pytest.mark.parametrize("mark", [True, False], ids=["changed", "of a version without marks"])
def test_unit_that_may_be_somebody_s_own_stays_and_is_warned_of(
    vmreplica: Command, tmp_path: Path, certificates: Path, mark: bool
) -> None:
    root = tmp_path / "root"
    assert replica(vmreplica, root, certificates).code == 0
    path = root / "etc/systemd/system/vmreplica-replica.service"
    text = path.read_text() if mark else path.read_text().partition("\n")[2]
    path.write_text(text.replace("WatchdogSec=30\n", "WatchdogSec=77\n"))
    before = path.read_bytes()
    ran = replica(vmreplica, root, certificates)
    assert path.read_bytes() == before
    (told,) = [each for each in json.loads(ran.out)["findings"] if each["subject"] == path.name]
    assert told["level"] == "warning"
    assert "-WatchdogSec=77 | +WatchdogSec=30" in told["text"]
    assert f"{path}.d/*.conf" in told["remedy"]
