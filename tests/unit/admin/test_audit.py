"""Tests of the audit log: every changing order is on record, and nothing of the record can be changed unseen."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shared.admin import audit as audit_module
from shared.admin import audit_log as audit_log_module
from shared.admin import verbs
from shared.admin.access import Access
from shared.admin.audit import PARAMS_MAX, REFUSED_AT_ONCE, Auditor
from shared.admin.audit_lines import (
    CURRENT,
    NO_LINE,
    AuditEntry,
    AuditReport,
    ChainCheck,
    decode_line,
    digest_of,
    encode_line,
    in_order,
    older_name,
    split,
)
from shared.admin.audit_log import AuditLog, check_log, find_entries
from shared.admin.client import JsonRpcClient
from shared.admin.methods import Methods
from shared.admin.server import Client, JsonRpcServer
from shared.admin.verbs import AnyVmParams, AuditParams, RemoveParams, SetParams
from shared.errors import ForbiddenError, InvalidStateError, StorageError, VmreplicaError
from shared.ports import Address
from shared.ports.clock import RealClock
from shared.ports.file_system import RealFileSystem
from shared.ports.network import RealNetwork
from shared.ports.users import user_name
from shared.ports.workers import ThreadWorkers
from shared.status import AgentStatus, VmStatus

VECTOR = Path(__file__).parents[2] / "vectors" / "audit.jsonl"
MIB = 1 << 20
FILES = RealFileSystem()
UUID = "11111111-1111-1111-1111-111111111111"


@pytest.fixture
async def workers() -> AsyncIterator[ThreadWorkers]:
    workers = ThreadWorkers(2)
    yield workers
    await workers.close()


@pytest.fixture
def audit(tmp_path: Path, workers: ThreadWorkers) -> AuditLog:
    return AuditLog(FILES, workers, RealClock(), str(tmp_path / "state"), limit=8 * MIB)


def lines_of(audit: AuditLog) -> list[bytes]:
    content = b"".join((Path(audit.folder) / name).read_bytes() for name in in_order(os.listdir(audit.folder)))
    return list(split(content))


# --- lines ----------------------------------------------------------------------------------------------------------


def vector_entries() -> list[AuditEntry]:
    """What the recorded file holds; each names the one before it."""
    previous = NO_LINE
    entries: list[AuditEntry] = []
    for fields in (
        {"verb": "agent.start", "params": {"version": "1.0.0", "config": "/etc/vmreplica/primary.toml"}},
        {
            "verb": "vm.set",
            "uid": 1000,
            "user": "ada",
            "pid": 4242,
            "source": "/run/vmreplica/primary.sock",
            "vm": "web",
            "uuid": UUID,
            "params": {"vm": "web", "settings": {"interval_seconds": 30}},
            "before": {"state": "Replicating", "interval_seconds": 300.0},
            "after": {"state": "Replicating", "interval_seconds": 30.0},
        },
        {
            "verb": "vm.remove",
            "uid": 1001,
            "user": "bob",
            "pid": 4243,
            "source": "/run/vmreplica/primary.sock",
            "vm": "wéb",
            "result": "forbidden",
            "text": "User 1001 may not call vm.remove.",
            "left_out": 7,
        },
    ):
        seq = len(entries) + 1
        plain: dict[str, Any] = {"result": "ok", **fields}
        entry = AuditEntry(seq=seq, time=1900000000.25 + seq, role="primary", previous=previous, **plain)
        entries.append(entry)
        previous = digest_of(encode_line(entry))
    return entries


def test_recorded_vector_is_what_is_written_and_read() -> None:
    """The page's own words, by another reader: JSON, SHA-256 of the line before, numbers that rise by one."""
    recorded = VECTOR.read_bytes()
    assert b"".join(encode_line(entry) + b"\n" for entry in vector_entries()) == recorded
    assert [decode_line(line) for line in split(recorded)] == vector_entries()
    previous = "0" * 64
    for number, line in enumerate(recorded.split(b"\n")[:-1], 1):
        plain = json.loads(line)
        assert (plain["seq"], plain["previous"], plain["format"]) == (number, previous, 1)
        previous = hashlib.sha256(line).hexdigest()
    check = ChainCheck()
    assert check.follow("audit.jsonl", recorded)
    assert check.report.last_digest == previous


def test_page_names_every_field() -> None:
    page = (VECTOR.parents[2] / "docs" / "audit-format.md").read_text(encoding="utf-8")
    assert [name for name in AuditEntry.__struct_fields__ if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda lines: lines[:1] + lines[2:], "follows entry 1"),
        (lambda lines: [lines[1], lines[0], lines[2]], "follows entry 2"),
        (lambda lines: [lines[0], lines[1].replace(b"ada", b"eve"), lines[2]], "entry 2 is not the one"),
        (lambda lines: [lines[0].replace(b"1.0.0", b"1.0.1"), *lines[1:]], "entry 1 is not the one"),
        (lambda lines: [lines[0], b"{}", *lines[1:]], "no entry"),
        (lambda lines: [lines[0].replace(b'"format":1', b'"format":2'), *lines[1:]], "format 2 is not known"),
        (lambda lines: [lines[0].replace(b"00000000", b"00000001"), *lines[1:]], "names one before it"),
        (lambda lines: [*lines, lines[2][:50]], "cut off"),
    ],
)
def test_every_change_is_found_and_placed(change: Any, words: str) -> None:
    lines = change(VECTOR.read_bytes().split(b"\n")[:-1])
    content = b"\n".join(lines) + (b"\n" if words != "cut off" else b"")
    check = ChainCheck()
    assert not check.follow("audit.jsonl", content)
    assert words in check.report.broken
    assert check.report.file == "audit.jsonl"
    assert 1 <= check.report.line <= len(lines)


def test_lines_taken_off_the_end_show_in_the_last_digest() -> None:
    lines = VECTOR.read_bytes().split(b"\n")[:-1]
    check = ChainCheck()
    assert check.follow("audit.jsonl", b"\n".join(lines[:2]) + b"\n")
    assert check.report.last_digest != digest_of(lines[2])


# --- files ----------------------------------------------------------------------------------------------------------


async def test_entries_go_on_over_restarts(audit: AuditLog, workers: ThreadWorkers) -> None:
    first, digest = await audit.append("primary", "one", result="ok")
    again = AuditLog(FILES, workers, RealClock(), audit.folder, limit=8 * MIB)
    second, _ = await again.append("primary", "two", result="ok")
    assert (first.seq, second.seq, second.previous) == (1, 2, digest)
    report = await again.check()
    assert (report.ok, report.entries, report.last_seq) == (True, 2, 2)
    path = Path(audit.folder) / CURRENT
    assert path.stat().st_mode & 0o777 == 0o600


async def test_many_at_once_have_one_order(audit: AuditLog) -> None:
    await asyncio.gather(*(audit.append("primary", f"verb{number}", result="ok") for number in range(40)))
    report = await audit.check()
    assert (report.ok, report.entries) == (True, 40)


async def test_chain_goes_on_over_files_and_the_oldest_go(
    audit: AuditLog, workers: ThreadWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_file_bytes", 1000)
    for number in range(60):
        await audit.append("primary", "verb", result="ok", params={"number": number})
    names = in_order(os.listdir(audit.folder))
    assert len(names) == audit_log_module.FILES
    assert sum((Path(audit.folder) / name).stat().st_size for name in names) <= 1000 * audit_log_module.FILES
    report = await audit.check()
    assert report.ok
    assert (report.last_seq, report.missing_before) == (60, report.first_seq - 1)
    assert report.first_seq > 1
    again = AuditLog(FILES, workers, RealClock(), audit.folder, limit=8 * MIB)
    await again.append("primary", "verb", result="ok")
    assert (await again.check()).last_seq == 61
    newest = await again.find(limit=5, since=0, vm="")
    assert [entry.seq for entry in newest] == [57, 58, 59, 60, 61]
    # One whole file in the middle is gone.
    (Path(audit.folder) / names[3]).unlink()
    report = await again.check()
    assert not report.ok
    assert report.file == names[4]


class RotatingFiles(RealFileSystem):
    """Files of a log that its agent rotates right after somebody listed them, the first ``times``."""

    def __init__(self, times: int) -> None:
        self.times = times

    def list(self, path: str) -> list[str]:
        names = super().list(path)
        if self.times:
            self.times -= 1
            current = Path(path) / CURRENT
            content = current.read_bytes()
            seq = decode_line(next(split(content))).seq
            current.rename(Path(path) / older_name(seq))
            last = content.splitlines()[-1]
            entry = AuditEntry(
                seq=decode_line(last).seq + 1, time=2e9, role="primary", verb="vm.set", result="ok",
                previous=digest_of(last),
            )  # fmt: skip
            current.write_bytes(encode_line(entry) + b"\n")
            current.chmod(0o600)
            if seq > 1:
                (Path(path) / older_name(1)).unlink(missing_ok=True)
        return names


async def test_reader_sees_all_of_a_log_that_is_rotated_meanwhile(audit: AuditLog) -> None:
    """A command that reads an agent's folder: no file that is gone, and no gap between two names of one file."""
    for number in range(3):
        await audit.append("primary", "vm.set", result="ok", vm=f"vm{number}")
    found = find_entries(RotatingFiles(1), audit.folder, limit=100)
    assert [entry.seq for entry in found] == [1, 2, 3, 4]
    # The oldest file goes after it was listed.
    found = find_entries(RotatingFiles(1), audit.folder, limit=100)
    assert [entry.seq for entry in found] == [4, 5]
    report = check_log(RotatingFiles(2), audit.folder)
    assert report.ok, report
    assert report.last_seq == 7
    with pytest.raises(StorageError, match="again and again"):
        check_log(RotatingFiles(100), audit.folder)


async def test_line_that_a_crash_tore_is_removed_and_told(audit: AuditLog, workers: ThreadWorkers) -> None:
    await audit.append("primary", "one", result="ok")
    with (Path(audit.folder) / CURRENT).open("ab") as file:
        file.write(b'{"format":1,"seq":2,"ti')
    assert not (await audit.check()).ok
    again = AuditLog(FILES, workers, RealClock(), audit.folder, limit=8 * MIB)
    await again.append("primary", "two", result="ok")
    assert (await again.check()).ok
    assert [decode_line(line).verb for line in lines_of(again)] == ["one", "audit.mended", "two"]
    assert "23 bytes" in decode_line(lines_of(again)[1]).text


async def test_log_that_was_cut_while_the_agent_runs_shows(audit: AuditLog) -> None:
    """The chain goes on from what was written, not from what lies there."""
    for number in range(3):
        await audit.append("primary", f"verb{number}", result="ok")
    path = Path(audit.folder) / CURRENT
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:1]) + b"\n")
    await audit.append("primary", "later", result="ok")
    report = await audit.check()
    assert not report.ok
    assert "entry 4 follows entry 1" in report.broken


async def test_found_by_vm_and_time(audit: AuditLog) -> None:
    for number in range(6):
        await audit.append("primary", "verb", result="ok", vm="web" if number % 2 else "db", uuid=UUID)
    assert [entry.seq for entry in find_entries(FILES, audit.folder, limit=2, vm="web")] == [4, 6]
    assert len(find_entries(FILES, audit.folder, limit=100, vm=UUID)) == 6
    assert find_entries(FILES, audit.folder, limit=100, since=4e9) == []
    assert check_log(FILES, audit.folder + "/nothing") == AuditReport(ok=True)


# --- orders ---------------------------------------------------------------------------------------------------------


class OneVm:
    """An agent with one VM, whose settings can be set."""

    def __init__(self) -> None:
        self.vm = VmStatus(name="web", uuid=UUID, role="primary", state="Replicating", state_code=1)
        self.vm.settings = {"interval_seconds": 300.0, "log_limit_bytes": 1000}
        self.hold = asyncio.Event()
        self.hold.set()

    def table(self) -> Methods:
        methods = Methods()
        methods.add(verbs.STATUS, AnyVmParams, self.status)
        methods.add(verbs.GET, AnyVmParams, self.status)
        methods.add(verbs.SET, SetParams, self.set)
        methods.add(verbs.REMOVE, RemoveParams, self.remove)
        return methods

    async def status(self, params: AnyVmParams, client: Client) -> AgentStatus:
        if params.vm not in (None, self.vm.name, self.vm.uuid):
            raise InvalidStateError("no such VM")
        return AgentStatus(role="primary", host="a", version="1", pid=1, started_time=0.0, time=0.0, vms=[self.vm])

    async def set(self, params: SetParams, client: Client) -> None:
        await self.hold.wait()
        if "name" in params.settings:
            self.vm.name = str(params.settings["name"])
        self.vm.settings = {**self.vm.settings, **params.settings}

    async def remove(self, params: RemoveParams, client: Client) -> None:
        raise InvalidStateError("It is in use.", "Stop it.")


@asynccontextmanager
async def audited(
    audit: AuditLog, workers: ThreadWorkers, path: Path, *, access: Access | None = None, mode: int = 0o600
) -> AsyncIterator[tuple[OneVm, Auditor, JsonRpcServer]]:
    agent = OneVm()
    auditor = Auditor(audit, "primary", workers, RealClock(), user_name)
    server = JsonRpcServer(
        RealNetwork(),
        Address(unix_path=str(path), mode=mode),
        auditor.around(agent.table()),
        authorize=access or Access(own_uid=os.getuid()),
        refused=auditor.note_refusal,
    )
    await server.start()
    try:
        yield agent, auditor, server
    finally:
        await server.close()


async def call(server: JsonRpcServer, method: str, **params: Any) -> Any:
    client = await JsonRpcClient.connect(RealNetwork(), server.address, 10)
    try:
        return await client.call(method, params, 20)
    finally:
        client.close()


async def test_order_is_on_record_with_who_before_and_after(
    audit: AuditLog, workers: ThreadWorkers, tmp_path: Path
) -> None:
    async with audited(audit, workers, tmp_path / "s") as (_, _, server):
        await call(server, verbs.STATUS)
        with capture_logs() as logs:
            await call(server, verbs.SET, vm="web", settings={"interval_seconds": 30.0, "password": "x", "name": "www"})
        answer = await call(server, verbs.AUDIT, vm=UUID)
        checked = await call(server, verbs.AUDIT, check=True)
    (entry,) = answer["entries"]
    assert (entry["verb"], entry["uid"], entry["pid"]) == ("vm.set", os.getuid(), os.getpid())
    assert entry["user"] == user_name(os.getuid())
    assert entry["source"] == str(tmp_path / "s")
    assert (entry["vm"], entry["uuid"], entry["result"]) == ("www", UUID, "ok")
    assert entry["params"]["settings"] == {"interval_seconds": 30.0, "password": "(secret)", "name": "www"}
    assert (entry["before"]["interval_seconds"], entry["after"]["interval_seconds"]) == (300.0, 30.0)
    assert entry["before"]["state"] == entry["after"]["state"] == "Replicating"
    assert "log_limit_bytes" not in entry["after"]
    assert checked["report"]["ok"] is True
    (line,) = [each for each in logs if each["event"] == "order"]
    assert line["digest"] == checked["report"]["last_digest"]


async def test_order_that_was_refused_by_the_state_is_on_record(
    audit: AuditLog, workers: ThreadWorkers, tmp_path: Path
) -> None:
    async with audited(audit, workers, tmp_path / "s") as (_, _, server):
        with pytest.raises(InvalidStateError):
            await call(server, verbs.REMOVE, vm="web", yes=True)
        with pytest.raises(VmreplicaError):
            await call(server, verbs.REMOVE, vm="web", nonsense=1)
    entries = find_entries(FILES, audit.folder, limit=10)
    assert [entry.result for entry in entries] == ["invalid_state", "invalid_params"]
    assert entries[0].text == "It is in use."


async def test_order_that_the_end_of_the_agent_cut_short_is_on_record(
    audit: AuditLog, workers: ThreadWorkers, tmp_path: Path
) -> None:
    async with audited(audit, workers, tmp_path / "s") as (agent, _, server):
        agent.hold.clear()
        waiting = asyncio.ensure_future(call(server, verbs.SET, vm="web", settings={"interval_seconds": 30.0}))
        while not server._tasks or not any(client._running for client in server.clients):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        await server.close()
        with pytest.raises(VmreplicaError):
            await waiting
    (entry,) = find_entries(FILES, audit.folder, limit=10)
    assert (entry.verb, entry.result) == ("vm.set", "cancelled")


async def test_large_parameters_do_not_fill_the_log(audit: AuditLog, workers: ThreadWorkers, tmp_path: Path) -> None:
    async with audited(audit, workers, tmp_path / "s") as (_, _, server):
        await call(server, verbs.SET, vm="web", settings={"a": "x" * 60_000})
    (entry,) = find_entries(FILES, audit.folder, limit=10)
    assert len(encode_line(entry)) < 3 * PARAMS_MAX
    assert check_log(FILES, audit.folder).ok


async def test_order_is_carried_out_although_it_can_not_be_put_on_record(
    audit: AuditLog, workers: ThreadWorkers, tmp_path: Path
) -> None:
    """In a disaster a full disk must not keep administrators from their orders; nobody may overlook it either."""
    Path(audit.folder).mkdir(mode=0o700)
    blocked = Path(audit.folder) / CURRENT
    blocked.mkdir()
    async with audited(audit, workers, tmp_path / "s") as (agent, auditor, server):
        with capture_logs() as logs:
            await call(server, verbs.SET, vm="web", settings={"interval_seconds": 30.0})
        assert agent.vm.settings["interval_seconds"] == 30.0
        (told,) = [each for each in logs if each["log_level"] == "error"]
        assert told["params"]["settings"] == {"interval_seconds": 30.0}
        assert "audit log" in (await call(server, verbs.STATUS))["problems"][0]
        blocked.rmdir()
        await call(server, verbs.SET, vm="web", settings={"interval_seconds": 40.0})
        assert (await call(server, verbs.STATUS))["problems"] == []
        assert auditor.problem == ""


async def test_order_does_not_wait_for_a_record_that_hangs(
    audit: AuditLog, workers: ThreadWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for a disk that hangs, nor for a directory of users that does not answer."""
    monkeypatch.setattr(audit_module, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(audit_module, "DESCRIBE_SECONDS", 0.2)
    release = threading.Event()
    async with audited(audit, workers, tmp_path / "s") as (agent, auditor, server):
        monkeypatch.setattr(auditor, "_user_name", lambda _uid: str(release.wait(60)))
        monkeypatch.setattr(audit, "_write", lambda _line, _seq: release.wait(60))
        try:
            await call(server, verbs.SET, vm="web", settings={"interval_seconds": 30.0})
            assert agent.vm.settings["interval_seconds"] == 30.0
            assert "takes too long" in auditor.problem
        finally:
            release.set()


# --- who may not ----------------------------------------------------------------------------------------------------

KNOCK = """
import json, socket, sys
answers = []
with socket.socket(socket.AF_UNIX) as line:
    try:
        line.connect(sys.argv[1])
    except OSError as error:
        print("connect", error.errno)
        sys.exit()
    stream = line.makefile("rwb")
    for number, method in enumerate(sys.argv[2:]):
        params = {"vm": "web", "yes": True} if method == "vm.remove" else {}
        stream.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\\n")
        stream.flush()
        answer = json.loads(stream.readline())
        print(method, answer["error"]["data"]["code"] if "error" in answer else "ok")
"""


async def knock(path: Path, *methods: str, uid: int = 65534, groups: tuple[int, ...] = ()) -> list[str]:
    """Ask as another user; what came of connecting and of each question."""
    done = await asyncio.to_thread(
        subprocess.run,
        ["/usr/bin/python3", "-c", KNOCK, str(path), *methods],
        user=uid, group=65534, extra_groups=groups, capture_output=True, text=True, timeout=60, check=True, cwd="/",
    )  # fmt: skip
    return done.stdout.splitlines()


root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")


@root
async def test_other_users_and_former_members_are_refused_and_on_record(
    audit: AuditLog, workers: ThreadWorkers, open_folder: Path
) -> None:
    """A19: also where the socket's file would let them in."""
    access = Access(own_uid=990, admin_gid=4, viewer_gid=5, viewer_methods=verbs.READING)
    async with audited(audit, workers, open_folder / "s", access=access, mode=0o666):
        assert await knock(open_folder / "s", "vm.remove", "status", "audit", groups=(4,)) == [
            "vm.remove invalid_state", "status ok", "audit ok",
        ]  # fmt: skip
        assert await knock(open_folder / "s", "vm.remove", "status", "audit", groups=(5,)) == [
            "vm.remove forbidden", "status ok", "audit forbidden",
        ]  # fmt: skip
        # The same user, out of both groups.
        assert await knock(open_folder / "s", "vm.remove", "status") == ["vm.remove forbidden", "status forbidden"]
    entries = find_entries(FILES, audit.folder, limit=100)
    assert [(entry.verb, entry.result) for entry in entries] == [
        ("vm.remove", "invalid_state"), ("vm.remove", "forbidden"), ("audit", "forbidden"),
        ("vm.remove", "forbidden"), ("status", "forbidden"),
    ]  # fmt: skip
    assert {entry.uid for entry in entries} == {65534}
    assert entries[1].vm == "web"
    assert check_log(FILES, audit.folder).ok


@root
async def test_refusals_of_one_user_are_rationed(audit: AuditLog, workers: ThreadWorkers, open_folder: Path) -> None:
    access = Access(own_uid=990)
    async with audited(audit, workers, open_folder / "s", access=access, mode=0o666) as (_, auditor, _):
        await knock(open_folder / "s", *["vm.remove"] * (REFUSED_AT_ONCE + 5))
        await knock(open_folder / "s", "status", uid=65533)
        entries = find_entries(FILES, audit.folder, limit=100)
        assert [entry.uid for entry in entries].count(65534) <= REFUSED_AT_ONCE + 1
        assert [entry.uid for entry in entries].count(65533) == 1
        assert auditor._rations[65534][1] >= 4


@root
async def test_socket_lets_two_groups_in_and_nobody_else(open_folder: Path) -> None:
    groups = subprocess.run(["getent", "group"], capture_output=True, text=True, check=True).stdout.splitlines()
    (admin, admin_gid), (viewer, viewer_gid), (_, other_gid) = [
        (line.split(":")[0], int(line.split(":")[2])) for line in groups[3:6]
    ]
    address = Address(unix_path=str(open_folder / "s"), mode=0o660, group=admin, other_groups=(viewer,))
    access = Access(own_uid=990, admin_gid=admin_gid, viewer_gid=viewer_gid, viewer_methods=verbs.READING)
    server = JsonRpcServer(RealNetwork(), address, OneVm().table(), authorize=access)
    await server.start()
    try:
        assert await knock(open_folder / "s", "vm.remove", groups=(admin_gid,)) == ["vm.remove invalid_state"]
        assert await knock(open_folder / "s", "status", "vm.remove", groups=(viewer_gid,)) == [
            "status ok", "vm.remove forbidden",
        ]  # fmt: skip
        assert await knock(open_folder / "s", "status", groups=(other_gid,)) == ["connect 13"]
        assert await knock(open_folder / "s", "status") == ["connect 13"]
    finally:
        await server.close()


@root
async def test_one_user_can_not_take_all_places(open_folder: Path) -> None:
    access = Access(own_uid=990, viewer_gid=65534, viewer_methods=verbs.READING)
    address = Address(unix_path=str(open_folder / "s"), mode=0o666)
    server = JsonRpcServer(RealNetwork(), address, OneVm().table(), authorize=access, max_clients=4, max_user_clients=2)
    await server.start()
    code = (
        "import socket,sys,time\nlines=[socket.socket(socket.AF_UNIX) for _ in range(4)]\n"
        "[line.connect(sys.argv[1]) for line in lines]\n"
        "print([line.recv(9) != b'' for line in lines[2:]], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", code, address.unix_path], user=65534, group=65534, extra_groups=[],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        # The third and fourth hear that there is no place.
        assert await asyncio.to_thread(process.stdout.readline) == "[True, True]\n"
        assert (await call(server, verbs.STATUS))["host"] == "a"
        process.communicate()
    await server.close()


@pytest.fixture
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder that other users can reach."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="vmr-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_unrecorded_methods_change_nothing() -> None:
    assert not verbs.UNRECORDED & verbs.READING
    assert AuditParams().limit == 50
    assert issubclass(ForbiddenError, VmreplicaError)
