"""Everything about one VM, line by line."""

from __future__ import annotations

from datetime import UTC

import msgspec

from shared.cli.console import Palette
from shared.cli.page import page_lines
from shared.expiry import CertificateStatus
from shared.status import LinkStatus, TapStatus, VmStatus
from tests.unit.cli.samples import NOW, URI, cut, healthy, replica, resynchronizing

PLAIN = Palette(False)


def page(vm: VmStatus, width: int | None = None) -> list[str]:
    return page_lines(vm, NOW, width, PLAIN, UTC)


def test_primary() -> None:
    assert page(healthy()) == [
        "web  primary",
        "  summary       Protected: the replica at beta holds everything up to 2.1 s ago.",
        "  state         Replicating",
        "  health        Normal",
        "  interval      30 s",
        "  behind        2.1 s, 1.0 MiB not yet acknowledged",
        "  newest cut    17 of 2030-03-17 17:46:39",
        "  acknowledged  16 of 2030-03-17 17:46:09",
        "  applied       16 of 2030-03-17 17:46:09",
        "  link          up (0.4 ms) to beta:7443, 3.0 GiB sent, 2.0 KiB received",
        "  tap           process 4711, tracking on, log 64.0 MiB of 10.0 GiB, 5.0 GiB written, 1 client",
        f"  disk          0  20.0 GiB  /images/web.raw  {URI}",
        "  epoch         0123456789abcdef0123456789abcdef",
        "  uuid          5d2c8a3e-9f10-4b7d-8c3a-1f2e3d4c5b6a",
        "  folder        /var/lib/vmreplica/vms/x",
    ]


def test_replica() -> None:
    assert page(replica())[3:13] == [
        "  health        Normal",
        "  interval      30 s",
        "  behind        2.1 s, 1.0 MiB not yet applied",
        "  received      16 of 2030-03-17 17:46:09",
        "  applied       15 of 2030-03-17 17:45:39",
        "  link          up (0.4 ms) to beta:7443, 3.0 GiB sent, 2.0 KiB received",
        "  disk          0  20.0 GiB  /replica/disk-0.raw",
        "  points        3 older, the oldest of 2030-03-17 16:46:40; they take 20.0 MiB",
        "  export        1  cut 15  nbd+unix:///disk0?socket=/run/e1  (keeps 10.0 MiB of undo logs)",
        "  epoch         0123456789abcdef0123456789abcdef",
    ]


def test_resync_shows_cause_and_progress() -> None:
    lines = page(resynchronizing(), 80)
    assert "  cause         2030-03-17 17:40:00  The log passed its limit of 10.0 GiB." in lines
    assert lines[-5:] == [
        "",
        "db  resynchronization: comparing",
        "  [███████████████░░░░░░░░░░░░░░░]  52.5 %  4.2 GiB of 8.0 GiB  400.0 MiB/s  9 …",
        "  compared 4.0 GiB, different 1.0 GiB, sent 1.0 GiB, on the wire 700.0 MiB",
        "  saved against a full copy: 3.3 GiB (82.9 % of 4.0 GiB)",
    ]
    assert all(len(line) <= 80 for line in lines if "nbd+unix" not in line)


def test_what_is_wrong_and_what_to_do() -> None:
    vm = healthy(
        health="Critical",
        reasons=["The first reason.", "The second."],
        remedy="Do this.",
        fenced="Failed over at beta.",
        link=LinkStatus(
            connected=False,
            since_time=NOW - 62,
            peer="beta:7443",
            last_error="Connection refused.",
            next_attempt_seconds=7.0,
        ),
        tap=TapStatus(running=False, error="It ended with exit code 3."),
    )
    lines = page(vm)
    assert lines[3:8] == [
        "  health        Critical",
        "  reason        The first reason.",
        "                The second.",
        "  to do         Do this.",
        "  fenced        Failed over at beta.",
    ]
    assert "  link          down 1 min 2 s to beta:7443; Connection refused; next attempt in 7 s" in lines
    assert "  tap           not running: It ended with exit code 3." in lines


def test_lost_tracking_tells_why() -> None:
    tap = TapStatus(running=True, pid=1, tracking="lost", lost_reason="log_full", lost_text="The log is full.")
    assert any("tracking lost (The log is full.)" in line for line in page(healthy(tap=tap)))


def test_disks_are_named_once_where_they_are_served() -> None:
    assert not any("served at" in line for line in page(healthy(uris=[URI])))
    assert f"  served at     {URI}" in page(replica(uris=[URI]))


def test_peers_certificate_is_shown_with_its_ca_and_end() -> None:
    peer = CertificateStatus(what="peer", subject="b", issuer="a CA", not_before_time=NOW, not_after_time=NOW + 86400)
    own = msgspec.structs.replace(peer, what="own")
    link = msgspec.structs.replace(healthy().link, certificates=[peer, own])
    lines = [line for line in page(healthy(link=link)) if "certificate" in line]
    assert lines == ["  certificate   b, from a CA, until 2030-03-18 17:46:40"]


def test_cut_of_unknown_time() -> None:
    unknown = msgspec.structs.replace(cut(16, 0.0), time=None)
    assert "  applied       16" in page(healthy(applied_cut=unknown))


def test_unknown_figures_are_left_out() -> None:
    vm = VmStatus(name="x", uuid="u", role="primary", state="ReadyForInitialReplication", state_code=1)
    labels = [line.split()[0] for line in page(vm)]
    assert labels == ["x", "summary", "state", "health", "interval", "link", "uuid"]


def test_the_volume_and_when_it_is_full() -> None:
    known = msgspec.structs.replace(healthy(), store_free_bytes=3 << 30)
    assert page(known)[-1] == "  volume        3.0 GiB free"
    filling = msgspec.structs.replace(known, store_full_seconds=11520.0)
    assert page(filling)[-1] == "  volume        3.0 GiB free, full in 3 h 12 min at the rate of the last hour"


def test_the_quota_and_when_it_is_full() -> None:
    known = msgspec.structs.replace(replica(), quota_limit_bytes=4 << 30, quota_used_bytes=3 << 30)
    assert page(known)[-1] == "  quota         3.0 GiB of 4.0 GiB used"
    filling = msgspec.structs.replace(known, quota_full_seconds=11520.0)
    assert (
        page(filling)[-1] == "  quota         3.0 GiB of 4.0 GiB used, full in 3 h 12 min at the rate of the last hour"
    )
    assert not any("quota" in line for line in page(msgspec.structs.replace(known, quota_used_bytes=None)))


def test_an_export_that_can_not_be_read_says_why() -> None:
    lost = msgspec.structs.replace(replica().exports[0], error="The recovery point was deleted.")
    lines = page(msgspec.structs.replace(replica(), exports=[lost]))
    assert "  export        1  cut 15  not readable: The recovery point was deleted." in lines


def test_a_failure_that_does_not_heal_by_itself_says_so() -> None:
    link = LinkStatus(
        peer="beta:7443", attempts=1, since_time=NOW - 60, last_error="Not authorized.", retryable=False,
        next_attempt_seconds=240.0,
    )  # fmt: skip
    (line,) = [line for line in page(msgspec.structs.replace(healthy(), link=link)) if line.startswith("  link")]
    assert line.endswith("Not authorized; it does not heal by itself; next attempt in 4 min 0 s")


def test_tap_of_another_version_is_told_beside_it() -> None:
    """An upgrade leaves taps running: that is information, and no reason for anything but the next shutdown."""
    tap = TapStatus(running=True, pid=1, tracking="on", version="0.1.0", outdated=True)
    text = "\n".join(page(healthy(tap=tap)))
    assert "runs version 0.1.0, the agent's from its next start on" in text
    current = TapStatus(running=True, pid=1, tracking="on", version="0.1.0")
    assert "version" not in "\n".join(page(healthy(tap=current)))
