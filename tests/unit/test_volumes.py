"""The free space of volumes: seen on a real one, and the forecast as a function of what was seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from shared.ports.clock import RealClock
from shared.ports.file_system import RealFileSystem
from shared.ports.real import RealPorts
from shared.volumes import ASKED_SECONDS, RATE_KNOWN_SECONDS, Volume, VolumeWatch

GIB = 1 << 30


def filled(rate: int, seconds: float, free: int = 100 * GIB) -> Volume:
    """One that loses ``rate`` bytes a second for so long, seen every 30 s."""
    volume = Volume()
    for step in range(int(seconds // 30) + 1):
        volume.see(free - 30 * step * rate, 1000.0 + 30 * step)
    return volume


def test_a_volume_that_fills_is_told_when_it_is_full() -> None:
    volume = filled(GIB // 600, 1200)
    assert volume.full_seconds() == pytest.approx(98 * 600, rel=0.02)
    assert volume.full_seconds(reserve=50 * GIB) == pytest.approx(48 * 600, rel=0.02)
    assert volume.full_seconds(reserve=200 * GIB) == 0


def test_nothing_is_told_before_the_rate_is_known_or_where_it_does_not_fill() -> None:
    assert Volume().full_seconds() is None
    assert filled(GIB, RATE_KNOWN_SECONDS - 30).full_seconds() is None
    assert filled(0, 1200).full_seconds() is None
    assert filled(-GIB, 1200).full_seconds() is None


async def test_watched_folders_are_looked_at_and_what_lies_in_them_is_on_their_volume(tmp_path: Path) -> None:
    real = RealPorts(None, threads=1)
    watch = VolumeWatch(real.ports)
    inside = str(tmp_path / "vms" / "one")
    assert watch.of(inside).free is None
    watch.folders = lambda: [str(tmp_path), "/does/not/exist"]
    await watch.look()
    found = watch.of(inside).free
    assert found is not None and found > 0
    assert watch.of("/does/not/exist").free is None
    await real.close()


class Asked(RealFileSystem):
    """Counts the questions for free space."""

    count = 0

    def free_space(self, path: str) -> int:
        self.count += 1
        return super().free_space(path)


async def test_all_that_ask_for_the_room_of_one_volume_within_a_second_ask_the_kernel_once(tmp_path: Path) -> None:
    real, files = RealPorts(None, threads=1), Asked()
    now = [1000.0]

    class Still(RealClock):
        def monotonic(self) -> float:
            return now[0]

    watch = VolumeWatch(dataclasses.replace(real.ports, files=files, clock=Still()))
    watch.folders = lambda: [str(tmp_path)]
    await watch.look()
    before = files.count
    for vm in ("one", "two", "three"):
        (tmp_path / vm).mkdir()
        assert await watch.free(str(tmp_path / vm), 1) > 0
    assert files.count == before + 1
    now[0] += ASKED_SECONDS
    await watch.free(str(tmp_path / "one"), 1)
    assert files.count == before + 2
    # What was too little for somebody is asked again: another one may have made room since.
    await watch.free(str(tmp_path / "two"), 1 << 62)
    assert files.count == before + 3
    # Where nothing is watched, nobody knows who shares a volume.
    other = VolumeWatch(dataclasses.replace(real.ports, files=files, clock=Still()))
    await other.free(str(tmp_path / "one"), 1)
    await other.free(str(tmp_path / "two"), 1)
    assert files.count == before + 5
    await real.close()
