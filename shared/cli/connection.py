"""A blocking JSON-RPC connection to one agent's socket: the command needs no event loop, and starts faster."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from shared.admin.codec import (
    CLIENT_MESSAGE_MAX,
    Failure,
    Malformed,
    Message,
    MessageReader,
    Notification,
    Request,
    Result,
    encode,
)
from shared.admin.failures import error_of
from shared.errors import ForbiddenError, UnreachableError

CONNECT_SECONDS = 5.0
CALL_SECONDS = 60.0
"""How long an agent may take for an ordinary answer."""
RECEIVE_BYTES = 256 << 10
NOTIFIED_MAX = 10_000

_CREDENTIALS = struct.Struct("iII")
"""struct ucred: process, user and group."""

HOW_TO_START = "Start the agent: systemctl start vmreplica-primary, or vmreplica-replica on the replica's host."
HOW_TO_ALLOW = "Run the command as root, or become a member of the group vmreplica-admin and log in again."


class Connection:
    """One connection; a context manager."""

    def __init__(self, path: str) -> None:
        """Connect. Raises UnreachableError when no agent listens at ``path``, ForbiddenError when we may not."""
        self.path = path
        self._reader = MessageReader(CLIENT_MESSAGE_MAX)
        self._messages: deque[Message] = deque()
        self._notified: deque[Notification] = deque(maxlen=NOTIFIED_MAX)
        """What came while an answer was waited for."""
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CONNECT_SECONDS)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise connect_error(path, error) from None

    @property
    def user(self) -> int:
        """The user, by number, that the agent runs as, by the kernel's word.

        Whose the socket's file is tells nothing: whoever owns its folder can put another in its place at any moment.
        """
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(credentials)
        return int(user)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, params: Mapping[str, Any] | None = None, timeout: float | None = CALL_SECONDS) -> Any:
        """The method's result. Raises the agent's error, or UnreachableError after ``timeout`` seconds."""
        return self.wait(self.begin(method, params), method, timeout)

    def begin(self, method: str, params: Mapping[str, Any] | None = None) -> int:
        """Send a request; its id, for :meth:`wait`."""
        self._last_id += 1
        try:
            self._socket.settimeout(CALL_SECONDS)
            self._socket.sendall(encode(Request(self._last_id, method, dict(params or {}))))
        except (BrokenPipeError, ConnectionResetError):
            # The agent may have said why before it closed; the answer is read next.
            pass
        except OSError as error:
            raise self._broken(error) from None
        return self._last_id

    def wait(self, identity: int, method: str, timeout: float | None) -> Any:
        """The answer to a request. After an UnreachableError for lack of time it may be waited for again."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            while self._messages:
                match self._messages.popleft():
                    case Notification() as told:
                        self._notified.append(told)
                    case Result(id=answered, value=value) if answered == identity:
                        return value
                    case Failure(id=answered) as failure if answered in (identity, None):
                        raise error_of(failure)
                    case Malformed(text=text):
                        raise UnreachableError(
                            f"{self.path} does not speak our protocol: {text}", "Check that it is an agent's socket."
                        )
            if not self._receive(end):
                raise NoAnswerYetError(
                    f"{self.path} did not answer {method} within {timeout:g} seconds.",
                    "The agent may be overloaded, or still at it: see `vmreplica status`.",
                )

    def notified(self, method: str, timeout: float) -> list[dict[str, Any]]:
        """The parameters of the notifications of that name that came, or come within ``timeout`` seconds."""
        if not self._notified and not self._messages:
            self._receive(time.monotonic() + timeout)
        while self._messages:
            message = self._messages.popleft()
            if isinstance(message, Notification):
                self._notified.append(message)
        told = [each.params for each in self._notified if each.method == method]
        self._notified.clear()
        return told

    def _receive(self, end: float | None) -> bool:
        """Take in more messages; False when time is up."""
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return False
        try:
            self._socket.settimeout(left)
            data = self._socket.recv(RECEIVE_BYTES)
        except TimeoutError:
            return False
        except OSError as error:
            raise self._broken(error) from None
        if not data:
            raise UnreachableError(f"The agent at {self.path} closed the connection.", "See the agent's log.")
        self._messages.extend(self._reader.feed(data))
        return True

    def _broken(self, error: OSError) -> UnreachableError:
        reason = error.strerror or str(error)
        return UnreachableError(f"The connection to {self.path} broke: {reason}.", "See the agent's log.")


class NoAnswerYetError(UnreachableError):
    """The agent took longer than it was given."""


class NoSocketError(UnreachableError):
    """There is no socket at the path: no agent of this role was ever started here."""


def connect_error(path: str, error: OSError) -> UnreachableError | ForbiddenError:
    """What a failed connect to an agent's socket means."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return NoSocketError(f"No agent runs here: there is no socket {path}.", HOW_TO_START)
        case errno.ECONNREFUSED:
            return UnreachableError(f"The agent of {path} does not run: nobody listens there.", HOW_TO_START)
        case errno.EACCES | errno.EPERM:
            return ForbiddenError(f"You may not use {path}.", HOW_TO_ALLOW)
        case errno.EAGAIN | errno.ETIMEDOUT | None:
            return UnreachableError(f"The agent at {path} takes no connections.", "See the agent's log.")
    return UnreachableError(f"{path} can't be connected to: {error.strerror}.", HOW_TO_START)
