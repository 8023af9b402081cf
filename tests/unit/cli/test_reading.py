"""Verbs that read, as processes before agents that tell canned statuses."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from typing import Any

import pytest

from shared.admin import verbs as admin
from shared.cli.connection import connect_error
from shared.errors import ForbiddenError, UnreachableError
from shared.events import EventId, make_event
from shared.status import to_plain
from tests.unit.cli.conftest import Command
from tests.unit.cli.samples import NOW, UUID, agent, healthy, replica, resynchronizing

# --- status


def test_one_agent_is_enough(vmreplica: Command) -> None:
    vmreplica.agent()
    ran = vmreplica("status")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == [
        "VM   ROLE     STATE        HEALTH  PROTECTED  BEHIND  LINK",
        "web  primary  Replicating  Normal  yes        2.1 s   up (0.4 ms)",
    ]


def test_both_agents_are_merged(vmreplica: Command) -> None:
    vmreplica.agent()
    vmreplica.agent("replica", [replica(name="backup")])
    assert [line.split()[:2] for line in vmreplica("status").lines] == [
        ["VM", "ROLE"],
        ["backup", "replica"],
        ["web", "primary"],
    ]
    assert [line.split()[0] for line in vmreplica("status", "--role", "replica").lines] == ["VM", "backup"]


def test_json_is_what_the_agents_say_with_fields_of_tomorrow(vmreplica: Command) -> None:
    vmreplica.agent().extra = {"field_of_tomorrow": [1, "x\x9b"]}
    ran = vmreplica("status", "--json")
    assert ran.code == 0
    assert "\x9b" not in ran.out
    expected = to_plain(agent()) | {"field_of_tomorrow": [1, "x\x9b"]}
    assert json.loads(ran.out) == {"agents": [expected], "unreachable": []}
    assert json.loads(ran.out)["agents"][0]["vms"][0]["lag_seconds"] == 2.1


@pytest.mark.slow
def test_page_of_one_vm_by_name_and_by_uuid(vmreplica: Command) -> None:
    vmreplica.agent(vms=[healthy(), resynchronizing()])
    vmreplica.agent("replica", [replica()])
    by_name = vmreplica("status", "web")
    assert [line for line in by_name.lines if not line.startswith(" ")] == ["web  primary", "", "web  replica"]
    assert vmreplica("status", UUID).lines == by_name.lines
    assert vmreplica("status", UUID.replace("-", "").upper()).lines == by_name.lines
    one = json.loads(vmreplica("status", "web", "--json", "--role", "replica").out)
    assert [[vm["role"] for vm in each["vms"]] for each in one["agents"]] == [["replica"]]


def test_unknown_name_gives_the_nearest(vmreplica: Command) -> None:
    vmreplica.agent(vms=[healthy(name="web-server")])
    ran = vmreplica("status", "web-sevrer")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.splitlines() == [
        "vmreplica: No agent on this host has a VM named web-sevrer.",
        "  Did you mean web-server? `vmreplica status` lists the VMs.",
    ]


def test_no_agent_names_the_sockets_and_how_to_start(vmreplica: Command) -> None:
    ran = vmreplica("status")
    assert ran.code == 5
    sockets = f"{vmreplica.folder}/primary.sock or {vmreplica.folder}/replica.sock"
    assert ran.err.splitlines() == [
        f"vmreplica: No agent runs here: there is no socket {sockets}.",
        "  Start the agent: systemctl start vmreplica-primary, or vmreplica-replica on the replica's host.",
    ]


def test_without_anything_else_the_sockets_of_the_packages_are_tried(vmreplica: Command) -> None:
    ran = vmreplica("status", VMREPLICA_SOCKETS="")
    assert "/run/vmreplica/primary/admin.sock or /run/vmreplica/replica/admin.sock" in ran.err


def test_socket_that_was_named_has_to_be_there(vmreplica: Command) -> None:
    vmreplica.agent()
    here, missing = f"{vmreplica.folder}/primary.sock", f"{vmreplica.folder}/other.sock"
    assert vmreplica("status", "--socket", here, VMREPLICA_SOCKETS="").code == 0
    ran = vmreplica("status", "--socket", here, "--socket", missing)
    assert ran.code == 5
    assert ran.lines[1].startswith("web")
    assert f"there is no socket {missing}" in ran.err


def test_agent_that_died_is_told_beside_the_one_that_lives(vmreplica: Command) -> None:
    vmreplica.agent()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(f"{vmreplica.folder}/replica.sock")
    ran = vmreplica("status")
    assert ran.code == 5
    assert ran.lines[1].startswith("web")
    assert f"{vmreplica.folder}/replica.sock does not run" in ran.err
    unreachable = json.loads(vmreplica("status", "--json").out)["unreachable"]
    assert [error["code"] for error in unreachable] == ["unreachable"]


def test_what_is_no_agent_is_named(vmreplica: Command) -> None:
    path = f"{vmreplica.folder}/primary.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        started = vmreplica.start("status")
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"220 smtp ESMTP\n")
            _, err = started.communicate(timeout=30)
    assert started.returncode == 5
    assert "does not speak our protocol" in err


def test_agent_of_another_kind_of_version_is_told_as_such(vmreplica: Command) -> None:
    vmreplica.agent().extra = {"vms": [{"name": "web"}]}
    ran = vmreplica("status")
    assert ran.code == 5
    assert "answers in a form that is not understood" in ran.err
    assert "Install the same version" in ran.err


def test_connection_that_ends_before_the_answer(vmreplica: Command) -> None:
    path = f"{vmreplica.folder}/primary.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        started = vmreplica.start("status")
        listener.accept()[0].close()
        _, err = started.communicate(timeout=30)
    assert started.returncode == 5
    assert f"{path} closed the connection" in err or f"{path} broke" in err


def test_missing_permission_is_told_as_such() -> None:
    assert isinstance(connect_error("/s", PermissionError(13, "Permission denied")), ForbiddenError)
    assert isinstance(connect_error("/s", BlockingIOError(11, "busy")), UnreachableError)


def test_text_from_elsewhere_can_not_command_the_terminal(vmreplica: Command) -> None:
    vmreplica.agent(vms=[healthy(name="\x1b[2Jx", health="Critical", reasons=["\x1b]0;pwned\x07"])])
    ran = vmreplica("status")
    assert "\x1b" not in ran.out
    assert "\x07" not in ran.out
    assert "\ufffd[2Jx" in ran.out


def test_reader_that_goes_away_is_no_error_message(vmreplica: Command) -> None:
    vmreplica.agent()
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | true', "bash", *vmreplica.line("status")],
        env=vmreplica.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (0, 141)
    assert done.stderr == ""


# --- on a terminal


def test_colours_only_on_a_terminal_that_wants_them(vmreplica: Command) -> None:
    vmreplica.agent()
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        terminal = vmreplica.terminal("status", **environment)
        assert terminal.end() == 0
        terminal.close()
        assert ("\x1b[32mNormal" in terminal.shown) is coloured
    assert "\x1b" not in vmreplica("status").out


def test_table_is_as_wide_as_the_terminal(vmreplica: Command) -> None:
    vmreplica.agent(vms=[healthy(name="a-name-that-is-far-too-long-for-this-terminal")])
    terminal = vmreplica.terminal("status", COLUMNS="60", NO_COLOR="1")
    assert terminal.end() == 0
    terminal.close()
    assert max(len(line) for line in terminal.shown.splitlines()) <= 60


@pytest.mark.slow
def test_watching_redraws_until_ctrl_c(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    terminal = vmreplica.terminal("status", "--watch")
    try:
        terminal.wait_for("2.1 s")
        canned.set_vm(healthy(lag_seconds=77.0))
        terminal.wait_for("1 min 17 s")
        terminal.interrupt()
        assert terminal.end() == 0
    finally:
        terminal.close()


@pytest.mark.slow
def test_watching_without_a_terminal_tells_changes(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    started = vmreplica.start("status", "--watch")
    assert started.stdout is not None
    assert started.stdout.readline() == "web: primary, Replicating, Normal\n"
    canned.set_vm(healthy(health="Critical", protected=False))
    assert started.stdout.readline() == "web: primary, Replicating, Critical, not protected\n"
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=30)
    assert (started.returncode, out, err) == (0, "", "")


@pytest.mark.slow
def test_watching_goes_on_while_the_agent_is_away(vmreplica: Command) -> None:
    canned = vmreplica.agent()
    started = vmreplica.start("status", "--watch")
    assert started.stdout is not None
    assert started.stdout.readline() == "web: primary, Replicating, Normal\n"
    canned.stop()
    assert started.stdout.readline().startswith("No agent runs here")
    vmreplica.agent()
    assert started.stdout.readline() == "web: primary, Replicating, Normal\n"
    started.send_signal(signal.SIGINT)
    started.communicate(timeout=30)
    assert started.returncode == 0


@pytest.mark.slow
def test_watching_as_json_is_one_value_a_line(vmreplica: Command) -> None:
    vmreplica.agent()
    started = vmreplica.start("status", "web", "--watch", "--json")
    assert started.stdout is not None
    for _ in range(2):
        assert json.loads(started.stdout.readline())["agents"][0]["vms"][0]["name"] == "web"
    started.send_signal(signal.SIGINT)
    started.communicate(timeout=30)
    assert started.returncode == 0


# --- the others


def test_get(vmreplica: Command) -> None:
    vmreplica.agent()
    assert vmreplica("get", "web").lines[4:] == [
        "  interval   =  30 s",
        "  log-limit  =  10.0 GiB",
        "  replica    =  beta:7443",
    ]
    [vm] = json.loads(vmreplica("get", "--json").out)["vms"]
    assert (vm["name"], vm["role"], vm["settings"]["log_limit_bytes"]) == ("web", "primary", 10 << 30)


def test_get_shows_how_resyncs_start_in_columns(vmreplica: Command) -> None:
    starts = {"resync_mode": "window", "resync_window_start": "18:30", "resync_window_end": "06:00"}
    rates = {"resync_read_rate": [50 << 20, 0], "resync_send_rate": []}
    web, mail = healthy(), resynchronizing()
    mail.name = "mail"
    web.settings, mail.settings = {**starts, **rates}, dict(starts)
    vmreplica.agent(vms=[web, mail])
    lines = vmreplica("get").lines
    assert lines[:4] == [
        "VM    RESYNC MODE  WINDOW START  WINDOW END",
        "web   window       18:30         06:00",
        "mail  window       18:30         06:00",
        "",
    ]
    assert "  resync-read-rate     =  50.0 MiB/s by day, none by night" in lines
    assert "  resync-send-rate     =  none" in lines


def test_events_of_both_agents_in_order(vmreplica: Command) -> None:
    def event(vm: str, age: float, text: str) -> dict[str, Any]:
        return {"id": 1, "vm": vm, "uuid": UUID, **make_event(EventId.CONNECTED, text, time=NOW - age)}

    primary = vmreplica.agent()
    other = vmreplica.agent("replica", [replica()])
    primary.answers[admin.EVENTS] = {"events": [event("web", 30, "first"), event("web", 10, "third")]}
    other.answers[admin.EVENTS] = {"events": [event("web", 20, "second")]}
    assert [line.split()[-1] for line in vmreplica("events").lines] == ["first", "second", "third"]
    asked = {"limit": 50, "after": 0, "since": 0.0, "until": None, "events": (), "levels": ()}
    assert primary.calls[-2:] == [(admin.EVENTS, {**asked, "vm": None}), (admin.AGENT_EVENTS, asked)]
    last = json.loads(vmreplica("events", "web", "--limit", "2", "--json").out)["events"]
    assert [(each["role"], each["text"]) for each in last] == [("replica", "second"), ("primary", "third")]
    assert primary.calls[-1] == (admin.EVENTS, {**asked, "vm": UUID, "limit": 2})
    assert json.loads(vmreplica("events", "--vm", "web", "--limit", "2", "--json").out)["events"] == last
    assert vmreplica("events", "web", "--vm", "db").code == 2


def test_version(vmreplica: Command) -> None:
    assert vmreplica("version").lines == vmreplica("--version").lines
    vmreplica.agent()
    ran = vmreplica("version")
    assert ran.lines[0].startswith("vmreplica ")
    assert ran.lines[1:] == ["primary agent 0.1.0"]
    assert json.loads(vmreplica("version", "--json").out)["agents"] == [{"role": "primary", "version": "0.1.0"}]
