"""Verbs about a VM beside its disks: cut, definition."""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import uuid
from pathlib import Path

import msgspec

from shared.admin import verbs as admin
from shared.cli.agents import Found, connect, socket_paths
from shared.cli.context import Context
from shared.cli.definition_mapping import HostMapping, Mapped, mapped, read_networks
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import printable_values, time_text
from shared.cli.verbs.points import point_of
from shared.cli.verbs.replication import disk_uris
from shared.cli.virsh import Virsh
from shared.errors import InvalidStateError, StorageError, UsageError
from shared.guest_status import DefinitionFileStatus, DefinitionReport
from shared.rates import duration_text
from shared.status import VmStatus

CUT_SECONDS = 300.0
DEFINITION_NAME = "definition"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def cut(options: argparse.Namespace, context: Context) -> int:
    """Take a cut."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        raw = found.call(admin.CUT, CUT_SECONDS, consistent=options.consistent)
    if options.json:
        context.console.print_json(raw)
        return SUCCESS
    report = msgspec.convert(printable_values(raw), admin.CutReport)
    frozen = f", the guest was frozen for {duration_text(report.frozen_seconds)}" if report.frozen_seconds else ""
    when = time_text(report.cut.time, None)
    lines = [f"Cut {report.cut.segment} of {found.vm.name}, {when}: {report.consistency}-consistent{frozen}."]
    lines += [f"  {text}" for text in (report.text, report.remedy) if text]
    context.console.print(lines)
    return SUCCESS


def definition(options: argparse.Namespace, context: Context) -> int:
    """Print, write or define what the VM needs to start here."""
    if options.as_it_is and (options.define or options.test):
        raise UsageError("What is as it is at the primary is not for this host.", "Leave out --as-it-is.")
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        raw = found.call(admin.DEFINITION, **point_of(options))
        # The paths and names are compared as they are; what is printed of them is cleaned.
        report = msgspec.convert(raw, DefinitionReport)
        contents = [_content(found, each) for each in report.files[: len(report.files) if options.output else 1]]
    written = _write_files(Path(options.output), report.files, contents) if options.output else {}
    if options.as_it_is:
        result = Mapped(contents[0].decode("utf-8", "replace"))
    else:
        result = mapped(contents[0], report.disks, _mapping(options, found.vm, report, written), found.vm.name)
    if report.later:
        result.notes.insert(0, "It is newer than the point: no definition was received before it.")
    if options.output:
        suffix = ".xml" if result.is_domain else ".txt"
        _write(Path(options.output) / f"{DEFINITION_NAME}{suffix}", result.text.encode())
    if options.define:
        _define(result, context)
    _show(options, context, found.vm, report, result, written)
    return SUCCESS


def _content(found: Found, file: DefinitionFileStatus) -> bytes:
    """A file of the definition, verified. Raises StorageError."""
    content = b""
    while len(content) < file.size_bytes:
        answer = found.call(admin.DEFINITION_READ, sha256=file.sha256, offset=len(content))
        data = base64.b64decode(answer["data"])
        if not data:
            break
        content += data
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise StorageError(
            f"The replica's copy of {file.path!r} is damaged: it is not what its SHA-256 says.",
            "Change the file at the primary, so that it is sent again; or name another point.",
        )
    return content


def _write_files(folder: Path, files: list[DefinitionFileStatus], contents: list[bytes]) -> dict[str, str]:
    """Write the small files; their paths here by those at the primary, of which only the last part is in the names."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} can't be made: {error.strerror}.", "Name another folder.") from None
    written = {}
    for number, (file, content) in enumerate(zip(files[1:], contents[1:], strict=True), 1):
        path = folder / f"{number}-{_UNSAFE.sub('_', file.path.rpartition('/')[2])[:100]}"
        _write(path, content)
        written[file.path] = str(path)
    return written


def _write(path: Path, content: bytes) -> None:
    """Write a file that is not there. One with the same content may be: it is left as it is. Raises StorageError."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        if path.is_symlink() or path.read_bytes() != content:
            raise StorageError(
                f"{path} is there and is another one: a VM may be running with it.", "Name another folder."
            ) from None
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}.", "Name another folder.") from None


def _mapping(
    options: argparse.Namespace, vm: VmStatus, report: DefinitionReport, written: dict[str, str]
) -> HostMapping:
    return HostMapping(
        disks=_disks(vm, report),
        networks=read_networks(report.test_networks if options.test else report.networks),
        files=written,
        test=options.test,
        uuid=str(uuid.uuid4()) if options.test else vm.uuid,
        secrets=options.security_info or options.define,
    )


def _disks(vm: VmStatus, report: DefinitionReport) -> dict[int, str]:
    """NBD URIs by index: where the disks are served once failed over, else of an export of the point."""
    uris = disk_uris(vm)
    for export in vm.exports if not uris else []:
        if (export.cut.epoch, export.cut.segment) == (report.cut.epoch, report.cut.segment):
            uris = export.uris
    return {disk.index: uri for disk, uri in zip(vm.disks, uris, strict=False)}


def _define(result: Mapped, context: Context) -> None:
    if not result.is_domain:
        raise UsageError(
            "This is no domain of libvirt: there is nothing to define.", "Start it by the text as printed."
        )
    if result.missing_disks:
        raise InvalidStateError(
            "The disks are not served here yet, so that it could not be started.",
            "Fail over first (vmreplica failover), or export the point (vmreplica export).",
        )
    Virsh(context.environment).define(result.text)


def _show(
    options: argparse.Namespace,
    context: Context,
    vm: VmStatus,
    report: DefinitionReport,
    result: Mapped,
    written: dict[str, str],
) -> None:
    if result.missing_disks:
        numbers = ", ".join(str(index) for index in sorted(set(result.missing_disks)))
        result.notes.append(
            f"Disk {numbers} is not served here yet, and a placeholder stands for it: fail over, or export the point."
        )
    left = [each.path for each in report.files[1:] if each.path not in written]
    if left:
        result.notes.append(f"{len(left)} more file(s) go with it, the first {left[0]!r}: --output DIR writes them.")
    if options.json:
        context.console.print_json(
            {
                "report": msgspec.to_builtins(report),
                "text": result.text,
                "libvirt": result.is_domain,
                "name": result.name,
                "notes": result.notes,
                "files": written,
                "defined": options.define,
            }
        )
        return
    if options.define:
        context.console.print(f"{result.name} is defined in libvirt. Start it: virsh start {result.name!r}")
    elif not options.output:
        context.console.print(str(line) for line in printable_values(result.text.splitlines()))
    else:
        context.console.print([f"Written to {options.output}:", *(f"  {path}" for path in written.values())])
    for note in result.notes:
        context.console.err.write(f"note: {printable_values(note)}\n")
