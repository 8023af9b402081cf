"""The table of all metrics as Markdown, made from the one that the agents offer them by.

``python -m shared.cli.metrics_page docs/monitoring.md`` writes it between the page's markers; a test checks that it is
current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from shared.metric_kinds import AGENT_LABELS, VM_LABELS, AgentMetric, VmMetric
from shared.metrics import AGENT_METRICS, VM_METRICS

MARKERS = ("<!-- metrics: made by python -m shared.cli.metrics_page -->", "<!-- end of metrics -->")


def table_lines() -> Iterator[str]:
    """All metrics as a table in Markdown."""
    yield "| metric | type | labels | at | meaning |"
    yield "|---|---|---|---|---|"
    metrics: list[AgentMetric | VmMetric] = [*AGENT_METRICS, *VM_METRICS]
    for metric in metrics:
        labels = (*(AGENT_LABELS if isinstance(metric, AgentMetric) else VM_LABELS), *metric.labels)
        at = metric.at if isinstance(metric, VmMetric) else ""
        kind = "counter" if metric.counter else "gauge"
        yield f"| `{metric.name}` | {kind} | {', '.join(labels)} | {at or 'both'} | {metric.help} |"


def current(page: str) -> str:
    """The page with the table between its markers made anew. Raises ValueError where a marker is missing."""
    start, end = MARKERS
    before, found, rest = page.partition(start)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError("the page has no markers of the metrics")
    made = "\n".join(table_lines())
    return f"{before}{start}\n\n{made}\n\n{end}{after}"


def main() -> None:
    """Bring the page that is named up to date."""
    page = Path(sys.argv[1])
    page.write_text(current(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
