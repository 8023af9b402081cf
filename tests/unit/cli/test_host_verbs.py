"""Verbs about this host's configuration and alarms, before agents that tell canned answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shared.admin import verbs as admin
from shared.alarms import AlarmStatus
from shared.config_state import ConfigStatus, KeyStatus, safe_url
from shared.status import to_plain
from tests.unit.cli.conftest import Command

TLS = "[tls]\nca = '/a'\ncertificate = '/b'\nkey = '/c'\n"
BAD = "hots = 'x'\nworker_threads = 0\n" + TLS


def test_check_tells_all_mistakes_of_a_file(vmreplica: Command, tmp_path: Path) -> None:
    path = tmp_path / "replica.toml"
    path.write_text(BAD)
    ran = vmreplica("config", "check", str(path))
    assert ran.code == 1
    assert f"{path}:1: hots is no known key." in ran.out
    assert "> Did you mean host?" in ran.out
    assert f"{path}:2: worker_threads" in ran.out
    assert "2 problems" in ran.lines[-1]


def test_check_looks_for_what_a_sound_file_names(vmreplica: Command, tmp_path: Path) -> None:
    path = tmp_path / "primary.toml"
    path.write_text(TLS)
    ran = vmreplica("config", "check", str(path), "--json")
    told = json.loads(ran.out)
    assert (ran.code, told["ok"]) == (1, False)
    assert [each["subject"] for each in told["findings"] if each["level"] == "problem"] == ["tls"]
    other = tmp_path / "agent.toml"
    path.rename(other)
    assert vmreplica("config", "check", str(other)).code == 2
    assert vmreplica("config", "check", str(other), "--role", "replica").code == 1


def test_show_marks_what_waits_for_what(vmreplica: Command) -> None:
    agent = vmreplica.agent()
    agent.answers[admin.CONFIG] = to_plain(
        ConfigStatus(
            role="primary", path="/etc/x.toml", started_time=0, loaded_time=0, refused="line 1 is wrong",
            keys=[
                KeyStatus(key="host", value="alpha", default=False, by_reload=False, changed=True, file_value="beta"),
                KeyStatus(key="log_format", value="text", default=True, by_reload=True),
            ],
        )
    )  # fmt: skip
    ran = vmreplica("config", "show", "--role", "primary")
    assert '  host        =  "alpha"  # the file has "beta": a restart brings it' in ran.lines
    assert '  log_format  =  "text"   # default' in ran.lines
    assert "  The last reload was refused: line 1 is wrong" in ran.lines


def test_alarms_are_shown_and_a_test_that_fails_is_an_exit_code(vmreplica: Command) -> None:
    agent = vmreplica.agent()
    agent.answers[admin.ALARMS] = {"alarms": []}
    assert "nobody is told of anything" in vmreplica("alarms", "show").out
    failed = to_plain(AlarmStatus(name="pager", way="command", sent=2, last_error="It said no."))
    agent.answers[admin.ALARM_TEST] = {"alarms": [failed]}
    ran = vmreplica("alarms", "test", "pager")
    assert ran.code == 5
    assert "  the last attempt failed: It said no." in ran.lines
    assert agent.calls[-1] == (admin.ALARM_TEST, {"name": "pager"})


def test_doctor_without_agents_looks_at_the_machine(vmreplica: Command) -> None:
    ran = vmreplica("doctor", "--json")
    found = json.loads(ran.out)["findings"]
    assert ran.code == 1
    assert {"agents", "Python", "OpenSSL", "kernel", "clock"} <= {each["subject"] for each in found}


@pytest.mark.skipif(os.geteuid() != 0, reason="says what root is not told")
def test_setup_for_the_host_itself_only_looks_with_check(vmreplica: Command) -> None:
    before = os.path.exists("/etc/vmreplica")
    ran = vmreplica("setup", "replica", "--check", "--json")
    assert json.loads(ran.out)["changed"] is False
    assert os.path.exists("/etc/vmreplica") is before


def test_address_is_shown_without_its_secrets() -> None:
    assert safe_url("https://u:p@hooks.example:99/a?b=c") == "https://hooks.example:99/..."
    assert safe_url("") == ""
