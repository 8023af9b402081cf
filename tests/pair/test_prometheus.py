"""A real Prometheus reads both agents: they are up, their metrics are without fault, rules and dashboard find them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.link_cutter import LinkCutter
from tests.pair.hosts import MIB, ROOT, VM, Hosts, patience

pytestmark = pytest.mark.slow
RULES = ROOT / "packaging" / "prometheus" / "vmreplica.rules.yml"
DASHBOARD = ROOT / "packaging" / "grafana" / "vmreplica.json"


class Prometheus:
    """One that scrapes the agents every second."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        self.port = LinkCutter.free_port()
        config = folder / "prometheus.yml"
        shutil.copy(RULES, folder)
        # JSON is YAML.
        plain = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [RULES.name],
            "scrape_configs": [{"job_name": "vmreplica", "static_configs": [{"targets": targets}]}],
        }
        config.write_text(json.dumps(plain))
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/prometheus",
                    f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def ask(self, path: str, **query: str) -> Any:
        """What its API answers, None while it does not yet."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return None

    def values(self, expression: str) -> list[float]:
        found = self.ask("query", query=expression)
        return [float(each["value"][1]) for each in found["result"]] if found is not None else []


@contextmanager
def prometheus(folder: Path, targets: list[str]) -> Iterator[Prometheus]:
    started = Prometheus(folder, targets)
    try:
        yield started
    finally:
        started.process.terminate()
        started.process.wait()


def test_prometheus_reads_both_agents(hosts: Hosts) -> None:
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        pytest.skip("needs prometheus and promtool (Debian: prometheus)")
    hosts.prepare()
    ports = {role: LinkCutter.free_port() for role in ("primary", "replica")}
    for role, port in ports.items():
        with (hosts.folder / f"{role}.toml").open("a") as config:
            config.write(f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    hosts.make_disks(4 * MIB)
    hosts.start_both()
    with prometheus(hosts.folder, [f"127.0.0.1:{port}" for port in ports.values()]) as watching:
        hosts.enable()
        hosts.wait("the link", "primary", lambda vm: vm["link"]["healthy"])
        hosts.call("primary", "vm.initial", vm=VM)
        hosts.wait_state("Replicating")
        hosts.caught_up()
        for role in ports:
            # What the command prints is what Prometheus reads, and its own tool finds no fault with it.
            text = hosts.command("metrics", "--role", role).stdout
            lint = subprocess.run(
                ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
            )
            assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")
        told: dict[str, object] = {}
        for _ in patience("Prometheus to see a protected VM at both sides", told):
            told["up"] = watching.ask("targets")
            if len(watching.values("vmreplica_vm_protected == 1")) == 2:
                break
        assert watching.values('up{job="vmreplica"}') == [1, 1]
        assert watching.values('vmreplica_vm_state{state="Replicating"} == 1') == [1, 1]
        assert watching.values("sum(vmreplica_replications_total)")[0] >= 2
        assert min(watching.values("vmreplica_store_free_bytes")) > 0
        assert watching.values("vmreplica_trust_expiry_timestamp_seconds - time() > 86400")
        (group,) = watching.ask("rules")["groups"]
        assert [rule["health"] for rule in group["rules"] if rule["health"] == "err"] == []
        assert len(group["rules"]) == len(re.findall(r"- alert:", RULES.read_text()))
        for expression in expressions():
            assert watching.ask("query", query=expression) is not None, expression
        measures_and_resets(hosts)
        hosts.kill("primary")
        for _ in patience("an alert on the agent that is gone", told):
            if watching.values('ALERTS{alertname="VmreplicaAgentDown"}') == [1]:
                break
        # The replica counts the cycles in which it receives nothing, whatever the primary has come to.
        hosts.wait("a missed cycle", "replica", lambda vm: vm["statistics"]["missed_replication_count"])


def measures_and_resets(hosts: Hosts) -> None:
    """Figures and churn of what was just written, and a reset of the figures at both sides, each with its event."""
    writes = [word for block in range(8) for word in ("-c", f"write -P {block + 1} {block * 64}k 64k")]
    subprocess.run(["qemu-io", "-f", "raw", *writes, "-c", "flush", *hosts.uris], check=True, stdout=subprocess.DEVNULL)
    hosts.caught_up()
    churn = hosts.call("primary", "vm.churn", vm=VM)
    ((disk,), path) = (churn["disks"], str(hosts.disks[0]))
    assert (disk["path"], disk["regions"][0]["offset"], disk["written_regions"]) == (path, 0, 1)
    assert churn["bytes_per_second"] * max(churn["counted_seconds"], 1) >= 500_000
    for role in ("primary", "replica"):
        before = hosts.call(role, "vm.measure", vm=VM)
        assert before["successful_replication_count"] > 0
        assert (before["replication_health"], before["replication_health_details"]) == ("Normal", [])
        after = hosts.call(role, "vm.measure_reset", vm=VM)
        assert after["successful_replication_count"] <= 1 < before["replications_since_start"]
        assert after["monitoring_start_time"] > before["monitoring_start_time"]
        assert after["replications_since_start"] >= before["replications_since_start"]
        (event,) = [each for each in hosts.events(role) if each["cause"] == "statistics reset"]
        assert event["data"]["uid"] == os.getuid()


def expressions() -> Iterator[str]:
    """What the dashboard's panels ask."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"].replace("$vm", ".*")
