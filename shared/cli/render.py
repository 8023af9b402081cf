"""The table of all VMs, and under it what is wrong and what to do: pure functions from statuses to lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from shared.cli.console import Palette
from shared.cli.progress import short_progress
from shared.cli.text import columns, joined, shortened, wrapped
from shared.expiry import certificates_told, endings
from shared.rates import duration_text
from shared.states import ReplicationState
from shared.status import AgentStatus, VmStatus

TITLES = ("VM", "ROLE", "STATE", "HEALTH", "PROTECTED", "BEHIND", "LINK", "PROGRESS")
DROPPED_FIRST = ("LINK", "HEALTH", "ROLE", "PROGRESS")
"""Columns that make room on a narrow terminal, in this order."""
SHORTENED = {"STATE": 16, "VM": 8}
"""Columns whose cells may be shortened before that, to these widths, in this order."""


def status_lines(agents: Sequence[AgentStatus], width: int | None, palette: Palette) -> list[str]:
    """All VMs of the agents of this host: a table, then one note for each VM and agent that isn't fine."""
    rows = sorted(
        ((vm, agent.time) for agent in agents for vm in agent.vms), key=lambda row: (row[0].name, row[0].role)
    )
    lines = _table(rows, width, palette) if rows else _no_vms(agents)
    names = Counter(vm.name for vm, _ in rows)
    notes = [note for vm, _ in rows for note in _vm_note(vm, names[vm.name] > 1, width, palette)]
    notes += [note for agent in agents for note in agent_notes(agent, width, palette)]
    return [*lines, "", *notes] if notes else lines


def _vm_note(vm: VmStatus, with_role: bool, width: int | None, palette: Palette) -> list[str]:
    """What is wrong with a VM and what to do, or nothing when it is fine."""
    if is_fine(vm):
        return []
    text = vm.reasons[0] if vm.reasons else vm.summary
    paint = palette.critical if vm.health == "Critical" else palette.warning
    who = f"{vm.name} ({vm.role})" if with_role else vm.name
    first, *rest = wrapped(f"{text} {vm.remedy}".strip(), width, 4, f"{who}: ")
    return [paint(who) + first[len(who) :], *rest]


def is_fine(vm: VmStatus) -> bool:
    """Nothing to look at, nothing to do."""
    return vm.health in ("Normal", "NotApplicable") and (vm.protected or vm.state_code == ReplicationState.DISABLED)


def agent_notes(agent: AgentStatus, width: int | None, palette: Palette) -> list[str]:
    """What concerns an agent as a whole."""
    texts = list(agent.problems)
    if not agent.certificates:
        # An agent that tells all its certificates judges them as well.
        own = certificates_told((), agent.certificate_not_after_time, agent.host)
        texts += [each.sentence for each in endings(own, agent.time)]
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


def is_failed_over_to(vm: VmStatus) -> bool:
    """The VM runs here after a failover: it is behind nothing, and nothing protects it."""
    here = vm.role == "replica" and vm.state_code == ReplicationState.FAILED_OVER
    return here or vm.state_code == ReplicationState.FAILED_OVER_WAITING_COMPLETION


def protected_text(vm: VmStatus) -> str:
    """``yes`` or ``no``, and nothing at the host to which the VM was failed over."""
    if is_failed_over_to(vm):
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
    cells = _fitted([list(TITLES), *(_cells(vm, now) for vm, now in rows)], width)
    table = columns(cells)
    titles = cells[0]
    for (vm, _), row in zip(rows, table[1:], strict=True):
        if "HEALTH" in titles:
            at = titles.index("HEALTH")
            row[at] = health_paint(vm, row[at], palette)
        at = titles.index("PROTECTED") if "PROTECTED" in titles else 0
        if at and not vm.protected:
            row[at] = palette.warning(row[at])
    return [palette.strong(joined(table[0])), *(joined(row) for row in table[1:])]


def _fitted(cells: Sequence[Sequence[str]], width: int | None) -> list[list[str]]:
    """The table without empty columns, and in ``width``: columns are left out, then long cells shortened."""
    kept = [at for at, title in enumerate(TITLES) if any(row[at] for row in cells[1:])]
    if width is None:
        return [[row[at] for at in kept] for row in cells]
    widths = [max(len(row[at]) for row in cells) for at in range(len(TITLES))]
    least = [min(have, SHORTENED.get(title, have)) for title, have in zip(TITLES, widths, strict=True)]
    gaps = len("  ")
    for title in DROPPED_FIRST:
        if sum(least[at] + gaps for at in kept) - gaps <= width:
            break
        kept = [at for at in kept if TITLES[at] != title]
    excess = sum(widths[at] + gaps for at in kept) - gaps - width
    for title in SHORTENED:
        at = TITLES.index(title)
        taken = max(min(excess, widths[at] - least[at]), 0)
        widths[at] -= taken
        excess -= taken
    return [[shortened(row[at], widths[at]) for at in kept] for row in cells]


def _cells(vm: VmStatus, now: float) -> list[str]:
    behind = "" if vm.lag_seconds is None or is_failed_over_to(vm) else duration_text(vm.lag_seconds)
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


def _no_vms(agents: Sequence[AgentStatus]) -> list[str]:
    if any(agent.role == "primary" for agent in agents):
        how = "Put one under replication: vmreplica enable NAME --disk PATH --replica HOST"
    else:
        how = "Put one under replication on its own host, with this host as replica."
    return ["No VM is replicated on this host.", f"  {how}"]
