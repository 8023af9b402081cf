"""What a thorough look at this host's agents and VMs finds: each thing that replication depends on, one by one."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from shared.admin import verbs as admin
from shared.attachment import NO_CLIENT, Attachment, bypasses, socket_of
from shared.cli.agents import Agent
from shared.cli.configured import config_findings, ending_findings
from shared.cli.findings import Finding, Level, note, of_error, ok, problem, warning
from shared.cli.libvirt_disks import domain_findings
from shared.cli.machine import clock_finding, port_findings, volume_findings
from shared.errors import VmreplicaError
from shared.expiry import CertificateStatus, certificates_told, endings
from shared.health import resized
from shared.ports.disk_use import ProcDiskUse
from shared.rates import duration_text, size_text
from shared.status import AgentStatus, VmStatus

CONNECT_SECONDS = 5.0
TEST_SECONDS = 60.0
CLOCKS_APART_SECONDS = 2.0
"""Ages of recovery points are differences of both clocks; more than this is told."""
LOG_ROOM_BYTES = 256 << 20


def agent_findings(agent: Agent) -> Iterator[Finding]:
    """The agent itself: its configuration, certificate, alarms, volumes, and the host's clock."""
    status = agent.status
    subject = f"{status.role} agent"
    yield ok(subject, f"Version {status.version} runs as process {status.pid} on {status.host}.", pid=status.pid)
    certificates = certificates_told(status.certificates, status.certificate_not_after_time, status.host)
    # What the agent says of them is told below, by its level.
    told = {each.sentence for each in endings(certificates, status.time)}
    yield from (problem(subject, text, "See the agent's log.") for text in status.problems if text not in told)
    yield from _configuration(agent, subject)
    yield from _alarms(agent, subject)
    yield from _certificates(certificates, status, subject)
    if status.unseen_processes:
        yield warning(
            subject,
            f"It can't see the open files of {status.unseen_processes} processes: whether they write past a tap, only "
            "this verb finds.",
            "Start what sees them all, and tells the agent: systemctl start vmreplica-watch",
        )
    yield clock_finding()


def _configuration(agent: Agent, subject: str) -> Iterator[Finding]:
    try:
        told = agent.call(admin.CONFIG)
    except VmreplicaError as error:
        yield of_error(subject, error)
        return
    if told["refused"]:
        yield problem(subject, f"The last reload was refused: {told['refused']}", "Mend the file, and reload again.")
    for key in told["keys"]:
        if key["changed"]:
            how = f"systemctl reload vmreplica-{told['role']}" if key["by_reload"] else "Restart the agent."
            yield warning(subject, f"The file has another {key['key']} than is in force.", how)
    if not os.access(told["path"], os.R_OK):
        yield note(subject, f"{told['path']} was not looked at: not allowed.", "Run this as root.")
        return
    found, config = config_findings(told["path"], told["role"])
    yield from found
    if config is not None:
        yield from volume_findings(config, "")
        yield from port_findings(config)


def _alarms(agent: Agent, subject: str) -> Iterator[Finding]:
    try:
        alarms = agent.call(admin.ALARMS)["alarms"]
    except VmreplicaError as error:
        yield of_error(subject, error)
        return
    if not alarms:
        yield note(
            subject, "Nobody is told when something goes wrong.", "Add an [[alarms]] entry (docs/operations.md)."
        )
    for alarm in alarms:
        what = f"alarm {alarm['name']}"
        if alarm["last_error"]:
            yield problem(what, f"It does not arrive: {alarm['last_error']}", f"vmreplica alarms test {alarm['name']}")
        else:
            yield ok(what, f"{alarm['sent']} sent by {alarm['way']}.")


def _certificates(certificates: Sequence[CertificateStatus], status: AgentStatus, subject: str) -> Iterator[Finding]:
    ending = [*ending_findings(subject, certificates, status.time)]
    yield from ending
    end = status.certificate_not_after_time
    if end is None:
        yield note(subject, "It has no certificate.")
    elif not ending:
        left = duration_text(end - status.time)
        yield ok(subject, f"Its certificate is good for {left}.", not_after_time=end)


def vm_findings(agent: Agent, vm: VmStatus, tested: dict[str, list[Finding]]) -> Iterator[Finding]:
    """One VM; ``tested`` has what was found of replicas that were tried already, by address."""
    yield from _health(vm)
    if vm.role == "primary":
        yield from _replica(agent, vm, tested)
        yield from _disks(vm)
        yield from _tap(vm)
        yield from _attachment(vm)
    yield from _room(vm)


def _health(vm: VmStatus) -> Iterator[Finding]:
    level = {"Critical": Level.PROBLEM, "Warning": Level.WARNING}.get(vm.health, Level.OK)
    yield Finding(vm.name, level, f"{vm.role}, {vm.state}, {vm.health}. {vm.summary}", vm.remedy)
    # The summary tells the first one. An agent of an older version has no remedies of each.
    for reason, remedy in zip_longest(vm.reasons, vm.remedies, fillvalue=""):
        if reason not in vm.summary:
            yield Finding(vm.name, Level.WARNING, reason, remedy if remedy != vm.remedy else "")
    if vm.waiting:
        yield note(vm.name, f"It waits: {vm.waiting}")


# --- the way to the replica


def _replica(agent: Agent, vm: VmStatus, tested: dict[str, list[Finding]]) -> Iterator[Finding]:
    address = str(vm.settings.get("replica", ""))
    if not address:
        return
    if address not in tested:
        tested[address] = [*_way(agent, address)]
        yield from tested[address]
    elif any(each.level is Level.PROBLEM for each in tested[address]):
        yield problem(vm.name, f"Its replica {address} can't be reached, as told above.", "")
    link = vm.link
    if link.connected and link.clock_difference_seconds is not None:
        yield _clocks(vm.name, link.clock_difference_seconds, address)
    elif not link.connected and link.last_error:
        yield warning(vm.name, f"There is no session: {link.last_error}", "See what is told of the way to the replica.")


def _clocks(subject: str, difference: float, peer: str) -> Finding:
    text = f"The clock of {peer} is {abs(difference):.3f} s {'ahead' if difference > 0 else 'behind'}."
    if abs(difference) > CLOCKS_APART_SECONDS:
        remedy = "Run a time service on both hosts: ages of recovery points are wrong by that much."
        return warning(subject, text, remedy, clock_difference_seconds=difference)
    return ok(subject, text, clock_difference_seconds=difference)


def _way(agent: Agent, address: str) -> Iterator[Finding]:
    """Name, port, TLS, greeting and authorization, one after the other, to the first that fails."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    subject = f"way to {address}"
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        yield problem(
            subject, f"{host} can't be resolved: {error}.", "Mend DNS or /etc/hosts, or use the address itself."
        )
        return
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    yield ok(subject, f"{host} is {', '.join(addresses)}.", addresses=addresses)
    open_at = []
    for name in addresses:
        try:
            socket.create_connection((name, int(port)), CONNECT_SECONDS).close()
            open_at.append(name)
        except OSError as error:
            yield warning(
                subject,
                f"{name} port {port} does not answer: {error.strerror or error}.",
                "See whether the replica agent runs there, and for a firewall between.",
            )
    if not open_at:
        yield problem(
            subject, "Nobody listens at any of its addresses.", "Start the replica agent, or open the firewall."
        )
        return
    yield ok(subject, f"Port {port} answers at {', '.join(open_at)}.")
    try:
        report = agent.call(admin.TEST_CONNECTION, {"replica": address}, TEST_SECONDS)
    except VmreplicaError as error:
        yield of_error(subject, error)
        return
    for step in report["steps"]:
        level = Level.OK if step["ok"] else Level.PROBLEM
        yield Finding(subject, level, f"{step['name']}: {step['text']}", step["remedy"])


# --- disks and tap


def _disks(vm: VmStatus) -> Iterator[Finding]:
    for disk in vm.disks:
        subject = f"{vm.name}: disk {disk.index}"
        try:
            state = os.stat(disk.path)
        except OSError as error:
            yield problem(subject, f"{disk.path}: {error.strerror}.", "Bring it back; its tap can't serve it.")
            continue
        kind = "block device" if stat.S_ISBLK(state.st_mode) else "file" if stat.S_ISREG(state.st_mode) else ""
        # A device's size is what its tap has seen: to ask for it here would mean to open it.
        found = state.st_size if kind == "file" else disk.found_size_bytes
        if not kind:
            yield problem(subject, f"{disk.path} is neither a file nor a block device.", "Put the disk back.")
        elif found is not None and found != disk.size_bytes:
            yield problem(subject, *resized(vm.name, disk, found))
        else:
            yield ok(subject, f"{disk.path}, a {kind} of {size_text(disk.size_bytes)}, inode {state.st_ino}.",
                     device=state.st_dev, inode=state.st_ino)  # fmt: skip


def _tap(vm: VmStatus) -> Iterator[Finding]:
    tap, subject = vm.tap, f"{vm.name}: tap"
    if tap is None or not tap.running:
        reason = tap.error if tap is not None else ""
        yield problem(
            subject,
            f"It does not run. {reason}".strip(),
            "See journalctl -u 'vmreplica-tap@*', or tap.out in the VM's folder; it is tried again.",
        )
        return
    yield ok(subject, f"Process {tap.pid}, tracking {tap.tracking}, {tap.clients} clients.", pid=tap.pid)
    if tap.tracking == "lost":
        yield warning(subject, f"Tracking is lost: {tap.lost_text}", "A resync compares all blocks.")


def attachment_of(vm: VmStatus) -> Attachment:
    """A VM's attachment as its status tells it."""
    return Attachment(
        name=vm.name,
        uuid=vm.uuid,
        disks=tuple(disk.path for disk in vm.disks),
        sockets=tuple(dict.fromkeys(filter(None, map(socket_of, vm.uris)))),
        tap=vm.tap.pid if vm.tap is not None and vm.tap.running else None,
        clients=vm.tap.clients if vm.tap is not None else 0,
    )


def _attachment(vm: VmStatus) -> Iterator[Finding]:
    """Who else has the disks, what lies over them, and what libvirt says; by a look of our own."""
    subject = f"{vm.name}: attachment"
    attachment = attachment_of(vm)
    usage = ProcDiskUse().look(attachment.disks, attachment.sockets)
    found = bypasses(attachment, usage, time.time())
    held = {user.path for user in usage.users if user.pid == attachment.tap}
    for path in attachment.disks if attachment.tap is not None and not usage.unseen else ():
        if path not in held and os.path.exists(path):
            yield problem(
                subject,
                f"The tap does not have {path} open: another file has taken its place since the tap started.",
                "Put the disk that the tap serves back in its place before the tap is stopped.",
                path=path,
            )
    yield from (problem(subject, each.text, each.remedy, code=each.code, **each.evidence) for each in found)
    for user in usage.users:
        if not user.writing and user.pid != attachment.tap:
            text = f"Process {user.pid} ({user.program}) reads {user.path}."
            yield note(subject, text, "A backup that reads past the tap may see writes half done.", pid=user.pid)
    if usage.unseen:
        text = f"The open files of {usage.unseen} processes could not be seen."
        yield note(subject, text, "Run this as root.", unseen_processes=usage.unseen)
    elif not any(each.code != NO_CLIENT for each in found):
        yield ok(subject, "Nobody but the tap has its disks open for writing, and no overlay lies over them.")
    if attachment.clients == 0 and not found and attachment.tap is not None:
        yield note(subject, "Nobody is connected to the tap: the VM does not run.")
    yield from domain_findings(attachment)


def _room(vm: VmStatus) -> Iterator[Finding]:
    if not vm.folder or not os.path.isdir(vm.folder):
        return
    free = shutil.disk_usage(vm.folder).free
    tap = vm.tap
    needed = LOG_ROOM_BYTES
    if vm.role == "primary" and tap is not None and tap.running:
        needed = max(tap.log_limit_bytes - tap.log_used_bytes, 0)
    subject = f"{vm.name}: room"
    text = f"The volume of {vm.folder} has {size_text(free)} free"
    if free < needed:
        what = "the log may still need up to its limit" if vm.role == "primary" else "is little for a copy"
        yield warning(
            subject, f"{text}; {size_text(needed)} {what}.", "Make room, or set a smaller log-limit.",
            free_bytes=free, needed_bytes=needed,
        )  # fmt: skip
    else:
        yield ok(subject, f"{text}.", free_bytes=free)
