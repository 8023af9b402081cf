"""Puts the disks of a libvirt domain behind a tap: each step with what takes it back, so that nothing stays half done.

A domain that is off gets the tap in front of its disks. A running one has its disks copied onto new images behind the
tap, with every write going to both, and is then switched over: the tap and QEMU can't have one image at a time.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.admin import verbs as admin
from shared.cli.agents import Agent
from shared.cli.apparmor import check_allowed, confinement_notes
from shared.cli.attach import nbd_place
from shared.cli.block_copies import BlockCopy, new_image
from shared.cli.console import Console
from shared.cli.domain_xml import (
    ERROR_POLICY,
    Domain,
    DomainDisk,
    Place,
    choose,
    nbd_disk,
    parse,
    put_behind_taps,
)
from shared.cli.libvirt_hook import hook_installed
from shared.cli.qemu_nodes import Attached, keep_requests
from shared.cli.undoing import Undo
from shared.cli.virsh import Virsh, reachable
from shared.errors import ForbiddenError, InvalidStateError, NotFoundError, StorageError, UsageError, VmreplicaError
from shared.status import VmStatus

ENABLE_SECONDS = 120.0
"""How long enabling and removing may take: the tap is started and its log preallocated, or stopped."""
SAVED = "libvirt-domain.xml"
"""The domain as it was before, in the VM's folder."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for. ``enabling`` are the parameters of enabling beside name, disks, UUID and excluded disks."""

    disks: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    enabling: dict[str, Any] = field(default_factory=dict)
    start: bool = False
    copy_to: str = ""


@dataclass(slots=True)
class Adopted:
    """What was done: the VM, its disks by target with path and place, and what there is to know beside."""

    vm: VmStatus
    raw: dict[str, Any]
    disks: dict[str, tuple[str, Place]]
    kept: dict[str, str] = field(default_factory=dict)
    """Of a live adoption: the former images, by target."""
    running: list[Attached] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def adopt_stopped(agent: Agent, virsh: Virsh, name: str, wanted: Wanted) -> Adopted:
    """Adopt a domain that is off, and start it if that is wanted. Raises with everything as it was."""
    text, domain = virsh.domain(name, inactive=True)
    check_domain(virsh, domain, live=False)
    chosen, left = choose(domain, wanted.disks, wanted.exclude, live=False)
    with Undo() as undo:
        paths = [disk.path for disk in chosen]
        vm = _enabled_before(agent, domain, paths)
        if vm is None:
            vm = enable(agent, domain, paths, left, wanted)
            _removes(agent, vm, undo)
        places = places_of(vm, chosen)
        check_reachable(virsh, places.values())
        check_allowed(virsh, domain, places.values(), live=False)
        save(vm, text, undo)
        undo.add(f"define the domain {name} on its disks again", virsh.define, text)
        virsh.define(put_behind_taps(text, places))
        _, now = virsh.domain(domain.name, inactive=True)
        check_defined(now, places)
        notes = notes_of(virsh, now, places)
        running: list[Attached] = []
        if wanted.start:
            undo.add(f"virsh destroy {name}", _destroy, virsh, domain.name)
            with _telling([*notes, *confinement_notes(virsh, now)]):
                virsh.run("start", domain.name)
                running = attached(virsh, domain.name, places)
            # Undone is what can't be right; a start of the guest that only could be better stays.
            notes += running_notes(domain.name, running)
        undo.keep()
    disks = {disk.target: (disk.path, places[disk.target]) for disk in chosen}
    return Adopted(vm, _raw(agent, vm), disks, running=running, notes=notes)


def adopt_running(agent: Agent, virsh: Virsh, name: str, wanted: Wanted, console: Console) -> Adopted:
    """Adopt a running domain by copying its disks onto new images behind the tap. Raises with everything as it was,
    except where switching over failed for some of the disks: the error names them.
    """
    _, domain = virsh.domain(name)
    check_domain(virsh, domain, live=True)
    before, _ = virsh.domain(name, inactive=True)
    chosen, left = choose(domain, wanted.disks, wanted.exclude, live=True)
    with Undo() as undo:
        images = {
            disk.target: new_image(disk, virsh.size(domain.name, disk.target), wanted.copy_to, "vmr", undo)
            for disk in chosen
        }
        for image in images.values():
            _give(agent, image)
        vm = enable(agent, domain, list(images.values()), left, wanted)
        _removes(agent, vm, undo)
        places = places_of(vm, chosen)
        check_reachable(virsh, places.values())
        check_allowed(virsh, domain, places.values(), live=True)
        save(vm, before, undo)
        copy = BlockCopy(virsh, domain.name, console)
        with _telling(confinement_notes(virsh, domain)):
            copy.begin({disk.target: nbd_disk(places[disk.target], disk) for disk in chosen}, undo)
            copy.wait()
        # From then on the guest writes through the tap: nothing is taken back.
        copy.switch_first(undo)
    copy.switch_others()
    try:
        inactive, _ = virsh.domain(domain.name, inactive=True)
        virsh.define(put_behind_taps(inactive, places))
        _, now = virsh.domain(domain.name, inactive=True)
        check_defined(now, places)
        running = attached(virsh, domain.name, places)
    except VmreplicaError as error:
        raise InvalidStateError(
            f"{domain.name} runs on its tap now, and nothing of its disks is lost, but not all is as it should be: "
            f"{error.text}",
            f"{error.remedy} Then look at it again: vmreplica adopt {domain.name} --check; its next start takes what "
            f"`virsh dumpxml --inactive {domain.name}` shows.".strip(),
        ) from error
    notes = [*notes_of(virsh, now, places), *running_notes(domain.name, running)]
    kept = {disk.target: disk.path for disk in chosen}
    disks = {target: (path, places[target]) for target, path in images.items()}
    return Adopted(vm, _raw(agent, vm), disks, kept, running, notes)


# --- steps, some of which releasing shares


def check_domain(virsh: Virsh, domain: Domain, *, live: bool, snapshots: bool = True) -> None:
    """The domain is in a state in which its disks may be changed, without ``snapshots``. Raises InvalidStateError."""
    name = domain.name
    facts = virsh.facts(name)
    off = facts.get("State") == "shut off"
    if off and live:
        raise InvalidStateError(f"The domain {name} does not run.", "Leave --live out.")
    if not off and not live:
        raise InvalidStateError(
            f"The domain {name} is not off ({facts.get('State', 'its state is unknown')}): QEMU has its disks.",
            f"Shut it down (virsh shutdown {name}), or do it with --live, which needs room for a copy of the disks.",
        )
    if facts.get("Persistent") != "yes":
        raise InvalidStateError(
            f"The domain {name} is transient: there is no definition that its next start would take.",
            "Make it persistent: virsh dumpxml DOMAIN > FILE, then virsh define FILE.",
        )
    if not live and facts.get("Managed save") == "yes":
        raise InvalidStateError(
            f"The domain {name} has a saved state, which would go on with the disks as they were.",
            f"Start it and shut it down, or throw the state away: virsh managedsave-remove {name}.",
        )
    for verb, what in (("snapshot-list", "snapshot"), ("checkpoint-list", "checkpoint")) if snapshots else ():
        if found := virsh.names(verb, name):
            raise InvalidStateError(
                f"The domain {name} has the {what} {found[0]}: going back to it would go past the tap.",
                f"Delete it: virsh {what}-delete {name} {found[0]}.",
            )


def enable(agent: Agent, domain: Domain, paths: list[str], left: Sequence[DomainDisk], wanted: Wanted) -> VmStatus:
    """Enable the domain as a VM of its name, with its UUID where that is free."""
    if not wanted.enabling.get("replica"):
        raise UsageError(f"{domain.name} is not replicated yet.", "Say where to: --replica HOST.")
    taken = {vm.uuid for vm in agent.status.vms}
    params = {
        **wanted.enabling,
        "name": domain.name,
        "disks": [{"path": path} for path in paths],
        "exclude": [disk.path for disk in left if disk.path],
    }
    if domain.uuid and str(uuid.UUID(domain.uuid)) not in taken:
        params["uuid"] = domain.uuid
    agent.call(admin.ENABLE, params, ENABLE_SECONDS)
    return named(agent, domain.name)


def named(agent: Agent, name: str) -> VmStatus:
    """The VM of this name, as the agent has it now. Raises NotFoundError."""
    for vm in agent.refresh().status.vms:
        if vm.name == name:
            return vm
    raise NotFoundError(f"The primary agent has no VM {name}.", "`vmreplica status` lists the VMs.")


def places_of(vm: VmStatus, chosen: Sequence[DomainDisk]) -> dict[str, Place]:
    """Where the tap serves each disk, by target; the VM's disks are in the order of the domain's."""
    uris = vm.uris or (vm.tap.uris if vm.tap is not None else [])
    if len(uris) != len(chosen):
        error = vm.tap.error if vm.tap is not None else ""
        raise StorageError(f"The tap of {vm.name} does not serve its disks{f': {error}' if error else ''}.")
    return {disk.target: Place(*nbd_place(uri)) for disk, uri in zip(chosen, uris, strict=True)}


def check_reachable(virsh: Virsh, places: Iterable[Place]) -> None:
    """QEMU may connect to the tap's socket. Raises ForbiddenError."""
    who = virsh.qemu_user()
    if who is None:
        return
    for socket in sorted({place.socket for place in places}):
        if not reachable(socket, *who):
            raise ForbiddenError(
                f"QEMU, which libvirt runs as user {who[0]} and group {who[1]}, may not connect to {socket}.",
                'Name its group in primary.toml (nbd_group = "kvm" on Debian), and restart the agent.',
            )


def save(vm: VmStatus, text: str, undo: Undo) -> None:
    """Keep the domain as it was, in the VM's folder."""
    path = Path(vm.folder, SAVED)
    part = path.with_suffix(".part")
    try:
        # It may hold passwords of the domain.
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror or error}.") from None
    undo.add(f"rm {path}", path.unlink, missing_ok=True)


def saved(vm: VmStatus) -> Domain | None:
    """The domain as it was before it was adopted; None where that isn't known."""
    try:
        return parse(Path(vm.folder, SAVED).read_text(encoding="utf-8"))
    except OSError:
        return None


def check_defined(domain: Domain, places: dict[str, Place]) -> None:
    """libvirt took what it was given: sources and error policies. Raises InvalidStateError."""
    for target, place in places.items():
        disk = domain.disk(target)
        if disk.place != place:
            raise InvalidStateError(f"libvirt did not take the socket of the disk {target}: it has {disk.place}.")
        if disk.error_policies != (ERROR_POLICY, ERROR_POLICY):
            raise InvalidStateError(f"libvirt did not take the error policies of the disk {target}.")


def notes_of(virsh: Virsh, domain: Domain, places: dict[str, Place]) -> list[str]:
    """What the definition, or this host, does not do by itself."""
    notes = []
    if any(domain.disk(target).reconnect_seconds is None for target in places) and not hook_installed():
        notes.append(
            f"libvirt {virsh.version()} drops the reconnect delay. Without it a restart of the tap pauses the guest "
            "until `virsh resume`. Have libvirt's hook set it at each start: vmreplica libvirt-hook --install (else, "
            f"after each start: vmreplica adopt {domain.name} --check)."
        )
    return notes


def attached(virsh: Virsh, name: str, places: dict[str, Place]) -> list[Attached]:
    """Make sure that the running QEMU keeps requests, and tell how it has each disk. Raises InvalidStateError."""
    _, domain = virsh.domain(name)
    found = []
    for target, place in places.items():
        disk = domain.disk(target)
        if disk.place != place:
            raise InvalidStateError(f"The running domain {name} has its disk {target} from elsewhere: {disk.place}.")
        found.append(keep_requests(virsh, name, disk))
    return found


def running_notes(name: str, running: Sequence[Attached]) -> list[str]:
    """What the running QEMU does not do as it should."""
    notes = []
    if unkept := [each.target for each in running if not each.keeps_requests]:
        notes.append(f"QEMU does not wait for a tap that restarts, for {', '.join(unkept)}.")
    if failing := [each.target for each in running if not each.pauses]:
        notes.append(
            f"Until {name} is started anew, an error of {', '.join(failing)} that lasts longer than the reconnect "
            "delay is the guest's: a running QEMU can't change its error policy. After the next start it pauses."
        )
    return notes


@contextmanager
def _telling(notes: Sequence[str]) -> Iterator[None]:
    """An error that leaves has the notes in its remedy: they may be why QEMU has no disk."""
    try:
        yield
    except VmreplicaError as error:
        error.remedy = " ".join([error.remedy, *notes]).strip()
        raise


def _give(agent: Agent, image: str) -> None:
    """Let the agent have the image, where it does not run as who we are."""
    try:
        status = os.stat(f"/proc/{agent.status.pid}")
        os.chown(image, status.st_uid, status.st_gid, follow_symlinks=False)
    except OSError as error:
        raise StorageError(
            f"{image} can't be given to the agent: {error.strerror or error}.", "Run it as root."
        ) from None


def _destroy(virsh: Virsh, name: str) -> None:
    if virsh.facts(name).get("State") != "shut off":
        virsh.run("destroy", name)


def _removes(agent: Agent, vm: VmStatus, undo: Undo) -> None:
    params = {"vm": vm.uuid, "yes": True}
    undo.add(f"vmreplica remove {vm.name}", agent.call, admin.REMOVE, params, ENABLE_SECONDS)


def _enabled_before(agent: Agent, domain: Domain, paths: list[str]) -> VmStatus | None:
    """The VM of the domain's name that has exactly these disks already: only the domain is changed then."""
    for vm in agent.status.vms:
        if vm.name == domain.name and [disk.path for disk in vm.disks] == paths:
            return vm
    return None


def _raw(agent: Agent, vm: VmStatus) -> dict[str, Any]:
    return next(raw for raw in agent.refresh().raw["vms"] if raw["uuid"] == vm.uuid)
