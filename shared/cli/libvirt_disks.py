"""What libvirt says a domain's disks are: on the tap, on a file, or on an overlay over the tap."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from shared.attachment import Attachment
from shared.cli.findings import Finding, note, ok, problem
from shared.cli.virsh import Virsh
from shared.errors import NotFoundError, VmreplicaError

VIRSH_SECONDS = 15.0


def domain_findings(vm: Attachment) -> Iterator[Finding]:
    """Each disk of the domain of the VM's name (else UUID), judged; nothing where libvirt is not there."""
    if shutil.which("virsh") is None:
        return
    virsh = Virsh(os.environ, read_only=True, seconds=VIRSH_SECONDS)
    for name in (vm.name, vm.uuid):
        try:
            text = virsh.run("dumpxml", name)
        except NotFoundError:
            continue
        except VmreplicaError as error:
            yield note(f"{vm.name}: libvirt", f"It does not tell of the VM's disks: {error.text}", error.remedy)
        else:
            yield from judged(vm, name, text)
        return


def judged(vm: Attachment, domain: str, text: str) -> Iterator[Finding]:
    """The findings of a domain's XML."""
    subject = f"{vm.name}: libvirt"
    try:
        root = ET.fromstring(text)  # noqa: S314 - libvirt's own, from this host.
    except ET.ParseError as error:
        yield note(subject, f"The XML of the domain {domain} can't be read: {error}.")
        return
    found = False
    for disk in root.iterfind("./devices/disk"):
        target = disk.find("target")
        name = target.get("dev", "?") if target is not None else "?"
        finding = _disk(vm, subject, domain, name, disk)
        if finding is not None:
            found = True
            yield finding
    if not found:
        yield problem(
            subject,
            f"No disk of the domain {domain} is on the tap of {vm.name}.",
            f"Attach it to the tap's socket {', '.join(vm.sockets) or ''}: see `vmreplica status {vm.name}`.",
        )


def _disk(vm: Attachment, subject: str, domain: str, name: str, disk: ET.Element) -> Finding | None:
    """One disk of the domain; None where it is none of the VM's."""
    source = disk.find("source")
    top = _place(source)
    if top in vm.sockets:
        return ok(subject, f"{domain}'s {name} is on the tap.")
    if top in vm.disks:
        return problem(
            subject,
            f"{domain}'s {name} is attached to the file {top}, not to the tap: what it writes is not replicated.",
            f"Shut the domain down and set the disk's source to the tap's socket {', '.join(vm.sockets)} (virsh edit).",
        )
    below = next((place for place in _backing(disk) if place in vm.sockets or place in vm.disks), None)
    if below is None:
        return None
    return problem(
        subject,
        f"{domain}'s {name} writes into the overlay {top}, which lies over {below}: nothing of that is replicated.",
        f"Merge it back: virsh blockcommit {domain} {name} --active --pivot",
        overlay=top,
    )


def _backing(disk: ET.Element) -> Iterator[str]:
    for store in disk.iter("backingStore"):
        place = _place(store.find("source"))
        if place:
            yield place


def _place(source: ET.Element | None) -> str:
    """The file, device or unix socket of a source; empty for anything else."""
    if source is None:
        return ""
    host = source.find("host")
    path = source.get("file") or source.get("dev") or (host.get("socket") if host is not None else "") or ""
    return os.path.normpath(path) if path else ""
