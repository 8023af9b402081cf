"""The shim itself: it hits what it is told to, nothing else, and its trace misses nothing."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.power import cut_power, read_trace, undone
from tests.faults.shim import Action, Operation, Shim

pytestmark = pytest.mark.slow

CHANGES = """
import os, random, sys
from shared.ports.file_system import RealFileSystem
files, folder = RealFileSystem(), sys.argv[1]
rng = random.Random(int(sys.argv[2]))
for round in range(40):
    name = f"{folder}/file-{rng.randrange(4)}"
    match rng.randrange(8):
        case 0: files.remove(name)
        case 1 if files.exists(name): files.rename(name, f"{folder}/file-{rng.randrange(4)}")
        case 2: files.sync_folder(folder)
        case _:
            file = files.open(name, write=True, create=True)
            for step in range(rng.randrange(1, 5)):
                at, length = rng.randrange(40000), rng.randrange(1, 9000)
                match rng.randrange(7):
                    case 0: file.truncate(at)
                    case 1: file.punch_hole(at, length)
                    case 2: file.write_zeroes(at, length)
                    case 3: file.allocate(at, length)
                    case 4: file.write_many(at, [rng.randbytes(length), rng.randbytes(700)])
                    case _: file.write(at, rng.randbytes(length))
            if rng.random() < 0.4: file.sync()
            file.close()
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=dict(os.environ)
    )


ONE = "import os, sys\nfd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"


@pytest.mark.parametrize(
    "operation, code",
    [
        (Operation.READ, "os.pread(fd, 9, 0)"),
        (Operation.READ, "os.preadv(fd, [bytearray(9)], 0)"),
        (Operation.WRITE, "os.pwrite(fd, b'x', 0)"),
        (Operation.WRITE, "os.pwritev(fd, [b'x'], 0)"),
        (Operation.SYNC, "os.fsync(fd)"),
        (Operation.SYNC, "os.fdatasync(fd)"),
        (Operation.ALLOCATE, "from shared.ports.kernel import fallocate; fallocate(fd, 0, 0, 9)"),
        (Operation.PUNCH, "from shared.ports.kernel import fallocate; fallocate(fd, 3, 0, 9)"),
        (Operation.TRUNCATE, "os.ftruncate(fd, 9)"),
        (Operation.OPEN, "os.open(sys.argv[1], os.O_RDONLY)"),
        (Operation.CREATE, "os.open(sys.argv[1], os.O_RDONLY | os.O_CREAT)"),
        (Operation.RENAME, "os.rename(sys.argv[1], sys.argv[1] + '-')"),
        (Operation.UNLINK, "os.unlink(sys.argv[1])"),
        (Operation.STATFS, "os.statvfs(sys.argv[1])"),
        (Operation.SYNC_FOLDER, "os.fsync(os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY))"),
    ],
)
def test_each_call_can_fail(shim: Shim, operation: Operation, code: str) -> None:
    """Calls before and after the one that is to fail pass, and so does every other kind of call."""
    path = shim.folder / "victim"
    # The opening of the file itself must not be of the kind that is to fail.
    other = operation in (Operation.OPEN, Operation.CREATE)
    opened = "import os, sys\n" if other else ONE.replace(" | os.O_CREAT", "")
    with shim.fault(operation, "*/victim*" if operation != Operation.SYNC_FOLDER else "*", error=errno.ENOMEM) as fault:
        text = f"{opened}try:\n  {code}\nexcept OSError as error: print(error.errno)\n"
        result = run(text, str(_made(path)))
        assert (result.stdout.strip(), result.stderr) == (str(errno.ENOMEM), "")
        assert fault.hits == 1
    assert run(f"{opened}{code}", str(_made(path))).returncode == 0


def _made(path: Path) -> Path:
    path.write_bytes(b"content")
    return path


def test_counts_ranges_and_programs(shim: Shim) -> None:
    """Only the calls that were asked for: after so many, so often, in that range, by that program."""
    path = _made(shim.folder / "victim")
    code = (
        f"{ONE}marker = 'of this one'\nfor n in range(8):\n"
        "  try: os.pwrite(fd, b'x', n); print(end='.')\n  except OSError: print(end='!')\n"
    )
    with shim.fault(Operation.WRITE, "*/victim", skip=2, times=3):
        assert run(code, str(path)).stdout == "..!!!..."
    with shim.fault(Operation.WRITE, "*/victim", span=(5, 7)):
        assert run(code, str(path)).stdout == ".....!!."
    with shim.fault(Operation.WRITE, "*/victim", program="of this one"):
        assert run(code, str(path)).stdout == "!" * 8
    with shim.fault(Operation.WRITE, "*/victim", program="of that one"):
        assert run(code, str(path)).stdout == "." * 8


def test_spoiled_and_misdirected_reads(shim: Shim) -> None:
    path = shim.folder / "victim"
    path.write_bytes(bytes(range(64)))
    code = f"{ONE}print(list(os.pread(fd, 8, 8)))"
    with shim.fault(Operation.READ, "*/victim", action=Action.MISDIRECT, argument=16):
        assert run(code, str(path)).stdout.strip() == str(list(range(24, 32)))
    with shim.fault(Operation.READ, "*/victim", action=Action.TORN, argument=6):
        assert run(code, str(path)).stdout.strip() == str([8, 9, 10, 11, 12, 13, 14 ^ 0x5A, 15 ^ 0x5A])


def test_clock_steps_with_the_times_of_files(shim: Shim) -> None:
    """What was written before the step keeps its time, what is written after it does not."""
    path = _made(shim.folder / "victim")
    code = (
        f"{ONE}import time\nbefore = os.fstat(fd).st_mtime\nos.pwrite(fd, b'x', 0)\n"
        "print(os.fstat(fd).st_mtime - before, time.time() - before)"
    )
    shim.step_clock(-86400.0)
    written, told = map(float, run(code, str(path)).stdout.split())
    assert -86400 <= written < -86000
    assert -86400 <= told < -86000


@pytest.mark.parametrize("seed", range(4))
def test_trace_misses_nothing(shim: Shim, seed: int) -> None:
    """Undone from its end to its beginning, the trace leaves every file as empty as it began; names likewise."""
    tree = shim.folder / "tree"
    tree.mkdir()
    shim.trace(tree)
    result = run(CHANGES, str(tree), str(seed))
    assert result.returncode == 0, result.stderr
    records = read_trace(shim.folder)
    for path in [*tree.iterdir(), *(shim.folder / "graves").iterdir()]:
        content = path.read_bytes()
        writes = [one for one in records if one.kind == "W" and one.inode == path.stat().st_ino]
        assert undone(content, writes) == b""
        again = bytearray()
        for write in writes:
            again.extend(bytes(max(0, write.offset + len(write.new) - len(again))))
            again[write.offset : write.offset + len(write.new)] = write.new
            del again[write.after :]
            again.extend(bytes(write.after - len(again)))
        assert bytes(again) == content
    synced = {one.inode: one.offset for one in records if one.kind == "S"}
    durable = {
        path.stat().st_ino: path.read_bytes()
        for path in tree.iterdir()
        if not any(
            w.kind == "W" and w.inode == path.stat().st_ino and w.sequence > synced.get(w.inode, 0) for w in records
        )
    }
    cut_power(shim.folder, tree, random.Random(seed))
    for path in tree.iterdir():
        if path.stat().st_ino in durable:
            assert path.read_bytes() == durable[path.stat().st_ino], "what was synced is gone"
