"""Tests of the SQLite stores: whole and durable transactions, damage found, failures that stay failures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidStateError, NoSpaceError, StorageError, StoreDamagedError
from shared.ports import store_file
from shared.ports.clock import RealClock
from shared.ports.store import STATE_FILE, SqliteStores

RECORDS: dict[str, Any] = {
    "vm": {"name": "web", "sizes": [1, 2**63 - 1, -5], "key": b"\0\xff", "ratio": 0.5, "on": True, "off": None},
    "position": {"epoch": b"e" * 16, "segment": 7},
    "résumé": "ünïcode",
    "empty": {},
    7 * "n": list(range(2000)),
}
EVENTS: list[dict[str, Any]] = [{"kind": "state", "before": "A", "after": "B"}, {"kind": "cut", "segment": 1}]


@pytest.fixture
async def stores() -> AsyncIterator[SqliteStores]:
    stores = SqliteStores(RealClock())
    yield stores
    await stores.close()


async def filled(folder: Path) -> None:
    """A store with RECORDS and EVENTS, closed in order."""
    stores = SqliteStores(RealClock())
    store = await stores.open(str(folder), create=True)
    await store.commit(RECORDS, EVENTS)
    await stores.close()


async def content(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All records and events of the store in ``folder``."""
    stores = SqliteStores(RealClock())
    try:
        store = await stores.open(str(folder))
        return {name: store.get(name) for name in store.names()}, await store.events(limit=100)
    finally:
        await stores.close()


FILLED = (RECORDS, [{**event, "id": number} for number, event in enumerate(EVENTS, 1)])


async def test_everything_comes_back_after_reopening(folder: Path) -> None:
    await filled(folder)
    assert await content(folder) == FILLED
    assert (folder / STATE_FILE).stat().st_mode & 0o777 == 0o600


async def test_none_deletes_a_record(stores: SqliteStores, tmp_path: Path) -> None:
    store = await stores.open(str(tmp_path), create=True)
    await store.commit({"a": 1, "b": 2})
    await store.commit({"a": None, "missing": None, "c": 3})
    assert store.names() == ["b", "c"]
    assert store.get("a") is None
    await store.close()
    assert (await content(tmp_path))[0] == {"b": 2, "c": 3}


async def test_names_by_prefix(stores: SqliteStores, tmp_path: Path) -> None:
    store = await stores.open(str(tmp_path), create=True)
    await store.commit({"cut-2": 1, "cut-1": 1, "vm": 1})
    assert store.names("cut-") == ["cut-1", "cut-2"]
    assert store.names("x") == []


async def test_value_is_copied_at_the_call(stores: SqliteStores, tmp_path: Path) -> None:
    store = await stores.open(str(tmp_path), create=True)
    value, event = {"list": [1]}, {"what": [1]}
    pending = store.commit({"a": value}, [event])
    value["list"].append(2)
    event["what"].append(2)
    await pending
    assert store.get("a") == {"list": [1]}
    assert (await store.events(limit=1))[0]["what"] == [1]


async def test_what_get_returns_is_the_callers_own(stores: SqliteStores, tmp_path: Path) -> None:
    store = await stores.open(str(tmp_path), create=True)
    await store.commit({"a": {"list": [1]}})
    store.get("a")["list"].append(2)
    assert store.get("a") == {"list": [1]}


async def test_get_serves_what_is_committed_only(stores: SqliteStores, tmp_path: Path) -> None:
    store = await stores.open(str(tmp_path), create=True)
    await store.commit({"a": 1})
    pending = store.commit({"a": 2})
    assert store.get("a") == 1
    await pending
    assert store.get("a") == 2


async def test_commits_are_made_in_the_order_of_their_calls(stores: SqliteStores, tmp_path: Path) -> None:
    store = await stores.open(str(tmp_path), create=True)
    pending = [store.commit({"a": number}, [{"number": number}]) for number in range(50)]
    random.Random(7).shuffle(pending)
    await asyncio.gather(*pending)
    assert store.get("a") == 49
    assert [event["number"] for event in await store.events(limit=100)] == list(range(50))


async def test_cancelled_commit_is_made_all_the_same(stores: SqliteStores, tmp_path: Path) -> None:
    store = await stores.open(str(tmp_path), create=True)
    task = asyncio.ensure_future(store.commit({"a": 1}))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.commit({"b": 2})
    assert store.get("a") == 1


@pytest.mark.parametrize("value", [(1, 2), {1, 2}, object(), {"deep": [Path("x")]}, sys.intern, 2 + 1j])
async def test_value_that_is_not_plain_is_refused(stores: SqliteStores, tmp_path: Path, value: object) -> None:
    store = await stores.open(str(tmp_path), create=True)
    with pytest.raises(TypeError):
        await store.commit({"good": 1, "bad": value})
    with pytest.raises(ValueError, match="64 bits"):
        await store.commit({"bad": 1 << 64})
    assert store.names() == []
    await store.commit({"good": 1})


async def test_events_by_limit_and_number(stores: SqliteStores, tmp_path: Path) -> None:
    store = await stores.open(str(tmp_path), create=True)
    for number in range(1, 11):
        await store.commit({}, [{"number": number}])
    assert [e["id"] for e in await store.events(limit=3)] == [8, 9, 10]
    assert [e["id"] for e in await store.events(limit=3, after=8)] == [9, 10]
    assert await store.events(limit=3, after=10) == []
    assert await store.events(limit=0) == []


async def test_oldest_events_go_and_numbers_are_not_reused(
    stores: SqliteStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "EVENTS_MAX", 5)
    store = await stores.open(str(tmp_path), create=True)
    for start in (0, 3, 6):
        await store.commit({}, [{"number": number} for number in range(start, start + 3)])
    assert [e["id"] for e in await store.events(limit=100)] == [5, 6, 7, 8, 9]
    await store.commit({}, [{"number": number} for number in range(20)])
    await store.close()
    store = await stores.open(str(tmp_path))
    await store.commit({}, [{"last": True}])
    assert [e["id"] for e in await store.events(limit=100)] == [26, 27, 28, 29, 30]


async def test_missing_state_is_not_made_anew(stores: SqliteStores, tmp_path: Path) -> None:
    with pytest.raises(StoreDamagedError, match="missing"):
        await stores.open(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


async def test_creation_refuses_an_existing_state(stores: SqliteStores, tmp_path: Path) -> None:
    await filled(tmp_path)
    with pytest.raises(StoreDamagedError, match="already"):
        await stores.open(str(tmp_path), create=True)
    assert await content(tmp_path) == FILLED


async def test_interrupted_creation_can_be_repeated(stores: SqliteStores, tmp_path: Path) -> None:
    (tmp_path / f"{STATE_FILE}.unfinished").write_bytes(b"half")
    store = await stores.open(str(tmp_path), create=True)
    await store.commit({"a": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == [STATE_FILE, f"{STATE_FILE}-wal"]


async def test_state_in_use_is_refused(stores: SqliteStores, tmp_path: Path) -> None:
    await stores.open(str(tmp_path), create=True)
    with pytest.raises(InvalidStateError, match="open already"):
        await stores.open(str(tmp_path))
    other = SqliteStores(RealClock())
    with pytest.raises(StorageError, match="another process") as caught:
        await other.open(str(tmp_path))
    assert caught.value.code == "store_in_use"
    await other.close()


@pytest.mark.parametrize("kind", ["empty", "garbage", "foreign", "symlink", "fifo", "folder"])
async def test_foreign_file_is_refused(stores: SqliteStores, tmp_path: Path, kind: str) -> None:
    path = tmp_path / STATE_FILE
    match kind:
        case "empty":
            path.touch()
        case "garbage":
            path.write_bytes(random.Random(1).randbytes(50_000))
        case "foreign":
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("CREATE TABLE precious (x)")
        case "symlink":
            (tmp_path / "elsewhere").mkdir()
            await filled(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere" / STATE_FILE)
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    with pytest.raises(StoreDamagedError) as caught:
        await stores.open(str(tmp_path))
    assert caught.value.remedy


async def test_newer_version_is_named_and_left_alone(stores: SqliteStores, tmp_path: Path) -> None:
    await filled(tmp_path)
    path = tmp_path / STATE_FILE
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(StoreDamagedError, match="version 2"):
        await stores.open(str(tmp_path))


@pytest.mark.parametrize(
    "tampering",
    [
        "DELETE FROM records WHERE name = 'position'",
        "DELETE FROM events WHERE id = 1",
        "DELETE FROM events WHERE id = 2",
        "DELETE FROM summary",
        "UPDATE records SET body = x'07' WHERE name = 'position'",
        "UPDATE records SET name = 'other' WHERE name = 'position'",
        "UPDATE events SET time = time + 1 WHERE id = 1",
        "UPDATE records SET body = CAST(body AS TEXT) WHERE name = 'empty'",
        "CREATE TABLE more (x)",
    ],
)
async def test_rows_that_were_meddled_with_are_found(stores: SqliteStores, tmp_path: Path, tampering: str) -> None:
    await filled(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / STATE_FILE)) as database:
        database.execute(tampering)
        database.commit()
    with pytest.raises(StoreDamagedError, match="damaged"):
        await stores.open(str(tmp_path))


async def test_row_that_fell_back_to_an_older_version_is_found(stores: SqliteStores, tmp_path: Path) -> None:
    store = await stores.open(str(tmp_path), create=True)
    await store.commit({"a": 1})
    await store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / STATE_FILE)) as database:
        ((body, digest),) = database.execute("SELECT body, digest FROM records").fetchall()
    store = await stores.open(str(tmp_path))
    await store.commit({"a": 2})
    await store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / STATE_FILE)) as database:
        database.execute("UPDATE records SET body = ?, digest = ?", (body, digest))
        database.commit()
    with pytest.raises(StoreDamagedError):
        await stores.open(str(tmp_path))


async def opens_right_or_is_refused(folder: Path, damaged: bytes) -> bool:
    """Whether a damaged copy was refused; anything but a refusal or exactly the right content fails."""
    path = folder / STATE_FILE
    for leftover in folder.iterdir():
        leftover.unlink()
    path.write_bytes(damaged)
    try:
        found = await content(folder)
    except StoreDamagedError:
        return True
    assert found == FILLED
    return False


@pytest.mark.slow
async def test_flipped_bits_are_found_or_harmless(tmp_path: Path) -> None:
    """Every byte of the first pages' headers, and a sample of all others (A24)."""
    whole, work = tmp_path / "whole", tmp_path / "work"
    whole.mkdir()
    work.mkdir()
    await filled(whole)
    good = (whole / STATE_FILE).read_bytes()
    rng = random.Random(20261124)
    places = set(range(128)) | {page + at for page in range(0, len(good), 4096) for at in range(16)}
    places |= {rng.randrange(len(good)) for _ in range(1200)}
    refused = 0
    for place in sorted(places):
        damaged = bytearray(good)
        damaged[place] ^= 1 << rng.randrange(8)
        refused += await opens_right_or_is_refused(work, bytes(damaged))
    assert refused > len(places) // 4


@pytest.mark.parametrize("seed", range(8))
async def test_damaged_stretches_are_found_or_harmless(tmp_path: Path, seed: int) -> None:
    whole, work = tmp_path / "whole", tmp_path / "work"
    whole.mkdir()
    work.mkdir()
    await filled(whole)
    good = (whole / STATE_FILE).read_bytes()
    rng = random.Random(seed)
    for _ in range(10):
        damaged = bytearray(good)
        at, length = rng.randrange(len(good)), rng.choice([1, 8, 512, 4096])
        damaged[at : at + length] = rng.choice([bytes(length), rng.randbytes(length)])
        await opens_right_or_is_refused(work, bytes(damaged[: len(good)]))
        await opens_right_or_is_refused(work, good[: rng.randrange(len(good))])


async def test_failed_commit_poisons_the_store(stores: SqliteStores, tmp_path: Path) -> None:
    store = await stores.open(str(tmp_path), create=True)
    await store.commit({"a": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        first, second = store.commit({"a": 2, "big": bytes(1_000_000)}), store.commit({"a": 3})
        with pytest.raises(StorageError, match="can't be changed"):
            await first
        with pytest.raises(StorageError, match="no more changes"):
            await second
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(StorageError, match="no more changes"):
        await store.commit({"a": 4})
    assert store.get("a") == 1
    await store.close()
    assert (await content(tmp_path))[0] == {"a": 1}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small volume needs root")
async def test_full_volume_is_named_and_nothing_is_lost(stores: SqliteStores, tmp_path: Path) -> None:
    volume = tmp_path / "small"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(volume)], check=True)
    try:
        store = await stores.open(str(volume), create=True)
        last = -1
        with pytest.raises(NoSpaceError, match=STATE_FILE):
            for number in range(100):
                await store.commit({f"record-{number}": bytes(20_000), "last": number})
                last = number
        assert last > 0
        assert store.get("last") == last
        with pytest.raises(StorageError):
            await store.commit({"last": 0})
        await store.close()
        records, _ = await content(volume)
        assert records["last"] == last
    finally:
        subprocess.run(["umount", str(volume)], check=True)


COMMITTER = """
import asyncio, sys
from shared.ports.clock import RealClock
from shared.ports.store import SqliteStores

async def main():
    store = await SqliteStores(RealClock()).open(sys.argv[1])
    number = store.get("a") or 0
    while True:
        number += 1
        both = {"a": number, "b": number, "big": bytes([number % 251]) * (number * 977 % 30_000)}
        await store.commit(both, [{"number": number}])
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_acknowledged_commits_survive_sigkill(folder: Path) -> None:
    """I5 for the store: 25 kills at random moments; the last acknowledged is there, transactions are whole."""
    stores = SqliteStores(RealClock())
    await stores.open(str(folder), create=True)
    await stores.close()
    rng = random.Random(os.urandom(8))
    for _ in range(25):
        with subprocess.Popen(
            [sys.executable, "-c", COMMITTER, str(folder)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
        ) as process:
            assert process.stdout is not None
            wanted = rng.randrange(1, 40)
            lines = [process.stdout.readline() for _ in range(wanted)]
            # Somewhere within the next commits.
            await asyncio.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        acknowledged = int([line for line in lines if line.endswith(b"\n")][-1])
        records, events = await content(folder)
        number = records["a"]
        assert number in (acknowledged, acknowledged + 1)
        assert records["b"] == number
        assert records["big"] == bytes([number % 251]) * (number * 977 % 30_000)
        assert [event["number"] for event in events][-1] == number


async def test_copy_of_a_live_store_is_whole(stores: SqliteStores, tmp_path: Path) -> None:
    """What a power loss leaves on disk: the files as they are, nobody having closed anything."""
    (tmp_path / "live").mkdir()
    store = await stores.open(str(tmp_path / "live"), create=True)
    for number in range(20):
        await store.commit({"a": number, "b": [number] * 500}, [{"number": number}])
        shutil.copytree(tmp_path / "live", tmp_path / "copy")
        records, events = await content(tmp_path / "copy")
        assert records == {"a": number, "b": [number] * 500}
        assert len(events) == number + 1
        shutil.rmtree(tmp_path / "copy")


# --- rebuilding ------------------------------------------------------------------------------------------------------


async def test_rebuilt_store_takes_the_place_of_the_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old database goes first, then its log, and only then the fresh one comes: never one with the other's log."""
    stores, renamed, rename = SqliteStores(RealClock()), [], os.rename
    (tmp_path / "state.db").write_bytes(b"damaged")
    (tmp_path / "state.db-wal").write_bytes(b"its log")

    def seen(source: str, target: str) -> None:
        renamed.append((os.path.basename(source), os.path.basename(target)[:16]))
        rename(source, target)

    monkeypatch.setattr(os, "rename", seen)
    aside = await stores.rebuild(str(tmp_path), {"vm": {"name": "web"}}, [{"text": "rebuilt"}])
    assert [source for source, _ in renamed[-3:]] == ["state.db", "state.db-wal", "state.db"]
    assert [target for _, target in renamed[-3:]] == ["state.db.damaged", "state.db.damaged", "state.db"]
    assert Path(aside).read_bytes() == b"damaged"
    assert Path(f"{aside}-wal").read_bytes() == b"its log"
    assert not (tmp_path / "state.db-wal").exists()
    store = await stores.open(str(tmp_path))
    assert store.get("vm") == {"name": "web"}
    assert [event["text"] for event in await store.events(limit=9)] == ["rebuilt"]
    with pytest.raises(InvalidStateError, match="is open"):
        await stores.rebuild(str(tmp_path), {})
    await store.close()
    # A second loss on the same day, and one where nothing is left.
    second = await stores.rebuild(str(tmp_path), {"vm": 2})
    assert second.startswith(str(tmp_path)) and second != aside
    (tmp_path / "state.db").unlink()
    assert await stores.rebuild(str(tmp_path), {"vm": 3}) == ""
    await stores.close()


async def test_rebuilding_without_room_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = SqliteStores(RealClock())
    (tmp_path / "state.db").write_bytes(b"damaged")

    def full(*_args: object) -> None:
        raise NoSpaceError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(store_file.StoreFile, "commit", full)
        with pytest.raises(NoSpaceError):
            await stores.rebuild(str(tmp_path), {"vm": 1})
    assert (tmp_path / "state.db").read_bytes() == b"damaged"
    assert await stores.rebuild(str(tmp_path), {"vm": 1})
    assert not (tmp_path / "state.rebuilding").exists()
    await stores.close()


async def test_version_in_a_damaged_header_is_not_a_newer_version(tmp_path: Path) -> None:
    """No checksum covers it, but the summary repeats it: a flipped bit there must not forbid a recover."""
    stores = SqliteStores(RealClock())
    await (await stores.open(str(tmp_path), create=True)).close()
    path = tmp_path / "state.db"
    data = bytearray(path.read_bytes())
    data[63] ^= 4
    path.write_bytes(data)
    with pytest.raises(StoreDamagedError, match="its header says version 5, its summary 1") as found:
        await stores.open(str(tmp_path))
    assert found.value.code == "store_damaged"
    await stores.close()
