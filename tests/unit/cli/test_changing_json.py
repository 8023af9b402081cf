"""Verbs that change something print the VM's status afterwards with --json, and nothing else."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import pytest

from shared.admin import verbs as admin
from shared.cli.arguments import build_parser
from shared.cli.grammar import verb_parsers
from shared.status import ExportStatus, to_plain
from tests.unit.cli.conftest import Command
from tests.unit.cli.samples import UUID, cut, healthy, replica

WITHOUT = {"completion", "libvirt-hook", "metrics", "pki show", "watch-disks"}
"""Verbs whose output is a file's content, or that have none."""


def verbs(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, list[str]]]:
    for name, own in verb_parsers(parser):
        below = list(verbs(own, f"{before}{name} "))
        yield from below
        if not below:
            yield before + name, [option for action in own._actions for option in action.option_strings]


def test_every_verb_has_json() -> None:
    assert {name for name, options in verbs(build_parser()) if "--json" not in options} == WITHOUT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "method"),
    [
        ("disk add web /images/data.raw", admin.DISK_ADD),
        ("disk remove web 0 --yes", admin.DISK_REMOVE),
        ("disk resize web 0 --size 80GiB", admin.DISK_RESIZE),
        ("suspend web", admin.SUSPEND),
        ("resume web", admin.RESUME),
        ("resume web --resynchronize --at never", admin.RESUME),
        ("resume web --resynchronize --yes", admin.RESUME),
        ("resume web --continue --no-wait", admin.RESUME),
        ("resize web", admin.RESIZE),
        ("stop web", admin.STOP),
        ("recover web --yes", admin.RECOVER),
        ("initial web --at never", admin.INITIAL),
        ("initial web --no-wait", admin.INITIAL),
        ("initial web", admin.INITIAL),
    ],
)
def test_status_afterwards(vmreplica: Command, line: str, method: str) -> None:
    canned = vmreplica.agent()
    before = healthy()

    def change(params: object) -> None:
        canned.set_vm(healthy(summary="It was changed."))

    canned.set_vm(before)
    canned.answers[method] = change
    ran = vmreplica(*line.split(), "--json")
    assert (ran.code, ran.err) == (0, "")
    value = json.loads(ran.out)
    assert (value["uuid"], value["summary"]) == (UUID, "It was changed.")
    assert [called for called, _ in canned.calls] == [method]


@pytest.mark.slow
def test_remove_and_unexport(vmreplica: Command) -> None:
    canned = vmreplica.agent("replica", [replica(exports=[ExportStatus(id="e1", uris=[], cut=cut(4, 1.0))])])
    ran = vmreplica("unexport", "web", "--json")
    assert canned.calls == [(admin.UNEXPORT, {"vm": UUID, "id": "e1"})]
    assert json.loads(ran.out) == to_plain(canned.status.vms[0])
    ran = vmreplica("remove", "web", "--yes", "--json")
    assert json.loads(ran.out) == {"name": "web", "uuid": UUID, "role": "replica", "kept": ""}
