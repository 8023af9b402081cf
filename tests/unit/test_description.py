"""Descriptions: the vectors, that whatever is wrong with a file is a typed error, and what a kill leaves of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import primary_agent.description
import replica_agent.description
from protocol.position import NO_EPOCH
from shared.description import (
    MAX_BYTES,
    NAME,
    DescriptionDamagedError,
    Keeper,
    _checksum,
    decode,
    encode,
    read,
    write,
)
from shared.errors import StorageError, VmreplicaError
from shared.ports.file_system import RealFileSystem
from tests.unit.replica.failing import FailingFiles, Killed
from tests.vectors.descriptions import FOLDER, PRIMARY, REPLICA, VECTORS
from tests.vectors.logs import VM

FILES = RealFileSystem()
KINDS: dict[str, Any] = {
    "replica": replica_agent.description.Description,
    "primary": primary_agent.description.Description,
}
MADE: dict[str, Any] = {"replica": REPLICA, "primary": PRIMARY}
ROLES = sorted(KINDS)


def file_of(role: str, body: bytes, *, version: int = 1, found: str = "") -> bytes:
    """A file with a right checksum around any body."""
    text = b"vmreplica-description %s %d\n%s\n" % ((found or role).encode(), version, body)
    return text + b"blake2b-256 %s\n" % _checksum(text)


def changed(role: str, **changes: Any) -> bytes:
    """The vector's body with fields of its VM replaced."""
    plain = msgspec.json.decode(encode(role, MADE[role]).split(b"\n")[1])
    plain["vm"] |= changes
    return file_of(role, msgspec.json.encode(plain, order="sorted"))


@pytest.mark.parametrize("role", ROLES)
def test_vector(role: str) -> None:
    """The format does not change behind the back of whoever kept such a file."""
    data = (FOLDER / f"{role}.description").read_bytes()
    assert data == VECTORS[f"{role}.description"]
    found = decode(role, data, KINDS[role])
    assert found == MADE[role]
    found.check(VM)
    head, body, checksum, end = data.split(b"\n")
    assert (head, end) == (f"vmreplica-description {role} 1".encode(), b"")
    assert checksum.startswith(b"blake2b-256 ") and len(checksum) == 12 + 64
    assert b" " not in body.replace(b"the log is full", b"")


@pytest.mark.parametrize("role", ROLES)
def test_damage_at_any_byte_is_found(role: str) -> None:
    data = VECTORS[f"{role}.description"]
    for place in range(len(data)):
        for bit in (1, 0x80):
            spoilt = bytearray(data)
            spoilt[place] ^= bit
            with pytest.raises(DescriptionDamagedError):
                decode(role, bytes(spoilt), KINDS[role])
    for length in range(len(data)):
        with pytest.raises(DescriptionDamagedError):
            decode(role, data[:length], KINDS[role])
    with pytest.raises(DescriptionDamagedError):
        decode(role, data + b"\n", KINDS[role])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"vm":1}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"vm":{"name":"\xed\xa0\x80"}}',
        b'{"vm":1e999}',
    ],
    ids=["empty", "null", "array", "object", "type", "deep", "deep-objects", "no-text", "surrogate", "huge"],
)
@pytest.mark.parametrize("role", ROLES)
def test_hostile_body_with_a_right_checksum(role: str, body: bytes) -> None:
    """I18: the checksum is no signature."""
    with pytest.raises(DescriptionDamagedError):
        decode(role, file_of(role, body), KINDS[role])


@given(data=st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """I18."""
    for role in ROLES:
        for content in (data, file_of(role, data)):
            with pytest.raises(DescriptionDamagedError):
                decode(role, content, KINDS[role])


@pytest.mark.parametrize("role", ROLES)
def test_another_role_version_or_form(role: str) -> None:
    body = encode(role, MADE[role]).split(b"\n")[1]
    other = next(each for each in ROLES if each != role)
    with pytest.raises(DescriptionDamagedError, match=f"does not begin as the description of a {role}"):
        decode(role, file_of(role, body, found=other), KINDS[role])
    with pytest.raises(DescriptionDamagedError, match="has version 2") as newer:
        decode(role, file_of(role, body, version=2), KINDS[role])
    assert "Install the version" in newer.value.remedy
    with pytest.raises(DescriptionDamagedError, match="not canonical"):
        decode(role, file_of(role, body.replace(b",", b", ", 1)), KINDS[role])
    with pytest.raises(DescriptionDamagedError, match="novelty"):
        decode(role, file_of(role, body[:-1] + b',"novelty":1}'), KINDS[role])


@pytest.mark.parametrize(
    "role, changes, reason",
    [
        ("replica", {"name": ""}, "name"),
        ("replica", {"name": "a\x1b[31m"}, "name"),
        ("replica", {"name": "x" * 300}, "name"),
        ("primary", {"name": "a\nb"}, "name"),
        ("primary", {"name": ""}, "name"),
        ("primary", {"replica_port": 0}, "address"),
        ("primary", {"replica_port": 65536}, "address"),
        ("primary", {"replica_host": ""}, "address"),
        ("primary", {"version": 2}, "version 2"),
    ],
)
def test_value_that_no_record_has(role: str, changes: dict[str, Any], reason: str) -> None:
    """Right in form, and not to be believed all the same."""
    found = decode(role, changed(role, **changes), KINDS[role])
    with pytest.raises(DescriptionDamagedError, match=reason):
        found.check(VM)


def test_disks_that_are_none() -> None:
    for role, changes in (
        ("replica", {"size": 1000}),
        ("primary", {"size": 1000}),
        ("primary", {"path": "srv/web.raw"}),
        ("primary", {"path": "/srv/\0"}),
    ):
        disk = msgspec.structs.replace(MADE[role].vm.disks[0], **changes)
        spoilt = msgspec.structs.replace(MADE[role], vm=msgspec.structs.replace(MADE[role].vm, disks=[disk]))
        with pytest.raises(DescriptionDamagedError, match="disk"):
            decode(role, encode(role, spoilt), KINDS[role]).check(VM)
        twice = msgspec.structs.replace(MADE[role].vm, disks=MADE[role].vm.disks * 2)
        with pytest.raises(DescriptionDamagedError, match="two disks"):
            msgspec.structs.replace(MADE[role], vm=twice).check(VM)
        with pytest.raises(DescriptionDamagedError, match="is that of VM"):
            MADE[role].check(bytes(16))


def test_promotion_of_another_epoch() -> None:
    with pytest.raises(DescriptionDamagedError, match="promotion"):
        msgspec.structs.replace(REPLICA, epoch=NO_EPOCH).check(VM)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A15: nothing follows a link, and a huge file is not taken into memory."""
    assert read(FILES, str(tmp_path), "replica", KINDS["replica"]) is None
    (tmp_path / "elsewhere").write_bytes(VECTORS["replica.description"])
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        read(FILES, str(tmp_path), "replica", KINDS["replica"])
    (tmp_path / NAME).unlink()
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(VmreplicaError):
        read(FILES, str(tmp_path), "replica", KINDS["replica"])
    (tmp_path / NAME).unlink()
    with (tmp_path / NAME).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DescriptionDamagedError, match=str(MAX_BYTES)):
        read(FILES, str(tmp_path), "replica", KINDS["replica"])


def test_kill_at_each_operation_of_a_write(tmp_path: Path) -> None:
    """The file says the one or the other, wholly."""
    old, new = REPLICA, msgspec.structs.replace(REPLICA, peer_host="gamma")
    seen = set()
    for die_at in range(1, 20):
        write(FILES, str(tmp_path), encode("replica", old))
        files = FailingFiles()
        files.die_at = die_at
        try:
            write(files, str(tmp_path), encode("replica", new))
        except Killed:
            found = read(FILES, str(tmp_path), "replica", KINDS["replica"])
            assert found in (old, new)
            seen.add(found is not None and found.peer_host)
            continue
        finally:
            files.close_all()
        assert die_at > 5
        break
    assert seen == {"alpha", "gamma"}


class InlineWorkers:
    """Workers whose work takes a while and is counted."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0

    async def run(self, work: Any, *args: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.01)
        try:
            return work(*args)
        finally:
            self.running -= 1


class SomePorts:
    def __init__(self) -> None:
        self.files = FILES
        self.workers = InlineWorkers()


async def test_keeper_writes_one_at_a_time_and_to_the_end(tmp_path: Path) -> None:
    """A cancelled transaction does not leave a write behind that could end after the next one's."""
    ports: Any = SomePorts()
    keeper: Keeper[Any] = Keeper(ports, str(tmp_path), "replica", KINDS["replica"])
    tasks = []
    for number in range(5):
        description = msgspec.structs.replace(REPLICA, peer_host=f"host{number}")
        tasks.append(asyncio.create_task(keeper.keep(description)))
        await asyncio.sleep(0)
        if number % 2:
            tasks[-1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ports.workers.most == 1
    found = read(FILES, str(tmp_path), "replica", KINDS["replica"])
    assert found is not None and found.peer_host == "host4"
    before = (tmp_path / NAME).stat().st_mtime_ns
    await keeper.keep(found)
    assert (tmp_path / NAME).stat().st_mtime_ns == before
