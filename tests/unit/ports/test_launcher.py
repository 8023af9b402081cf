"""Tests of the launcher: taps are processes of their own that outlive their starter and leave no zombies."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog

from shared.errors import StorageError, UsageError
from shared.ports.launcher import OUTPUT_NAME, TAP_PROGRAM, DetachedLauncher, escape_path

ROOT = Path(__file__).parents[3]

# Writes what it finds about itself into its folder, says something on both outputs, and waits for the end.
TAP = """
import json, os, sys, time
folder = sys.argv[1]
print("to output", flush=True)
print("to error", file=sys.stderr, flush=True)
facts = {
    "pid": os.getpid(), "session": os.getsid(0), "cwd": os.getcwd(), "stdin": os.readlink("/proc/self/fd/0"),
    "descriptors": sorted(os.listdir("/proc/self/fd")), "environment": dict(os.environ),
}
with open(f"{folder}/facts.part", "w") as file:
    json.dump(facts, file)
os.rename(f"{folder}/facts.part", f"{folder}/facts")
while not os.path.exists(f"{folder}/end"):
    time.sleep(0.01)
sys.exit(int(open(f"{folder}/end").read()))
"""


@pytest.fixture
def launcher() -> DetachedLauncher:
    return DetachedLauncher(program=[sys.executable, "-c", TAP])


async def facts(folder: Path) -> dict[str, object]:
    import json

    async with asyncio.timeout(20):
        while not (folder / "facts").exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
    found: dict[str, object] = json.loads((folder / "facts").read_text())
    return found


async def gone(pid: int) -> None:
    """Wait until there is no such process any more, not even a zombie."""
    async with asyncio.timeout(20):
        while os.path.exists(f"/proc/{pid}"):  # noqa: ASYNC110 - the kernel removes it
            await asyncio.sleep(0.01)


async def test_tap_is_a_process_of_its_own(
    launcher: DetachedLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"):
        monkeypatch.setenv(name, "1")
    inheritable = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    await launcher.start(str(tmp_path))
    found = await facts(tmp_path)
    os.close(inheritable)
    pid = found["pid"]
    assert isinstance(pid, int)
    assert found["session"] == pid
    assert found["cwd"] == "/"
    assert found["stdin"] == "/dev/null"
    assert isinstance(found["descriptors"], list)
    assert len(found["descriptors"]) == 4
    assert isinstance(found["environment"], dict)
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"} & set(found["environment"])
    assert (tmp_path / OUTPUT_NAME).read_text() == "to output\nto error\n"
    assert (tmp_path / OUTPUT_NAME).stat().st_mode & 0o777 == 0o600
    (tmp_path / "end").write_text("0")
    await gone(pid)


async def test_tap_that_fails_is_reaped_and_told(launcher: DetachedLauncher, tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        await launcher.start(str(tmp_path))
        pid = (await facts(tmp_path))["pid"]
        assert isinstance(pid, int)
        (tmp_path / "end").write_text("7")
        await gone(pid)
        await asyncio.sleep(0.01)
    assert lines == [
        {
            "event": "tap ended",
            "log_level": "error",
            "folder": str(tmp_path),
            "exit_status": 7,
            "output": "to output\nto error",
        }
    ]


@pytest.mark.parametrize("loop", ["asyncio.new_event_loop", "uvloop.new_event_loop"])
def test_tap_outlives_its_starter(tmp_path: Path, loop: str) -> None:
    """Also the orderly end of the loop, at which asyncio kills processes that it started."""
    code = (
        "import asyncio, sys, uvloop\n"
        "from shared.ports.launcher import DetachedLauncher\n"
        f"with asyncio.Runner(loop_factory={loop}) as runner:\n"
        "    launcher = DetachedLauncher(program=[sys.executable, '-c', sys.argv[2]])\n"
        "    runner.run(launcher.start(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), TAP], check=True, cwd=ROOT, timeout=60)
    pid = asyncio.run(facts(tmp_path))["pid"]
    assert isinstance(pid, int)
    assert "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    (tmp_path / "end").write_text("0")
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}") and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_cancelled_start_leaves_no_zombie(launcher: DetachedLauncher, tmp_path: Path) -> None:
    starting = asyncio.ensure_future(launcher.start(str(tmp_path)))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    pid = (await facts(tmp_path))["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)
    await gone(pid)


async def test_program_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="/no/such/program can't be run: No such file"):
        await DetachedLauncher(program=["/no/such/program"]).start(str(tmp_path))


async def test_folder_that_is_missing_is_told(launcher: DetachedLauncher, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"missing/tap\.out can't be written"):
        await launcher.start(str(tmp_path / "missing"))


async def test_output_is_never_written_through_a_link(launcher: DetachedLauncher, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep")
    (tmp_path / OUTPUT_NAME).symlink_to(precious)
    with pytest.raises(StorageError):
        await launcher.start(str(tmp_path))
    assert precious.read_text() == "keep"


def test_the_tap_program_exists() -> None:
    done = subprocess.run([*TAP_PROGRAM, "--help"], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "FOLDER" in done.stdout.upper()


async def test_command_gets_the_escaped_folder(tmp_path: Path) -> None:
    folder = tmp_path / "vm-1"
    folder.mkdir()
    await DetachedLauncher(["sh", "-c", f'echo "$0" > {tmp_path}/said', "tap@%i.service"]).start(str(folder))
    assert (tmp_path / "said").read_text() == f"tap@{escape_path(str(folder))}.service\n"


async def test_command_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"failed with exit status 3: no such unit") as caught:
        await DetachedLauncher(["sh", "-c", "echo no such unit >&2; exit 3", "%i"]).start(str(tmp_path))
    assert "tap_command" in caught.value.remedy
    with pytest.raises(UsageError, match="/no/such .* can't be run: No such file"):
        await DetachedLauncher(["/no/such", "%i"]).start(str(tmp_path))


async def test_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.ports.launcher.COMMAND_SECONDS", 0.1)
    with pytest.raises(UsageError, match="did not end within"):
        await DetachedLauncher(["sh", "-c", "exec sleep 60", "%i"]).start(str(tmp_path))


PATHS = ["/", "/a", "/var/lib/vmreplica/vms/0f0e-x/tap", "//a//b/", "/.hidden/x", "/a b/ü", "/a.b:c_d", "/x\\y"]


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="needs systemd-escape")
@pytest.mark.parametrize("path", PATHS)
def test_paths_are_escaped_as_systemd_does(path: str) -> None:
    done = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True)
    assert escape_path(path) == done.stdout.strip()
