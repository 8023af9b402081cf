"""The services under a real systemd: readiness, watchdog, reload, upgrade, stop, sandbox, credentials, journal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from shared.events import EventId
from tests.systemd.conftest import set_up
from tests.systemd.host import Host
from tests.systemd.package import newer, package
from tests.systemd.page import commands
from tests.systemd.pair import CHECKOUT, Pair
from tests.systemd.restarts import MIB, Vm, fail_over, steady

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("systemd-services")]

PRIMARY, REPLICA = "vmreplica-primary", "vmreplica-replica"
PROCEDURES = "procedures.md"
WAIT_SECONDS = 60.0


def until(what: str, reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not reached():
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS:.0f} s for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def installed(pair: Pair) -> Pair:
    set_up(pair, head="heartbeat_seconds = 0.5\ndead_after_seconds = 2\n")
    return pair


@pytest.fixture(scope="module")
def vm(installed: Pair) -> Vm:
    """A VM that replicates all the time."""
    # Room for all that a guest writes while an agent is away.
    vm = Vm(installed, "web", log_limit=256 * MIB)
    vm.initial()
    return vm


def main_pid(host: Host, unit: str) -> int:
    return int(host.show(unit, "MainPID"))


def tap_unit(vm: Vm) -> str:
    """The unit of the VM's tap."""
    (line,) = vm.pair.alpha.systemctl("list-units", "--plain", "--no-legend", "vmreplica-tap@*").splitlines()
    return line.split()[0]


def process(host: Host, unit: str, name: str) -> str:
    """A field of the status of the unit's main process, as the kernel tells it."""
    (line,) = (
        line
        for line in host.path(f"/proc/{main_pid(host, unit)}/status").read_text().splitlines()
        if line.startswith(f"{name}:")
    )
    return line.partition(":")[2].strip()


@contextmanager
def drop_in(host: Host, unit: str, text: str) -> Iterator[None]:
    """With these settings of the unit; it is restarted with and without them."""
    path = f"/etc/systemd/system/{unit}.service.d/test.conf"
    host.write(path, f"[Service]\n{text}\n")
    host.systemctl("daemon-reload")
    host.restart(unit)
    try:
        yield
    finally:
        host.path(path).unlink()
        host.systemctl("daemon-reload")
        host.systemctl("reset-failed", unit, check=False)
        host.restart(unit)


@contextmanager
def writing(vm: Vm) -> Iterator[None]:
    """A guest at alpha that writes without a pause; any error that it is answered fails the test, and so does a
    connection that ended: the tap never went away.
    """
    host, folder = vm.pair.alpha, "/srv/writer"
    host.shell(f"mkdir -p {folder} && cp --sparse=always {vm.disk} {folder}/shadow.raw")
    plan = {
        "uris": [vm.uri()], "shadows": [f"{folder}/shadow.raw"], "journal": f"{folder}/journal", "seed": 7,
        "pause": 0.01, "longest": 16384,
    }  # fmt: skip
    words = (
        "env",
        f"--chdir={CHECKOUT}",
        "PYTHONDONTWRITEBYTECODE=1",
        "/usr/bin/python3",
        "-m",
        "tests.pair.nbd_writer",
    )
    with host.open(*words, json.dumps(plan)) as writer:
        writer.ask("go", "going")
        before = vm.status()["tap"]["pid"]
        yield
        writer.ask("stop", "idle")
        writer.ask("end", "bye")
    assert vm.wait("the tap", lambda now: now["tap"]["running"])["tap"]["pid"] == before
    assert host.path(f"{folder}/journal").stat().st_size
    vm.assert_same()
    host.run("cmp", vm.disk, f"{folder}/shadow.raw")


def test_a_stop_is_orderly_and_active_means_ready(vm: Vm) -> None:
    for host, unit in ((vm.pair.alpha, PRIMARY), (vm.pair.beta, REPLICA)):
        host.systemctl("stop", unit)
        # Not killed for being late, nor failed.
        assert host.show(unit, "Result") == "success"
        assert host.show(unit, "ExecMainStatus") == "0"
        host.systemctl("start", unit)
        # systemctl has returned: the agent answers, and knows its VMs, at the first try.
        assert vm.pair.status(host.name, "web")
        assert host.show(unit, "StatusText").startswith("1 VM: ")
        assert "Status:" in host.systemctl("status", unit)
    assert vm.pair.alpha.show(tap_unit(vm), "StatusText").startswith("web: 1 disk")
    vm.connected()


def test_the_watchdog_ends_an_agent_that_stands_still_and_the_vm_goes_on(vm: Vm) -> None:
    alpha = vm.pair.alpha
    with drop_in(alpha, PRIMARY, "WatchdogSec=2\nRestartSec=0"):
        vm.connected()
        with writing(vm):
            stopped = main_pid(alpha, PRIMARY)
            alpha.run("kill", "-STOP", str(stopped))
            until("another process", lambda: main_pid(alpha, PRIMARY) not in (0, stopped))
            until("readiness", lambda: alpha.show(PRIMARY, "ActiveState") == "active")
            vm.connected()
        assert "watchdog" in alpha.journal("-u", PRIMARY).lower()


def test_a_reload_keeps_process_and_sessions(vm: Vm) -> None:
    vm.connected()
    pair = vm.pair
    before = [main_pid(pair.alpha, PRIMARY), main_pid(pair.beta, REPLICA)]
    since = vm.status()["link"]["since_time"]
    pair.alpha.systemctl("reload", PRIMARY)
    pair.beta.systemctl("reload", REPLICA)
    vm.write()
    vm.assert_same()
    assert [main_pid(pair.alpha, PRIMARY), main_pid(pair.beta, REPLICA)] == before
    assert vm.status()["link"]["since_time"] == since


def test_a_reload_of_a_mistake_is_told_and_changes_nothing(vm: Vm) -> None:
    alpha = vm.pair.alpha
    config = alpha.path("/etc/vmreplica/primary.toml")
    good = config.read_text()
    before = main_pid(alpha, PRIMARY)
    config.write_text("hartbeat_seconds = 1\n" + good)
    alpha.systemctl("reload", PRIMARY, check=False)
    until("the complaint", lambda: "heartbeat_seconds" in alpha.show(PRIMARY, "StatusText"))
    config.write_text(good)
    alpha.systemctl("reload", PRIMARY)
    until("no complaint", lambda: "heartbeat_seconds" not in alpha.show(PRIMARY, "StatusText"))
    assert main_pid(alpha, PRIMARY) == before


def test_a_guest_does_not_notice_restarts_and_upgrades(vm: Vm) -> None:
    """Restart and kill of the agent, then the package's upgrade, under a writing guest; and under that of a VM that was
    failed over, whose tap is in the cgroup of the replica's unit.
    """
    pair, alpha = vm.pair, vm.pair.alpha
    promoted = Vm(pair, "promoted")
    fail_over(promoted)
    with writing(vm), steady(promoted):
        alpha.restart(PRIMARY)
        before = main_pid(alpha, PRIMARY)
        alpha.run("kill", "-KILL", str(before))
        until("another process", lambda: main_pid(alpha, PRIMARY) not in (0, before))
        vm.connected()
        pair.beta.restart(REPLICA)
        before = main_pid(alpha, PRIMARY)
        for host in pair.hosts.values():
            host.put(newer(package()), "/root/next.deb")
            host.run("dpkg", "-i", "/root/next.deb")
        assert main_pid(alpha, PRIMARY) not in (0, before)
        vm.connected()
    promoted.remove()


def test_a_stop_of_the_tap_is_a_pause_and_costs_no_resync(vm: Vm) -> None:
    """Nobody should; whoever does it stops the guest's I/O until the agent has started it again, at once."""
    alpha, unit = vm.pair.alpha, tap_unit(vm)
    vm.write()
    before = vm.status()
    # The agent may start it anew while systemctl still waits, which then says that its job was cancelled.
    alpha.systemctl("stop", unit, check=False)
    after = vm.wait("another tap", lambda now: now["tap"]["running"] and now["tap"]["pid"] != before["tap"]["pid"])
    assert (after["tap"]["tracking"], after["state"], after["causes"]) == ("on", "Replicating", [])
    # With the agent stopped it stays where it was put, and the agent's start brings it back.
    alpha.systemctl("stop", PRIMARY)
    alpha.systemctl("stop", unit)
    assert alpha.show(unit, "ActiveState") == "inactive"
    assert not alpha.path(f"/run/vmreplica/primary/{before['uuid']}/nbd.sock").exists()
    alpha.systemctl("start", PRIMARY)
    # Ready means that guests are served (Service.served).
    assert alpha.show(unit, "ActiveState") == "active"
    vm.wait("the session", lambda now: now["link"]["connected"] and now["tap"]["tracking"] == "on")
    vm.write()
    vm.assert_same()
    assert vm.status()["newest_cut"]["epoch"] == before["newest_cut"]["epoch"], "no compare was needed"


def test_the_sandbox_is_in_force(vm: Vm) -> None:
    pair = vm.pair
    units = ((pair.alpha, PRIMARY), (pair.alpha, tap_unit(vm)), (pair.beta, REPLICA))
    for host, unit in units:
        assert process(host, unit, "NoNewPrivs") == "1"
        assert process(host, unit, "Seccomp") == "2"
        # What the process sees of the file system: /etc and /usr can't be written, homes are not there.
        inside = ("nsenter", "-t", str(main_pid(host, unit)), "--mount", "--")
        for path in ("/etc", "/usr", "/var/lib/dpkg"):
            tried = host.run(*inside, "touch", f"{path}/planted", check=False)
            assert "Read-only file system" in tried.stderr, (unit, path)
        assert host.run(*inside, "ls", "/root", check=False).stdout == ""
    capabilities = {unit: int(process(host, unit, "CapBnd"), 16) for host, unit in units}
    assert capabilities[REPLICA] == 0
    assert process(pair.beta, REPLICA, "Uid").split()[0] == pair.beta.run("id", "-u", "vmreplica").stdout.strip()
    # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH; CAP_CHOWN and CAP_DAC_OVERRIDE.
    assert capabilities[PRIMARY] == (1 << 1) | (1 << 2)
    assert capabilities[units[1][1]] == (1 << 0) | (1 << 1)
    # The tap has no network at all.
    tap = pair.alpha.path(f"/proc/{main_pid(pair.alpha, units[1][1])}/net/dev").read_text()
    assert "eth0" not in tap


def test_a_bad_configuration_is_told_once_and_not_tried_again(vm: Vm) -> None:
    beta = vm.pair.beta
    config = beta.path("/etc/vmreplica/replica.toml")
    good = config.read_text()
    config.write_text(good.replace("[tls]", "[tsl]"))
    try:
        assert beta.run("systemctl", "restart", REPLICA, check=False).returncode != 0
        assert beta.show(REPLICA, "ActiveState") == "failed"
        assert beta.show(REPLICA, "ExecMainStatus") == "2"
        assert beta.show(REPLICA, "NRestarts") == "0"
        assert "tls" in beta.show(REPLICA, "StatusText")
    finally:
        config.write_text(good)
        beta.systemctl("reset-failed", REPLICA)
        beta.systemctl("start", REPLICA)
    vm.connected()


def test_the_key_as_a_credential(vm: Vm) -> None:
    """Only systemd reads the key's file: it is root's again, and the agent runs as another user."""
    beta = vm.pair.beta
    config = beta.path("/etc/vmreplica/replica.toml")
    good = config.read_text()
    key = "/etc/vmreplica/pki/key.pem"
    beta.run("chown", "root:", key)
    config.write_text(good.replace(f'"{key}"', '"credential:key.pem"'))
    with drop_in(beta, REPLICA, f"LoadCredential=key.pem:{key}"):
        try:
            vm.write()
            vm.connected()
            vm.assert_same()
        finally:
            config.write_text(good)
            beta.run("chown", "vmreplica:", key)
    vm.connected()


def test_events_are_in_the_journal_with_their_fields(vm: Vm) -> None:
    told = [
        json.loads(line)
        for line in vm.pair.alpha.run(
            "journalctl", "--output=json", "VMREPLICA_VM=web", "VMREPLICA_EVENT=60010"
        ).stdout.splitlines()
    ]
    (enabled,) = told
    assert enabled["VMREPLICA_ROLE"] == "primary"
    assert enabled["VMREPLICA_UUID"] == vm.status()["uuid"]
    assert enabled["_SYSTEMD_UNIT"] == f"{PRIMARY}.service"
    assert "web" in enabled["MESSAGE"]


def test_whoever_writes_past_the_tap_is_seen(vm: Vm) -> None:
    """The agent's sandbox hides other processes from it; vmreplica-watch, started with it, sees them and tells it."""
    alpha = vm.pair.alpha
    assert alpha.show("vmreplica-watch", "ActiveState") == "active"
    assert not vm.status()["bypasses"]
    # The alarm's command runs in the unit's sandbox, as its user.
    config, paged = alpha.path("/etc/vmreplica/primary.toml"), "/var/lib/vmreplica/primary/paged"
    good = config.read_text()
    command = f"command = ['/bin/sh', '-c', 'printenv VMREPLICA_VM VMREPLICA_NAME >{paged}']"
    config.write_text(f"{good}\n[[alarms]]\nname = 'pager'\nevents = [60210]\nhold_seconds = 0\n{command}\n")
    alpha.systemctl("reload", PRIMARY)
    program = f"import time; held = open({vm.disk!r}, 'r+b'); time.sleep(600)"
    alpha.run("systemd-run", "--unit=bypass", "/usr/bin/python3", "-c", program)
    try:
        # It looks when it starts, and then every minute.
        alpha.restart("vmreplica-watch")
        seen = vm.wait("the bypass", lambda now: now["bypasses"])
        assert (seen["health"], seen["protected"]) == ("Critical", False)
        until("the alarm", lambda: vm.pair.call("alpha", "alarms")["alarms"][0]["sent"])
        assert alpha.path(paged).read_text() == "web\nbypassed\n"
    finally:
        alpha.systemctl("stop", "bypass")
        config.write_text(good)
        alpha.systemctl("reload", PRIMARY)
    alpha.restart("vmreplica-watch")
    vm.wait("the end of the bypass", lambda now: not now["bypasses"])


def test_the_store_is_moved_as_the_page_tells(vm: Vm) -> None:
    """On its volume, where nothing is compared, and then to another: the units may write there."""
    pair, beta = vm.pair, vm.pair.beta
    stop, move, resynchronize = commands(PROCEDURES, "Moving the store")
    before = len(required(vm))
    beta.shell(stop)
    vm.write()
    beta.shell(move)
    replace(beta, "replica", "/var/lib/vmreplica/replica/alpha", "/var/lib/vmreplica/copies/alpha")
    vm.connected()
    vm.wait_state("Replicating")
    vm.assert_same()
    assert len(required(vm)) == before
    beta.shell(f"{stop}; cp --archive --sparse=always /var/lib/vmreplica/copies /srv/copies")
    replace(beta, "replica", "/var/lib/vmreplica/copies/alpha", "/srv/copies/alpha")
    vm.wait("the cause", lambda now: len(required(vm)) > before and now["link"]["connected"])
    pair.alpha.shell(resynchronize)
    vm.wait_state("Replicating")
    vm.write()
    vm.assert_same()
    (disk,) = vm.status("beta")["disks"]
    assert disk["path"].startswith("/srv/copies/alpha/")


def test_the_primarys_state_is_moved_as_the_page_tells(vm: Vm) -> None:
    """The VM is shut down: nobody has its disk open. Nothing is compared."""
    alpha = vm.pair.alpha
    *stops, move = commands(PROCEDURES, "Moving the primary's state")
    before = len(required(vm))
    for stop in stops:
        alpha.shell(stop)
    alpha.shell(move)
    replace(alpha, "primary", "", 'state_dir = "/srv/vmreplica-primary"\n')
    vm.connected()
    vm.write()
    vm.wait_state("Replicating")
    vm.assert_same()
    assert len(required(vm)) == before
    assert alpha.path("/srv/vmreplica-primary/vms").is_dir()
    assert not alpha.path("/var/lib/vmreplica/primary/vms").exists()


def required(vm: Vm) -> list[object]:
    """Each time that a resynchronization became necessary."""
    events = vm.pair.call("alpha", "events", vm=vm.name, limit=1000)["events"]
    return [event for event in events if event["event"] == EventId.RESYNC_REQUIRED]


def replace(host: Host, role: str, old: str, new: str) -> None:
    """Change the configuration of an agent that is stopped, as an administrator does, and start it."""
    config = host.path(f"/etc/vmreplica/{role}.toml")
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new, 1))
    host.shell(f"vmreplica setup {role} --yes && systemctl start vmreplica-{role}")


def test_both_roles_live_on_one_host(vm: Vm) -> None:
    """beta becomes a primary as well, and replicates a VM of its own to itself."""
    beta = vm.pair.beta
    # It has the default's heartbeat, the replica another: each is judged by what it tells.
    beta.shell("vmreplica setup primary --yes && systemctl enable --now vmreplica-primary")
    config = beta.path("/etc/vmreplica/replica.toml")
    config.write_text(
        config.read_text()
        + '\n[[authorize]]\nname = "beta"\nvms = ["*"]\nstorage = "/var/lib/vmreplica/replica/beta"\n'
    )
    beta.shell("vmreplica setup replica --yes && systemctl restart vmreplica-replica")
    beta.shell("mkdir -p /srv/images && truncate -s 16M /srv/images/own.raw")
    beta.shell("vmreplica enable own --disk /srv/images/own.raw --replica beta")
    beta.shell("vmreplica initial own --no-wait")
    vm.pair.wait("the first copy", "beta", lambda now: now["state"] == "Replicating", vm="own", role="primary")
    for role in ("primary", "replica"):
        assert vm.pair.status("beta", "own", role=role)["state"] == "Replicating"
    beta.shell("vmreplica remove own --role primary --yes && vmreplica remove own --role replica --yes")
    vm.connected()
