"""A guest agent for tests: it speaks qemu-ga's protocol on a unix socket, and what it would freeze is a flag."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

FILE_SYSTEMS = 2
_WHILE_FROZEN = frozenset({"guest-ping", "guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-thaw"})


class FakeGuest:
    """Listens from its making to :meth:`close`; like QEMU's end of the channel it serves one client at a time.

    ``hangs`` are commands that are carried out and not answered, ``refuses`` those that end in an error.
    ``thaws_itself``: before anybody asks how it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frozen = False
        self.asked: list[str] = []
        self.hangs: set[str] = set()
        self.refuses: set[str] = set()
        self.thaws_itself = False
        self.changed = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """As if QEMU ended."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink()

    def until(self, frozen: bool, seconds: float = 20.0) -> bool:
        """Wait until the guest is frozen, or is not; False where it does not come to that."""
        with self.changed:
            return self.changed.wait_for(lambda: self.frozen is frozen, seconds)

    def auto_thaw(self) -> None:
        """The guest thaws by itself, as Windows does after a while."""
        with self.changed:
            self.frozen = False
            self.changed.notify_all()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                # What somebody left behind unread: a synchronization has to skip it.
                client.sendall(b'{"return": 17}\n')
                received = b""
                while data := _received(client):
                    received += data
                    while b"\n" in received:
                        line, _, received = received.partition(b"\n")
                        self._obey(client, line)

    def _obey(self, client: socket.socket, line: bytes) -> None:
        order = json.loads(line.rpartition(b"\xff")[2])
        command = order["execute"]
        self.asked.append(command)
        answer: Any = {}
        with self.changed:
            if command in self.refuses or (self.frozen and command not in _WHILE_FROZEN):
                said = {"error": {"class": "GenericError", "desc": f"Command {command} has been disabled"}}
                client.sendall(json.dumps(said).encode() + b"\n")
                return
            match command:
                case "guest-sync-delimited":
                    answer = order["arguments"]["id"]
                case "guest-fsfreeze-freeze":
                    self.frozen, answer = True, FILE_SYSTEMS
                case "guest-fsfreeze-thaw":
                    answer, self.frozen = FILE_SYSTEMS if self.frozen else 0, False
                case "guest-fsfreeze-status":
                    self.frozen = self.frozen and not self.thaws_itself
                    answer = "frozen" if self.frozen else "thawed"
            self.changed.notify_all()
        if command not in self.hangs:
            prefix = b"\xff" if command == "guest-sync-delimited" else b""
            client.sendall(prefix + json.dumps({"return": answer}).encode() + b"\n")


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(4096)
    except OSError:
        return b""
