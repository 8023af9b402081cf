"""The command's grammar: every verb with its options and help; completion and reference are made from it.

A verb names its handler as ``module:function``; the module is imported only when the verb runs.
"""

from __future__ import annotations

import argparse

from shared.admin.bounds import PLAN_BLOCKS, PLAN_BLOCKS_MAX
from shared.block_devices import BlockDevicePolicy
from shared.cli.adopt_verbs import ADOPT_VERBS
from shared.cli.audit_verbs import AUDIT_VERBS
from shared.cli.disk_verbs import DISK_VERBS
from shared.cli.event_options import events_options
from shared.cli.grammar import (
    LOG_LIMIT_TEXT,
    REPLICA_TEXT,
    Parser,
    Verb,
    add_verbs,
    json_option,
    limit_option,
    no_wait_option,
    parsed,
    vm_argument,
    yes_option,
)
from shared.cli.guest_verbs import CUT_VERB, DEFINITION_VERB
from shared.cli.host_verbs import HOST_VERBS
from shared.cli.import_verbs import IMPORT_VERB
from shared.cli.measuring_verbs import MEASURING_VERBS
from shared.cli.pki_verbs import PKI_VERBS
from shared.cli.point_verbs import POINT_VERBS, point_options
from shared.cli.reverse_verbs import REVERSE_VERBS
from shared.cli.units import (
    SETTINGS,
    parse_blocks,
    parse_disk,
    parse_duration,
    parse_interval,
    parse_path,
    parse_setting,
    parse_size,
)

DESCRIPTION = "Replication of virtual machine disks between two hosts."
SHELLS = ("bash", "zsh", "fish")
INTERVAL_SECONDS = 300.0
SHUTDOWN_SECONDS = 300.0


def build_parser() -> Parser:
    """The parser of the whole command."""
    parser = Parser(prog="vmreplica", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the command's version and exit")
    add_verbs(parser, VERBS, "verb")
    return parser


# --- the verbs


def _enable(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the VM")
    parser.add_argument(
        "--disk",
        action="append",
        required=True,
        type=parsed(parse_disk),
        metavar="PATH[,export=NAME]",
        help="raw image or block device of the VM, and its name over NBD (repeatable, in the order of the disks)",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        type=parsed(parse_path),
        metavar="PATH",
        help="disk of the VM that is not replicated: no tap serves it, and the replica does not have it (repeatable)",
    )
    parser.add_argument("--replica", required=True, metavar="HOST[:PORT]", help=REPLICA_TEXT)
    parser.add_argument(
        "--interval",
        type=parsed(parse_interval),
        default=INTERVAL_SECONDS,
        metavar="TIME",
        help="time between two cuts: 30s, 5m, 15m or any from 1s (default 5m)",
    )
    parser.add_argument(
        "--log-limit",
        type=parsed(parse_size),
        metavar="SIZE",
        help=LOG_LIMIT_TEXT,
    )
    parser.add_argument(
        "--block-device-policy",
        choices=tuple(BlockDevicePolicy),
        help="when block devices are compared because the tap was stopped: after an unclean stop (compare, the "
        "default), never (trust), always (strict)",
    )
    for key in ("hot-region-size", "hot-regions"):
        name, parse, text = SETTINGS[key]
        metavar = "SIZE" if key == "hot-region-size" else "N"
        parser.add_argument(f"--{key}", dest=name, type=parsed(parse), metavar=metavar, help=text)
    parser.add_argument("--uuid", metavar="UUID", help="identity of the VM (default: a new one)")
    json_option(parser)


def _initial(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    parser.add_argument(
        "--at",
        metavar="TIME",
        default="",
        help="start it then, up to 7 days ahead, in the time zone of the primary: 02:00, '2026-11-28 02:00', "
        "2026-11-28T02:00+01:00, +2h or +30m; never cancels it",
    )
    parser.add_argument(
        "--export",
        type=parsed(parse_path),
        metavar="DIR",
        help="write the copy into an empty folder of this host, on a medium say, for `vmreplica import DIR` at the "
        "replica; what is written meanwhile is tracked",
    )
    parser.add_argument(
        "--use-seed",
        action="store_true",
        help="only where a seed was imported at the replica: compare all of it, and send what differs",
    )
    no_wait_option(parser)
    json_option(parser)


def _status(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, optional=True)
    parser.add_argument(
        "--watch", action="store_true", help="follow the work on VM to its end, or keep the view up to date"
    )
    json_option(parser)


def _get(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, optional=True)
    json_option(parser)


def _set(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    parser.add_argument(
        "settings",
        nargs="*",
        default=[],
        type=parsed(parse_setting),
        metavar="KEY=VALUE",
        help="\n".join(["any of:", *(f"{key}: {text}" for key, (_, _, text) in SETTINGS.items())]),
    )
    json_option(parser)


def _suspend(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser)
    json_option(parser)


def _resume(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser)
    parser.add_argument(
        "--resynchronize",
        action="store_true",
        help="compare the disks and send what differs (at the primary)",
    )
    parser.add_argument(
        "--at",
        metavar="TIME",
        default="",
        help="with --resynchronize: start it then, up to 7 days ahead, in the time zone of the primary: 02:00, "
        "'2026-11-28 02:00', 2026-11-28T02:00+01:00, +2h or +30m; never cancels it",
    )
    parser.add_argument(
        "--continue",
        dest="go_on",
        action="store_true",
        help="go on with a suspended compare from where it stood, and do nothing else (at the primary)",
    )
    no_wait_option(parser)
    yes_option(parser)
    json_option(parser)


def _verify(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    parser.add_argument(
        "--at",
        metavar="TIME",
        default="",
        help="start it then, up to 7 days ahead, in the time zone of the primary: 02:00, '2026-11-28 02:00', "
        "2026-11-28T02:00+01:00, +2h or +30m; never cancels it",
    )
    parser.add_argument("--repair", action="store_true", help="send again what differs, and compare that once more")
    parser.add_argument("--stop", action="store_true", help="end the one that runs")
    no_wait_option(parser)
    json_option(parser)


def _stop(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    json_option(parser)


def _remove(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser)
    yes_option(parser)
    json_option(parser)


def _recover(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser)
    parser.add_argument(
        "--replica",
        default="",
        metavar="HOST[:PORT]",
        help=f"{REPLICA_TEXT}, at a primary whose folder does not tell it any more",
    )
    yes_option(parser)
    json_option(parser)


def _failover(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--prepare",
        action="store_true",
        help="at the primary: stop the writes and bring the replica to the last one, so that nothing is lost",
    )
    what.add_argument(
        "--test",
        action="store_true",
        help="serve the point for a test, writable, while replication goes on; nothing of it is kept",
    )
    what.add_argument(
        "--undo", action="store_true", help="go back to before the failover: what was written here since is dropped"
    )
    what.add_argument(
        "--commit", action="store_true", help="keep the failover for good: the other recovery points are deleted"
    )
    parser.add_argument("--stop", action="store_true", help="with --test: end it, and delete what was written to it")
    point_options(
        parser,
        "which recovery point (of a failover newest is what was received last, which is applied first; applied is what "
        "the copy is at)",
    )
    parser.add_argument(
        "--shutdown",
        action="store_true",
        help="with --prepare: first have libvirt ask the guest to shut down",
    )
    parser.add_argument(
        "--timeout",
        type=parsed(parse_duration),
        default=SHUTDOWN_SECONDS,
        metavar="TIME",
        help="with --shutdown: how long the guest may take (default 5m)",
    )
    parser.add_argument(
        "--prove",
        action="store_true",
        help="with --prepare: once it is prepared, compare both sides' disks at the last cut by their hashes",
    )
    parser.add_argument("--abort", action="store_true", help="with --prepare: take the preparation back")
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --abort: also where the replica, which may be failed over, does not answer (risks a split brain)",
    )
    no_wait_option(parser, "with --prepare: ")
    yes_option(parser)
    json_option(parser)


def _resync(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, RESYNC_VERBS, "action")


def _resync_vm(parser: argparse.ArgumentParser) -> None:
    vm_argument(parser, role=False)
    json_option(parser)


def _resync_plan(parser: argparse.ArgumentParser) -> None:
    _resync_vm(parser)
    parser.add_argument("--sample", action="store_true", help="measure on a sample, though past runs tell a rate")
    parser.add_argument(
        "--blocks",
        type=parsed(parse_blocks),
        default=PLAN_BLOCKS,
        metavar="N",
        help=f"random blocks that are compared with the replica, up to {PLAN_BLOCKS_MAX} (default {PLAN_BLOCKS}); "
        "0: it is not asked",
    )


def _resync_history(parser: argparse.ArgumentParser) -> None:
    _resync_vm(parser)
    limit_option(parser)


def _hrl(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, HRL_VERBS, "action")


def _hrl_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a file of a log, of a spool, or a differencing file")
    json_option(parser)


def _pki(parser: argparse.ArgumentParser) -> None:
    add_verbs(parser, PKI_VERBS, "action")


def _test_connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("replica", metavar="HOST[:PORT]", help=REPLICA_TEXT)
    parser.add_argument(
        "--timeout", type=parsed(parse_duration), default=60.0, metavar="TIME", help="give up after (default 60s)"
    )
    json_option(parser)


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=(*SHELLS, "vms"), help="the shell to print a script for (vms: names of the VMs, one a line)"
    )


HRL_VERBS = (
    Verb("dump", "print the records of a log file", "shared.cli.verbs.hrl:dump", _hrl_file, agents=False),
    Verb("check", "verify a log file and tell how it ends", "shared.cli.verbs.hrl:check", _hrl_file, agents=False),
)
_RESYNC = "shared.cli.verbs.resync"
RESYNC_VERBS = (
    Verb("plan", "tell what a resync would read, send and take if it began now", f"{_RESYNC}:plan", _resync_plan),
    Verb("show", "tell why one is required, and all about the open and the last one", f"{_RESYNC}:show", _resync_vm),
    Verb("history", "list the resyncs on record, with forecast and outcome", f"{_RESYNC}:history", _resync_history),
    Verb("watch", "follow the one that runs, with a strip of each disk", f"{_RESYNC}:watch", _resync_vm),
)
_REPLICATION = "shared.cli.verbs.replication"
_VERIFY = "shared.cli.verbs.verify"
_REPLICA = "shared.cli.verbs.replica"
_FAILOVER = "shared.cli.verbs.failover_verbs"
_READING = "shared.cli.verbs.reading"
VERBS = (
    Verb("status", "tell whether the VMs are protected, how far behind, and what to do", f"{_READING}:status", _status),
    Verb("enable", "put a VM's disks under replication; prints how to attach them", f"{_REPLICATION}:enable", _enable),
    *ADOPT_VERBS,
    Verb("initial", "make the first copy, with live progress", f"{_REPLICATION}:initial", _initial),
    IMPORT_VERB,
    Verb("get", "print the settings of a VM or of all", f"{_READING}:get", _get),
    Verb("set", "change settings of a VM, or print them where none is given", f"{_REPLICATION}:set_settings", _set),
    Verb(
        "suspend",
        "stop sending (at the replica: taking) changes; they are kept",
        f"{_REPLICATION}:suspend",
        _suspend,
    ),
    Verb("resume", "go on after a suspend, an error, or with a resync", f"{_REPLICATION}:resume", _resume),
    Verb("resync", "plan a resync, watch it, look at past ones", "", _resync, agents=False),
    Verb("resize", "take over files that somebody made larger, comparing all", f"{_REPLICATION}:resize", _stop),
    *DISK_VERBS,
    Verb("stop", "cancel a resync or initial replication before its commit", f"{_REPLICATION}:stop", _stop),
    Verb("verify", "compare both sides at a cut while replication goes on", f"{_VERIFY}:verify", _verify),
    CUT_VERB,
    Verb("remove", "end the replication of a VM on this host", f"{_REPLICATION}:remove", _remove),
    Verb("recover", "rebuild the state of a VM in Error whose database is lost", f"{_REPLICATION}:recover", _recover),
    *MEASURING_VERBS,
    *AUDIT_VERBS,
    Verb("events", "print what happened, the newest last", "shared.cli.verbs.events:events", events_options),
    *POINT_VERBS,
    Verb(
        "failover",
        "promote the replica to be the VM's disks, test, undo or commit that, or prepare it at the primary",
        f"{_FAILOVER}:failover",
        _failover,
    ),
    DEFINITION_VERB,
    *REVERSE_VERBS,
    Verb("hrl", "look into files of the replication log", "", _hrl, agents=False),
    Verb("pki", "make and look at certificates", "", _pki, agents=False),
    Verb(
        "test-connection",
        "try the primary agent's way to a replica, step by step",
        f"{_REPLICATION}:try_connection",
        _test_connection,
    ),
    *HOST_VERBS,
    Verb("completion", "print a script for the shell's completion", "shared.cli.verbs.about:completion", _completion),
    Verb(
        "version", "print the versions of the command and of the agents", "shared.cli.verbs.about:version", json_option
    ),
)
