"""``failover --test``: a recovery point served for a test beside replication, the line that starts it, and its end."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from shared.admin import verbs as admin
from shared.cli.agents import connect, socket_paths
from shared.cli.attach import libvirt_lines, qemu_lines
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import time_text
from shared.cli.verbs.points import BEGIN_SECONDS, point_of
from shared.errors import UsageError, VmreplicaError
from shared.status import TestFailoverStatus, VmStatus, to_plain


def test_failover(options: argparse.Namespace, context: Context) -> int:
    """Begin the test failover of a VM, or end it."""
    if not options.test:
        raise UsageError("--stop ends a test failover.", "Give it with --test.")
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "replica")
        name = found.vm.name
        if options.stop:
            found.call(admin.TEST_FAILOVER, BEGIN_SECONDS, stop=True)
            context.console.print(f"The test failover of {name} is ended, and what was written to it is deleted.")
            return SUCCESS
        found.call(admin.TEST_FAILOVER, BEGIN_SECONDS, **point_of(options))
        vm = found.refresh()
        test = vm.test_failover
    if test is None:
        raise VmreplicaError(f"The test failover of {name} has ended already.", f"See `vmreplica events {name}`.")
    command = start_command(test.name, test.uris)
    if options.json:
        context.console.print_json({**to_plain(test), "command": " ".join(command)})
        return SUCCESS
    when = time_text(test.cut.time, None)
    first, *rest = [f"{line} \\" for line in command[:-1]] + command[-1:]
    context.console.print(
        [
            f"{name} is served for a test as of {when} (point {test.point}), and replication goes on.",
            "",
            "NBD:",
            *(f"  {uri}" for uri in test.uris),
            "",
            f"To start it as {test.name}, without a network and with the memory of your choice:",
            f"  {first}",
            *(f"    {line}" for line in rest),
            "",
            *_libvirt(vm, test),
            "",
            f"What it writes is thrown away at the end: vmreplica failover {name} --test --stop",
        ]
    )
    return SUCCESS


def _libvirt(vm: VmStatus, test: TestFailoverStatus) -> list[str]:
    if getattr(vm, "definition", None) is not None:
        return [
            "Its definition, under that name and with these disks (--define puts it into libvirt):",
            f"  vmreplica definition {vm.name} --test --point {test.point}",
        ]
    lines = [line for at, uri in enumerate(test.uris) for line in libvirt_lines(uri, at)]
    return ["Its disks for a libvirt domain of that name:", *(f"  {line}" for line in lines)]


test_failover.__test__ = False  # type: ignore[attr-defined]


def start_command(name: str, uris: Sequence[str]) -> list[str]:
    """QEMU's command line for a test, without a network: the words of a shell, in lines."""
    words = [f"qemu-system-x86_64 -name {shlex.quote(name)} -machine q35,accel=kvm:tcg -cpu max -m 2G -nic none"]
    for at, uri in enumerate(uris):
        for line in qemu_lines(uri, at):
            option, _, value = line.partition(" ")
            words.append(f"{option} {shlex.quote(value)}")
    return words
