"""The record of orders, by the agents' programs and the command."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.pair.hosts import MIB, VM, Hosts

pytestmark = pytest.mark.slow


def test_orders_to_a_real_agent_are_on_record(hosts: Hosts) -> None:
    """By the agents' programs and the command: settings before and after, a restart, and a chain that is whole."""
    hosts.make_disks(MIB)
    hosts.prepare(cuttable=False)
    hosts.start_both()
    hosts.enable(interval=300.0)
    hosts.run("set", VM, "interval=30s")
    hosts.wait("the VM there", "replica", lambda _: True)
    hosts.run("remove", VM, "--yes", "--role", "replica")
    hosts.agents["primary"].send_signal(signal.SIGHUP)
    hosts.wait("the reload", "primary", lambda _: "reloaded" in hosts.logs())
    hosts.agents["primary"].terminate()
    hosts.agents.pop("primary").wait()
    hosts.start("primary")
    logs = json.loads(hosts.run("audit", "--role", "primary", "--json"))["logs"]
    entries = logs[0]["entries"]
    assert [(entry["verb"], entry["result"]) for entry in entries] == [
        ("agent.start", "ok"), ("vm.enable", "ok"), ("vm.set", "ok"), ("agent.reload", "ok"), ("agent.stop", "ok"),
        ("agent.start", "ok"),
    ]  # fmt: skip
    changed = entries[2]
    assert (changed["before"]["interval_seconds"], changed["after"]["interval_seconds"]) == (300.0, 30.0)
    assert (changed["vm"], changed["uid"]) == (VM, os.getuid())
    assert entries[1]["before"] == {}
    assert entries[1]["after"]["interval_seconds"] == 300.0
    removed = json.loads(hosts.run("audit", "--role", "replica", "--json"))["logs"][0]["entries"][-1]
    assert (removed["verb"], removed["vm"], removed["after"]) == ("vm.remove", VM, {})
    assert removed["before"]["state"] == "ReadyForInitialReplication"
    assert "are as they were written" in hosts.run("audit", "--verify")
    assert "seq=" in hosts.logs()
