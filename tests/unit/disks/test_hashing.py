"""Hashing of ranges: tags tell equal from different, holes are found, errors are raised and never an equal tag."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from shared.disks import hashing
from shared.disks.hashing import BLAKE2B, HASH_NAME, HASH_NAMES, READ_BYTES, TAG_BYTES, RangeHasher, best_hash_name
from shared.ports.file_system import RealFileSystem

BLOCK = 64 << 10
KEY = bytes(range(32))


def hashed(path: Path, offset: int, length: int, key: bytes = KEY) -> tuple[list[bool], list[bytes]]:
    with closing(RealFileSystem().open(str(path))) as file:
        holes, tags = RangeHasher(key, BLOCK).hash_range(file, offset, length)
    return holes.tolist(), [tag.tobytes() for tag in tags]


def test_every_block_has_the_tag_of_its_bytes(tmp_path: Path) -> None:
    content = os.urandom(40 * BLOCK + 512)
    path = tmp_path / "disk"
    path.write_bytes(content)
    hasher = RangeHasher(KEY, BLOCK)
    holes, tags = hashed(path, BLOCK, 39 * BLOCK + 512)
    assert not any(holes)
    assert len(content) > READ_BYTES
    assert tags == [hasher.tag(content[at : at + BLOCK]) for at in range(BLOCK, len(content), BLOCK)]
    assert len(set(tags)) == 40


def test_one_flipped_bit_changes_only_its_blocks_tag(tmp_path: Path) -> None:
    content = bytearray(os.urandom(4 * BLOCK))
    path = tmp_path / "disk"
    path.write_bytes(content)
    _, before = hashed(path, 0, len(content))
    content[2 * BLOCK + 77] ^= 1
    path.write_bytes(content)
    _, after = hashed(path, 0, len(content))
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False, True]


def test_another_key_gives_other_tags(tmp_path: Path) -> None:
    """I15."""
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(BLOCK))
    assert hashed(path, 0, BLOCK)[1] != hashed(path, 0, BLOCK, b"k" * 32)[1]
    with pytest.raises(ValueError, match="16 bytes"):
        RangeHasher(b"k" * 16, BLOCK)


def test_blocks_that_are_wholly_holes_have_no_tag(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(10 * BLOCK + 512)
        os.pwrite(file.fileno(), b"x" * 4096, BLOCK)
        os.pwrite(file.fileno(), b"y" * 4096, 5 * BLOCK + 8192)
    holes, tags = hashed(path, 0, 10 * BLOCK + 512)
    assert [number for number, hole in enumerate(holes) if not hole] == [1, 5]
    hasher = RangeHasher(KEY, BLOCK)
    assert tags == [
        hasher.tag(b"x" * 4096 + bytes(BLOCK - 4096)),
        hasher.tag(bytes(8192) + b"y" * 4096 + bytes(BLOCK - 8192 - 4096)),
    ]


def test_a_range_of_holes_has_no_tags_at_all(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(64 * BLOCK)
    holes, tags = hashed(path, 8 * BLOCK, 16 * BLOCK)
    assert holes == [True] * 16
    assert tags == []


def test_zero_tags_are_those_of_written_zeroes(tmp_path: Path) -> None:
    """R45: zeroes that were written and a hole compare equal."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(BLOCK + 512))
    assert hashed(path, 0, BLOCK + 512)[1] == list(RangeHasher(KEY, BLOCK).zero_tags(BLOCK + 512))
    whole, last = RangeHasher(KEY, BLOCK).zero_tags(3 * BLOCK)
    assert whole == last
    assert len(whole) == TAG_BYTES


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    """R24."""
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(BLOCK))
    with closing(RealFileSystem().open(str(path))) as file, pytest.raises(OSError) as caught:
        RangeHasher(KEY, BLOCK).hash_range(file, 0, 2 * BLOCK)
    assert caught.value.errno == errno.EIO


def test_tags_come_as_rows_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"z" * (3 * BLOCK))
    with closing(RealFileSystem().open(str(path))) as file:
        _, tags = RangeHasher(KEY, BLOCK).hash_range(file, 0, 3 * BLOCK)
    assert tags.dtype == np.uint8
    assert tags.shape == (3, TAG_BYTES)


@pytest.mark.parametrize("name", HASH_NAMES)
def test_tag_depends_on_every_bit_and_on_the_key(name: str) -> None:
    hasher = RangeHasher(KEY, BLOCK, name)
    block = bytearray(os.urandom(BLOCK))
    tags = {hasher.tag(block)}
    for bit in (0, 7, 8 * BLOCK // 2, 8 * BLOCK - 1):
        changed = bytearray(block)
        changed[bit // 8] ^= 1 << bit % 8
        tags.add(hasher.tag(changed))
    # A shorter block is another one, also if only zeroes are missing.
    tags |= {hasher.tag(bytes(BLOCK)), hasher.tag(bytes(BLOCK - 1))}
    tags.add(RangeHasher(bytes(32), BLOCK, name).tag(block))
    assert len(tags) == 8
    assert {len(tag) for tag in tags} == {TAG_BYTES}
    assert hasher.tag(memoryview(block)) == hasher.tag(bytes(block)) == RangeHasher(KEY, BLOCK, name).tag(block)


def test_hashes_differ_and_unknown_ones_are_refused() -> None:
    assert RangeHasher(KEY, BLOCK, BLAKE2B).tag(b"x") != RangeHasher(KEY, BLOCK).tag(b"x")
    with pytest.raises(ValueError, match="no hash 'xxh3'"):
        RangeHasher(KEY, BLOCK, "xxh3")


@pytest.mark.parametrize(
    "text, name",
    [
        ("flags\t\t: fpu sse2 aes avx\n", HASH_NAME),
        ("Features\t: fp asimd aes pmull\n", HASH_NAME),
        ("flags\t\t: fpu sse2 avx vaes\n", BLAKE2B),
        ("model name\t: has aes\nflags\t\t: fpu\n", BLAKE2B),
        (None, HASH_NAME),
    ],
)
def test_faster_hash_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, name: str
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(hashing, "CPU_INFO", tmp_path / "cpuinfo")
    best_hash_name.cache_clear()
    try:
        assert best_hash_name() == name
    finally:
        best_hash_name.cache_clear()
