"""docs/first-pair.md from its first command to its last, as a new user types it, and what has to be true after each."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.pair.hosts import compare
from tests.systemd.conftest import PACKAGE
from tests.systemd.host import Host
from tests.systemd.package import newer, package
from tests.systemd.page import Typed, sections
from tests.systemd.pair import Pair, Status

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("systemd-first-pair")]

PAGE = "first-pair.md"
IMAGE = "/srv/images/web.raw"
FIRST = "/srv/images/first.raw"
"""The disk as it was when its first copy was made."""
WAITS = "WaitingForStartResynchronize"
MIB = 1 << 20
GONE_SECONDS = 30.0
NEXT_PACKAGE = "/root/vmreplica-next.deb"


class Reader:
    """Types the page's commands, section by section, and looks at the hosts after each."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.tap_pid = 0
        self.printed = ""

    def read(self, heading: str, typed: list[Typed]) -> None:
        before: Callable[[], None] = getattr(self, f"before_{_name(heading)}", lambda: None)
        after: Callable[[], None] = getattr(self, f"after_{_name(heading)}")
        before()
        for part in typed:
            self.printed = self.pair.type([part])
            getattr(self, f"in_{_name(heading)}", lambda _part: None)(part)
        after()

    def after_install(self) -> None:
        for host in self.pair.hosts.values():
            assert host.run("vmreplica", "--help").stdout
            # Installed is not running: there is no configuration yet.
            assert host.systemctl("is-active", "vmreplica-primary", check=False).strip() == "inactive"

    def after_certificates(self) -> None:
        assert self.pair.beta.path("/root/vmreplica-pki/key.pem").stat().st_mode & 0o777 == 0o600

    def after_the_replicas_host(self) -> None:
        assert self.pair.beta.show("vmreplica-replica", "ActiveState") == "active"

    def after_the_primarys_host(self) -> None:
        assert self.pair.alpha.show("vmreplica-primary", "ActiveState") == "active"
        assert "authorization" in self.printed

    def after_put_the_disk_under_replication(self) -> None:
        assert "nbd+unix" in self.printed
        self.tap_pid = self.pair.status("alpha", "web")["tap"]["pid"]

    def after_the_first_copy(self) -> None:
        assert "Replicating" in self.printed
        self.same()
        self.pair.alpha.run("cp", "--sparse=always", IMAGE, FIRST)

    def after_write_something(self) -> None:
        self.same()

    def after_pull_the_cable(self) -> None:
        self.same()

    def in_pull_it_for_too_long(self, typed: Typed) -> None:
        if "qemu-io" in typed.lines:
            assert self.pair.status("alpha", "web")["tap"]["tracking"] == "map"

    def after_pull_it_for_too_long(self) -> None:
        self.same()
        # Of what the map named, not of the whole disk.
        assert self.last_resync()["kind"] == "bounded"

    def in_compare_everything(self, typed: Typed) -> None:
        """Required and not begun until the window is open; then nobody starts it."""
        if "dd of" in typed.lines:
            self.pair.wait("the cause", "alpha", lambda vm: vm["state"] == WAITS, vm="web")
        elif "plan" in typed.lines:
            assert "The resynchronization starts at" in self.printed
            assert self.pair.status("alpha", "web")["state"] == WAITS
            assert self.last_resync()["kind"] == "bounded"

    def after_compare_everything(self) -> None:
        self.same()
        last = self.last_resync()
        assert last["kind"] == "resync"
        assert last["started_by"].startswith("the window ") and "is open" in last["started_by"]

    def after_look_at_an_older_state(self) -> None:
        alpha, beta = self.pair.alpha, self.pair.beta
        compare(beta.path("/root/web-now.raw"), alpha.path(IMAGE))
        compare(beta.path("/root/web-then.raw"), alpha.path(FIRST))
        assert alpha.run("cmp", IMAGE, FIRST, check=False).returncode == 1
        assert self.pair.status("beta", "web")["exports"] == []

    def after_prove_the_copy(self) -> None:
        assert self.pair.status("alpha", "web")["verify"]["last"]["outcome"] == "equal"

    def after_new_certificates(self) -> None:
        for host in self.pair.hosts.values():
            new = {"alpha": "/root/vmreplica-pki-2/alpha", "beta": "/root/vmreplica-pki-2"}[host.name]
            compare(host.path("/etc/vmreplica/pki/key.pem"), host.path(f"{new}/key.pem"))
        self.same()

    def after_upgrade(self) -> None:
        for host in self.pair.hosts.values():
            assert "+next" in host.run("dpkg-query", "--show", "vmreplica").stdout
        # One process, from enable on: through every restart of the agent.
        assert (
            self.pair.wait("the tap", "alpha", lambda vm: vm["tap"]["running"], vm="web")["tap"]["pid"] == self.tap_pid
        )
        self.same()

    def before_when_alpha_is_gone(self) -> None:
        self.pair.alpha.lose_power()

    def after_when_alpha_is_gone(self) -> None:
        self.pair.alpha.boot()
        self.pair.wait("the fence", "alpha", lambda vm: vm["state"] == "FailedOver", vm="web")

    def after_take_it_away(self) -> None:
        for host in self.pair.hosts.values():
            assert host.run("which", "vmreplica", check=False).returncode != 0
            # A tap that was told to stop may be at it.
            until_gone(host, "/opt/vmreplica")
        assert self.pair.alpha.path(IMAGE).stat().st_size == 48 * MIB
        assert self.pair.alpha.path("/etc/vmreplica/primary.toml").exists()

    def last_resync(self) -> Status:
        return dict(self.pair.call("alpha", "vm.resync_show", vm="web")["last"])

    def same(self) -> None:
        """By itself: Replicating, and both disks are the same byte for byte."""
        self.pair.wait(
            "replication", "alpha", lambda vm: vm["state"] == "Replicating" and vm["link"]["connected"], vm="web"
        )
        self.pair.assert_same("web", IMAGE)


def until_gone(host: Host, program: str) -> None:
    """Wait until no process there has this in its command line."""
    deadline = time.monotonic() + GONE_SECONDS
    while left := host.run("pgrep", "--full", "--list-full", program, check=False).stdout:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _name(heading: str) -> str:
    return heading.lower().replace("'", "").replace(" ", "_")


def test_every_command_of_the_page(pair: Pair) -> None:
    pair.alpha.shell(f"mkdir -p /srv/images && head -c 20M /dev/urandom >{IMAGE} && truncate -s 48M {IMAGE}")
    for host in pair.hosts.values():
        host.put(newer(package()), NEXT_PACKAGE)
        assert host.path(PACKAGE).exists()
    reader = Reader(pair)
    for heading, typed in sections(PAGE).items():
        try:
            reader.read(heading, typed)
        except AssertionError as error:
            error.add_note(f"in the section {heading!r}; printed last:\n{reader.printed}")
            raise
