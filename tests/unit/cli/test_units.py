"""Durations, sizes, disks and settings as people type them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cli.units import (
    SETTINGS,
    parse_count,
    parse_disk,
    parse_duration,
    parse_interval,
    parse_setting,
    parse_size,
)
from shared.errors import UsageError


@pytest.mark.parametrize(
    "text, seconds",
    [("90", 90), ("30s", 30), ("5m", 300), ("5min", 300), ("1h", 3600), ("2d", 172800), ("1.5s", 1.5), ("3 h", 10800)],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5 parsecs", "-3s", "1e3", "١٢", "5m30s", "nan", "inf", "9" * 20])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        parse_duration(text)


def test_interval_is_at_least_a_second() -> None:
    assert parse_interval("1s") == 1
    with pytest.raises(UsageError, match="too short"):
        parse_interval("0.5s")


@pytest.mark.parametrize(
    "text, count",
    [
        ("4096", 4096),
        ("512MiB", 512 << 20),
        ("10GiB", 10 << 30),
        ("10g", 10 << 30),
        ("10GB", 10_000_000_000),
        ("1.5KiB", 1536),
        ("64 TiB", 64 << 40),
        ("7B", 7),
    ],
)
def test_size(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "10XB", "-1", "0x10", "1_000"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


@given(st.text(max_size=30))
def test_any_text_is_a_quantity_or_a_usage_error(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_count):
        with contextlib.suppress(UsageError):
            assert parse(text) >= 0


@pytest.mark.parametrize(
    "text, disk",
    [
        ("/images/a.raw", {"path": "/images/a.raw"}),
        ("/images/a.raw,export=root", {"path": "/images/a.raw", "export": "root"}),
        ("/odd,name.raw", {"path": "/odd,name.raw"}),
        ("/odd,export=x,export=y", {"path": "/odd,export=x", "export": "y"}),
    ],
)
def test_disk(text: str, disk: dict[str, str]) -> None:
    assert parse_disk(text) == disk


def test_relative_disk_counts_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_disk("a/../b.raw") == {"path": str(tmp_path / "b.raw")}


@pytest.mark.parametrize("text", ["", ",export=x", "/a,export=", "/a,export=" + "x" * 256, "/a,export=x\x1b"])
def test_what_is_no_disk(text: str) -> None:
    with pytest.raises(UsageError):
        parse_disk(text)


@pytest.mark.parametrize(
    "text, setting",
    [
        ("interval=5m", ("interval_seconds", 300.0)),
        ("log-limit=1GiB", ("log_limit_bytes", 1 << 30)),
        ("log_limit_bytes=1GiB", ("log_limit_bytes", 1 << 30)),
        ("replica=beta:7000", ("replica", "beta:7000")),
        ("resync-mode=automatic", ("resync_mode", "automatic")),
        ("resync-mode=default", ("resync_mode", None)),
        ("resync-window=18:30-06:00", ("resync_window", "18:30-06:00")),
        ("resync-window=default", ("resync_window", None)),
        ("resync-window-start=22:15", ("resync_window_start", "22:15")),
        ("resync-window-end=default", ("resync_window_end", None)),
        ("resync-priority=-7", ("resync_priority", -7)),
        ("resync-read-rate=50MiB", ("resync_read_rate", [50 << 20])),
        ("replication-send-rate=1MiB/none", ("replication_send_rate", [1 << 20, 0])),
        ("initial-send-rate=none", ("initial_send_rate", [])),
        ("resync-back-off=off", ("resync_back_off", False)),
        ("resync-back-off=on", ("resync_back_off", True)),
        ("resync-back-off=default", ("resync_back_off", None)),
        ("resync-past-window=finish", ("resync_past_window", "finish")),
        ("hot-region-size=1MiB", ("hot_region_bytes", 1 << 20)),
        ("hot-regions=8192", ("hot_regions", 8192)),
        ("block-device-policy=trust", ("block_device_policy", "trust")),
    ],
)
def test_setting(text: str, setting: tuple[str, Any]) -> None:
    assert parse_setting(text) == setting


@pytest.mark.parametrize(
    "text",
    [
        "interval",
        "colour=blue",
        "interval=often",
        "=5",
        "resync-mode=yes",
        "resync-priority=101",
        "resync-priority=x",
        "resync-read-rate=fast",
        "resync-read-rate=1MiB/",
        "resync-window=18:30",
        "resync-window=06:00-06:00",
        "resync-window-end=24:00",
        "resync-past-window=wait",
        "resync-back-off=true",
        "hot-regions=0",
        "hot-regions=1K",
        "block-device-policy=hope",
    ],
)
def test_what_is_no_setting(text: str) -> None:
    with pytest.raises(UsageError):
        parse_setting(text)


def test_unknown_setting_names_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        parse_setting("colour=blue")
    assert all(f"{key}=" in caught.value.remedy for key in SETTINGS)


@pytest.mark.parametrize("text", ["0", "10001", "-1", "1.5", "x", "²"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(UsageError):
        parse_count(text)
