"""The hosts themselves: apart from the machine and from each other, and gone without a trace."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.systemd.pair import Pair

pytestmark = pytest.mark.xdist_group("systemd-hosts")

SECRET = "/etc/vmreplica-host-was-here"


def test_a_host_has_its_own_of_everything(bare_pair: Pair) -> None:
    alpha, beta = bare_pair.alpha, bare_pair.beta
    for host in (alpha, beta):
        assert host.run("hostname").stdout.strip() == host.name
        assert host.run("ps", "-o", "comm=", "-p", "1").stdout.strip() == "systemd"
        assert host.systemctl("is-system-running").strip() == "running"
        # Neither the machine's processes nor its network.
        assert len(host.run("ps", "-e").stdout.splitlines()) < 20
        assert sorted(path.name for path in host.path("/sys/class/net").iterdir()) == ["eth0", "lo"]
    assert alpha.run("cat", "/etc/machine-id").stdout != beta.run("cat", "/etc/machine-id").stdout
    alpha.run("touch", SECRET)
    alpha.run("logger", "--tag", "probe", "of alpha alone")
    assert not Path(SECRET).exists()
    assert not beta.path(SECRET).exists()
    assert "of alpha alone" in alpha.journal("-t", "probe")
    assert "of alpha alone" not in beta.journal()
    assert alpha.run("sysctl", "-w", "kernel.panic=7", check=False).returncode != 0


def test_files_and_journal_outlast_restarts(bare_pair: Pair) -> None:
    beta = bare_pair.beta
    beta.shell("echo kept >/etc/kept; echo kept >/srv/kept; echo gone >/run/gone; logger --tag probe first boot")
    boots = [beta.run("cat", "/proc/sys/kernel/random/boot_id").stdout]
    for restart in (beta.reboot, beta.power_cut):
        restart()
        assert beta.run("cat", "/etc/kept", "/srv/kept").stdout == "kept\nkept\n"
        assert not beta.path("/run/gone").exists()
        assert "first boot" in beta.journal("-t", "probe")
        boots.append(beta.run("cat", "/proc/sys/kernel/random/boot_id").stdout)
    assert len(set(boots)) == 3


def test_the_wire(bare_pair: Pair) -> None:
    alpha = bare_pair.alpha
    carrier = alpha.path("/sys/class/net/eth0/carrier")
    assert carrier.read_text() == "1\n"
    bare_pair.wire("down")
    assert carrier.read_text() == "0\n"
    bare_pair.wire("up")
    assert carrier.read_text() == "1\n"
    assert alpha.run("getent", "hosts", "beta").stdout.split() == ["10.77.0.2", "beta"]


@pytest.mark.slow
def test_nothing_is_left(bare_pair: Pair) -> None:
    with Pair() as other:
        folders = [other.folder, other.layers]
        pids = [host.pid for host in other.hosts.values()]
        group = f"/{other.folder.name}-alpha"
        assert group in Path(f"/proc/{pids[0]}/cgroup").read_text()
    assert not any(folder.exists() for folder in folders)
    assert not any(Path(f"/proc/{pid}/comm").exists() for pid in pids)
    assert str(folders[0]) not in Path("/proc/self/mountinfo").read_text()
    listed = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "mount -t cgroup2 cgroup2 /mnt && ls /mnt"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert other.folder.name not in listed
