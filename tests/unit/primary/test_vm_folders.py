"""A VM's folder at the primary is deleted at once: what an interrupted deletion leaves is nobody's."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from primary_agent.vm_folders import forget, is_barely_begun, is_remains, is_vm_folder
from shared.ports.file_system import RealFileSystem


class Killed(Exception):
    """The agent was."""


class Dying(RealFileSystem):
    """The agent is killed when it begins to delete what is in a folder."""

    def remove_tree(self, path: str) -> None:
        if os.path.exists(path):
            raise Killed
        super().remove_tree(path)


def test_half_of_a_vm_is_never_there(tmp_path: Path) -> None:
    name = str(uuid.UUID(int=7))
    (tmp_path / name / "tap" / "log").mkdir(parents=True)
    (tmp_path / name / "state.db").write_bytes(b"state")
    with pytest.raises(Killed):
        forget(Dying(), str(tmp_path / name), str(tmp_path / "run"), None)
    (left,) = os.listdir(tmp_path)
    assert is_remains(left) and not is_vm_folder(left)
    assert (tmp_path / left / "state.db").exists()
    # The order given again, with the VM taken over once more meanwhile.
    (tmp_path / name).mkdir()
    forget(RealFileSystem(), str(tmp_path / name), str(tmp_path / "run"), None)
    assert os.listdir(tmp_path) == []


def test_only_what_was_barely_begun_counts_for_nothing(tmp_path: Path) -> None:
    files = RealFileSystem()
    assert is_barely_begun(files, str(tmp_path))
    (tmp_path / "state.db").touch()
    (tmp_path / "reverse.map").touch()
    assert is_barely_begun(files, str(tmp_path))
    (tmp_path / "tap").mkdir()
    assert not is_barely_begun(files, str(tmp_path))
