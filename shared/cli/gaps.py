"""What is missing from the answers of all agents and VMs: kept while the others' are taken, and told with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shared.admin.codec import Failure
from shared.admin.failures import error_of
from shared.cli.console import Console
from shared.cli.exit_codes import SUCCESS
from shared.errors import VmreplicaError


@dataclass(frozen=True, slots=True)
class MissingVm:
    """A VM whose part is missing at one agent, and why."""

    name: str
    uuid: str
    role: str
    error: VmreplicaError

    @classmethod
    def told(cls, role: str, told: dict[str, Any]) -> MissingVm:
        """What an agent answered of it (``shared.event_query.Unread``)."""
        data = {name: told[name] for name in ("code", "text", "remedy")}
        error = error_of(Failure(None, told["exit_code"], told["text"], data))
        return cls(told["vm"], told["uuid"], role, error)


@dataclass(slots=True)
class Gaps:
    """``what`` is missing, in words: "the events"."""

    what: str
    agents: list[VmreplicaError] = field(default_factory=list)
    """Why agents did not answer."""
    vms: list[MissingVm] = field(default_factory=list)

    @property
    def first(self) -> VmreplicaError | None:
        return next(iter([*self.agents, *(vm.error for vm in self.vms)]), None)

    def require(self, *, answered: bool) -> None:
        """Raise the first error where nothing at all was ``answered``."""
        error = self.vms[0].error if self.vms else self.first
        if not answered and error is not None:
            raise error

    def plain(self) -> dict[str, Any]:
        """Its fields of a JSON value."""
        return {
            "missing": [{"name": vm.name, "uuid": vm.uuid, "role": vm.role, **_plain(vm.error)} for vm in self.vms],
            "unreachable": [_plain(error) for error in self.agents],
        }

    def errors(self) -> list[VmreplicaError]:
        """What people are told."""
        return [
            *self.agents,
            *(
                VmreplicaError(f"Without {self.what} of {vm.name} at the {vm.role}: {vm.error.text}", vm.error.remedy)
                for vm in self.vms
            ),
        ]

    def tell(self, console: Console) -> None:
        """Tell people, on the error output."""
        for error in self.errors():
            console.complain(error)

    @property
    def exit_code(self) -> int:
        """Of the first error."""
        return SUCCESS if self.first is None else type(self.first).exit_code


def _plain(error: VmreplicaError) -> dict[str, str]:
    return {"code": error.code, "text": error.text, "remedy": error.remedy}
