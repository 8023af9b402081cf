"""The preloaded shim from the test's side: compiled once, ruled through a page that the processes share."""

from __future__ import annotations

import ctypes
import enum
import errno
import functools
import mmap
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shim.c")
STEP_AHEAD_NS = 20_000_000
ROOT = Path(__file__).parents[2]
OUTSIDE = Path(__file__).with_name("outside")
"""Has the ``sitecustomize`` that takes a defence out of the processes that a test starts."""
RULES = 16
STEPS = 8
TEXT = 192
WAIT_SECONDS = 60.0
FOR_EVER = -1


class Operation(enum.IntFlag):
    """Calls of a process, by what they are for."""

    READ = 1
    WRITE = 2
    SYNC = 4
    ALLOCATE = 8
    PUNCH = 16
    TRUNCATE = 32
    OPEN = 64
    CREATE = 128
    RENAME = 256
    STATFS = 512
    UNLINK = 1024
    ACCEPT = 2048
    THREAD = 4096
    SYNC_FOLDER = 8192


class Action(enum.IntEnum):
    """How a call ends. ``argument`` of a rule: bytes for SHORT, TORN, MISDIRECT, KILL_MIDWAY; ms for STALL."""

    ERROR = 1
    SHORT = 2
    STALL = 3
    HOLD = 4
    """Does not return before the rule is taken back."""
    TORN = 5
    """What was read is spoiled from so many bytes on."""
    MISDIRECT = 6
    """Another place is read or written, so many bytes further on."""
    KILL = 7
    LIE = 8
    """Success is told and nothing is done."""
    KILL_MIDWAY = 9


class _Rule(ctypes.Structure):
    _fields_ = [
        ("active", ctypes.c_int32),
        ("action", ctypes.c_int32),
        ("operations", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        *[(name, ctypes.c_int64) for name in ("skip", "times", "argument", "start", "end", "seen", "hits")],
        ("path", ctypes.c_char * TEXT),
        ("program", ctypes.c_char * TEXT),
    ]


class _Step(ctypes.Structure):
    _fields_ = [("since", ctypes.c_int64), ("offset", ctypes.c_int64)]


class _Control(ctypes.Structure):
    _fields_ = [
        ("magic", ctypes.c_char * 8),
        ("sequence", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("step", _Step * STEPS),
        *[(name, ctypes.c_char * TEXT) for name in ("boot", "traced", "trace", "graveyard")],
        ("rule", _Rule * RULES),
    ]


@functools.cache
def compiled() -> str:
    """The path of the shared object, made with the compiler of this host; skips the test where there is none."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc (Debian: gcc, libc6-dev)")
    folder = tempfile.mkdtemp(prefix="vmr-shim-")
    path = f"{folder}/shim.so"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", path, str(SOURCE)], check=True)
    _forget_at_exit(folder)
    return path


def _forget_at_exit(folder: str) -> None:
    import atexit

    atexit.register(shutil.rmtree, folder, True)


class Fault:
    """A rule in force. ``hits`` says how many calls it has ended, ``seen`` how many it was asked about."""

    def __init__(self, rule: _Rule) -> None:
        self._rule: _Rule | None = rule
        self._counts = (0, 0)

    @property
    def hits(self) -> int:
        return self._counts[0] if self._rule is None else int(self._rule.hits)

    @property
    def seen(self) -> int:
        return self._counts[1] if self._rule is None else int(self._rule.seen)

    def wait(self, hits: int = 1) -> None:
        """Block until the rule has hit so often."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self.hits < hits:
            assert time.monotonic() < deadline, f"the fault was met {self.hits} times, not {hits}"
            time.sleep(0.005)

    def lift(self) -> None:
        """Take the rule back; its counts stay."""
        if self._rule is not None:
            self._counts = (int(self._rule.hits), int(self._rule.seen))
            self._rule.active = self._rule.operations = 0
            self._rule = None


class Shim:
    """One shared page; processes started with ``environment`` are under its rules, and so are those they start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "faults.page"
        self._path.write_bytes(bytes(ctypes.sizeof(_Control)))
        with self._path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 0)
        self._control = _Control.from_buffer(self._page)
        self.environment = {
            "LD_PRELOAD": compiled(),
            "VMR_FAULTS": str(self._path),
            "PYTHONPATH": ":".join(filter(None, [str(OUTSIDE), str(ROOT), os.environ.get("PYTHONPATH", "")])),
        }

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Every process that is started meanwhile is under the shim."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            yield

    @contextmanager
    def fault(
        self,
        operations: Operation,
        path: str = "*",
        *,
        action: Action = Action.ERROR,
        error: int = errno.EIO,
        skip: int = 0,
        times: int = FOR_EVER,
        argument: int = 0,
        span: tuple[int, int] = (0, 0),
        program: str = "",
    ) -> Iterator[Fault]:
        """A rule for as long as the context lasts: calls of ``operations`` on paths like ``path`` end by ``action``.

        The first ``skip`` calls pass, then ``times`` are hit. ``span`` limits it to calls that touch these bytes,
        ``program`` to processes with this in their command line. Paths are patterns of fnmatch, ``*`` matching ``/``.
        """
        rule = next(rule for rule in self._control.rule if not rule.active and not rule.operations)
        rule.operations, rule.action, rule.error = int(operations), int(action), error
        rule.skip, rule.times, rule.argument = skip, times, argument
        rule.start, rule.end = span
        rule.path, rule.program = path.encode(), program.encode()
        rule.seen = rule.hits = 0
        rule.active = 1
        fault = Fault(rule)
        try:
            yield fault
        finally:
            fault.lift()

    def step_clock(self, seconds: float) -> None:
        """From now on the wall clock of these processes is so far from the real one. Files' times follow it."""
        count = self._control.steps
        # Known before it is in force: a file's time must not be told without the step and then with it.
        self._control.step[count].since = time.time_ns() + STEP_AHEAD_NS
        self._control.step[count].offset = int(seconds * 1e9)
        self._control.steps = count + 1
        time.sleep(STEP_AHEAD_NS / 1e9)

    def new_boot(self, name: str) -> None:
        """The host was started anew: processes from now on read this as the boot's id."""
        path = self.folder / f"boot-{name}"
        path.write_text(f"{name}\n")
        self._control.boot = str(path).encode()

    def trace(self, below: Path) -> Path:
        """Record every change of files below this folder; returns where."""
        graves = self.folder / "graves"
        graves.mkdir(exist_ok=True)
        self._control.trace = str(self.folder / "trace").encode()
        self._control.graveyard = str(graves).encode()
        self._control.traced = f"{below}/".encode()
        return self.folder
