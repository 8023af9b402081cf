"""A real tap process with real clients: started, killed, started again, and its log compared with its disks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from shared.errors import UnreachableError
from shared.ports.file_system import RealFileSystem
from shared.ports.network import RealNetwork
from shared.tap_config import ERROR_NAME, TapConfig, save_config
from shared.tap_control import TapClient, TapStatus
from tests.unit.tap.rig import Replayed, make_config, replay

ROOT = Path(__file__).parents[2]
WRITER = "tests.pair.nbd_writer"
DEBIAN_PYTHON = "/usr/bin/python3"
WAIT_SECONDS = 60.0
EPOCH = bytes(range(100, 116))


class TapRun:
    """One tap's folder, and the process that runs on it."""

    def __init__(self, folder: Path, sizes: Sequence[int], **options: Any) -> None:
        self.folder = folder
        self.config: TapConfig = make_config(str(folder), sizes, **options)
        self.home = folder / "tap"
        self.home.mkdir()
        for disk in self.config.disks:
            Path(disk.path).write_bytes(os.urandom(disk.size))
        save_config(RealFileSystem(), str(self.home), self.config)
        self.process: subprocess.Popen[bytes] | None = None
        self.client: TapClient | None = None

    # --- the process

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the program, without waiting for it."""
        with (self.folder / "tap.out").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "primary_agent.tap.main", str(self.home)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return self.process

    async def start(self) -> TapClient:
        """Start the program and connect to its control socket."""
        process = self.spawn()
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with contextlib.suppress(UnreachableError):
                self.client = await TapClient.connect(RealNetwork(), self.config.control_socket, timeout=WAIT_SECONDS)
                return self.client
            assert process.poll() is None, f"the tap ended with {process.returncode}: {self.output()}"
            assert time.monotonic() < deadline, self.output()
            await asyncio.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        if self.client is not None:
            self.client.close()

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        if self.client is not None:
            await self.client.rpc.closed
        return await asyncio.to_thread(self.process.wait, WAIT_SECONDS)

    async def status(self) -> TapStatus:
        assert self.client is not None
        return await self.client.status()

    async def until(self, reached: Callable[[TapStatus], bool]) -> TapStatus:
        """The first status that is so; fails after a minute."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            status = await self.status()
            if reached(status):
                return status
            await asyncio.sleep(0.02)
        raise AssertionError(f"the tap does not get there: {status}")

    def refused(self) -> tuple[int, dict[str, str]]:
        """Start the program, which is to refuse its work; its exit code and what it left for its starter."""
        process = self.spawn()
        code = process.wait(WAIT_SECONDS)
        return code, json.loads((self.home / ERROR_NAME).read_bytes())

    def output(self) -> str:
        return (self.folder / "tap.out").read_text(encoding="utf-8")[-4000:]

    # --- its disks and its log

    def uri(self, index: int) -> str:
        return f"nbd+unix:///disk{index}?socket={self.config.nbd_socket}"

    def disk(self, index: int) -> Path:
        return Path(self.config.disks[index].path)

    def images(self) -> dict[int, bytes]:
        return {disk.index: Path(disk.path).read_bytes() for disk in self.config.disks}

    def replay(self, base: dict[int, bytes], epoch: bytes = EPOCH) -> Replayed:
        return replay(RealFileSystem(), self.config, epoch, base)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.client is not None:
            self.client.close()


class Writer:
    """The client of nbd_writer.py: random writes to all disks, whose shadows are what the disks have to hold."""

    def __init__(self, run: TapRun, seed: int, **plan: Any) -> None:
        self.shadows = [run.folder / f"shadow-{disk.index}" for disk in run.config.disks]
        for disk, shadow in zip(run.config.disks, self.shadows, strict=True):
            shadow.write_bytes(Path(disk.path).read_bytes())
        orders = {
            "uris": [run.uri(disk.index) for disk in run.config.disks],
            "shadows": [str(shadow) for shadow in self.shadows],
            "journal": str(run.folder / "journal"),
            "seed": seed,
            **plan,
        }
        self._process = subprocess.Popen(
            [DEBIAN_PYTHON, "-m", WRITER, json.dumps(orders)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}"},
        )

    async def order(self, word: str, answer: str) -> None:
        """Give an order and wait until it is carried out."""

        def talk() -> bytes:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()
            return self._process.stdout.readline()

        said = (await asyncio.to_thread(talk)).decode().strip()
        assert said == answer, f"the client said {said!r} to {word!r} (exit code {self._process.poll()})"

    async def go(self) -> None:
        await self.order("go", "going")

    async def settle(self) -> dict[int, bytes]:
        """Have everything answered and flushed; what the disks have to hold."""
        await self.order("stop", "idle")
        return {index: shadow.read_bytes() for index, shadow in enumerate(self.shadows)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


@contextlib.contextmanager
def tap_run(sizes: Sequence[int], *, parent: Path | None = None, **options: Any) -> Iterator[TapRun]:
    """A tap's folder, on tmpfs unless said otherwise; a process that still runs at the end is killed."""
    if parent is None and Path("/dev/shm").is_dir():
        parent = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="vmr-tap-", dir=parent) as folder:
        run = TapRun(Path(folder), sizes, **options)
        try:
            yield run
        except BaseException:
            print(run.output() if (run.folder / "tap.out").exists() else "the tap was not started")
            raise
        finally:
            run.close()


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip by name where a client is missing."""
    missing = [name for name in programs if not _exists(name)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def _exists(name: str) -> bool:
    if name == "libnbd":
        return Path("/usr/lib/python3/dist-packages/nbd.py").exists()
    return any((Path(folder) / name).exists() for folder in ("/usr/bin", "/usr/sbin", "/bin", "/sbin"))


async def run_client(*words: str) -> tuple[int, str]:
    """Run a client to its end; exit code and everything it said."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}"},
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")
