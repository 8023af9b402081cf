"""The verb ``audit``: the record of orders, from the agents or from files, and whether it is whole."""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from typing import Any

import msgspec

from shared.admin import verbs as admin
from shared.admin.audit_lines import AuditEntry, AuditReport
from shared.admin.audit_log import check_log, find_entries
from shared.admin.verbs import AuditAnswer
from shared.cli.agents import connect, socket_paths
from shared.cli.context import Context
from shared.cli.gaps import Gaps
from shared.cli.text import columns, joined, printable_values, time_text
from shared.cli.units import parse_duration
from shared.errors import NotFoundError, StoreDamagedError, UsageError, VmreplicaError
from shared.ports.file_system import RealFileSystem

CHECK_SECONDS = 300.0


def audit(options: argparse.Namespace, context: Context) -> int:
    """Print the newest entries, the newest last, or check the whole log."""
    since = since_time(options.since, time.time())
    if options.verify and (options.vm or options.since):
        raise UsageError("--verify is for a whole log.", "Leave out VM and --since.")
    gaps = Gaps("the record of orders")
    answers = _of_folder(options, since) if options.folder else _of_agents(options, context, since, gaps)
    if options.json:
        logs = [printable_values(msgspec.to_builtins(each)) for each in answers]
        context.console.print_json({"logs": logs, "unreachable": gaps.plain()["unreachable"]})
    else:
        context.console.print(line for each in answers for line in answer_lines(each))
        gaps.tell(context.console)
    for answer in answers:
        report = answer.report
        if report is not None and not report.ok:
            raise StoreDamagedError(
                f"The audit log in {answer.folder} was changed: {report.file} line {report.line}: {report.broken}.",
                "What comes before that is as it was written. Compare the rest with the agent's log (journalctl), "
                "which has the digest of each entry.",
            )
    return gaps.exit_code


def _of_folder(options: argparse.Namespace, since: float) -> list[AuditAnswer]:
    files = RealFileSystem()
    try:
        if not any(name.startswith("audit") for name in files.list(options.folder)):
            raise NotFoundError(f"There is no audit log in {options.folder}.", "Name an agent's state_dir.")
        if options.verify:
            return [AuditAnswer(folder=options.folder, report=check_log(files, options.folder))]
        found = find_entries(files, options.folder, limit=options.limit, since=since, vm=options.vm or "")
        return [AuditAnswer(folder=options.folder, entries=found)]
    except OSError as error:
        raise UsageError(f"{options.folder} can't be read: {error.strerror}.", "Run it as root.") from None


def _of_agents(options: argparse.Namespace, context: Context, since: float, gaps: Gaps) -> list[AuditAnswer]:
    """The answers of the agents; why others have none is put into ``gaps``, and raised where none has."""
    paths, named = socket_paths(options.socket, context.environment)
    params = {"check": True} if options.verify else {"vm": options.vm or "", "since": since, "limit": options.limit}
    with connect(paths, named=named) as agents:
        asked = [agent for agent in agents.answered if options.role in (None, agent.status.role)]
        if not asked:
            agents.of_role(options.role)
        gaps.agents += agents.failed
        answers: list[AuditAnswer] = []
        for agent in asked:
            try:
                answers.append(msgspec.convert(agent.call(admin.AUDIT, params, CHECK_SECONDS), AuditAnswer))
            except VmreplicaError as error:
                gaps.agents.append(error)
        gaps.require(answered=bool(answers))
        return answers


def since_time(text: str, now: float) -> float:
    """A time in the past as seconds since the Unix epoch; 0 for none. Raises UsageError."""
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass
    try:
        return max(0.0, now - parse_duration(text))
    except UsageError:
        raise UsageError(f"{text!r} is no time.", "Give 2h, 7d, 2026-11-28 or '2026-11-28 02:00'.") from None


def answer_lines(answer: AuditAnswer) -> list[str]:
    """One log for people."""
    if answer.report is not None:
        return report_lines(answer.folder, answer.report)
    if not answer.entries:
        return [f"{answer.folder}: no order is on record."]
    rows = [
        [time_text(entry.time, None), entry.role, _who(entry), entry.verb, entry.vm, entry.result, _what(entry)]
        for entry in answer.entries
    ]
    return [
        joined(row) for row in columns([["WHEN", "AGENT", "WHO", "WHAT", "VM", "RESULT", ""], *printable_values(rows)])
    ]


def report_lines(folder: str, report: AuditReport) -> list[str]:
    """The outcome of a check for people."""
    if not report.entries:
        return [f"{folder}: no order is on record."]
    text = f"{folder}: entries {report.first_seq} to {report.last_seq}, {time_text(report.first_time, None)} to "
    text += f"{time_text(report.last_time, None)}"
    lines = [f"{text}, are as they were written." if report.ok else f"{text}, are; what follows is not."]
    if report.missing_before:
        lines.append(f"  {report.missing_before} older ones are gone, as their room was needed.")
    return [*lines, f"  SHA-256 of the last: {report.last_digest}"]


def _who(entry: AuditEntry) -> str:
    if entry.uid is None:
        # A peer that was refused has an address.
        return entry.source or "the agent"
    return f"{entry.user or entry.uid} (uid {entry.uid}, pid {entry.pid})"


def _what(entry: AuditEntry) -> str:
    """What changed, else why nothing did."""
    if entry.text:
        return entry.text + (f" ({entry.left_out} more)" if entry.left_out else "")
    names = [name for name in entry.after if name in entry.before and entry.before[name] != entry.after[name]]
    told = [f"{name}: {_value(entry.before[name])} -> {_value(entry.after[name])}" for name in names]
    return "; ".join(told)


def _value(value: Any) -> str:
    return "none" if value in (None, "", []) else str(value)
