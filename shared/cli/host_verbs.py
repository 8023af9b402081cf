"""The verbs about this host rather than a VM: setting it up, its configuration, what is wrong with it, its alarms."""

from __future__ import annotations

import argparse

from shared.cli.grammar import Verb, add_verbs, json_option, parsed, vm_argument, yes_option
from shared.cli.units import parse_authorize, parse_listen


def _setup(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, SETUP_VERBS, "role")


def _setup_role(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pki", default="", metavar="FOLDER", help="this host's folder as pki issue made it; its files are copied"
    )
    parser.add_argument("--host", default="", metavar="NAME", help="name of this host (default: the system's)")
    parser.add_argument(
        "--nbd-group", default="", metavar="GROUP", help="group that QEMU runs as, e.g. kvm; it may use the NBD sockets"
    )
    parser.add_argument("--config", default="", metavar="FILE", help="the configuration (default: in /etc/vmreplica)")
    parser.add_argument("--check", action="store_true", help="only look, and tell what would be made")
    parser.add_argument("--no-units", action="store_true", help="leave systemd's units alone")
    parser.add_argument(
        "--apparmor",
        action="store_true",
        help="add the rule to libvirt's AppArmor profiles that lets QEMU of every domain connect to the taps",
    )
    parser.add_argument(
        "--root", default="", metavar="FOLDER", help="put this before all paths, for an image that is being built"
    )
    yes_option(parser)
    json_option(parser)


def _setup_replica(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--authorize",
        action="append",
        default=[],
        type=parsed(parse_authorize),
        metavar="NAME=FOLDER",
        help="the name in a primary's certificate, and the folder for its copies (repeatable)",
    )
    parser.add_argument(
        "--listen", type=parsed(parse_listen), metavar="[HOST][:PORT]", help="where to listen (default 0.0.0.0:8443)"
    )
    _setup_role(parser)


def _role_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--role", choices=("primary", "replica"), help="only that agent's")


def _config(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, CONFIG_VERBS, "action")


def _config_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", default="", metavar="FILE", help="the configuration (default: those in /etc/vmreplica)"
    )
    parser.add_argument("--role", choices=("primary", "replica"), help="whose it is, where its name does not tell")
    json_option(parser)


def _config_show(parser: argparse.ArgumentParser) -> None:
    _role_option(parser)
    json_option(parser)


def _alarms(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, ALARM_VERBS, "action")


def _alarms_test(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="the alarm (default: all)")
    _config_show(parser)


def _doctor(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, optional=True)
    json_option(parser)


def _bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="", metavar="FILE", help="the archive (default: vmreplica-HOST-DATE.tar.gz here)"
    )
    json_option(parser)


def _watch_disks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="look once, and end")


SETUP_VERBS = (
    Verb("primary", "make this host ready to replicate its VMs", "shared.cli.verbs.setup:setup", _setup_role, False),
    Verb("replica", "make this host ready to keep copies", "shared.cli.verbs.setup:setup", _setup_replica, False),
)
_CONFIG = "shared.cli.verbs.config"
CONFIG_VERBS = (
    Verb("check", "find every mistake in a configuration file", f"{_CONFIG}:check", _config_check, agents=False),
    Verb("show", "print what is in force, and what in the file waits", f"{_CONFIG}:show", _config_show),
)
_ALARMS = "shared.cli.verbs.alarms"
ALARM_VERBS = (
    Verb("show", "tell how each alarm does", f"{_ALARMS}:show", _config_show),
    Verb("test", "send a test by an alarm, or by all", f"{_ALARMS}:test", _alarms_test),
)
HOST_VERBS = (
    Verb(
        "doctor",
        "look at all that replication depends on, and say what to do",
        "shared.cli.verbs.doctor:doctor",
        _doctor,
    ),
    Verb("config", "check configuration files, and show what is in force", "", _config, agents=False),
    Verb("alarms", "look at the alarms of this host's agents, and test them", "", _alarms, agents=False),
    Verb(
        "support-bundle", "collect what somebody who helps needs, no secrets", "shared.cli.verbs.bundle:bundle", _bundle
    ),
    Verb(
        "watch-disks",
        "tell the primary agent each minute who uses the VMs' disks; a service of its own",
        "shared.cli.verbs.watching:watch",
        _watch_disks,
    ),
    Verb("setup", "make this host ready for an agent; safe to run again", "", _setup, agents=False),
)
