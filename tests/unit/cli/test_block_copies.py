"""New images for copies: where they are made, that nothing is overwritten, and that they are taken back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.cli.block_copies import new_image
from shared.cli.domain_xml import DomainDisk, parse
from shared.cli.undoing import Undo
from shared.errors import InvalidStateError, StorageError, UsageError

MIB = 1 << 20


def disk(path: Path, kind: str = "file") -> DomainDisk:
    source = f"<source {'file' if kind == 'file' else 'dev'}='{path}'/>"
    text = f"<domain><name>web</name><devices><disk type='{kind}'>{source}<target dev='vda'/></disk></devices></domain>"
    return parse(text).disk("vda")


def test_beside_the_disk_sparse_and_its_owner_s_alone(tmp_path: Path) -> None:
    former = tmp_path / "web.qcow2"
    former.write_bytes(bytes(4096))
    with Undo() as undo:
        image = new_image(disk(former), 8 * MIB, "", "vmr", undo)
    assert image == str(tmp_path / "web.vmr.raw")
    status = os.stat(image)
    assert (status.st_size, status.st_blocks, status.st_mode & 0o777) == (8 * MIB, 0, 0o600)
    # Released, the name is not added to.
    with Undo() as undo:
        assert new_image(disk(tmp_path / "x"), MIB, "", "released", undo, path=image).endswith("/web.released.raw")


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    former, there = tmp_path / "web.raw", tmp_path / "web.vmr.raw"
    former.write_bytes(b"x")
    there.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"web\.vmr\.raw is there already"), Undo() as undo:
        new_image(disk(former), MIB, "", "vmr", undo)
    assert there.read_bytes() == b"precious"
    folder = tmp_path / "other"
    folder.mkdir()
    with pytest.raises(InvalidStateError), Undo() as undo:
        assert Path(new_image(disk(former), MIB, str(folder), "vmr", undo)).parent == folder
        raise InvalidStateError("later")
    assert list(folder.iterdir()) == []
    with pytest.raises(StorageError, match="can't be made"), Undo() as undo:
        new_image(disk(former), MIB, str(tmp_path / "nowhere"), "vmr", undo)


def test_beside_a_block_device_there_is_no_place(tmp_path: Path) -> None:
    device = next((path for path in Path("/dev").iterdir() if path.is_block_device()), None)
    if device is None:
        pytest.skip("needs a block device to look at")
    with pytest.raises(UsageError, match=r"beside it there is no place"), Undo() as undo:
        new_image(disk(device, "block"), MIB, "", "vmr", undo)
    # A copy of a device may come to take all of it.
    with pytest.raises(StorageError, match="bytes too few"), Undo() as undo:
        new_image(disk(device, "block"), 1 << 60, str(tmp_path), "vmr", undo)
    assert list(tmp_path.iterdir()) == []
