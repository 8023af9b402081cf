"""A VM's resyncs for people: the plan of the next one, the one that runs, and a table of those before."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo

from shared.cli.evidence_text import evidence_lines
from shared.cli.progress import KINDS, held_back_text
from shared.cli.text import columns, joined, time_text, wrapped
from shared.rates import duration_text, size_text
from shared.resync_runs import Forecast, ResyncPlan, ResyncReport, Run, RunStep

_MAX_STEPS = 40


def plan_lines(name: str, plan: ResyncPlan, width: int | None) -> list[str]:
    """What a resync would cost if it began now."""
    forecast = plan.forecast
    wire = (
        f"{size_text(forecast.wire_bytes)} expected; {size_text(forecast.least_wire_bytes)} if nothing differs, "
        f"{size_text(forecast.most_wire_bytes)} if everything does"
    )
    rows = [
        ["compares", f"{size_text(forecast.scope_bytes)} of the disks' {size_text(plan.disk_bytes)}"],
        ["reads", f"{size_text(forecast.read_bytes)} here, and about as much at the replica"],
        ["differs", f"{size_text(forecast.different_bytes)} expected" + _range(forecast, "different")],
        ["on the wire", wire + _range(forecast, "wire")],
        ["takes", "unknown" if forecast.seconds is None else _takes(forecast)],
        ["may start now", "yes" if plan.may_start else f"no: {plan.obstacle} {plan.remedy}".rstrip()],
        ["starts", plan.starts],
    ]
    lines = [f"{name}  {KINDS.get(forecast.kind, forecast.kind)}, {'required' if plan.required else 'not required'}"]
    for (label,), (_, value) in zip(columns([[row[0]] for row in rows]), rows, strict=True):
        first = f"  {label}  "
        lines += wrapped(value, width, len(first), first)
    lines.append("  This rests on:")
    for sentence in forecast.basis:
        lines += wrapped(sentence, width, 4, "  - ")
    return lines


def _range(forecast: Forecast, what: str) -> str:
    """Between which sizes it lies with 90 % certainty, where a sample tells."""
    low, high = getattr(forecast, f"{what}_low_bytes"), getattr(forecast, f"{what}_high_bytes")
    if low is None or high is None or low == high:
        return ""
    return f"; with 90 % certainty {size_text(low)} to {size_text(high)}"


def _takes(forecast: Forecast) -> str:
    low, high = forecast.seconds_low, forecast.seconds_high
    text = f"about {duration_text(forecast.seconds or 0.0)}"
    if low is None or high is None or duration_text(low) == duration_text(high):
        return text
    return f"{text}; with 90 % certainty {duration_text(low)} to {duration_text(high)}"


def report_lines(name: str, report: ResyncReport, width: int | None, zone: tzinfo | None = None) -> list[str]:
    """Whether a resync is required and why, the open run, and the last one."""
    lines = [f"{name}  {report.state}"]
    if report.required:
        lines.append("  A resynchronization is required:")
        for cause in report.causes:
            lines += wrapped(cause.text, width, 6, f"    {time_text(cause.time, zone)}  {cause.code}: ")
            for told in evidence_lines(cause.evidence, zone):
                lines += wrapped(told, width, 8, "      evidence: ")
    elif report.run is None:
        lines.append("  No resynchronization is required.")
    if report.scope and report.scope_bytes is not None:
        lines.append(
            f"  It compares {report.scope}: {size_text(report.scope_bytes)} of {size_text(report.disk_bytes)}."
        )
    for path in report.excluded:
        lines.append(f"  {path} is not replicated, and takes no part.")
    if report.starts:
        lines += wrapped(report.starts, width, 2, "  ")
    if report.run is not None:
        lines += ["", "The open run", *run_lines(report.run, width, zone)]
    if report.progress is not None and report.run is not None:
        text = f": {report.progress.text}" if report.progress.text else ""
        lines += wrapped(f"{report.progress.phase}{text}", width, 4, "  now  ")
        if held := held_back_text(report.progress):
            lines += wrapped(held, width, 4, "  ")
    if report.last is not None:
        lines += ["", "The last run", *run_lines(report.last, width, zone)]
    return lines


def run_lines(run: Run, width: int | None, zone: tzinfo | None = None) -> list[str]:
    """All that is on record of one run."""
    by = f", by: {run.started_by}" if run.started_by else ""
    lines = wrapped(
        f"{KINDS.get(run.kind, run.kind)}, begun {time_text(run.started_time, zone)}{by}", width, 4, f"  {run.number}  "
    )
    if run.causes:
        lines += wrapped("; ".join(f"{cause.code}: {cause.text}" for cause in run.causes), width, 4, "  because  ")
    for disk in run.disks:
        told = ", ".join(
            f"{size_text(count)} {word}"
            for word, count in (
                ("compared", disk.compared_bytes),
                ("different", disk.different_bytes),
                ("sent", disk.sent_bytes),
                ("settled", disk.settled_bytes),
            )
        )
        lines += wrapped(f"of {size_text(disk.scope_bytes)}: {told}", width, 4, f"  disk {disk.index}  ")
    lines.append(f"  {size_text(run.wire_bytes)} on the wire, {duration_text(run.active_seconds)} at work")
    if run.rounds > 1:
        lines.append(f"  {run.rounds} rounds: its log was lost, and what was written since was compared again")
    if run.forecast is not None:
        lines += wrapped(forecast_text(run), width, 4, "  ")
    for step in _told(run.steps):
        lines.append(f"    {time_text(step.time, zone)}  {_step_text(step)}")
    if run.interruption_count:
        lines.append(f"  interrupted {run.interruption_count} times:")
    for each in run.interruptions:
        until = "not yet" if each.resumed_time is None else time_text(each.resumed_time, zone)
        lines += wrapped(f"{each.reason}; goes on: {until}", width, 8, f"    {time_text(each.time, zone)}  ")
    if run.result:
        lines.append(f"  {run.result} {time_text(run.ended_time, zone)}")
    return lines


def forecast_text(run: Run) -> str:
    """What was foreseen of a run against what it did."""
    forecast = run.forecast
    if forecast is None:
        return ""
    pairs = [
        ("read", _versus(size_text(forecast.read_bytes), size_text(run.read_bytes))),
        ("wire", _versus(size_text(forecast.wire_bytes), size_text(run.wire_bytes))),
    ]
    if forecast.seconds is not None:
        pairs.append(("time", _versus(duration_text(forecast.seconds), duration_text(run.active_seconds))))
    state = "so far" if not run.result else "in fact"
    return f"forecast and {state}: " + ", ".join(f"{word} {text}" for word, text in pairs)


def history_lines(name: str, runs: Sequence[Run], zone: tzinfo | None = None) -> list[str]:
    """A table of runs; time and bytes on the wire with what was foreseen behind them."""
    if not runs:
        return [f"{name} has had no resynchronization and no initial replication yet."]
    rows = [["RUN", "WHEN", "KIND", "CAUSE", "COMPARED", "DIFFERENT", "SENT", "WIRE", "(PLAN)", "TIME", "(PLAN)",
             "RESULT"]]  # fmt: skip
    for run in runs:
        plan = run.forecast
        rows.append(
            [
                str(run.number),
                time_text(run.started_time, zone),
                run.kind,
                ", ".join(dict.fromkeys(cause.code for cause in run.causes)) or "-",
                *(size_text(run.total(f"{part}_bytes")) for part in ("compared", "different", "sent")),
                size_text(run.wire_bytes),
                "-" if plan is None else f"({size_text(plan.wire_bytes)})",
                duration_text(run.active_seconds),
                "-" if plan is None or plan.seconds is None else f"({duration_text(plan.seconds)})",
                run.result or "open",
            ]
        )
    return [f"{name}  runs, the newest first", *(f"  {joined(row)}" for row in columns(rows, right=[0, *range(4, 11)]))]


def _versus(expected: str, actual: str) -> str:
    return f"{expected} / {actual}"


def _told(steps: Sequence[RunStep]) -> Sequence[RunStep]:
    return steps if len(steps) <= _MAX_STEPS else [*steps[: _MAX_STEPS // 2], *steps[-_MAX_STEPS // 2 :]]


def _step_text(step: RunStep) -> str:
    where = "" if step.disk is None else f", disk {step.disk}"
    data = step.data
    match step.name:
        case "compare begun":
            return f"{step.name}{where}: blocks {data.get('first_block')} to {data.get('last_block')}"
        case "compare ended":
            seconds = data.get("seconds", 0.0)
            return (
                f"{step.name}{where}: {data.get('blocks_compared')} blocks compared, {data.get('blocks_sent')} sent "
                f"in {duration_text(seconds)}, {data.get('result')}"
            )
    return f"{step.name}{where}"
