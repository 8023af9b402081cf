"""Takes the disks of a libvirt domain from behind their tap, to a file or block device; the replication ends."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from shared.admin import verbs as admin
from shared.cli.adopting import ENABLE_SECONDS, check_domain, saved
from shared.cli.agents import Agents, Found
from shared.cli.attach import nbd_place
from shared.cli.block_copies import BlockCopy, new_image, path_is_block
from shared.cli.console import Console
from shared.cli.domain_xml import Domain, Place, plain_disk, put_back
from shared.cli.qemu_nodes import leave
from shared.cli.undoing import Undo
from shared.cli.virsh import Virsh
from shared.errors import InvalidStateError, NotFoundError, VmreplicaError
from shared.status import VmStatus


@dataclass(frozen=True, slots=True)
class Released:
    """What was done: the disks by target with their paths now, and the images that are left over."""

    name: str
    uuid: str
    disks: dict[str, str]
    left: dict[str, str]


def release_stopped(agents: Agents, virsh: Virsh, name: str, console: Console, yes: bool) -> Released:
    """Release a domain that is off. Raises with everything as it was."""
    text, domain = virsh.domain(name, inactive=True)
    check_domain(virsh, domain, live=False, snapshots=False)
    found = _vm_of(agents, domain)
    paths = _paths(found.vm, domain)
    console.confirm(
        f"{domain.name} gets its disks without the tap: {', '.join(paths.values())}. Its replication ends, and the "
        f"log is deleted; the replica on {found.vm.peer_host or 'the other host'} stays.",
        domain.name,
        yes,
    )
    with Undo() as undo:
        kinds = {target: ("block" if path_is_block(path) else "file", path) for target, path in paths.items()}
        undo.add(f"define the domain {name} on its tap again", virsh.define, text)
        virsh.define(put_back(text, kinds, saved(found.vm)))
        _, now = virsh.domain(domain.name, inactive=True)
        _check_defined(now, paths)
        found.call(admin.REMOVE, ENABLE_SECONDS, yes=True)
        undo.keep()
    return Released(domain.name, found.vm.uuid, paths, {})


def release_running(
    agents: Agents, virsh: Virsh, name: str, console: Console, yes: bool, copy_to: str = ""
) -> Released:
    """Release a running domain by copying its disks into new images, without their tap.

    Raises with everything as it was, except where switching over failed for some of the disks.
    """
    _, domain = virsh.domain(name)
    check_domain(virsh, domain, live=True, snapshots=False)
    found = _vm_of(agents, domain)
    paths = _paths(found.vm, domain)
    console.confirm(
        f"The disks of {domain.name} are copied out of the tap while it runs, into new images. Then its replication "
        f"ends, and the log is deleted; the replica on {found.vm.peer_host or 'the other host'} stays.",
        domain.name,
        yes,
    )
    before = saved(found.vm)
    with Undo() as undo:
        images = {
            target: new_image(
                domain.disk(target), virsh.size(domain.name, target), copy_to, "released", undo, path=path
            )
            for target, path in paths.items()
        }
        copy = BlockCopy(virsh, domain.name, console)
        copy.begin({target: plain_disk("file", path, domain.disk(target)) for target, path in images.items()}, undo)
        copy.wait()
        copy.switch_first(undo)
    copy.switch_others()
    try:
        for target in images:
            leave(virsh, domain.name, target)
        inactive, _ = virsh.domain(domain.name, inactive=True)
        virsh.define(put_back(inactive, {target: ("file", path) for target, path in images.items()}, before))
        # The tap stops only where nothing has a disk from it any more.
        for each in (virsh.domain(domain.name)[1], virsh.domain(domain.name, inactive=True)[1]):
            _check_defined(each, images)
        found.call(admin.REMOVE, ENABLE_SECONDS, yes=True)
    except VmreplicaError as error:
        raise InvalidStateError(
            f"{domain.name} runs on its new images now ({', '.join(images.values())}), but is not wholly released: "
            f"{error.text}",
            f"{error.remedy} See that its definition has these images (virsh edit {domain.name}), then: vmreplica "
            f"remove {found.vm.name}.".strip(),
        ) from error
    return Released(domain.name, found.vm.uuid, images, paths)


def _vm_of(agents: Agents, domain: Domain) -> Found:
    """The VM whose tap serves the domain's disks. Raises NotFoundError or InvalidStateError."""
    identities = sorted(
        {
            posixpath.basename(posixpath.dirname(disk.place.socket))
            for disk in domain.behind_taps()
            if disk.place is not None
        }
    )
    if not identities:
        raise NotFoundError(
            f"No disk of {domain.name} comes from a tap.",
            f"`virsh domblklist {domain.name}` shows where they come from; `vmreplica remove` ends a replication.",
        )
    if len(identities) > 1:
        raise InvalidStateError(f"The disks of {domain.name} come from several taps: {', '.join(identities)}.")
    return agents.find_one(identities[0], "primary")


def _paths(vm: VmStatus, domain: Domain) -> dict[str, str]:
    """The path of each of the domain's disks that the VM's tap serves, by target. Raises InvalidStateError."""
    uris = vm.uris or (vm.tap.uris if vm.tap is not None else [])
    served = {Place(*nbd_place(uri)): disk.path for uri, disk in zip(uris, vm.disks, strict=False)}
    paths = {disk.target: served[disk.place] for disk in domain.disks if disk.place in served}
    if len(paths) < len(domain.behind_taps()) or not paths:
        raise InvalidStateError(
            f"The tap of {vm.name} does not serve what the domain {domain.name} has.",
            f"`vmreplica status {vm.name}` tells about the tap; `virsh domblklist {domain.name}` about the domain.",
        )
    return paths


def _check_defined(domain: Domain, paths: dict[str, str]) -> None:
    for target, path in paths.items():
        if domain.disk(target).path != path:
            raise InvalidStateError(
                f"The disk {target} of {domain.name} did not get {path}: it has {domain.disk(target).path or 'a tap'}."
            )
