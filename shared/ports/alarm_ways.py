"""The ways that alarms take out of the agent: a command with a time limit, and a POST over HTTP with TLS verified.

The port is ``AlarmWays``. All calls block, and are made in a thread of their own.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from shared.errors import UnreachableError, UsageError
from shared.ports.programs import run_program

OUTPUT_SHOWN = 400
"""Characters of what a command wrote that are told when it fails."""
ANSWER_BYTES = 2000
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "HOME")
"""What of our environment a command gets; nothing that the service manager told us alone."""


class AlarmWays(Protocol):
    """How an alarm leaves. Raises VmreplicaError with the reason where it does not arrive."""

    def run(self, command: Sequence[str], environment: Mapping[str, str], data: bytes, timeout: float) -> None:
        """Run a command with ``data`` on its standard input; ended, with all that it started, after ``timeout``."""

    def post(self, url: str, data: bytes, timeout: float, ca: str = "") -> None:
        """POST ``data`` as JSON; any answer of 2xx is success. No redirect is followed."""


class RealAlarmWays:
    """See :class:`AlarmWays`."""

    def run(self, command: Sequence[str], environment: Mapping[str, str], data: bytes, timeout: float) -> None:
        name = command[0]
        try:
            status, said = run_program(command, environment, timeout, inherited=_PASSED_ON, data=data)
        except OSError as error:
            raise UsageError(
                f"{name} can't be run: {error.strerror}.", "Mend the alarm's command; the agent's user runs it."
            ) from error
        except subprocess.TimeoutExpired:
            raise UnreachableError(
                f"{name} did not end within {timeout:g} s, and was killed.", "Mend it, or raise timeout_seconds."
            ) from None
        if status:
            text = said.decode(errors="replace").strip()[-OUTPUT_SHOWN:]
            raise UnreachableError(f"{name} failed with exit status {status}: {text}", "Mend the alarm's command.")

    def post(self, url: str, data: bytes, timeout: float, ca: str = "") -> None:
        parts = urlsplit(url)
        host, path = parts.hostname or "", parts.path or "/"
        if parts.query:
            path += f"?{parts.query}"
        connection: http.client.HTTPConnection
        try:
            if parts.scheme == "https":
                context = ssl.create_default_context(cafile=ca or None)
                connection = http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=context)
            else:
                connection = http.client.HTTPConnection(host, parts.port, timeout=timeout)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"{ca} can't be used: {error}.", "Mend the alarm's webhook_ca.") from error
        headers = {"Content-Type": "application/json", "User-Agent": "vmreplica", "Connection": "close"}
        with contextlib.closing(connection):
            try:
                connection.request("POST", path, data, headers)
                answer = connection.getresponse()
                said = answer.read(ANSWER_BYTES)
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
                raise UnreachableError(f"{host} does not take the alarm: {reason}.", "Check the webhook.") from error
        if not 200 <= answer.status < 300:
            text = said.decode(errors="replace").strip()[:OUTPUT_SHOWN]
            raise UnreachableError(
                f"{host} answers {answer.status} {answer.reason}: {text}".rstrip(": "), "Check the webhook's address."
            )
