"""The verb that makes a host ready for an agent; run again, it changes nothing that is right already."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterable

from shared.cli.configured import KINDS, config_findings
from shared.cli.context import Context
from shared.cli.findings import Finding, Level, finding_lines, ok, report
from shared.cli.machine import machine_findings, port_findings, volume_findings
from shared.cli.preparing import Step, Wanted, first_steps, later_steps
from shared.cli.units import parse_authorize
from shared.config import load_config
from shared.config_sections import PrimaryConfig, ReplicaConfig
from shared.errors import ForbiddenError, VmreplicaError

STORAGE_FOLDER = "/var/lib/vmreplica/replica"


def setup(options: argparse.Namespace, context: Context) -> int:
    """Groups, folders, certificates, configuration and units; then a look at the machine."""
    wanted = _wanted(options, context)
    if not wanted.root and os.geteuid() != 0 and not options.check:
        raise ForbiddenError("Only root can set a host up.", "Run it with sudo, or with --check to only look.")
    steps = list(first_steps(wanted))
    changes = [step for step in steps if step.do is not None]
    if options.check:
        found = [step.finding for step in steps]
        found += _rest(wanted, write=False)
        return report(found, context.console, json=options.json, role=wanted.role, changed=False)
    if changes and not options.yes and context.console.answers is not None:
        context.console.print(finding_lines((step.finding for step in changes), context.console.width,
                                            context.console.palette))  # fmt: skip
        context.console.confirm(f"{len(changes)} things are to be made or changed on this host.", "yes", yes=False)
    found = [step.done() for step in steps]
    found += _rest(wanted, write=True)
    _tell_systemd(found, wanted)
    code = report(found, context.console, json=options.json, role=wanted.role, changed=_has_changed(found))
    if not options.json:
        context.console.print(_next(wanted, code))
    return code


def _rest(wanted: Wanted, *, write: bool) -> list[Finding]:
    """What depends on the configuration, and the machine."""
    found: list[Finding] = []
    config = _configuration(wanted)
    if config is not None:
        steps: Iterable[Step] = later_steps(wanted, config)
        found += [step.done() if write else step.finding for step in steps]
    if os.path.lexists(wanted.path):
        findings, _ = config_findings(wanted.path, wanted.role, wanted.root)
        found += findings
    found += machine_findings(wanted.root)
    if config is not None:
        found += volume_findings(config, wanted.root)
        if not wanted.root:
            found += port_findings(config)
    return found


def _configuration(wanted: Wanted) -> PrimaryConfig | ReplicaConfig | None:
    try:
        return load_config(wanted.path, KINDS[wanted.role])
    except VmreplicaError:
        # What is wrong with it is among the findings.
        return None


def _wanted(options: argparse.Namespace, context: Context) -> Wanted:
    listen_host, listen_port = getattr(options, "listen", None) or ("", None)
    authorize = tuple(getattr(options, "authorize", ()))
    wanted = Wanted(
        role=options.role,
        root=os.path.abspath(options.root) if options.root else "",
        config=options.config,
        host=options.host,
        pki=options.pki,
        nbd_group=options.nbd_group,
        listen_host=listen_host,
        listen_port=listen_port,
        authorize=authorize,
        units=not options.no_units,
        apparmor=options.apparmor,
    )
    if wanted.root == "/":
        wanted = _changed(wanted, root="")
    ask = options.role == "replica" and not authorize and not options.yes and not options.check
    if ask and context.console.answers is not None and not os.path.lexists(wanted.path):
        wanted = _changed(wanted, authorize=_asked(context))
    return wanted


def _changed(wanted: Wanted, **changes: object) -> Wanted:
    from dataclasses import replace

    return replace(wanted, **changes)  # type: ignore[arg-type]  # the fields' own types


def _asked(context: Context) -> tuple[tuple[str, str], ...]:
    """Ask which primary may replicate here; nobody has to be named yet."""
    console = context.console
    assert console.answers is not None
    console.print("Which primary may replicate to this host? Give the name in its certificate (empty: none yet).")
    name = console.answers.readline().strip()
    if not name:
        return ()
    console.print(f"Folder for its copies (empty: {STORAGE_FOLDER}/{name}).")
    storage = console.answers.readline().strip() or f"{STORAGE_FOLDER}/{name}"
    return (parse_authorize(f"{name}={storage}"),)


def _has_changed(found: Iterable[Finding]) -> bool:
    return any(each.level is Level.CHANGED for each in found)


def _tell_systemd(found: list[Finding], wanted: Wanted) -> None:
    """Have systemd read units that were just put in place."""
    units = any(each.level is Level.CHANGED and ".service" in each.subject for each in found)
    if units and not wanted.root and os.path.isdir("/run/systemd/system") and shutil.which("systemctl"):
        done = subprocess.run(["systemctl", "daemon-reload"], capture_output=True, timeout=60, check=False)
        if done.returncode == 0:
            found.append(ok("systemd", "It has read the units anew."))


def _next(wanted: Wanted, code: int) -> list[str]:
    if code:
        return ["", f"Mend what is a problem, and run `vmreplica setup {wanted.role}` again: it goes on from there."]
    if wanted.root:
        return []
    started = f"systemctl enable --now vmreplica-{wanted.role}"
    if wanted.role == "replica":
        return ["", f"Next: {started}", "Then, on the primary's host: vmreplica test-connection THIS_HOST"]
    return [
        "",
        f"Next: {started}",
        "Then: vmreplica test-connection REPLICA, and vmreplica enable NAME --disk PATH ...",
    ]
