"""A database under load, and its judge: numbered transactions, each told only once its COMMIT has returned.

Run as a program it writes to a SQLite database until it is killed: ``PATH MODE``, MODE being SQLite's journal mode.
Each transaction adds an entry, rewrites an older one, and keeps the sum of all, so that half a transaction is found.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
import sys
from pathlib import Path

LONGEST = 6000
REWRITTEN = 7
"""So many transactions later an entry is written again."""


class DatabaseDamaged(AssertionError):
    """The database is not what transactions up to one of them leave."""


def content(number: int, turn: int) -> bytes:
    """What the entry of a transaction holds: after ``turn`` 0 as it was added, 1 as it was rewritten."""
    rng = random.Random(f"{number}/{turn}")
    return hashlib.sha256(f"{number}/{turn}".encode()).digest() * rng.randrange(1, LONGEST // 32)


def opened(path: Path, mode: str) -> sqlite3.Connection:
    """Open or make the database; a COMMIT returns when it is durable.

    With a rollback journal that takes EXTRA: FULL does not sync the folder after the journal's removal, which is the
    commit, so that a power cut may take the last transaction back.
    """
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"PRAGMA journal_mode={mode}")
    database.execute("PRAGMA synchronous=EXTRA")
    database.execute("CREATE TABLE IF NOT EXISTS entry (number INTEGER PRIMARY KEY, content BLOB NOT NULL)")
    database.execute("CREATE TABLE IF NOT EXISTS total (newest INTEGER NOT NULL, bytes INTEGER NOT NULL)")
    if database.execute("SELECT count(*) FROM total").fetchone() == (0,):
        database.execute("INSERT INTO total VALUES (0, 0)")
    return database


def add(database: sqlite3.Connection) -> int:
    """One transaction; its number, once it is durable."""
    database.execute("BEGIN IMMEDIATE")
    number = int(database.execute("SELECT newest FROM total").fetchone()[0]) + 1
    database.execute("INSERT INTO entry VALUES (?, ?)", (number, content(number, 0)))
    older = number - REWRITTEN
    if older > 0:
        database.execute("UPDATE entry SET content = ? WHERE number = ?", (content(older, 1), older))
    database.execute("UPDATE total SET newest = ?, bytes = (SELECT sum(length(content)) FROM entry)", (number,))
    database.execute("COMMIT")
    return number


def judge(path: Path) -> int:
    """The newest transaction that a database has after a crash. Raises DatabaseDamaged unless it has all before it."""
    database = sqlite3.connect(path)
    try:
        said = database.execute("PRAGMA integrity_check").fetchall()
        if said != [("ok",)]:
            raise DatabaseDamaged(f"integrity_check says {said}")
        newest, total = database.execute("SELECT newest, bytes FROM total").fetchone()
        entries = database.execute("SELECT number, content FROM entry ORDER BY number").fetchall()
    except sqlite3.DatabaseError as error:
        raise DatabaseDamaged(f"the database can't be read: {error}") from error
    finally:
        database.close()
    if [number for number, _ in entries] != list(range(1, newest + 1)):
        raise DatabaseDamaged(f"the transactions are not 1 to {newest} without a gap, but {len(entries)}")
    for number, held in entries:
        if held != content(number, int(number <= newest - REWRITTEN)):
            raise DatabaseDamaged(f"entry {number} of {newest} is not what was committed")
    if total != sum(len(held) for _, held in entries):
        raise DatabaseDamaged(f"half a transaction: the sum of {newest} entries is not {total}")
    return int(newest)


def main() -> None:
    path, mode = Path(sys.argv[1]), sys.argv[2]
    database = opened(path, mode)
    while True:
        print(add(database), flush=True)


if __name__ == "__main__":
    main()
