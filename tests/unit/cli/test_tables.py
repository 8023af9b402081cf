"""Settings, statistics and events, line by line."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest

from shared.cli.console import Palette
from shared.cli.tables import event_lines, quantity_text, settings_lines
from shared.events import EventId, make_event
from tests.unit.cli.samples import NOW, healthy

PLAIN = Palette(False)


def test_settings() -> None:
    assert settings_lines(healthy()) == [
        "web  primary",
        "  interval   =  30 s",
        "  log-limit  =  10.0 GiB",
        "  replica    =  beta:7443",
    ]


def test_switches() -> None:
    vm = healthy()
    for value, text in ((True, "on"), (False, "off")):
        vm.settings = {"resync_back_off": value}
        assert settings_lines(vm)[1:] == [f"  resync-back-off  =  {text}"]


def test_a_setting_that_waits_for_the_tap_says_so() -> None:
    vm = healthy()
    vm.settings = {"hot_region_bytes": 1 << 20, "hot_regions": 8192}
    vm.pending_settings = ["hot_region_bytes"]
    assert settings_lines(vm)[1:] == [
        "  hot-region-size  =  1.0 MiB  (from the tap's next start on)",
        "  hot-regions      =  8192",
    ]


def test_events() -> None:
    happened: list[dict[str, Any]] = [
        {"vm": "web", **make_event(EventId.RESYNC_STARTED, "Resync started.", time=NOW, cause="administrator")},
        {
            "vm": "db",
            **make_event(
                EventId.RESYNC_REQUIRED, "The log is full.", time=NOW + 1, before="Replicating", after="Waiting"
            ),
        },
        {
            "vm": "db",
            **make_event(
                EventId.WILL_RETRY, "From Error to Replicating.", time=NOW + 2, before="Error", after="Replicating"
            ),
        },
    ]
    assert event_lines(happened, PLAIN, UTC) == [
        "2030-03-17 17:46:40  web  info     29242  Resync started. [administrator]",
        "2030-03-17 17:46:41  db   error    60002  The log is full. (Replicating to Waiting)",
        "2030-03-17 17:46:42  db   warning  32315  From Error to Replicating.",
    ]
    coloured = event_lines(happened, Palette(True), UTC)
    assert "\x1b[1;31merror  \x1b[0m" in coloured[1]
    assert "\x1b[33mwarning\x1b[0m" in coloured[2]


def test_event_of_a_later_version_is_shown_as_far_as_it_is_known() -> None:
    assert event_lines([{"time": None, "text": "Something."}], PLAIN, UTC) == ["-        Something."]


@pytest.mark.parametrize(
    "key, value, text",
    [
        ("x_seconds", 90, "1 min 30 s"),
        ("x_bytes", 1 << 20, "1.0 MiB"),
        ("x_time", 0.0, "1970-01-01 00:00:00"),
        ("x", True, "yes"),
        ("x", 1.5, "1.5"),
        ("x", [1, "a"], "1, a"),
        ("x", None, "-"),
    ],
)
def test_quantities_by_the_unit_in_their_name(key: str, value: Any, text: str) -> None:
    assert quantity_text(key, value, UTC) == text
