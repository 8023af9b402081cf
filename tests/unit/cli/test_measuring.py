"""measure, churn and metrics: their lines, and the command before canned agents and a real disk."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC
from pathlib import Path

import pytest

from shared.admin import verbs as admin
from shared.churn import ChurnReport, DiskChurn, RegionChurn
from shared.cli.churn_estimate import BLOCK, LOG_LEAST, Estimate, estimate
from shared.cli.console import Palette
from shared.cli.measure_text import churn_lines, churn_page, measure_lines
from shared.errors import StorageError, UsageError
from shared.measures import Statistics
from shared.status import to_plain
from tests.unit.cli.conftest import Command
from tests.unit.cli.samples import NOW, UUID, healthy, replica

PLAIN = Palette(enabled=False)
GIB = 1 << 30
CHURN = ChurnReport(
    name="web",
    uuid=UUID,
    monitoring_bytes_per_second=2048.0,
    bytes_per_second=4096.0,
    bytes_per_day=86400 * 2048.0,
    counted_seconds=7200.0,
    disks=[
        DiskChurn(
            index=0,
            path="/images/web.raw",
            size_bytes=20 * GIB,
            region_bytes=64 << 20,
            bytes_per_second=4096.0,
            written_regions=9,
            regions=[
                RegionChurn(offset=GIB, length=64 << 20, bytes_per_second=3072.0),
                RegionChurn(offset=0, length=64 << 20, bytes_per_second=1024.0),
            ],
        )
    ],
)


def test_figures_without_what_is_not_known() -> None:
    figures = Statistics(
        monitoring_start_time=NOW - 43200,
        monitoring_end_time=NOW,
        replication_health="Warning",
        replication_health_details=["One.", "Two."],
        successful_replication_count=97,
        missed_replication_count=3,
        pending_replication_bytes=2048,
        average_replication_bytes=1024.0,
        maximum_replication_bytes=4096,
        average_replication_latency_seconds=0.25,
        maximum_replication_latency_seconds=2.0,
        last_replication_time=NOW,
    )
    assert measure_lines(healthy(), figures, None, PLAIN, UTC) == [
        "web  primary",
        "  monitored       2030-03-17 05:46:40 to 2030-03-17 17:46:40 (12 h 0 min)",
        "  health          Warning",
        "  details         One.",
        "                  Two.",
        "  replicated      97 cuts",
        "  missed          3 cycles (3.0 %)",
        "  errors          0",
        "  size of a cut   1.0 KiB on average, 4.0 KiB at most",
        "  latency         250 ms on average, 2 s at most",
        "  pending         2.0 KiB",
        "  last replicated 2030-03-17 17:46:40",
    ]


def test_measure_and_reset_at_every_agent_that_has_the_vm(vmreplica: Command) -> None:
    primary, other = vmreplica.agent(), vmreplica.agent("replica", [replica()])
    plain = to_plain(Statistics(successful_replication_count=7))
    for canned in (primary, other):
        canned.answers[admin.MEASURE] = canned.answers[admin.MEASURE_RESET] = plain
    [vm, _] = json.loads(vmreplica("measure", "web", "--json").out)["vms"]
    assert vm["statistics"]["successful_replication_count"] == 7
    assert primary.calls == [(admin.MEASURE, {"vm": UUID})]
    ran = vmreplica("measure", "web", "--reset")
    assert ran.code == 0 and ran.lines.count("  replicated      7 cuts") == 2
    assert primary.calls[-1] == other.calls[-1] == (admin.MEASURE_RESET, {"vm": UUID})
    refused = vmreplica("measure", "--reset")
    assert (refused.code, len(primary.calls)) == (UsageError.exit_code, 2)


def test_churn_of_all_vms_the_busiest_first() -> None:
    idle = ChurnReport(name="db", uuid="u")
    assert churn_lines([idle, CHURN], PLAIN) == [
        "VM   IN THE INTERVAL     LATELY      A DAY  BUSIEST REGION",
        "web        2.0 KiB/s  4.0 KiB/s  168.8 MiB  /images/web.raw 1.0 GiB to 1.1 GiB",
        "db                 -      0 B/s        0 B  -",
    ]


def test_churn_of_one_vm_names_its_regions() -> None:
    assert churn_page(CHURN, PLAIN) == [
        "web  2.0 KiB/s in the monitoring interval, 4.0 KiB/s lately, 168.8 MiB a day at this rate",
        "  disk 0  /images/web.raw  4.0 KiB/s, in 9 regions of 64.0 MiB",
        "    1.0 GiB to 1.1 GiB  3.0 KiB/s  75 %",
        "    0 B to 64.0 MiB     1.0 KiB/s  25 %",
        "  Regions are counted since the agent started, 2 h 0 min ago; what was written an hour ago counts half.",
    ]


def test_churn_asks_the_primary_only(vmreplica: Command) -> None:
    primary = vmreplica.agent()
    vmreplica.agent("replica", [replica()])
    primary.answers[admin.CHURN] = to_plain(CHURN)
    assert vmreplica("churn", "web", "--top", "3").lines[0].startswith("web  2.0 KiB/s")
    assert primary.calls == [(admin.CHURN, {"vm": UUID, "top": 3})]


def test_metrics_are_those_of_one_agent(vmreplica: Command) -> None:
    for role, vms in (("primary", [healthy()]), ("replica", [replica()])):
        vmreplica.agent(role, vms).answers[admin.METRICS] = {"text": f"vmreplica_agent_vms{{role={role!r}}} 1\n"}
    assert vmreplica("metrics", "--role", "replica").lines == ["vmreplica_agent_vms{role='replica'} 1"]
    assert vmreplica("metrics").code == UsageError.exit_code


# --- estimating


def test_an_estimate_counts_the_blocks_that_changed_between_two_readings(tmp_path: Path) -> None:
    disk = tmp_path / "web.raw"
    with disk.open("wb") as file:
        file.write(os.urandom(16 * BLOCK))
        file.truncate(64 << 20)
    read = threading.Event()

    def tell(text: str) -> None:
        # Between the two readings: three blocks are changed, one of them by a byte, and a hole is filled.
        if text.startswith("waiting") and not read.is_set():
            read.set()
            with disk.open("r+b") as file:
                for block in (1, 2):
                    file.seek(block * BLOCK)
                    file.write(os.urandom(BLOCK))
                file.seek(9 * BLOCK + 5)
                file.write(b"\0" if file.read(1) != b"\0" else b"\1")
                file.seek(32 << 20)
                file.write(b"new")

    found = estimate(str(disk), 0.05, tell)
    assert read.is_set()
    assert (found.size, found.changed) == (64 << 20, 3 * BLOCK)
    assert found.read == found.scanned == 4 << 20
    assert found.grown == 4 << 20
    assert found.seconds >= 0.05


def test_what_is_recommended_lasts_for_a_night() -> None:
    idle = Estimate("/d", 1 << 40, GIB, GIB, 0, 0, 60.0)
    assert (idle.bytes_per_second, idle.log_limit) == (0.0, LOG_LEAST)
    busy = Estimate("/d", 1 << 40, GIB, GIB, 60 << 20, 0, 60.0)
    assert busy.bytes_per_second == 1 << 20
    assert busy.log_limit % LOG_LEAST == 0
    assert 8 * 3600 << 20 <= busy.log_limit <= 2 * 8 * 3600 << 20


def test_no_disk_no_estimate(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        estimate(str(tmp_path), 1.0)
    with pytest.raises(StorageError):
        estimate(str(tmp_path / "none"), 1.0)
    (tmp_path / "empty").touch()
    assert estimate(str(tmp_path / "empty"), 0.01).changed == 0


def test_estimate_needs_no_agent(vmreplica: Command, tmp_path: Path) -> None:
    disk = tmp_path / "web.raw"
    disk.write_bytes(os.urandom(2 * BLOCK))
    ran = vmreplica("churn", "--estimate", str(disk), "--for", "0.1s")
    assert ran.code == 0
    assert ran.lines[0].startswith(f"{disk}: 0 B of 128.0 KiB changed in ")
    plain = json.loads(vmreplica("churn", "--estimate", str(disk), "--for", "0.1s", "--json").out)
    assert (plain["changed_bytes"], plain["compared_bytes"]) == (0, 2 * BLOCK)
    assert [cycle["interval_seconds"] for cycle in plain["cycles"]] == [30.0, 300.0, 900.0]
    assert vmreplica("churn", "web", "--estimate", str(disk)).code == UsageError.exit_code
