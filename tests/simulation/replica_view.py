"""The replica as the checks see it: what its durable state claims, and whether its disks are exactly that."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from protocol.errors import LogError
from protocol.hrl import (
    ENTRY_BYTES,
    ENTRY_DTYPE,
    FILE_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    Geometry,
    RecordKind,
    decode_record_header,
)
from protocol.position import NO_EPOCH
from shared.handover import read_map
from tests.simulation.disk import Inode, SimulatedFileSystem
from tests.simulation.hosts import Host
from tests.simulation.layers_view import laid_over, remains, same_position
from tests.simulation.loop import Process
from tests.simulation.oracle import Cut, Images, Oracle, Violation, difference
from tests.simulation.services import StoreContent


class ReplicaView:
    """Checks the replica's disks against the oracle whenever its durable state says that they are a point."""

    def __init__(
        self,
        host: Host,
        folder: str,
        disks: int,
        oracle: Oracle,
        fail: Callable[[BaseException], None],
        *,
        paths: Callable[[int], str] | None = None,
    ) -> None:
        """``paths``: where the disks are, other than in the folder."""
        self.host = host
        self.folder = folder
        self.oracle = oracle
        self.fail = fail
        self.checks = 0
        self.history_checks = 0
        self._history = ""
        self.applied: dict[bytes, int] = {}
        """The newest point of each epoch."""
        self.promoted: Cut | None = None
        self.handed_over = False
        """The promoted disks are served."""
        self.on_served: Callable[[], None] = lambda: None
        self.on_settled: Callable[[], None] = lambda: None
        """Called when promoted disks are served, and when what lay over them has settled."""
        self.at_failover: Images = ()
        """What the other side had when this one was failed over to,"""
        self.changes_at_failover = 0
        """and how many changes had led there since its last boot."""
        self.asked: set[Cut] = set()
        """Older points that somebody asked to fail over to, since the last failover."""
        self.undone = 0
        """Failovers that were undone, and checked."""
        self.maps = 0
        """Failovers to an older point, whose reverse.map was compared."""
        self._before: tuple[Any, ...] = ()
        self._undoing = self._layered = False
        self.unsound = False
        """Its volume failed or was tampered with: then it may distrust its disks."""
        self.edited = False
        """Somebody changed its disks, which it has to find out."""
        self.required: Callable[[], tuple[bytes | None, int]] = lambda: (None, 0)
        """The newest cut that the primary knows to be here: epoch and segment."""
        self.disk_count = disks
        self._paths = paths
        self._taken = ""
        self.own: Cut | None = None
        """A point that only this host has: what it wrote before it became the replica again."""
        self.kept = 0
        """Such points that were found among the older ones, once something else arrived."""
        self.giving_up = False
        """Somebody ordered to give the failover up."""
        self.on_taken: Callable[[], tuple[Oracle, Images]] | None = None
        """Called when disks become a copy: of what, and what they hold until then;"""
        self.on_given_up: Callable[[], tuple[Oracle, Images]] | None = None
        """and when a failover was given up."""

    # --- what it claims ---

    def record(self, name: str) -> dict[str, Any]:
        """A record of the VM's durable state; empty where there is none."""
        content = self.host.contents.get(self.folder)
        return (content.record(name) or {}) if content is not None else {}

    def point(self) -> Cut | None:
        """The cut that the disks are at, as the durable state has it; None while they are between two."""
        record = self.record("replication")
        if not record or record["applied"] is None or record["applying"] is not None or record["suspect"] is not None:
            return None
        if self.edited:
            return None
        return record["applied"]["epoch"], record["applied"]["segment"]

    def disk_path(self, index: int) -> str:
        return self._paths(index) if self._paths is not None else f"{self.folder}/disk-{index}.raw"

    def images(self) -> list[bytes]:
        """The replica's disks as programs see them."""
        entries = self.host.volume.entries
        return [entries[self.disk_path(index)].image() for index in range(self.disk_count)]

    def shown(self) -> list[bytes]:
        """The disks as a guest on this host sees them, once they were failed over."""
        record, plain = self.record("promotion"), self.images()
        if not record or not record["layered"] or not record["serving"]:
            return plain
        below, replication = plain, self.record("replication")
        if not same_position(record["cut"], record["received"]):
            at_cut = same_position(record["cut"], replication["applied"]) and replication["applying"] is None
            if not at_cut:
                assert self.promoted is not None
                found = dict(self.rolled_back())
                if self.promoted not in found:
                    raise Violation(f"I6: the promoted cut {self.promoted[1]} is no point any more")
                below = found[self.promoted]
        return laid_over(self.host, self.folder, plain, below)

    def rolled_back(self) -> list[tuple[Cut, list[bytes]]]:
        """Every older point that the durable state advertises, with the disks as its undo logs have them.

        A reader of its own: it undoes one apply after the other, and trusts neither index nor end of a log.
        """
        pending, logs = self.record("replication")["undo"], self.record("points").get("logs", [])
        images = [bytearray(image) for image in self.images()]
        found = []
        for log in reversed([*logs, *([pending] if pending is not None else [])]):
            path = f"{self.folder}/undo/{log['first']:012d}-{log['last']:012d}.undo"
            inode = self.host.volume.entries.get(path)
            if inode is None:
                raise Violation(f"R25: the undo log {path} is on record, and is not there")
            data = memoryview(inode.image())
            at = FILE_HEADER_BYTES
            while at < len(data):
                try:
                    header = decode_record_header(data, at, at=at)
                except LogError as error:
                    raise Violation(f"R25: the undo log {path} is on record, and is damaged: {error}") from error
                if header.kind is RecordKind.BATCH:
                    payload = at + RECORD_HEADER_BYTES + header.count * ENTRY_BYTES
                    for row in np.frombuffer(data, ENTRY_DTYPE, header.count, at + RECORD_HEADER_BYTES).tolist():
                        disk, _kind, _flags, size, offset, length = row
                        images[disk][offset : offset + length] = (
                            data[payload : payload + size] if size else bytes(length)
                        )
                        payload += size
                at += header.length
            if log["point"]:
                older = log["older"]
                found.append(((older["epoch"], older["segment"]), [bytes(image) for image in images]))
        return found

    # --- checks ---

    def committed(self, folder: str, _content: StoreContent) -> None:
        """A transaction took place."""
        if folder != self.folder:
            return
        try:
            self._check_taken()
            self._check_trust()
            self._check_promotion()
            self._check_kept()
            self._check_point("I1", "the exposed point")
            self._check_history("I1")
        except Violation as violation:
            self.fail(violation)

    def check_after_crash(self) -> None:
        """What survived must be the advertised point exactly, whatever was going on (I6, I7)."""
        try:
            self._check_point("I6", "after a crash the newest point")
            self._check_history("I6", always=True)
        except Violation as violation:
            self.fail(violation)

    def check_below(self) -> None:
        """While a failover can be undone the disks below it stay what they were. Raises Violation."""
        if self.handed_over:
            self._check_point("I6", "a disk below a failover that can be undone")

    def _check_point(self, invariant: str, what: str) -> None:
        point, promotion = self.point(), self.record("promotion")
        if point is None or (promotion and promotion["committed_time"] is not None):
            # From a commit on what was written since the failover goes into the disks.
            return
        epoch, segment = point
        if segment < self.applied.get(epoch, 0):
            raise Violation(f"I5: the newest point went back from {self.applied[epoch]} to {segment}")
        self.applied[epoch] = segment
        self.checks += 1
        self.oracle.check_cut(epoch, segment, self.images(), what, invariant)

    def _check_history(self, invariant: str, *, always: bool = False) -> None:
        """Every older point must be what its cut was, also while the disks are between two."""
        record = self.record("replication")
        points = self.record("points")
        shown = repr((record.get("undo"), points.get("logs")))
        if not record or self.edited or record["suspect"] is not None or (shown == self._history and not always):
            return
        self._history = shown
        promotion = self.record("promotion")
        if promotion and promotion["committed_time"] is not None:
            return
        for cut, images in self.rolled_back():
            self.history_checks += 1
            self.oracle.check_cut(*cut, images, "an older point", invariant)

    def _check_trust(self) -> None:
        suspect = self.record("replication").get("suspect")
        if suspect is None:
            return
        self.edited = False
        if not self.unsound:
            raise Violation(f"I6: the replica distrusts its disks, although nothing befell them: {suspect['text']}")

    def _check_taken(self) -> None:
        """The VM came from this host's primary agent: what it left is a point of its own (R41)."""
        taken = self.record("vm").get("handover", "")
        if taken != self._taken and self.on_taken is not None:
            self._taken = taken
            self._begin_anew(*self.on_taken())

    def _begin_anew(self, oracle: Oracle, images: Images) -> None:
        """The disks are a copy of what ``oracle`` knows, and at ``images`` until something of it arrives."""
        self.oracle = oracle
        applied = self.record("replication")["applied"]
        here = applied["epoch"], applied["segment"]
        if oracle.cuts.setdefault(here, images) != images:
            raise Violation(f"I1: the disks of a copy are told to be cut {here[1]}, which they are not")
        self.own = here
        self.promoted, self.handed_over, self.giving_up = None, False, False
        self._undoing = self._layered = False

    def _check_kept(self) -> None:
        """What only this host had is an older point once it is not what the disks hold any more."""
        record = self.record("replication")
        applied = record["applied"]
        if self.own is None or record["applying"] is not None or (applied["epoch"], applied["segment"]) == self.own:
            return
        if self.host.options.newest > 1 and self.own not in [cut for cut, _ in self.rolled_back()]:
            raise Violation("R41: what only this host had before it became the replica again is no point of it")
        self.kept += 1
        self.own = None

    def _check_promotion(self) -> None:
        record = self.record("promotion")
        if not record:
            if self.promoted is not None:
                self._check_undone()
            replication = self.record("replication")
            self._before = (replication.get("epoch"), replication.get("lineage"))
            return
        cut = record["parent"], record["parent_segment"]
        if self.promoted not in (None, cut):
            raise Violation(f"I6: the promotion changed its cut from {self.promoted} to {cut}")
        if self.promoted is None:
            self._check_choice(record, cut)
            self.at_failover = tuple(map(bytes, self.oracle.images))
            self.changes_at_failover = len(self.oracle.history)
        self.promoted = cut
        self._undoing = self._undoing or record["undoing"]
        if record["serving"] and not self.handed_over:
            self.handed_over = True
            self.check_promoted("I6", "the promoted image")
            self._check_reverse_map((record["received"]["epoch"], record["received"]["segment"]))
            self.on_served()
        if self._layered and not record["layered"]:
            self.on_settled()
        self._layered = record["layered"]

    def _check_reverse_map(self, received: Cut) -> None:
        """What an older point differs in from the newest cut that was here is named, durably (R41)."""
        assert self.promoted is not None
        truth, promoted = self.oracle.cuts.get(received), self.oracle.cuts.get(self.promoted)
        if truth is None or promoted is None or truth == promoted:
            return
        self.maps += 1
        path = f"{self.folder}/reverse.map"
        inode = self.host.volume.durable_entries.get(path)
        if inode is None or not inode.is_durable(inode.size):
            raise Violation("R41: an older point is served, and reverse.map is not durable")
        disks = self.record("vm")["disks"]
        geometry = [Geometry(disk["index"], disk["size"], disk["uuid"]) for disk in disks]
        files = SimulatedFileSystem(self.host.volume, Process("reader"))
        named = read_map(files, path, uuid.UUID(self.folder.rpartition("/")[2]).bytes, geometry)
        for index, (wanted, found) in enumerate(zip(truth, promoted, strict=True)):
            covered = bytearray(found)
            for offset, length in named[index]:
                covered[offset : offset + length] = wanted[offset : offset + length]
            if covered != wanted:
                raise Violation(f"R41: reverse.map leaves out {difference(index, wanted, bytes(covered))}")

    def _check_choice(self, record: dict[str, Any], cut: Cut) -> None:
        """Which cut is promoted: the newest, unless somebody asked for another one."""
        epoch, segment = self.required()
        received = record["received"]["epoch"], record["received"]["segment"]
        if received[0] == epoch and received[1] < segment and not self.unsound:
            raise Violation(
                f"I5: promoted with cut {received[1]}, although the primary was told that {segment} is here"
            )
        if cut != received and cut not in self.asked:
            raise Violation(f"I5: promoted to cut {cut[1]}, which nobody asked for, although {received[1]} is here")
        self.asked.clear()

    def _check_undone(self) -> None:
        """The failover is not on record any more: all has to be as it was before it."""
        replication = self.record("replication")
        if self.giving_up and self.on_given_up is not None and replication["reversal"] is not None:
            self._begin_anew(*self.on_given_up())
            return
        if not self._undoing:
            raise Violation("I6: the promotion is not on record any more, although nobody undid it")
        if (replication["epoch"], replication["lineage"]) != self._before:
            raise Violation("R42: a failover was undone, and its epoch stays in the replica's history")
        if left := remains(self.host, self.folder):
            raise Violation(f"R42: a failover was undone, and {left[0]} is left of it")
        self.promoted, self.handed_over, self._undoing = None, False, False
        self.undone += 1

    def check_promoted(self, invariant: str, what: str) -> None:
        """What is served must be the promoted cut exactly: nobody has written to it yet."""
        assert self.promoted is not None
        self.checks += 1
        self.oracle.check_cut(*self.promoted, self.shown(), what, invariant)

    # --- what it holds durably ---

    def holds(self, epoch: bytes, segment: int) -> str:
        """Empty if power loss right now would leave everything up to this cut at the replica; else what is missing."""
        record = self.record("replication")
        if not record:
            return "there is no state"
        applied = record["applied"]
        start = applied["segment"] if applied is not None and applied["epoch"] == epoch else 0
        for number in range(start + 1, segment + 1):
            path = f"{self.folder}/spool/{epoch.hex()}-{number:012d}.hrl"
            inode = self.host.volume.durable_entries.get(path)
            if inode is None:
                return f"segment {number} has no durable name at the replica"
            # What lies behind the seal in a recycled file is nobody's, durable or not.
            if not inode.is_durable(_end_of_segment(inode)):
                return f"segment {number} has pages that are not durable at the replica"
        return ""

    def baseline(self) -> bytes:
        """The epoch of the committed baseline."""
        epoch: bytes = self.record("replication").get("epoch", NO_EPOCH)
        return epoch


def _end_of_segment(inode: Inode) -> int:
    """Where the segment in a spool file ends: behind its seal. Of a file without one, its size."""
    at = FILE_HEADER_BYTES
    try:
        while True:
            header = decode_record_header(inode.read(at, RECORD_HEADER_BYTES))
            at += header.length
            if header.kind is RecordKind.SEAL:
                return at
    except LogError:
        return inode.size
