"""What the man pages of the agents and the tap say: they are started by systemd, and have next to no options."""

from __future__ import annotations

from dataclasses import dataclass

Items = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Program:
    """One page of section 8."""

    name: str
    purpose: str
    arguments: str
    description: tuple[str, ...]
    sections: dict[str, Items]
    see: tuple[str, ...]


_SIGNALS: Items = (
    (
        "SIGHUP",
        """Read certificates and configuration again (systemctl reload). Sessions go on, unless an authorization entry
        that allowed them is gone. Where the new files have a mistake, what was loaded stays in force, and systemctl
        status says why.""",
    ),
    ("SIGTERM, SIGINT", "End in order, within 40 seconds. Taps go on."),
)


def _agent(role: str, purpose: str, description: tuple[str, ...], more: Items) -> Program:
    name = f"vmreplica-{role}"
    return Program(
        name,
        purpose,
        "[--config FILE]",
        (
            *description,
            f"""It runs as {name}.service, tells systemd when it is ready, what its VMs' health is, and that its event
            loop turns. It is commanded with vmreplica(1) over its socket.""",
        ),
        {
            "OPTIONS": (
                ("--config FILE", f"The configuration; /etc/vmreplica/{role}.toml where it is not given."),
                ("--version", "Print the version and exit."),
            ),
            "SIGNALS": _SIGNALS,
            "ENVIRONMENT": (
                ("CREDENTIALS_DIRECTORY", "Where systemd puts credentials; see [tls] in vmreplica.toml(5)."),
                (
                    "VMREPLICA_TAP_COMMAND",
                    """Command that starts a tap where the configuration has no tap_command; the unit of the primary
                    sets it.""",
                ),
                ("NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID", "See sd_notify(3)."),
            ),
            "FILES": (
                (f"/etc/vmreplica/{role}.toml", "The configuration, vmreplica.toml(5)."),
                (f"/run/vmreplica/{role}/admin.sock", "The socket of the command."),
                *more,
            ),
        },
        ("vmreplica(1)", "vmreplica.toml(5)", "vmreplica-tap(8)", "systemctl(1)"),
    )


PROGRAMS = (
    _agent(
        "primary",
        "the agent on the host that runs the VMs",
        (
            """The primary agent streams the logs of this host's VMs to their replicas, drives initial replications and
            resyncs, and starts the tap of each VM. It reads the VMs' disks and never writes them.""",
        ),
        (("/var/lib/vmreplica/primary", "States and logs of the VMs."),),
    ),
    _agent(
        "replica",
        "the agent on the host that keeps the copies",
        (
            """The replica agent receives the logs of VMs, applies them to copies of their disks, keeps and exports
            older recovery points, and promotes a VM at a failover.""",
        ),
        (("/var/lib/vmreplica/replica", "Copies, where the configuration names a folder there."),),
    ),
    Program(
        "vmreplica-tap",
        "the process in a VM's I/O path",
        "FOLDER",
        (
            """The tap serves a VM's disks over NBD and logs every write before it does it. There is one for each VM.
            The agents start it and prepare FOLDER; it goes on when they are stopped, upgraded or crash.""",
            """Under systemd it runs as vmreplica-tap@.service, whose instance is the escaped path of FOLDER. Running
            guests depend on it: stop it only when the VM is shut down. A guest whose NBD client reconnects waits
            for a restart.""",
        ),
        {
            "SIGNALS": (("SIGTERM, SIGINT", "End in order, within 30 seconds: what is under way is answered first."),),
            "FILES": (
                ("FOLDER/tap.json", "Its configuration, written by the agent."),
                ("FOLDER/tap.error", "Why the last start was refused."),
            ),
        },
        ("vmreplica(1)", "vmreplica-primary(8)", "vmreplica-replica(8)"),
    ),
)
