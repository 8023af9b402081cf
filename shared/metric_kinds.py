"""What a metric is: its name, its help, and how its figures are read from a status."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shared.status import AgentStatus, VmStatus

AGENT_LABELS = ("role",)
VM_LABELS = ("vm", "uuid", "role")

Figure = float | int | bool | None
Samples = Iterable[tuple[tuple[str, ...], Figure]]


@dataclass(frozen=True, slots=True)
class AgentMetric:
    """One metric of an agent; ``labels`` beside AGENT_LABELS, and ``read`` gives their values with the figure."""

    name: str
    help: str
    read: Callable[[AgentStatus], Samples]
    labels: tuple[str, ...] = ()
    counter: bool = False


@dataclass(frozen=True, slots=True)
class VmMetric:
    """One metric of a VM; ``labels`` beside VM_LABELS. ``at`` is the agent that has it, empty for both."""

    name: str
    help: str
    read: Callable[[VmStatus], Samples]
    labels: tuple[str, ...] = ()
    counter: bool = False
    at: str = ""


def one_hot(values: Iterable[str], current: str) -> Samples:
    """1 for the value that is current, 0 for the others."""
    return [((value,), value == current) for value in values]


def _one(read: Callable[[VmStatus], Figure]) -> Callable[[VmStatus], Samples]:
    return lambda vm: (((), read(vm)),)


def vm_metric(
    name: str, text: str, read: Callable[[VmStatus], Figure], *, at: str = "", counter: bool = False
) -> VmMetric:
    """A metric of a VM with one figure; ``name`` without the prefix."""
    return VmMetric(f"vmreplica_{name}", text, _one(read), counter=counter, at=at)


def agent_metric(name: str, text: str, read: Callable[[AgentStatus], Figure]) -> AgentMetric:
    """A metric of an agent with one figure; ``name`` without the prefix."""
    return AgentMetric(f"vmreplica_{name}", text, lambda agent: (((), read(agent)),))
