"""Tests of what travels with a first copy: the manifest and its recorded vector, and copies with holes and hashes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pytest

from protocol.hrl import Geometry
from shared.courier import (
    MANIFEST_NAME,
    PART_NAME,
    RANGE_BYTES,
    ExportedDisk,
    Manifest,
    decode,
    encode,
    fits,
    identity_of,
    read_manifest,
    read_unfinished,
)
from shared.disks.copying import copy_range, data_bytes
from shared.errors import StorageError
from shared.ports.file_system import RealFileSystem
from tests.vectors.descriptions import FOLDER

MIB = 1 << 20
MANIFEST = Manifest(
    vm="0123456789abcdef0123456789abcdef",
    name="web",
    host="alpha.example",
    epoch="00112233445566778899aabbccddeeff",
    began_time=1795809600.0,
    ended_time=1795809660.5,
    range_bytes=RANGE_BYTES,
    disks=[
        ExportedDisk(index=0, uuid="a" * 32, size_bytes=RANGE_BYTES + MIB, ranges=["", "5" * 64]),
        ExportedDisk(index=3, uuid="b" * 32, size_bytes=512, ranges=["c" * 64]),
    ],
)


def sealed(text: bytes) -> bytes:
    return text + b"sha-256 %s\n" % hashlib.sha256(text).hexdigest().encode()


def test_manifest_is_the_recorded_one() -> None:
    data = (FOLDER / MANIFEST_NAME).read_bytes()
    assert encode(MANIFEST) == data
    assert decode(data, "x") == MANIFEST
    head, body, end = data.splitlines()
    assert (head, msgspec.json.decode(body)["range_bytes"]) == (b"vmreplica-export 1", 64 << 20)
    assert identity_of(data) == hashlib.sha256(head + b"\n" + body + b"\n").digest()[:16]
    assert end.split()[1].startswith(identity_of(data).hex().encode())


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"range_bytes": 3 * MIB}, "ranges of 3145728 bytes"),
        ({"range_bytes": 1 << 31}, "ranges of"),
        ({"name": "we\x1bb"}, "can't be printed"),
        ({"disks": []}, "not valid"),
        ({"vm": "short"}, "not valid"),
        ({"disks": [MANIFEST.disks[1], MANIFEST.disks[0]]}, "not in order"),
        ({"disks": [msgspec.structs.replace(MANIFEST.disks[0], ranges=[""])]}, "has 1 ranges and not 2"),
        ({"disks": [msgspec.structs.replace(MANIFEST.disks[0], size_bytes=513)]}, "not valid"),
    ],
)
def test_manifest_that_says_what_none_can_is_refused(change: dict[str, object], reason: str) -> None:
    """Also one whose checksum is right: it is no proof of a sound mind."""
    with pytest.raises(StorageError, match=reason):
        decode(encode(msgspec.structs.replace(MANIFEST, **change)), "x")


def test_every_flipped_byte_of_a_manifest_is_found() -> None:
    data = encode(MANIFEST)
    for place in range(len(data)):
        with pytest.raises(StorageError):
            decode(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], "x")
    with pytest.raises(StorageError, match="version 2; this program reads 1"):
        decode(sealed(data.rsplit(b"sha-256", 1)[0].replace(b"export 1", b"export 2")), "x")
    with pytest.raises(StorageError, match="does not begin"):
        decode(encode(MANIFEST, complete=False), "x")


def test_unfinished_export_is_no_export(tmp_path: Path) -> None:
    files = RealFileSystem()
    with pytest.raises(StorageError, match="there is no"):
        read_manifest(files, str(tmp_path))
    assert read_unfinished(files, str(tmp_path)) is None
    part = msgspec.structs.replace(MANIFEST, disks=[msgspec.structs.replace(MANIFEST.disks[0], ranges=[""])])
    (tmp_path / PART_NAME).write_bytes(encode(part, complete=False))
    assert read_unfinished(files, str(tmp_path)) == part
    with pytest.raises(StorageError, match="it was not finished"):
        read_manifest(files, str(tmp_path))
    (tmp_path / PART_NAME).write_bytes(b"torn")
    assert read_unfinished(files, str(tmp_path)) is None


def test_disks_of_an_export_have_to_be_those_of_the_vm() -> None:
    ours = list(MANIFEST.geometry)
    assert fits(ours, MANIFEST) == ""
    assert "another disk" in fits([Geometry(0, ours[0].size, b"x" * 16), ours[1]], MANIFEST)
    assert "bytes in it, and 1024 here" in fits([ours[0], Geometry(3, 1024, ours[1].uuid)], MANIFEST)
    assert "has 2 disk(s), and the VM here 1" in fits(ours[:1], MANIFEST)


def test_copy_has_the_holes_and_the_hash_of_what_it_reads_as(tmp_path: Path) -> None:
    """Whatever was in the target before, and whether zeroes are holes or written."""
    source, target = tmp_path / "source", tmp_path / "target"
    content = bytearray(8 * MIB)
    content[MIB + 5 : MIB + 7] = b"ab"
    content[5 * MIB : 6 * MIB] = os.urandom(MIB)
    with source.open("wb") as file:
        file.truncate(8 * MIB)
        for start in (1, 3, 5):
            file.seek(start * MIB)
            file.write(content[start * MIB : (start + 1) * MIB])
    target.write_bytes(b"\xff" * 8 * MIB)
    files = RealFileSystem()
    ours, theirs = files.open(str(source)), files.open(str(target), write=True)
    try:
        found = [copy_range(ours, theirs, at * MIB, 4 * MIB) for at in (0, 4)]
        assert found == [hashlib.sha256(content[at * MIB : (at + 4) * MIB]).hexdigest() for at in (0, 4)]
        assert copy_range(ours, theirs, 2 * MIB, 3 * MIB) == ""
        assert (data_bytes(ours, 0, 8 * MIB), data_bytes(theirs, 0, 8 * MIB)) == (3 * MIB, 2 * MIB)
    finally:
        ours.close()
        theirs.close()
    assert target.read_bytes() == content
