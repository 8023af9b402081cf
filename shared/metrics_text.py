"""An agent's status as text in Prometheus' form, by the table of metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from shared.metric_kinds import AGENT_LABELS, VM_LABELS, AgentMetric, Samples, VmMetric
from shared.metrics import AGENT_METRICS, VM_METRICS
from shared.status import AgentStatus

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class _StatusCollector(Collector):
    """A status as metric families."""

    def __init__(self, status: AgentStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        status = self._status
        for agent_metric in AGENT_METRICS:
            family = _family(agent_metric, AGENT_LABELS)
            _add(family, (status.role,), agent_metric.read(status))
            yield family
        for metric in VM_METRICS:
            if metric.at in ("", status.role):
                family = _family(metric, VM_LABELS)
                for vm in status.vms:
                    _add(family, (vm.name, vm.uuid, vm.role), metric.read(vm))
                yield family


def _family(metric: AgentMetric | VmMetric, labels: tuple[str, ...]) -> GaugeMetricFamily | CounterMetricFamily:
    kind = CounterMetricFamily if metric.counter else GaugeMetricFamily
    return kind(metric.name, metric.help, labels=(*labels, *metric.labels))


def _add(family: GaugeMetricFamily | CounterMetricFamily, values: tuple[str, ...], samples: Samples) -> None:
    for more, figure in samples:
        if figure is not None:
            family.add_metric((*values, *more), float(figure))


def render(status: AgentStatus) -> bytes:
    """The status and this process in Prometheus' text form. Takes its time with many VMs: for a worker."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_StatusCollector(status))
    return bytes(generate_latest(registry))
