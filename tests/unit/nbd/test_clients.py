"""Real clients: libnbd, QEMU's tools, fio. Each test is skipped, by name, where its tool is missing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from shared.nbd.ending import EndReason
from shared.nbd.server import NbdServer
from tests.unit.nbd.conftest import SIZE, require
from tests.unit.nbd.file_backend import Directory, FileBackend

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
MIB = 1 << 20


async def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a client while the loop serves it."""
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120, check=False)
    if check:
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result


def uri(socket: Path, name: str = "") -> str:
    return f"nbd+unix:///{name}?socket={socket}"


@pytest.fixture
def content() -> bytes:
    """Data, zeroes and repetition: a quarter of the disk's size of random bytes, in four pieces."""
    random = Random(11)
    piece = SIZE // 16
    return b"".join(random.randbytes(piece) + bytes(3 * piece) for _ in range(4))


@pytest.fixture
def source(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "source"
    path.write_bytes(content)
    return path


# --- libnbd -----------------------------------------------------------------------------------------------------------


async def test_nbdinfo_sees_every_feature(socket: Path, export: FileBackend) -> None:
    result = await run(require("nbdinfo"), "--json", uri(socket))
    information = json.loads(result.stdout)
    assert information["protocol"] == "newstyle-fixed"
    assert information["structured"] is True
    (seen,) = information["exports"]
    assert seen["export-size"] == SIZE
    assert seen["contexts"] == ["base:allocation"]
    assert (seen["block_size_minimum"], seen["block_size_preferred"]) == (512, 4096)
    assert seen["block_size_maximum"] == 32 * MIB
    for feature in (
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ):
        assert seen[feature] is True, feature
    assert seen["is_read_only"] is False


async def test_nbdinfo_lists_exports_with_descriptions(disk: Path, tmp_path: Path) -> None:
    exports = [
        FileBackend(disk, name="system", description="the system's disk"),
        FileBackend(disk, name="Daten für später", read_only=True),
    ]
    server = NbdServer(Directory(*exports))
    path = tmp_path / "two.sock"
    await server.start_unix(path)
    result = await run(require("nbdinfo"), "--list", "--json", uri(path))
    seen = {each["export-name"]: each for each in json.loads(result.stdout)["exports"]}
    assert set(seen) == {"system", "Daten für später"}
    assert seen["system"]["description"] == "the system's disk"
    assert seen["Daten für später"]["is_read_only"] is True
    result = await run(require("nbdinfo"), uri(path, "nothing"), check=False)
    assert result.returncode != 0
    assert "No such file or directory for export: nothing" in result.stderr
    await server.close()
    for export in exports:
        export.close()


@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy_there_and_back(
    socket: Path, source: Path, disk: Path, tmp_path: Path, content: bytes, connections: int
) -> None:
    tool = require("nbdcopy")
    await run(tool, "--flush", f"--connections={connections}", str(source), uri(socket))
    assert disk.read_bytes() == content
    await run(tool, f"--connections={connections}", uri(socket), str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == content


async def test_nbdinfo_maps_what_is_allocated(socket: Path, disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(8 * MIB)
        file.write(b"data" * (MIB // 4))
    result = await run(require("nbdinfo"), "--map", "--json", uri(socket))
    assert [(run["offset"], run["length"], run["type"]) for run in json.loads(result.stdout)] == [
        (0, 8 * MIB, 3),
        (8 * MIB, MIB, 0),
        (9 * MIB, SIZE - 9 * MIB, 3),
    ]


LIBNBD = """
import sys, errno, nbd
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
size = h.get_size()

def refused(call, *expected):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum in expected, error
    else:
        raise AssertionError("not refused")

big = bytes(range(256)) * (32 * 1024 * 1024 // 256)
h.pwrite(big, 0)
assert h.pread(len(big), 0) == big
assert h.pread(len(big), 0, nbd.CMD_FLAG_DF) == big
h.pwrite(b"f" * 4096, 4096, nbd.CMD_FLAG_FUA)
h.zero(4096, 8192)
h.zero(4096, 12288, nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 16384, nbd.CMD_FLAG_FUA)
h.cache(65536, 0)
h.flush()
assert h.pread(20480, 0) == big[:4096] + b"f" * 4096 + bytes(12288)

found = []
h.block_status(size, 0, lambda context, offset, entries, error: found.append((context, entries)))
(context, entries), = found
assert context == "base:allocation" and sum(entries[::2]) == size
h.block_status(size, 0, lambda context, offset, entries, error: found.append(entries), nbd.CMD_FLAG_REQ_ONE)
assert len(found[-1]) == 2

refused(lambda: h.pwrite(b"x" * 512, size), errno.ENOSPC)
refused(lambda: h.zero(512, size), errno.ENOSPC)
refused(lambda: h.pread(512, size), errno.EINVAL)
refused(lambda: h.trim(512, size), errno.EINVAL)
refused(lambda: h.pwrite(b"x" * 100, 0), errno.EINVAL)
refused(lambda: h.pread(512, 100), errno.EINVAL)

# Many requests at once, done in any order, over the same connection.
def done(error):
    assert error.value == 0
    return 1
for index in range(512):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([index % 256]) * 8192), index * 8192, done)
while h.aio_in_flight():
    h.poll(-1)
buffer = h.pread(512 * 8192, 0)
assert all(buffer[i * 8192 : (i + 1) * 8192] == bytes([i % 256]) * 8192 for i in range(512))
h.shutdown()
"""


@pytest.mark.parametrize("structured", [True, False])
async def test_libnbd_script(socket: Path, server: NbdServer, structured: bool) -> None:
    script = LIBNBD
    if not structured:
        script = script.replace('h.add_meta_context("base:allocation")', "h.set_request_structured_replies(False)")
        begin, end = script.index("found = []"), script.index("refused(lambda: h.pwrite")
        script = script[:begin] + script[end:]
        script = script.replace("assert h.pread(len(big), 0, nbd.CMD_FLAG_DF) == big\n", "")
    if subprocess.run(["/usr/bin/python3", "-c", "import nbd"], capture_output=True, check=False).returncode:
        pytest.skip("python3-libnbd is not installed")
    await run("/usr/bin/python3", "-c", script, uri(socket))
    await server.close()
    assert server.endings == {EndReason.DISCONNECTED: 1}


# --- QEMU -------------------------------------------------------------------------------------------------------------


async def test_qemu_img_info(socket: Path) -> None:
    result = await run(require("qemu-img"), "info", "--output=json", uri(socket))
    assert json.loads(result.stdout)["virtual-size"] == SIZE


async def test_qemu_img_convert_compare_map(socket: Path, source: Path, disk: Path, content: bytes) -> None:
    tool = require("qemu-img")
    await run(tool, "convert", "-n", "-f", "raw", "-O", "raw", str(source), uri(socket))
    assert disk.read_bytes() == content
    result = await run(tool, "compare", "-f", "raw", "-F", "raw", str(source), uri(socket))
    assert "identical" in result.stdout
    result = await run(tool, "map", "--output=json", "-f", "raw", uri(socket))
    data = [(run["start"], run["length"]) for run in json.loads(result.stdout) if run["data"]]
    piece = SIZE // 16
    assert data == [(4 * number * piece, piece) for number in range(4)]
    await run(
        tool, "bench", "-f", "raw", "-c", "200", "-d", "16", "-s", "4096", "-w", "--flush-interval=20", uri(socket)
    )


async def test_qemu_io_writes_discards_and_flushes(socket: Path, export: FileBackend) -> None:
    result = await run(
        require("qemu-io"), "-f", "raw", "-d", "unmap", uri(socket),
        "-c", "write -P 7 1M 3M",
        "-c", "read -P 7 1M 3M",
        "-c", "write -f -P 9 512 512",
        "-c", "read -P 9 512 512",
        "-c", "discard 2M 1M",
        "-c", "read -P 0 2M 1M",
        "-c", "write -z -u 3M 512k",
        "-c", "write -z 3584k 256k",
        "-c", "read -P 0 3M 768k",
        "-c", "read -P 7 3840k 256k",
        "-c", "flush",
    )  # fmt: skip
    assert "failed" not in result.stdout + result.stderr
    assert export.flushes >= 2


async def test_qemu_io_is_told_when_a_read_only_export_is_written(disk: Path, tmp_path: Path) -> None:
    backend = FileBackend(disk, read_only=True)
    server = NbdServer(Directory(backend))
    path = tmp_path / "ro.sock"
    await server.start_unix(path)
    tool = require("qemu-io")
    result = await run(tool, "-f", "raw", uri(path), "-c", "write 0 4k", check=False)
    assert result.returncode != 0
    result = await run(tool, "-r", "-f", "raw", uri(path), "-c", "read -P 0 0 4k")
    assert "failed" not in result.stdout
    await server.close()
    backend.close()


# --- fio --------------------------------------------------------------------------------------------------------------


async def test_fio_verifies_what_it_wrote(socket: Path, tmp_path: Path) -> None:
    tool = require("fio")
    engines = await run(tool, "--enghelp")
    if "nbd" not in engines.stdout:
        pytest.skip("this fio has no nbd engine")
    result = await run(
        tool, "--name=verify", "--ioengine=nbd", f"--uri={uri(socket)}", "--rw=randrw", "--rwmixwrite=70",
        "--bsrange=512-128k", "--blockalign=512", "--iodepth=32", "--size=48M", "--verify=crc32c", "--do_verify=1",
        "--verify_fatal=1", "--output-format=json", f"--aux-path={tmp_path}",
        "--verify_state_save=0",
    )  # fmt: skip
    (job,) = json.loads(result.stdout[result.stdout.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["write"]["total_ios"] > 0


# --- a process of its own ---------------------------------------------------------------------------------------------


@pytest.fixture
def served(disk: Path, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """The disk served by another process: its socket and its pid."""
    path = tmp_path / "process.sock"
    command = [sys.executable, "-m", "tests.unit.nbd.serve_file", str(disk), str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield path, process.pid
        process.kill()


def peak_memory(pid: int) -> int:
    """Highest resident memory so far, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


FLOOD = """
import os, sys, nbd
children = []
for _ in range(8):
    child = os.fork()
    if not child:
        h = nbd.NBD()
        h.connect_uri(sys.argv[1])
        buffer = nbd.Buffer.from_bytearray(bytearray(b"w") * (32 << 20))
        for _ in range(3):
            h.aio_pwrite(buffer, 0, lambda error: 1)
        while h.aio_in_flight():
            h.poll(-1)
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
"""


def test_memory_stays_bounded_under_large_writes(served: tuple[Path, int]) -> None:
    """I13: 8 clients with three writes of 32 MiB each would be 768 MiB; the budget is 65 MiB."""
    socket, pid = served
    if subprocess.run(["/usr/bin/python3", "-c", "import nbd"], capture_output=True, check=False).returncode:
        pytest.skip("python3-libnbd is not installed")
    before = peak_memory(pid)
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run(["/usr/bin/python3", "-c", FLOOD, uri(socket)], check=True, timeout=120, env=environment)
    # The budget, and two megabytes of base buffer for each of the eight connections, and a little for the rest.
    assert peak_memory(pid) - before < (65 + 8 * 2 + 16) * MIB
