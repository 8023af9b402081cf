"""The ways to freeze a guest and thaw it again: QEMU's guest agent, libvirt, or an administrator's program.

All calls block, and are bounded by the seconds that they are given. They are made in a process of their own
(shared.ports.freeze_guard), which thaws whatever becomes of the agent that asked for the freeze.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import stat
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.guest_settings import FreezeKind
from shared.ports.programs import run_program

ANSWER_BYTES = 64 << 10
"""The longest answer of a guest agent that is read."""
SAID_SHOWN = 300
"""Characters of what a command wrote that are told when it fails."""
SENTINEL = b"\xff"
"""Before the answer to guest-sync-delimited, and before the request: resets the parser of either side."""
GONE = ("domain is not running", "failed to get domain", "Domain not found")
"""What virsh says where there is no guest that could be frozen."""
_PASSED_ON = ("PATH", "LANG", "TZ", "HOME")


class FreezeError(Exception):
    """Freezing or thawing failed: ``text`` says why, ``remedy`` what to do."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.text = text
        self.remedy = remedy


class NotBegunError(FreezeError):
    """Nobody was told to freeze anything: nothing has to be thawed for this."""


@dataclass(frozen=True, slots=True)
class Thawed:
    """``held``: the guest had been frozen without a break until now, as far as whoever thawed it can tell."""

    held: bool
    text: str = ""


class FreezeWay(Protocol):
    """One way. ``thaw`` may be called again, and for a guest that is not frozen. Both raise FreezeError."""

    def freeze(self, seconds: float) -> None: ...

    def thaw(self, seconds: float) -> Thawed: ...


def way_of(kind: FreezeKind, target: str, vm: str) -> FreezeWay:
    """The way of a setting: ``target`` is a socket, a domain or a program; ``vm`` is the VM's name."""
    match kind:
        case FreezeKind.AGENT:
            return GuestAgent(target)
        case FreezeKind.LIBVIRT:
            return LibvirtDomain(target)
        case FreezeKind.PROGRAM:
            return HookProgram(target, vm)


# --- QEMU's guest agent -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GuestAgent:
    """The guest agent at the host's end of its channel, a unix socket of QEMU. QEMU serves one client at a time."""

    path: str

    def freeze(self, seconds: float) -> None:
        with _Conversation(self.path, seconds) as agent:
            count = agent.ask("guest-fsfreeze-freeze")
            if not isinstance(count, int) or count < 1:
                raise FreezeError(
                    f"The guest agent at {self.path} froze no file system.",
                    "Look at its configuration in the guest (FSFREEZE_HOOK, blocked commands), and at what is mounted.",
                )

    def thaw(self, seconds: float) -> Thawed:
        try:
            with _Conversation(self.path, seconds) as agent:
                before = agent.ask("guest-fsfreeze-status")
                count = agent.ask("guest-fsfreeze-thaw")
                after = agent.ask("guest-fsfreeze-status")
        except _NobodyThereError:
            # Without QEMU there is no guest, and the next one starts unfrozen.
            return Thawed(held=False, text=f"Nobody listens at {self.path} any more: the VM has ended.")
        if after != "thawed":
            raise FreezeError(
                f"The guest agent at {self.path} says that the guest is still {after!s:.40}.",
                "Thaw it from inside: fsfreeze --unfreeze for each file system; or reset the VM.",
            )
        held = before == "frozen" and isinstance(count, int) and count > 0
        return Thawed(held=held, text="" if held else "The guest was not frozen any more when it was to be thawed.")


class _NobodyThereError(NotBegunError):
    """Nothing listens at the guest agent's socket."""


class _Conversation:
    """One connection to a guest agent: synchronized first, then question and answer, all before a deadline."""

    def __init__(self, path: str, seconds: float) -> None:
        self._path = path
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._received = b""

    def __enter__(self) -> _Conversation:
        try:
            self._wait()
            self._socket.connect(self._path)
            self._synchronize()
        except BaseException as error:
            self._socket.close()
            if isinstance(error, FileNotFoundError | ConnectionRefusedError):
                raise _NobodyThereError(
                    f"Nobody listens at the guest agent's socket {self._path}.",
                    "Is the VM running, with a channel org.qemu.guest_agent.0 at that socket?",
                ) from None
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def ask(self, command: str) -> Any:
        """The answer to a command without arguments. Raises FreezeError."""
        try:
            self._send(json.dumps({"execute": command}).encode() + b"\n")
            return self._answer(command)
        except OSError as error:
            raise self._failed(error) from error

    def _synchronize(self) -> None:
        """What an earlier client left unread, or half said, is behind us once our own number comes back."""
        number = secrets.randbits(31)
        order = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._send(SENTINEL + json.dumps(order).encode() + b"\n")
        while True:
            while SENTINEL not in self._received:
                self._receive()
            self._received = self._received.partition(SENTINEL)[2]
            line = self._line()
            with contextlib.suppress(ValueError):
                if json.loads(line) == {"return": number}:
                    return

    def _answer(self, command: str) -> Any:
        try:
            answer = json.loads(self._line())
        except ValueError:
            answer = None
        match answer:
            case {"return": value}:
                return value
            case {"error": {"desc": str(said)}}:
                raise FreezeError(
                    f"The guest agent refuses {command}: {said[:SAID_SHOWN]}", "See the guest agent's log in the guest."
                )
        raise FreezeError(f"The guest agent's answer to {command} is none.", "Which program listens at its socket?")

    def _line(self) -> bytes:
        while b"\n" not in self._received:
            self._receive()
        line, _, self._received = self._received.partition(b"\n")
        return line.lstrip(SENTINEL)

    def _receive(self) -> None:
        self._wait()
        more = self._socket.recv(4096)
        if not more:
            raise ConnectionResetError("it ended the connection")
        self._received += more
        if len(self._received) > ANSWER_BYTES:
            raise FreezeError("The guest agent's answer has no end.", "Which program listens at its socket?")

    def _send(self, data: bytes) -> None:
        self._wait()
        self._socket.sendall(data)

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _failed(self, error: OSError) -> FreezeError:
        if isinstance(error, TimeoutError | BlockingIOError):
            return FreezeError(
                f"The guest agent at {self._path} did not answer within {self._seconds:g} s.",
                "Is it running in the guest? Only one program of the host may be connected to its socket (libvirt is, "
                "where it started the VM: set consistency=libvirt:DOMAIN then).",
            )
        reason = error.strerror or str(error)
        return FreezeError(f"The guest agent at {self._path} can't be asked: {reason}.", "Check the socket's owner.")


# --- libvirt ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LibvirtDomain:
    """The guest agent of a domain, by way of libvirt, which is the one client of its socket."""

    domain: str

    def freeze(self, seconds: float) -> None:
        code, said = run_command(["virsh", "--quiet", "domfsfreeze", "--domain", self.domain], {"LC_ALL": "C"}, seconds)
        if code or _count(said) < 1:
            raise _virsh_failed("domfsfreeze", said)

    def thaw(self, seconds: float) -> Thawed:
        code, said = run_command(["virsh", "--quiet", "domfsthaw", "--domain", self.domain], {"LC_ALL": "C"}, seconds)
        if code and any(words in said for words in GONE):
            return Thawed(held=False, text=f"The domain {self.domain} does not run any more.")
        if code:
            raise _virsh_failed("domfsthaw", said)
        held = _count(said) > 0
        return Thawed(held=held, text="" if held else "The guest was not frozen any more when it was to be thawed.")


def _count(said: str) -> int:
    """How many file systems virsh says that it froze or thawed."""
    found = re.search(r"\b(?:Froze|Thawed) (\d+) filesystem", said)
    return int(found[1]) if found is not None else 0


def _virsh_failed(verb: str, said: str) -> FreezeError:
    words = " ".join(said.replace("error: ", "").split())[:SAID_SHOWN]
    return FreezeError(
        f"virsh {verb}: {words or 'it failed without a word'}",
        "Is the domain running, with a channel for the guest agent and the agent running in the guest?",
    )


# --- a program --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HookProgram:
    """An administrator's program: ``PROGRAM freeze VM`` and ``PROGRAM thaw VM``, each exits with 0 when it is done."""

    path: str
    vm: str

    def freeze(self, seconds: float) -> None:
        self._run("freeze", seconds)

    def thaw(self, seconds: float) -> Thawed:
        self._run("thaw", seconds)
        return Thawed(held=True)

    def _run(self, word: str, seconds: float) -> None:
        check_program(self.path)
        code, said = run_command([self.path, word, self.vm], {}, seconds)
        if code:
            reason = " ".join(said.split())[-SAID_SHOWN:] or "it said nothing"
            raise FreezeError(f"{self.path} {word} failed with exit status {code}: {reason}", "Mend the program.")


def check_program(path: str) -> None:
    """Raises NotBegunError unless the program is a file that only root, or our own user, can have written."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise NotBegunError(f"{path} can't be run: {error.strerror}.", "Check the path.") from None
    if not stat.S_ISREG(found.st_mode) or not os.access(path, os.X_OK):
        raise NotBegunError(f"{path} is no program.", "Make it an executable file.")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise NotBegunError(
            f"{path} can be written by others than its owner, or belongs to another user: it is not run.",
            f"chown root:root {path}; chmod 0755 {path}",
        )


def run_command(words: Sequence[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
    """Exit status and output of a command; killed with all that it started after ``seconds``. Raises FreezeError."""
    try:
        status, said = run_program(words, environment, max(seconds, 0.0), inherited=_PASSED_ON)
    except OSError as error:
        raise NotBegunError(f"{words[0]} can't be run: {error.strerror}.", "Install it, or mend the setting.") from None
    except subprocess.TimeoutExpired:
        raise FreezeError(
            f"{' '.join(words[:2])} did not end within {seconds:g} s, and was killed.", "Why does it take so long?"
        ) from None
    return status, said.decode(errors="replace")
