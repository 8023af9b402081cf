"""The table of all VMs, and under it what is wrong and what to do: pure functions from statuses to lines."""

from __future__ import annotations

from collections.abc import Sequence

from shared.cli.console import Palette
from shared.cli.progress import short_progress
from shared.cli.text import columns, joined, shortened, wrapped
from shared.rates import duration_text
from shared.states import ReplicationState
from shared.status import AgentStatus, VmStatus

CERTIFICATE_WARNING_SECONDS = 30 * 86400.0
NAME_WIDTH_MIN = 8
TITLES = ("VM", "ROLE", "STATE", "HEALTH", "PROTECTED", "BEHIND", "LINK", "PROGRESS")
DROPPED_FIRST = ("LINK", "PROGRESS", "ROLE", "BEHIND")
"""Columns that make room on a narrow terminal, in this order."""


def status_lines(agents: Sequence[AgentStatus], width: int | None, palette: Palette) -> list[str]:
    """All VMs of the agents of this host: a table, then one note for each VM and agent that isn't fine."""
    rows = sorted(
        ((vm, agent.time) for agent in agents for vm in agent.vms), key=lambda row: (row[0].name, row[0].role)
    )
    lines = _table(rows, width, palette) if rows else _no_vms(agents)
    notes = [note for vm, _ in rows for note in vm_note(vm, width, palette)]
    notes += [note for agent in agents for note in agent_notes(agent, width, palette)]
    return [*lines, "", *notes] if notes else lines


def vm_note(vm: VmStatus, width: int | None, palette: Palette) -> list[str]:
    """What is wrong with a VM and what to do, or nothing when it is fine."""
    if is_fine(vm):
        return []
    text = vm.reasons[0] if vm.reasons else vm.summary
    paint = palette.critical if vm.health == "Critical" else palette.warning
    lines = wrapped(f"{text} {vm.remedy}".strip(), width, 4, f"{vm.name}: ")
    return [paint(vm.name) + line[len(vm.name) :] if at == 0 else line for at, line in enumerate(lines)]


def is_fine(vm: VmStatus) -> bool:
    """Nothing to look at, nothing to do."""
    return vm.health in ("Normal", "NotApplicable") and (vm.protected or vm.state_code == ReplicationState.DISABLED)


def agent_notes(agent: AgentStatus, width: int | None, palette: Palette) -> list[str]:
    """What concerns an agent as a whole."""
    texts = list(agent.problems)
    if agent.certificate_not_after_time is not None:
        left = agent.certificate_not_after_time - agent.time
        advice = "Issue another with `vmreplica pki issue`."
        if left <= 0:
            texts.append(f"The certificate of the {agent.role} agent has expired. {advice}")
        elif left < CERTIFICATE_WARNING_SECONDS:
            texts.append(f"The certificate of the {agent.role} agent expires in {duration_text(left)}. {advice}")
    who = f"{agent.role} agent"
    notes = []
    for text in texts:
        first, *rest = wrapped(text, width, 4, f"{who}: ")
        notes += [palette.warning(who) + first[len(who) :], *rest]
    return notes


def link_text(vm: VmStatus, now: float) -> str:
    """The link in one cell: ``up (0.4 ms)``, ``down 5 min 3 s``, or nothing where there never was one."""
    link = vm.link
    if link.connected:
        return "up" if link.rtt_ms is None else f"up ({link.rtt_ms:.1f} ms)"
    if link.since_time is None:
        return "down" if link.last_error else ""
    return f"down {duration_text(now - link.since_time)}"


def protected_text(vm: VmStatus) -> str:
    """``yes`` or ``no``; nothing where protection is not meant, at a host to which the VM was failed over."""
    if vm.state_code == ReplicationState.FAILED_OVER_WAITING_COMPLETION:
        return ""
    return "yes" if vm.protected else "no"


def health_paint(vm: VmStatus, text: str, palette: Palette) -> str:
    """``text`` in the colour of the VM's health."""
    match vm.health:
        case "Normal":
            return palette.good(text)
        case "Warning":
            return palette.warning(text)
        case "Critical":
            return palette.critical(text)
    return text


def _table(rows: Sequence[tuple[VmStatus, float]], width: int | None, palette: Palette) -> list[str]:
    cells = [list(TITLES), *(_cells(vm, now) for vm, now in rows)]
    # A column in which no VM has anything to say is left out.
    kept = [at for at, title in enumerate(TITLES) if any(row[at] for row in cells[1:]) or title == "VM"]
    for title in DROPPED_FIRST:
        if width is None or _needed(cells, kept) <= width:
            break
        kept = [at for at in kept if TITLES[at] != title]
    if width is not None and (excess := _needed(cells, kept) - width) > 0:
        longest = max(max(len(row[0]) for row in cells) - excess, NAME_WIDTH_MIN)
        cells = [[shortened(row[0], longest), *row[1:]] for row in cells]
    table = columns([[row[at] for at in kept] for row in cells])
    health = [TITLES[at] for at in kept].index("HEALTH")
    protected = health + 1
    for (vm, _), row in zip(rows, table[1:], strict=True):
        row[health] = health_paint(vm, row[health], palette)
        if kept[protected : protected + 1] == [TITLES.index("PROTECTED")] and not vm.protected:
            row[protected] = palette.warning(row[protected])
    return [palette.strong(joined(table[0])), *(joined(row) for row in table[1:])]


def _cells(vm: VmStatus, now: float) -> list[str]:
    behind = "" if vm.lag_seconds is None else duration_text(vm.lag_seconds)
    return [
        vm.name,
        vm.role,
        vm.state,
        vm.health,
        protected_text(vm),
        behind,
        link_text(vm, now),
        short_progress(vm.progress),
    ]


def _needed(cells: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    return sum(max(len(row[at]) for row in cells) for at in kept) + 2 * (len(kept) - 1)


def _no_vms(agents: Sequence[AgentStatus]) -> list[str]:
    if any(agent.role == "primary" for agent in agents):
        how = "Put one under replication: vmreplica enable NAME --disk PATH --replica HOST"
    else:
        how = "Put one under replication on its own host, with this host as replica."
    return ["No VM is replicated on this host.", f"  {how}"]
