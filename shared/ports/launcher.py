"""Starts taps as processes of their own, which outlive whoever started them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence

from shared.errors import StorageError, UsageError

OUTPUT_NAME = "tap.out"
FOLDER_PLACEHOLDER = "%i"
COMMAND_SECONDS = 30.0


class DetachedLauncher:
    """Starts ``vmreplica-tap FOLDER`` in a session of its own (shared.ports.TapLauncher).

    With ``command`` that is run instead and awaited, e.g. ``systemctl start vmreplica-tap@%i``; ``%i`` in it stands for
    the folder, escaped as systemd-escape does for a path.
    """

    def __init__(self, command: Sequence[str] = ()) -> None:
        self._command = tuple(command)
        self._reapers: set[asyncio.Task[int]] = set()

    async def start(self, folder: str) -> None:
        """See shared.ports.TapLauncher; raises UsageError where the command can't be run or fails."""
        if self._command:
            await self._run_command(folder)
            return
        program = [sys.executable, "-P", "-m", "primary_agent.tap.main", folder]
        try:
            output = os.open(f"{folder}/{OUTPUT_NAME}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StorageError(f"{folder} can't be written: {error.strerror}.", "Check the volume.") from error
        try:
            process = await asyncio.create_subprocess_exec(
                *program,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(f"{program[0]} can't be run: {error.strerror}.", "Reinstall vmreplica.") from error
        finally:
            os.close(output)
        # A tap that ends while we live must not stay behind as a zombie.
        reaper = asyncio.ensure_future(process.wait())
        self._reapers.add(reaper)
        reaper.add_done_callback(self._reapers.discard)

    async def _run_command(self, folder: str) -> None:
        words = [word.replace(FOLDER_PLACEHOLDER, escape_path(folder)) for word in self._command]
        text = " ".join(words)
        try:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise UsageError(f"{text} can't be run: {error.strerror}.", "Check tap_command.") from error
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise UsageError(f"{text} did not end within {COMMAND_SECONDS:.0f} s.", "Check tap_command.") from None
        if process.returncode:
            said = output.decode(errors="replace").strip()[-500:]
            raise UsageError(f"{text} failed with exit code {process.returncode}: {said}", "Check tap_command.")


def escape_path(path: str) -> str:
    """``path`` as systemd-escape --path writes it: slashes become dashes, what is unusual becomes hex."""
    parts = [part for part in path.split("/") if part]
    if not parts:
        return "-"
    escaped = []
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape")
        text = "".join(
            chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in ":_.") else f"\\x{byte:02x}"
            for byte in encoded
        )
        escaped.append(text)
    joined = "-".join(escaped)
    return "\\x2e" + joined[1:] if joined.startswith(".") else joined
