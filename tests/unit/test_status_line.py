"""All VMs in one line, and what becomes of a line on its way to systemd."""

from __future__ import annotations

import pytest

from shared.config_sections import TlsSection
from shared.credentials import identity_of
from shared.errors import UsageError
from shared.ports.systemd import STATUS_BYTES, ServiceManager, status_line
from shared.status import VmStatus
from shared.status_line import line_of


def vm(name: str, health: str, *reasons: str) -> VmStatus:
    made = VmStatus(name=name, uuid=name, role="primary", state="Replicating", state_code=4)
    made.health, made.reasons = health, list(reasons)
    return made


def test_the_worst_is_told() -> None:
    assert line_of([]) == "No VMs."
    assert line_of([vm("a", "Normal")]) == "1 VM: 1 Normal."
    vms = [
        vm("a", "Normal"),
        vm("web", "Critical", "It burns.", "More."),
        vm("b", "Warning", "So-so"),
        vm("c", "Normal"),
    ]
    assert line_of(vms) == "4 VMs: 2 Normal, 1 Warning, 1 Critical (web: It burns)."


def test_a_status_is_one_line_of_a_bounded_length() -> None:
    assert status_line("a\nREADY=1\n b") == "STATUS=a READY=1 b"
    long = status_line("ü" * 1000).encode()
    assert len(long) <= len("STATUS=") + STATUS_BYTES
    assert long.decode().endswith("ü…")


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("30000000", "", 15.0),
        ("30000000", "4711", 15.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("", "", None),
        ("x", "", None),
    ],
)
def test_the_watchdog_is_heard_from_twice_in_its_time(usec: str, pid: str, expected: float | None) -> None:
    environment = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    assert ServiceManager(environment, 4711).beat_seconds == expected


async def test_without_a_service_manager_nothing_is_done() -> None:
    manager = ServiceManager({"WATCHDOG_USEC": "1000000"}, 4711)
    assert manager.beat_seconds is None
    await manager.keep_alive()

    async def never() -> str:
        raise AssertionError

    await manager.keep_status(never)


async def test_nobody_listening_is_no_error() -> None:
    ServiceManager({"NOTIFY_SOCKET": "/nowhere"}, 4711).ready("x")


def test_a_credential_is_looked_for_where_systemd_put_it() -> None:
    tls = TlsSection(ca="/pki/ca.pem", certificate="/pki/c.pem", key="credential:key.pem", crl="")
    identity = identity_of(tls, "/run/credentials/x.service")
    assert (identity.ca, identity.key) == ("/pki/ca.pem", "/run/credentials/x.service/key.pem")
    with pytest.raises(UsageError, match=r"tls\.key = 'credential:key\.pem' names a credential") as raised:
        identity_of(tls, "")
    assert "LoadCredential=key.pem:/path" in raised.value.remedy
