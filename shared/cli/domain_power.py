"""Whether libvirt says that a VM's domain runs, and shutting it down in order: never more than asking its guest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shared.cli.virsh import Virsh
from shared.errors import InvalidStateError, NotFoundError, UnreachableError
from shared.rates import duration_text
from shared.status import VmStatus

POLL_SECONDS = 1.0
OFF = frozenset({"shut off", "crashed"})


@dataclass(frozen=True, slots=True)
class DomainPower:
    """A domain of libvirt, and its state in libvirt's words."""

    name: str
    state: str

    @property
    def runs(self) -> bool:
        """Whether there is a QEMU that has, or may have, the disks open."""
        return self.state not in OFF


def look(virsh: Virsh, vm: VmStatus) -> DomainPower | None:
    """The VM's domain, by UUID, else by name; None where libvirt has none. Raises where libvirt can't tell."""
    for name in (vm.uuid, vm.name):
        try:
            facts = virsh.facts(name)
        except NotFoundError as error:
            if "virsh is not installed" in error.text:
                raise
            continue
        return DomainPower(facts.get("Name", vm.name), facts.get("State", "unknown"))
    return None


def check_off(virsh: Virsh, vm: VmStatus) -> None:
    """Raises InvalidStateError where libvirt says that the domain runs. Without libvirt nothing is known of it."""
    try:
        domain = look(virsh, vm)
    except (NotFoundError, UnreachableError):
        return
    if domain is not None and domain.runs:
        raise InvalidStateError(
            f"{vm.name} runs: libvirt says that the domain {domain.name} is {domain.state}.",
            f"Shut it down, or have that done: vmreplica failover {vm.name} --prepare --shutdown",
            code="in_use",
        )


def shut_down(virsh: Virsh, vm: VmStatus, seconds: float, say: Callable[[str], None]) -> None:
    """Ask the guest to shut down, and wait until libvirt says that it has. Nothing is forced.

    Raises InvalidStateError when that takes longer than ``seconds``, and what virsh raises.
    """
    domain = look(virsh, vm)
    if domain is None:
        raise NotFoundError(
            f"libvirt has no domain {vm.name} (or {vm.uuid}) that could be shut down.",
            "Shut the VM down yourself, and leave --shutdown away.",
        )
    if not domain.runs:
        return
    say(f"The domain {domain.name} is {domain.state}; its guest is asked to shut down.")
    virsh.run("shutdown", domain.name)
    end = time.monotonic() + seconds
    while (now := look(virsh, vm)) is not None and now.runs:
        if time.monotonic() > end:
            raise InvalidStateError(
                f"{domain.name} is still {now.state} after {duration_text(seconds)}: its guest does not shut down.",
                "Nothing was changed here, and nothing is forced. Shut it down from inside, then repeat the command; "
                "or wait longer with --timeout.",
            )
        time.sleep(POLL_SECONDS)
    say(f"The domain {domain.name} is off.")
