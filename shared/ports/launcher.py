"""Starts taps as processes of their own, which outlive whoever started them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

import structlog

from shared.errors import StorageError, UsageError
from shared.ports.beneath import parent_of

OUTPUT_NAME = "tap.out"
OUTPUT_SHOWN = 2000
"""Bytes of a tap's last output that are logged when it ends with an error."""
FOLDER_PLACEHOLDER = "%i"
COMMAND_SECONDS = 30.0
TAP_PROGRAM = (sys.executable, "-P", "-m", "primary_agent.tap.main")

# What the service manager tells the agent alone.
NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

_log = structlog.get_logger(__name__)


class DetachedLauncher:
    """Starts ``vmreplica-tap FOLDER`` in a session of its own (shared.ports.TapLauncher).

    With ``command`` that is run instead and awaited, e.g. ``systemctl start vmreplica-tap@%i``; ``%i`` in it stands for
    the folder, escaped as systemd-escape does for a path.

    asyncio's own processes are not used: they are killed when their transport or loop is closed.
    """

    def __init__(self, command: Sequence[str] = (), *, program: Sequence[str] = TAP_PROGRAM) -> None:
        self._command = tuple(command)
        self._program = tuple(program)

    async def start(self, folder: str) -> None:
        """See shared.ports.TapLauncher.

        Raises UsageError where the program or command can't be run or fails, StorageError where its output can't be
        written.
        """
        if self._command:
            words = [word.replace(FOLDER_PLACEHOLDER, escape_path(folder)) for word in self._command]
            await asyncio.to_thread(_run_command, words)
        else:
            # A cancelled caller must not leave a started tap without its reaper.
            await asyncio.shield(asyncio.ensure_future(self._start(folder)))

    async def _start(self, folder: str) -> None:
        process = await asyncio.to_thread(_start_detached, [*self._program, folder], folder)
        _Reaper(process, folder)


class _Reaper:
    """Waits for the end of a tap that ends while we live, so that no zombie stays, and says how it ended."""

    def __init__(self, process: subprocess.Popen[bytes], folder: str) -> None:
        self._process = process
        self._folder = folder
        self._ended = os.pidfd_open(process.pid)
        # The loop keeps this object as long as the descriptor is watched.
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._ended, self._reap)

    def _reap(self) -> None:
        self._loop.remove_reader(self._ended)
        os.close(self._ended)
        status = self._process.wait()
        if status:
            output = _last_output(f"{self._folder}/{OUTPUT_NAME}")
            _log.error("tap ended", folder=self._folder, exit_status=status, output=output)


def _start_detached(words: list[str], folder: str) -> subprocess.Popen[bytes]:
    """Start the program with its output in the folder; nothing of ours but that is open in it."""
    path = f"{folder}/{OUTPUT_NAME}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with parent_of(path) as place:
            output = os.open(place.name, flags, 0o600, dir_fd=place.folder)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}.", "Check the volume.") from error
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={name: value for name, value in os.environ.items() if name not in NOT_INHERITED},
            start_new_session=True,
        )
    except OSError as error:
        raise UsageError(f"{words[0]} can't be run: {error.strerror}.", "Reinstall vmreplica.") from error
    finally:
        os.close(output)


def _run_command(words: list[str]) -> None:
    text = " ".join(words)
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except OSError as error:
        raise UsageError(f"{text} can't be run: {error.strerror}.", "Check tap_command.") from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{text} did not end within {COMMAND_SECONDS:.0f} s.", "Check tap_command.") from error
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip()[-500:]
        raise UsageError(f"{text} failed with exit status {done.returncode}: {said}", "Check tap_command.")


def _last_output(path: str) -> str:
    with contextlib.suppress(OSError, StorageError), parent_of(path) as place, place.opened() as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - OUTPUT_SHOWN))
        return file.read().decode(errors="replace").strip()
    return ""


def escape_path(path: str) -> str:
    """``path`` as systemd-escape --path writes it: dashes for slashes, hex for all but letters, digits, ``:_.``."""
    parts = [part for part in path.split("/") if part]
    if not parts:
        return "-"
    escaped = "-".join("".join(_escape_byte(byte) for byte in os.fsencode(part)) for part in parts)
    return "\\x2e" + escaped[1:] if escaped.startswith(".") else escaped


def _escape_byte(byte: int) -> str:
    character = chr(byte)
    plain = character.isascii() and (character.isalnum() or character in ":_.")
    return character if plain else f"\\x{byte:02x}"
