"""Certificates and their CA are exchanged, revoked and withdrawn under two real agents that replicate meanwhile."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.pair.hosts import MIB, Hosts, Status, patience

pytestmark = pytest.mark.slow
HOSTS = {"primary": "alpha", "replica": "localhost"}


def begin(hosts: Hosts) -> None:
    """Two hosts with revocation lists, a replicated VM, and a client that writes."""
    hosts.make_disks(4 * MIB)
    hosts.prepare(cuttable=False)
    for role, host in HOSTS.items():
        path = hosts.folder / f"{role}.toml"
        folder = hosts.folder / "pki" / host
        path.write_text(path.read_text().replace("[tls]\n", f'[tls]\ncrl = "{folder}/crl.pem"\n'))
    hosts.start_both()
    hosts.enable(log_limit=1024 * MIB)
    hosts.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
    hosts.call("primary", "vm.initial", vm="demo")
    hosts.wait_state("Replicating")


def install(hosts: Hosts, role: str, *files: str) -> None:
    """Copy files, named from the folder of the test, to a host."""
    for file in files:
        source = hosts.folder / file
        shutil.copyfile(source, hosts.folder / "pki" / HOSTS[role] / source.name)


def reload(hosts: Hosts, role: str, done: Callable[[dict[str, Any]], object]) -> None:
    """SIGHUP; returns when the agent's status shows that it has loaded what was installed."""
    hosts.agents[role].send_signal(signal.SIGHUP)
    last: dict[str, object] = {}
    for _ in patience("a reload", last):
        last["status"] = status = hosts.call(role, "status")
        if done(status):
            return


def has_authorities(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda agent: [each["subject"] for each in agent["certificates"] if each["what"] == "ca"] == list(names)


def is_issued_by(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda agent: [each["issuer"] for each in agent["certificates"] if each["what"] == "own"] == [name]


def session(hosts: Hosts) -> tuple[object, ...]:
    """What tells one session from another, on both sides."""
    return tuple(hosts.status(role)["link"]["since_time"] for role in HOSTS)


def peer_issuer(vm: Status) -> list[str]:
    return [each["issuer"] for each in vm["link"]["certificates"] if each["what"] == "peer"]


def test_ca_and_certificates_are_exchanged_under_load(hosts: Hosts) -> None:
    """A9, by the commands of docs/certificates.md; one host is left behind at first."""
    begin(hosts)
    writer = hosts.start_writer(1)
    writer.go()
    folder, first = hosts.folder, session(hosts)
    assert hosts.status("replica")["health"] == "Normal"

    # Another CA is trusted beside the first.
    hosts.run("pki", "init", str(folder / "ca-next"), "--name", "next CA")
    hosts.run(
        "pki", "bundle", "--ca", str(folder / "ca"), "--ca", str(folder / "ca-next"), "--out", str(folder / "both")
    )
    for role in HOSTS:
        install(hosts, role, "both/ca.pem", "both/crl.pem")
        reload(hosts, role, has_authorities("vmreplica CA", "next CA"))

    # The replica's certificate is of the next CA.
    certificates = [str(folder / "pki" / host / "certificate.pem") for host in HOSTS.values()]
    hosts.run("pki", "renew", "--ca", str(folder / "ca-next"), "--out", str(folder / "renewed"), *certificates)
    install(hosts, "replica", "renewed/localhost/certificate.pem")
    reload(hosts, "replica", is_issued_by("next CA"))
    hosts.caught_up()
    assert session(hosts) == first, "adding drops nobody"

    # The replica does not trust the first CA any more, and the primary has been forgotten.
    hosts.run("pki", "bundle", "--ca", str(folder / "ca-next"), "--out", str(folder / "last"))
    install(hosts, "replica", "last/ca.pem", "last/crl.pem")
    reload(hosts, "replica", has_authorities("next CA"))
    refused = hosts.wait("the refusal", "primary", lambda vm: vm["problem"])
    assert "does not know the CA" in refused["link"]["last_error"], refused["link"]
    assert "same CA" in refused["link"]["last_error"], refused["link"]
    assert any("vmreplica CA, that" in event["text"] for event in hosts.events()), "it was told before it hung up"
    ended = hosts.status("replica")
    assert "is from a CA, vmreplica CA, that" in ended["link"]["last_error"], ended["link"]
    assert ended["health"] == "Critical"

    # It gets its certificate, and goes on by itself.
    install(hosts, "primary", "renewed/alpha/certificate.pem")
    reload(hosts, "primary", is_issued_by("next CA"))
    for role in HOSTS:
        again = hosts.wait("another session", role, lambda vm: vm["link"]["connected"])
        assert peer_issuer(again) == ["next CA"]
    second = session(hosts)
    install(hosts, "primary", "last/ca.pem", "last/crl.pem")
    reload(hosts, "primary", has_authorities("next CA"))
    writer.finish()
    hosts.assert_same(writer.shadows)
    assert session(hosts) == second, "both sides have certificates that last"
    for role in HOSTS:
        status = hosts.status(role)
        assert (status["state"], status["problem"], status["causes"]) == ("Replicating", None, [])
    assert not [event for event in hosts.events() if event["name"] == "resync_required"]


def test_whoever_is_revoked_loses_the_session_that_it_has(hosts: Hosts) -> None:
    """A4: the list is copied, and nothing is reloaded; each side ends the other's session, and says why."""
    begin(hosts)
    folder = hosts.folder
    for checking, revoked in (("replica", "primary"), ("primary", "replica")):
        host = HOSTS[revoked]
        hosts.run("pki", "revoke", "--ca", str(folder / "ca"), str(folder / "pki" / host / "certificate.pem"))
        install(hosts, checking, "ca/crl.pem")
        ended = hosts.wait("the end", "primary", lambda vm: vm["problem"])
        assert "revoked" in ended["link"]["last_error"], ended["link"]
        assert ended["health"] == "Critical"
        assert any("is revoked (" in event["text"] for event in hosts.events())
        there = hosts.wait("the end", "replica", lambda vm: not vm["link"]["connected"])
        assert "is revoked (" in there["link"]["last_error"], there["link"]
        # With another pair it goes on, and the list holds.
        shutil.rmtree(folder / "again", ignore_errors=True)
        names = {"primary": "alpha", "replica": "localhost"}
        hosts.run("pki", "issue", "--ca", str(folder / "ca"), "--out", str(folder / "again"), names[revoked])
        install(hosts, revoked, f"again/{host}/certificate.pem", f"again/{host}/key.pem")
        hosts.agents[revoked].send_signal(signal.SIGHUP)
        hosts.connect()
        hosts.assert_same()
