"""What the tests with a real systemd share: a pair of hosts, bare or with vmreplica installed and set up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.systemd.host import Host, absent
from tests.systemd.package import package
from tests.systemd.pair import Pair

PACKAGE = "/root/vmreplica.deb"
"""Where both hosts have the package that is to be installed."""


@pytest.fixture(scope="module")
def bare_pair() -> Iterator[Pair]:
    """Two hosts on which nothing was done; skipped by name where that can't be, which in CI is a failure."""
    if lacking := absent():
        message = f"hosts with a systemd of their own need {lacking}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with Pair() as pair:
        yield pair


@pytest.fixture(scope="module")
def pair(bare_pair: Pair) -> Pair:
    """Two hosts with the package at hand, not yet installed, and a disk image at alpha."""
    for host in bare_pair.hosts.values():
        host.put(package(), PACKAGE)
    return bare_pair


@pytest.fixture(scope="module")
def quick_pair(pair: Pair) -> Pair:
    """Two hosts, installed and set up, whose agents notice within two seconds that the other is gone.

    All VMs may be compared at the same time, without regard to guests: a place in the queue is asked for every five
    seconds only, and a busy machine makes every guest wait.
    """
    set_up(
        pair, head="heartbeat_seconds = 0.5\ndead_after_seconds = 2\n",
        ends={"primary": "[resync]\nat_once = 20\nback_off = false\n", "replica": "[storage]\nresyncs_at_once = 20\n"},
    )  # fmt: skip
    return pair


def install(host: Host) -> None:
    host.run("dpkg", "-i", PACKAGE)


def set_up(pair: Pair, *, head: str = "", ends: Mapping[str, str] | None = None) -> None:
    """What README.md does in its own words; ``head`` is put before both configurations, ``ends`` after."""
    with ThreadPoolExecutor() as both:
        list(both.map(install, pair.hosts.values()))
    alpha, beta = pair.alpha, pair.beta
    alpha.shell("vmreplica pki init /root/ca && vmreplica pki issue --ca /root/ca --out /root/pki alpha beta")
    pair.copy_over(alpha, "/root/pki/beta", beta, "/root/pki")
    alpha.shell("vmreplica setup primary --yes --pki /root/pki/alpha")
    beta.shell("vmreplica setup replica --yes --pki /root/pki --authorize alpha=/var/lib/vmreplica/replica/alpha")
    for host, role in ((alpha, "primary"), (beta, "replica")):
        config = host.path(f"/etc/vmreplica/{role}.toml")
        config.write_text(f"{head}{config.read_text()}\n{(ends or {}).get(role, '')}")
        host.systemctl("enable", "--now", f"vmreplica-{role}")
