"""Verbs that measure: statistics, what is written most, and the agents' metrics."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import msgspec

from shared.admin import verbs as admin
from shared.churn import ChurnReport
from shared.cli.agents import Agents, Found, connect, socket_paths
from shared.cli.churn_estimate import HEADROOM, INTERVALS, OUTAGE_SECONDS, Estimate, estimate
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.gaps import Gaps, MissingVm
from shared.cli.measure_text import churn_lines, churn_page, measure_lines
from shared.cli.text import columns, joined, printable_values
from shared.errors import UnreachableError, UsageError, VmreplicaError
from shared.measures import Statistics
from shared.rates import duration_text, size_text


def measure(options: argparse.Namespace, context: Context) -> int:
    """The statistics of a VM or of all, perhaps after a reset of one's."""
    if options.reset and options.vm is None:
        raise UsageError("A reset needs a VM.", "Say whose: vmreplica measure VM --reset")
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = _selected(agents, options.vm, options.role)
        figures, gaps = _asked(agents, found, "the statistics", admin.MEASURE_RESET if options.reset else admin.MEASURE)
    console = context.console
    if options.json:
        console.print_json({"vms": [_labelled(each, {"statistics": raw}) for each, raw in figures], **gaps.plain()})
        return gaps.exit_code
    for at, (each, raw) in enumerate(figures):
        known = msgspec.convert(printable_values(raw), Statistics)
        console.print([""] if at else [])
        console.print(measure_lines(each.vm, known, console.width, console.palette))
    gaps.tell(console)
    return gaps.exit_code


def churn(options: argparse.Namespace, context: Context) -> int:
    """What is written most on the VMs of this host; or an estimate of a disk that is not replicated yet."""
    if options.estimate is not None:
        if options.vm is not None:
            raise UsageError("--estimate is for a disk, and not for a VM.", "Leave out the VM, or --estimate.")
        return _estimate(options, context)
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = _selected(agents, options.vm, "primary")
        answers, gaps = _asked(agents, found, "the churn", admin.CHURN, top=options.top)
    raw = [answer for _, answer in answers]
    if options.json:
        context.console.print_json({"vms": raw, **gaps.plain()})
        return gaps.exit_code
    reports = [msgspec.convert(printable_values(each), ChurnReport) for each in raw]
    palette = context.console.palette
    context.console.print(churn_lines(reports, palette) if options.vm is None else churn_page(reports[0], palette))
    gaps.tell(context.console)
    return gaps.exit_code


def metrics(options: argparse.Namespace, context: Context) -> int:
    """The metrics of this host's agents, as each offers them over HTTP."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        asked = [agent for agent in agents.answered if options.role in (None, agent.status.role)]
        if len(asked) > 1:
            raise UsageError(
                "Both agents run on this host, and each has metrics of its own.",
                "Say which with --role primary or --role replica.",
            )
        if not asked:
            agents.of_role(options.role)
        text = asked[0].call(admin.METRICS)["text"]
    context.console.print(text.splitlines())
    return SUCCESS


def _selected(agents: Agents, vm: str | None, role: str | None) -> list[Found]:
    """The VM that was named, or all, at each agent that has it."""
    if vm is not None:
        return agents.find(vm, role)
    everything = [Found(agent, each) for agent in agents.answered for each in agent.status.vms]
    return [each for each in everything if role in (None, each.vm.role)]


def _asked(
    agents: Agents, found: Iterable[Found], what: str, method: str, **params: Any
) -> tuple[list[tuple[Found, Any]], Gaps]:
    """The answers for the VMs, and what is missing. Raises what went wrong where nothing was answered."""
    answers: list[tuple[Found, Any]] = []
    gaps = Gaps(what, list(agents.failed))
    silent: dict[str, UnreachableError] = {}
    for each in found:
        role = each.agent.status.role
        try:
            if role in silent:
                # Each further VM would be waited for as long.
                raise silent[role]
            answers.append((each, each.call(method, **params)))
        except VmreplicaError as error:
            if isinstance(error, UnreachableError):
                silent[role] = error
            gaps.vms.append(MissingVm(each.vm.name, each.vm.uuid, role, error))
    if gaps.vms:
        gaps.require(answered=bool(answers))
    return answers, gaps


def _labelled(found: Found, values: dict[str, Any]) -> dict[str, Any]:
    return {"name": found.vm.name, "uuid": found.vm.uuid, "role": found.vm.role, **values}


# --- estimating


def _estimate(options: argparse.Namespace, context: Context) -> int:
    console = context.console
    tell = _teller(context) if console.live and not options.json else lambda _text: None
    found = estimate(options.estimate, options.seconds, tell)
    if options.json:
        console.print_json(_estimate_json(found))
    else:
        console.print(_estimate_lines(found))
    return SUCCESS


def _teller(context: Context) -> Any:
    def tell(text: str) -> None:
        context.console.err.write(f"\r\x1b[K{text}\r")
        context.console.err.flush()

    return tell


def _needed(rate: float) -> float:
    """Bits per second that a link needs for so many bytes per second."""
    return 8 * HEADROOM * rate


def _estimate_json(found: Estimate) -> dict[str, Any]:
    return {
        "path": found.path,
        "size_bytes": found.size,
        "data_bytes": found.scanned,
        "compared_bytes": found.read,
        "seconds": found.seconds,
        "changed_bytes": found.changed + found.grown,
        "bytes_per_second": found.bytes_per_second,
        "link_bits_per_second": _needed(found.bytes_per_second),
        "log_limit_bytes": found.log_limit,
        "cycles": [
            {"interval_seconds": interval, "cycle_bytes": interval * found.bytes_per_second} for interval in INTERVALS
        ],
    }


def _estimate_lines(found: Estimate) -> list[str]:
    rate = found.bytes_per_second
    sampled = f", in a sample of {size_text(found.read)}" if found.read < found.scanned else ""
    rows = [["INTERVAL", "A CYCLE SENDS"]]
    rows += [[duration_text(interval), size_text(interval * rate)] for interval in INTERVALS]
    return [
        (
            f"{found.path}: {size_text(found.changed + found.grown)} of {size_text(found.scanned)} changed in "
            f"{duration_text(found.seconds)}{sampled}: {size_text(rate)}/s, {size_text(86400 * rate)} a day."
        ),
        *(f"  {joined(row)}" for row in columns(rows, right=[1])),
        f"  The link has to carry {_needed(rate) / 1e6:.1f} Mbit/s, whatever the interval: {HEADROOM:g} times that.",
        f"  --log-limit {found.log_limit >> 30}GiB lasts for {duration_text(OUTAGE_SECONDS)} without the link.",
        (
            "  Blocks of 64 KiB were compared: one that was written several times counts once, one of which a part was "
            "written counts whole. Writes to the same places make the log larger than this."
        ),
    ]
