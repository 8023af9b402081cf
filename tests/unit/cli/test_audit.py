"""The verb audit: entries as text and JSON, from agents and from files, and a log that was changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shared.admin import verbs as admin
from shared.admin.audit_lines import AuditEntry, AuditReport, decode_line, split
from shared.admin.verbs import AuditAnswer
from shared.cli.verbs.audit import answer_lines, report_lines, since_time
from shared.errors import StoreDamagedError, UsageError
from shared.status import to_plain
from tests.unit.cli.conftest import Command

VECTOR = Path(__file__).parents[2] / "vectors" / "audit.jsonl"


def answer() -> AuditAnswer:
    return AuditAnswer(folder="/state", entries=[decode_line(line) for line in split(VECTOR.read_bytes())])


def test_entries_say_who_what_and_what_changed() -> None:
    lines = answer_lines(answer())
    assert "the agent" in lines[1]
    assert "ada (uid 1000, pid 4242)" in lines[2]
    assert lines[2].endswith("ok         interval_seconds: 300.0 -> 30.0")
    assert lines[3].endswith("forbidden  User 1001 may not call vm.remove. (7 more)")
    peer = AuditEntry(
        seq=4, time=2e9, role="replica", verb="peer.refused", source="10.0.0.1:77", result="forbidden",
        text="Its certificate is revoked.", left_out=9, previous="0" * 64,
    )  # fmt: skip
    line = answer_lines(AuditAnswer(folder="/state", entries=[peer]))[1]
    assert "10.0.0.1:77  peer.refused" in line and line.endswith("forbidden  Its certificate is revoked. (9 more)")
    assert answer_lines(AuditAnswer(folder="/state")) == ["/state: no order is on record."]


def test_report_says_how_far_it_is_whole() -> None:
    good = AuditReport(ok=True, entries=3, first_seq=5, last_seq=7, first_time=0.0, last_time=1.0, missing_before=4)
    assert "entries 5 to 7" in report_lines("/state", good)[0]
    assert "4 older ones are gone" in report_lines("/state", good)[1]
    bad = AuditReport(ok=False, entries=3, first_seq=1, last_seq=3, first_time=0.0, last_time=1.0, broken="x")
    assert "what follows is not" in report_lines("/state", bad)[0]


def test_times_that_may_be_given() -> None:
    assert since_time("", 1e9) == 0
    assert since_time("2h", 1e9) == 1e9 - 7200
    assert since_time("2026-11-28 02:00+00:00", 0) == 1795831200
    with pytest.raises(UsageError, match="no time"):
        since_time("soon", 0)


def test_agent_is_asked_and_json_is_what_it_answered(vmreplica: Command) -> None:
    primary = vmreplica.agent()
    primary.answers[admin.AUDIT] = to_plain(answer())
    done = vmreplica("audit", "web", "--since", "2026-11-28", "--limit", "3", "--json")
    assert done.code == 0, done.err
    (method, params) = primary.calls[-1]
    assert (method, params["vm"], params["limit"], params["check"]) == (admin.AUDIT, "web", 3, False)
    assert [entry["seq"] for entry in json.loads(done.out)["logs"][0]["entries"]] == [1, 2, 3]


def test_files_are_checked_without_an_agent(tmp_path: Path, vmreplica: Command) -> None:
    shutil.copy(VECTOR, tmp_path / "audit.jsonl")
    done = vmreplica("audit", "--folder", str(tmp_path), "--verify")
    assert done.code == 0, done.err
    assert "entries 1 to 3" in done.out
    shown = vmreplica("audit", "web", "--folder", str(tmp_path))
    assert shown.out.count("\n") == 2
    changed = VECTOR.read_bytes().replace(b'"uid":1000', b'"uid":1001')
    (tmp_path / "audit.jsonl").write_bytes(changed)
    done = vmreplica("audit", "--folder", str(tmp_path), "--verify")
    assert done.code == StoreDamagedError.exit_code
    assert "audit.jsonl line 3" in done.err
    assert vmreplica("audit", "--folder", str(tmp_path / "none")).code != 0
