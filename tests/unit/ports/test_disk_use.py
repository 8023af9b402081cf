"""Who has a disk open, found among the real processes of this machine, real QEMU among them."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.attachment import NO_CLIENT, OPENED, OVERLAY, Attachment, bypasses, socket_of
from shared.ports.disk_use import ProcDiskUse, Usage, backing_of, paths_named

NAME, UUID = "web", "0f0e0d0c-0b0a-4908-8706-050403020100"
QEMU = shutil.which("qemu-system-x86_64")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "web.raw"
    path.write_bytes(bytes(1 << 20))
    return path


@contextmanager
def opener(path: Path, mode: str) -> Iterator[int]:
    """A process that has the file open."""
    code = f"import sys; f = open({str(path)!r}, {mode!r}); print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process.pid
    finally:
        process.communicate()


@contextmanager
def qemu(*options: str) -> Iterator[int]:
    """A guest that does not run its processor."""
    if QEMU is None:
        pytest.skip("needs qemu-system-x86_64")
    process = subprocess.Popen(
        [QEMU, "-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-m", "16", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def until(look: object, found: object) -> Usage:
    """Look until there is something to be seen: QEMU opens its disks some time after its start."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        usage: Usage = look()  # type: ignore[operator]  # a lambda of the test
        if found(usage):  # type: ignore[operator]  # likewise
            return usage
        time.sleep(0.05)
    raise AssertionError(usage)


def attachment(disk: Path, *, tap: int | None = 1, clients: int = 1, sockets: tuple[str, ...] = ()) -> Attachment:
    return Attachment(NAME, UUID, (str(disk),), sockets, tap, clients)


def codes(vm: Attachment, usage: Usage) -> list[str]:
    return [cause.code for cause in bypasses(vm, usage, 0.0)]


def test_writer_is_found_and_reader_is_not_blamed(disk: Path) -> None:
    with opener(disk, "r+b") as writer, opener(disk, "rb") as reader:
        usage = ProcDiskUse().look([str(disk)], [])
    assert {(user.pid, user.writing) for user in usage.users} == {(writer, True), (reader, False)}
    assert codes(attachment(disk), usage) == [OPENED]
    assert codes(attachment(disk, tap=writer), usage) == [], "the tap itself may write"
    assert codes(attachment(disk, tap=None), usage) == [], "without a tap nothing is known"


def test_writer_by_another_path_is_found(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    os.link(disk, other)
    with opener(other, "r+b") as writer:
        usage = ProcDiskUse().look([str(disk)], [])
    assert [user.pid for user in usage.users if user.writing] == [writer]


def test_nobody_is_found_at_a_disk_that_nobody_has(disk: Path) -> None:
    assert ProcDiskUse().look([str(disk)], []).users == []


def test_guest_that_runs_without_its_tap_is_found(disk: Path) -> None:
    with qemu("-name", f"guest={NAME},debug-threads=on") as pid:
        usage = until(
            lambda: ProcDiskUse().look([str(disk)], []),
            # It has its program's name a moment before it has its words.
            lambda usage: any(each.pid == pid and each.name for each in usage.guests),
        )
        (guest,) = [each for each in usage.guests if each.pid == pid]
        assert guest.name == NAME
        assert NO_CLIENT in codes(attachment(disk, clients=0), usage)
        assert NO_CLIENT not in codes(attachment(disk, clients=1), usage)


def test_guest_that_was_started_on_the_file_is_found(disk: Path) -> None:
    with qemu("-uuid", UUID, "-blockdev", f"driver=file,node-name=d,filename={disk}") as pid:
        usage = until(
            lambda: ProcDiskUse().look([str(disk)], []),
            lambda usage: any(each.pid == pid and each.writing for each in usage.users),
        )
    assert codes(attachment(disk, clients=0), usage) == [OPENED]


def test_external_snapshot_is_found(disk: Path, tmp_path: Path) -> None:
    """The guest writes to an overlay whose backing is what the tap serves."""
    socket = str(tmp_path / "nbd.sock")
    served = subprocess.Popen(
        ["qemu-nbd", "--persistent", "--shared=4", "--format=raw", "--export-name=disk0", f"--socket={socket}", disk],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not os.path.exists(socket):
            assert served.poll() is None
            time.sleep(0.02)
        overlay = tmp_path / "snapshot.qcow2"
        backing = f"nbd+unix:///disk0?socket={socket}"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, overlay], check=True, timeout=30
        )
        assert backing_of(str(overlay)) == backing
        with qemu("-drive", f"file={overlay},format=qcow2,if=none,id=d") as pid:
            usage = until(lambda: ProcDiskUse().look([str(disk)], [socket]), lambda usage: usage.overlays)
        assert usage.overlays[0].pid == pid
        assert usage.overlays[0].path == str(overlay)
        # A second one over it, by a relative name: what the guest writes lies two images above the tap.
        second = tmp_path / "second.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", overlay.name, second],
            check=True, timeout=30,
        )  # fmt: skip
        with qemu("-drive", f"file={second},format=qcow2,if=none,id=d") as pid:
            stacked = until(lambda: ProcDiskUse().look([str(disk)], [socket]), lambda usage: usage.overlays)
        assert [(each.pid, each.path, each.below) for each in stacked.overlays] == [(pid, str(second), socket)]
        vm = attachment(disk, tap=served.pid, sockets=(socket,))
        (cause,) = bypasses(vm, usage, 0.0)
        assert cause.code == OVERLAY
        assert "blockcommit web" in cause.remedy
    finally:
        served.kill()
        served.wait()


def test_processes_that_can_not_be_seen_are_counted(disk: Path, tmp_path: Path) -> None:
    """Told by a process that may not look into others'."""
    code = (
        "import os; os.setgid(65534); os.setuid(65534)\n"
        "from shared.ports.disk_use import ProcDiskUse\n"
        f"print(ProcDiskUse().look([{str(disk)!r}], []).unseen)"
    )
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert int(done.stdout) > 0


def test_socket_of_an_uri() -> None:
    assert socket_of("nbd+unix:///disk0?socket=/run/x/nbd.sock") == "/run/x/nbd.sock"
    assert socket_of("nbd://host/disk0") == ""


def overlay_over(folder: Path, backing: str, below: str) -> list[str]:
    """What is found below the image of a guest that names ``backing``, of the one path that is looked for."""
    image = folder / "top.qcow2"
    name = backing.encode()
    image.write_bytes(b"QFI\xfb" + struct.pack(">IQI", 3, 512, len(name)) + bytes(492) + name)
    process = folder / "proc" / "4711"
    (process / "fd").mkdir(parents=True, exist_ok=True)
    (process / "fdinfo").mkdir(exist_ok=True)
    (process / "comm").write_text("qemu-system-x86\n")
    (process / "cmdline").write_text("qemu\0-name\0guest=other")
    (process / "fdinfo" / "7").write_text("flags:\t0100002\n")
    if not (process / "fd" / "7").is_symlink():
        (process / "fd" / "7").symlink_to(image)
    usage = ProcDiskUse(str(folder / "proc"), str(folder / "sys")).look([], [below])
    return [overlay.below for overlay in usage.overlays]


FORMS = [
    "{}",
    "file:{}",
    "host_device:{}",
    "file://{}",
    "nbd:unix:{}:exportname=disk0",
    "nbd+unix:///disk0?socket={}",
    'json:{{"driver":"raw","file":{{"driver":"nbd","export":"disk0","server":{{"type":"unix","path":"{}"}}}}}}',
    'json:{{"driver":"nbd","server.type":"unix","server.path":"{}"}}',
    'json:{{"driver":"raw","file":{{"driver":"host_device","filename":"{}"}}}}',
    'json:{{"file.driver":"file","file.filename":"{}","driver":"raw"}}',
]


@pytest.mark.parametrize("form", FORMS)
def test_backing_is_told_by_whole_paths(form: str, tmp_path: Path) -> None:
    """A disk whose name another's begins with, or contains, is another disk."""
    path = "/images/web.raw"
    assert overlay_over(tmp_path, form.format(path), path) == [path]
    for other in ("/images/web.raw.old", "/images/web.raw2", "/backup/images/web.raw", "/images/web.raw/part"):
        assert overlay_over(tmp_path, form.format(other), path) == []


def test_backing_by_another_name_of_the_same_place_is_found(tmp_path: Path) -> None:
    """As /dev/vg/web is /dev/mapper/vg-web; and a relative name is one beside the image."""
    (tmp_path / "web.raw").touch()
    (tmp_path / "alias").symlink_to("web.raw")
    for name in ("web.raw", "alias", f"{tmp_path}/./alias", json.dumps({"file.filename": str(tmp_path / "alias")})):
        backing = f"json:{name}" if name.startswith("{") else name
        assert overlay_over(tmp_path, backing, str(tmp_path / "web.raw")) == [str(tmp_path / "web.raw")]


def test_socket_in_an_uri_may_be_quoted() -> None:
    assert paths_named("nbd+unix:///disk0?socket=/run/a%20b/nbd.sock", "/x/top.qcow2") == ["/run/a b/nbd.sock"]


@pytest.mark.parametrize(
    "backing", ["", "json:", "json:{", "json:[1]", "json:null", "nbd:localhost:10809", "ssh://h/x"]
)
def test_backing_that_names_no_path_here_is_nobodys(backing: str) -> None:
    assert paths_named(backing, "/x/top.qcow2") == []
