"""The part of ``reverse`` that the command itself does: disks change their owner, or nothing is changed."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.cli.verbs.reversing import _owned
from shared.errors import InvalidStateError, StorageError, UnreachableError
from shared.handover import HandedDisk, HandOver

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner needs root")


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.raw" for number in range(2)]
    for path in paths:
        path.touch()
        os.chown(path, 1, 2)
    return paths


def handed(disks: list[Path]) -> HandOver:
    return HandOver(
        id="a" * 32,
        vm="b" * 32,
        name="web",
        to="replica",
        epoch="e" * 32,
        disks=[
            HandedDisk(index=number, uuid=f"{number:032x}", path=str(path), size=512, export=f"disk{number}")
            for number, path in enumerate(disks)
        ],
    )


@pytest.fixture
def target(tmp_path: Path) -> Any:
    """All that is asked of the agent: whose its socket is."""
    path = tmp_path / "admin.sock"
    path.touch()
    os.chown(path, NOBODY, NOBODY)
    return SimpleNamespace(connection=SimpleNamespace(path=str(path)))


def owners(disks: list[Path]) -> set[tuple[int, int]]:
    return {(path.stat().st_uid, path.stat().st_gid) for path in disks if path.exists()}


def test_disks_are_given_and_given_back(disks: list[Path], target: Any) -> None:
    with _owned(handed(disks), target):
        assert owners(disks) == {(NOBODY, 2)}
    with pytest.raises(InvalidStateError), _owned(handed(disks), target):
        raise InvalidStateError("it does not take them")
    assert owners(disks) == {(NOBODY, 2)}, "they were his already"
    for path in disks:
        os.chown(path, 1, 2)
    with pytest.raises(InvalidStateError), _owned(handed(disks), target):
        raise InvalidStateError("it does not take them")
    assert owners(disks) == {(1, 2)}
    with pytest.raises(UnreachableError), _owned(handed(disks), target):
        raise UnreachableError("it may have taken them")
    assert owners(disks) == {(NOBODY, 2)}


@pytest.mark.parametrize("gone", ["disk", "socket"])
def test_what_cannot_be_given_is_an_error_like_any_other(disks: list[Path], target: Any, gone: str) -> None:
    """So that the hand-over is taken back, and all owners are what they were."""
    missing = disks[1] if gone == "disk" else Path(target.connection.path)
    missing.unlink()
    with pytest.raises(StorageError, match=f"{missing} can't be given") as told, _owned(handed(disks), target):
        pytest.fail("nothing is carried")
    assert owners(disks) == {(1, 2)} and "not handed over" in told.value.remedy
