"""The verb that collects what somebody who helps needs to know."""

from __future__ import annotations

import argparse
import os
import platform
import ssl
import time
from pathlib import Path

from shared.cli.agents import Agents, connect, socket_paths
from shared.cli.bundle import Bundle, add_agent, add_host, without_secret_settings
from shared.cli.configured import KINDS, default_path
from shared.cli.context import Context, version
from shared.cli.exit_codes import SUCCESS
from shared.cli.findings import of_error
from shared.cli.verbs.doctor import findings_of
from shared.errors import StorageError, VmreplicaError


def bundle(options: argparse.Namespace, context: Context) -> int:
    """Write a support bundle; what could not be had is listed in it."""
    made = Bundle()
    path = Path(options.out or time.strftime(f"vmreplica-{os.uname().nodename}-%Y%m%d-%H%M%S.tar.gz"))
    paths, named = socket_paths(options.socket, context.environment)
    configs = {role: default_path(role) for role in KINDS if os.path.lexists(default_path(role))}
    try:
        with connect(paths, named=named) as agents:
            configs |= _collect(made, agents)
    except VmreplicaError as error:
        made.missing["agents"] = str(error)
        made.add_json("doctor.json", lambda error=error: [of_error("agents", error).plain()])  # type: ignore[misc]
    for role, config in configs.items():
        made.add_text(f"{role}/{role}.toml", Path(config), without_secret_settings)
    made.add_json("versions.json", _versions)
    add_host(made)
    try:
        made.write(path)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}.", "Name another file with --out.") from error
    if options.json:
        context.console.print_json({"file": str(path.absolute()), "files": sorted(made.files), "missing": made.missing})
        return SUCCESS
    context.console.print(
        [
            f"{path.absolute()} has {len(made.files)} files; {len(made.missing)} could not be had (MISSING.json).",
            "It holds names and addresses of hosts, VMs and files; no keys, and nothing of the disks.",
            "Look into it before you hand it on.",
        ]
    )
    return SUCCESS


def _collect(made: Bundle, agents: Agents) -> dict[str, str]:
    """All agents' tellings; where their configurations are."""
    configs: dict[str, str] = {}
    for agent in agents.answered:
        add_agent(made, agent)
        try:
            configs[agent.status.role] = str(agent.call("config")["path"])
        except VmreplicaError as error:
            made.missing[f"{agent.status.role}/{agent.status.role}.toml"] = str(error)
    made.add_json("doctor.json", lambda: [each.plain() for each in findings_of(agents, None, None)])
    return configs


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {"vmreplica": version(), "python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION}
    for name in ("uvloop", "msgspec", "msgpack", "cryptography", "numpy", "xxhash", "zstandard", "structlog"):
        found[name] = metadata.version(name)
    return found
