"""From undo logs to the state's records of them, and back: only the very file that a record names is opened."""

from __future__ import annotations

from replica_agent.layout import Layout
from replica_agent.ledger import Ledger
from replica_agent.record import PositionRecord, UndoRecord
from shared.ports import Ports
from shared.undo_log import Link, Sealed, UndoDamagedError, UndoLog


def open_log(ports: Ports, layout: Layout, ledger: Ledger, record: UndoRecord) -> UndoLog:
    """Open the undo log of a record, and check that it is the one. Blocks. Raises UndoDamagedError."""
    path = layout.undo(record.first, record.last)
    log = UndoLog(ports.files, path, ledger.vm.vm, ledger.vm.all_sizes, record.last)
    if (log.length, log.chain) != (record.length, record.chain):
        log.close()
        raise UndoDamagedError(
            f"The undo log {path} is not the one that was written: {log.length} bytes, chain {log.chain.hex()}.",
            "Use a newer recovery point; find out who replaced the file.",
        )
    return log


def record_of(first: int, last: int, link: Link, sealed: Sealed) -> UndoRecord:
    return UndoRecord(
        first=first,
        last=last,
        older=PositionRecord.of(link.older),
        newer=PositionRecord.of(link.newer),
        older_time=link.older_time,
        newer_time=link.newer_time,
        length=sealed.length,
        chain=sealed.chain,
    )
