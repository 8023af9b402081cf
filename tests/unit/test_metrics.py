"""The metrics: what a status becomes, without fault; rules, dashboard and page know only them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.cli.metrics_page import current
from shared.expiry import CertificateStatus
from shared.failover_status import FailoverStatus, PlannedStatus, TestFailoverStatus
from shared.guest_status import ConsistencyStatus, DefinitionStatus
from shared.limits import LimitsStatus
from shared.metrics import AGENT_METRICS, VM_METRICS
from shared.metrics_text import render
from shared.point_status import PointProof
from shared.status import AgentStatus, VerifyResult, VerifyStatus
from tests.unit.cli.samples import NOW, UUID, agent, changed, cut, healthy, replica, resynchronizing

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "packaging" / "prometheus"
DASHBOARD = ROOT / "packaging" / "grafana" / "vmreplica.json"
PAGE = ROOT / "docs" / "monitoring.md"
NAMES = {metric.name for metric in AGENT_METRICS} | {metric.name for metric in VM_METRICS}
BASE = {"vm": "web", "uuid": UUID, "role": "primary"}


def read(status: AgentStatus) -> dict[str, list[tuple[dict[str, str], float]]]:
    """By the name of the sample: labels and value."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(render(status).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def one(status: AgentStatus, name: str, **labels: str) -> float:
    (value,) = [value for found, value in read(status)[name] if found == BASE | labels]
    return value


def primary(**fields: Any) -> AgentStatus:
    return agent(vms=[healthy(**fields)])


def test_a_status_becomes_samples_with_units_and_labels() -> None:
    status = primary(lag_seconds=2.5, store_free_bytes=77)
    assert one(status, "vmreplica_vm_lag_seconds") == 2.5
    assert one(status, "vmreplica_link_round_trip_seconds") == pytest.approx(0.00042)
    assert one(status, "vmreplica_tap_written_bytes_total") == 5 << 30
    assert one(status, "vmreplica_disk_size_bytes", disk="0") == 20 << 30
    assert one(status, "vmreplica_store_free_bytes") == 77
    assert one(status, "vmreplica_vm_state", state="Replicating") == 1
    assert one(status, "vmreplica_vm_state", state="Error") == 0
    assert one(status, "vmreplica_vm_health", health="Normal") == 1
    assert one(status, "vmreplica_tap_tracking", tracking="on") == 1


def test_what_is_not_known_has_no_sample() -> None:
    found = read(primary(lag_seconds=None, tap=None))
    assert not {"vmreplica_vm_lag_seconds", "vmreplica_tap_clients", "vmreplica_work_done_bytes"} & set(found)
    assert found["vmreplica_tap_running"] == [(BASE, 0)]


def test_each_role_has_its_own() -> None:
    here, there = read(primary()), read(agent("replica", [replica()]))
    assert "vmreplica_tap_running" in here and "vmreplica_tap_running" not in there
    assert "vmreplica_points" in there and "vmreplica_points" not in here
    ((labels, _),) = there["vmreplica_vm_protected"]
    assert labels["role"] == "replica"


def test_exports_that_can_not_be_read_are_counted() -> None:
    (export,) = replica().exports
    exports = [export, msgspec.structs.replace(export, id="2", error="gone")]
    status = agent("replica", [replica(exports=exports)])
    assert [value for name in ("exports", "exports_failed") for _, value in read(status)[f"vmreplica_{name}"]] == [2, 1]


def test_names_of_vms_can_break_nothing() -> None:
    name = 'a"}\n\\ evil 1\n'
    status = agent(vms=[healthy(name=name)])
    assert {labels["vm"] for labels, _ in read(status)["vmreplica_vm_protected"]} == {name}


@pytest.mark.parametrize(
    ("outcome", "epoch", "different"), [("different", None, 4096), ("repaired", None, 0), ("different", "0" * 32, 0)]
)
def test_what_was_repaired_is_no_longer_different(outcome: str, epoch: str | None, different: int) -> None:
    last = VerifyResult(
        outcome=outcome, text="", started_time=NOW, ended_time=NOW + 9, different_bytes=4096,
        epoch=healthy().epoch if epoch is None else epoch,
    )  # fmt: skip
    status = primary(verify=VerifyStatus(last=last))
    assert one(status, "vmreplica_verify_different_bytes") == different
    assert one(status, "vmreplica_verify_last_timestamp_seconds") == NOW + 9


def test_every_metric_can_have_a_sample() -> None:
    """None of them reads a field that is never there."""
    seen: set[str] = set()
    for status in everything():
        seen |= {name for name in read(status) if name.startswith("vmreplica_")}
    assert seen == NAMES


FROZEN = ConsistencyStatus(
    setting="libvirt:web", hours=4, frozen_since=NOW, taken_since_start=7, failures_since_start={"freeze_late": 2},
    frozen_seconds_since_start=1.5, last_frozen_seconds=0.25,
)  # fmt: skip
PROVEN = PointProof(point="0/1", cut=cut(1, 1.0), started_time=NOW, ended_time=NOW + 9, outcome="wrong")


def test_cuts_with_a_frozen_guest_are_counted() -> None:
    status = primary(consistency=FROZEN, application_cut=cut(3, 60.0))
    assert one(status, "vmreplica_consistent_cut_interval_seconds") == 4 * 3600
    assert one(status, "vmreplica_consistent_cuts_total") == 7
    assert one(status, "vmreplica_consistent_cut_failures_total", reason="freeze_late") == 2
    assert one(status, "vmreplica_guest_last_frozen_seconds") == 0.25
    assert one(status, "vmreplica_guest_frozen_timestamp_seconds") == NOW
    assert one(status, "vmreplica_consistent_cut_timestamp_seconds") == NOW - 60
    never = msgspec.structs.replace(FROZEN, hours=0, frozen_since=None)
    assert not {"vmreplica_consistent_cut_interval_seconds", "vmreplica_guest_frozen_timestamp_seconds"} & set(
        read(primary(consistency=never))
    )


def test_failovers_are_told_by_their_states() -> None:
    for step, prepared in (("sending", 0), ("confirmed", 1), ("forced", 0)):
        status = primary(planned=PlannedStatus(step=step, step_time=NOW))
        assert one(status, "vmreplica_failover_prepared") == prepared
        assert ("vmreplica_failover_prepared_timestamp_seconds" in read(status)) == bool(prepared)
    assert one(primary(split_brain=True, handed_over=True), "vmreplica_split_brain") == 1
    failover = FailoverStatus(time=NOW, epoch="e", undoable=True, written_bytes=3, settling_bytes=2, trouble="full")
    found = read(agent("replica", [replica(failover=failover, proof=PROVEN)]))
    values = {name.removeprefix("vmreplica_failover_"): samples[0][1] for name, samples in found.items()}
    assert [values[name] for name in ("timestamp_seconds", "undoable", "undoing", "written_bytes")] == [NOW, 1, 0, 3]
    assert [values[name] for name in ("settled_bytes", "settling_bytes", "settling_failed")] == [0, 2, 1]
    told = {labels["outcome"]: value for labels, value in found["vmreplica_point_proof_outcome"]}
    assert told == {"proven": 0, "wrong": 1, "unrecorded": 0, "undecided": 0}
    assert "vmreplica_failover_undoable" not in read(agent("replica", [replica()]))


def everything() -> Iterator[AgentStatus]:
    """Statuses in which every figure is known."""
    here = resynchronizing(promised_lag_seconds=90.0, caught_up_seconds=1.0, store_free_bytes=1, store_full_seconds=1.0)
    assert here.tap is not None and here.progress is not None
    tap = msgspec.structs.replace(here.tap, log_full_seconds=1.0, doubt_bytes=1, last_write_time=NOW, running=True)
    disks = [msgspec.structs.replace(disk, found_size_bytes=1) for disk in here.disks]
    figures = msgspec.structs.replace(
        here.statistics,
        monitoring_interval_seconds=3600.0, average_replication_latency_seconds=1.0, last_applied_time=NOW,
        maximum_replication_latency_seconds=1.0, average_replication_bytes=1.0, maximum_replication_bytes=1,
        last_replication_time=NOW,
    )  # fmt: skip
    last = VerifyResult(outcome="equal", text="", started_time=NOW, ended_time=NOW)
    link = msgspec.structs.replace(here.link, next_attempt_seconds=1.0, since_time=NOW, rtt_ms=1.0)
    work = msgspec.structs.replace(here.progress, seconds_left=1.0)
    yield msgspec.structs.replace(
        agent(
            vms=[
                changed(
                    here, tap=tap, disks=disks, statistics=figures, verify=VerifyStatus(last=last), link=link,
                    progress=work, lag_seconds=1.0, application_cut=here.acked_cut, consistency=FROZEN,
                    planned=PlannedStatus(step="confirmed", step_time=NOW), definition=DefinitionStatus(),
                )
            ]
        ),
        certificate_not_after_time=NOW,
        certificates=[CertificateStatus(what="own", subject="alpha", not_before_time=NOW, not_after_time=NOW)],
        limits=LimitsStatus(),
    )  # fmt: skip
    there = replica(
        oldest_point_time=NOW, points_lost_time=NOW, spool_limit_bytes=1,
        quota_limit_bytes=2, quota_used_bytes=1, quota_full_seconds=1.0, failover=FailoverStatus(time=NOW, epoch="e"),
        test_failover=TestFailoverStatus(name="web-test", export="1", point="0/1", cut=cut(1, 1.0), started_time=NOW),
        proof=PROVEN,
    )  # fmt: skip
    there.statistics.last_test_failover_time = NOW
    yield agent("replica", [there])


# --- Prometheus' own tool


def promtool(*arguments: str, text: str | None = None) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: prometheus)")
    ran = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_promtool_finds_no_fault_with_the_metrics() -> None:
    for status in everything():
        assert promtool("check", "metrics", text=render(status).decode()) == ""


def test_promtool_reads_the_rules_and_the_example() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(PROMETHEUS / "vmreplica.rules.yml"))
    assert "SUCCESS" in promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


@pytest.mark.slow
def test_each_alert_fires_when_it_should_and_none_when_all_is_well() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(PROMETHEUS / "vmreplica.rules.test.yml"))
    rules = (PROMETHEUS / "vmreplica.rules.yml").read_text()
    tried = (PROMETHEUS / "vmreplica.rules.test.yml").read_text()
    for alert in re.findall(r"- alert: (\w+)", rules):
        assert f'alertname="{alert}"' in tried, alert


# --- what refers to metrics


def expressions() -> Iterator[str]:
    """What rules and panels ask."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (variable.get("definition", "") for variable in dashboard["templating"]["list"])
    # What stands behind a comment sign or in a text is no expression, but names metrics all the same.
    yield (PROMETHEUS / "vmreplica.rules.yml").read_text()
    yield (PROMETHEUS / "vmreplica.rules.test.yml").read_text()


def test_rules_and_dashboard_know_only_metrics_that_there_are() -> None:
    asked = {name for text in expressions() for name in re.findall(r"\bvmreplica_\w+", text)}
    assert len(asked) > 30
    assert asked <= NAMES


def test_the_dashboards_panels_are_told_apart_and_lie_beside_each_other() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["targets"], panel["title"]


def test_the_page_has_every_metric_and_every_alert() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert current(page) == page, "make it anew: python -m shared.cli.metrics_page docs/monitoring.md"
    for alert in re.findall(r"- alert: (\w+)", (PROMETHEUS / "vmreplica.rules.yml").read_text()):
        assert f"| `{alert}` |" in page, alert
