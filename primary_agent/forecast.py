"""What a resync will cost, before it starts: bytes to read, bytes on the wire and time, from what this pair has shown.

Scope and holes are looked up, they are facts. How much differs a sample of blocks tells that is compared with the
replica; where that can't be had, past runs do, or a bound is given, and the forecast says so. How fast the pair is,
past runs tell, or a sample of the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from primary_agent.estimating import interval
from primary_agent.kept_scope import late_scope
from primary_agent.parts import Parts
from primary_agent.sampling import Sampled, compare_sample, why_not
from primary_agent.scope import BOUNDED_CAUSES, read_scope
from primary_agent.survey import Survey, hash_sample, survey
from protocol.bulk import TAG_BYTES
from protocol.errors import ProtocolError
from protocol.messages import BLOCK_SIZE, ResyncKind
from protocol.position import NO_EPOCH
from shared.disks.hashing import RangeHasher
from shared.errors import VmreplicaError
from shared.map_file import Range
from shared.rates import size_text
from shared.resync_runs import COMMITTED, Forecast, Run

RUNS_LEARNT = 20
"""So many of the newest runs are looked at,"""
MEDIAN_RUNS = 5
"""and so many for what a median is taken of."""
TELLING_BYTES = 8 << 20
"""A run that read or sent less says nothing about speed."""
READING, SENDING = 0.1, 0.5
"""Runs that sent at most, or at least, this part of what they read tell how fast the pair compares, or sends."""
WIRE_PER_SENT, WIRE_PER_READ = 1.0, TAG_BYTES / BLOCK_SIZE
"""Bytes on the wire for one that is sent and for one that is compared, where no run tells: no compression, one tag for
each block.
"""
SAMPLE_COUNTS_SECONDS = 900.0
"""For so long a sample of the plan is taken for the forecast of a run that starts."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rates:
    """What past runs of a pair say; None or the default where none says it. Rates in bytes per second."""

    different: float | None = None
    """Part of what was read that differed, in runs of this kind,"""
    different_runs: int = 0
    """of so many."""
    compare: float | None = None
    """Of blocks that are equal."""
    send: float | None = None
    """Of blocks that differ, compare and durable write included."""
    beside: float = 0.0
    """Seconds that a run takes beside its compare."""
    wire_per_sent: float = WIRE_PER_SENT
    """Bytes on the wire for one that is sent."""
    wire_per_read: float = WIRE_PER_READ
    """Bytes on the wire for one that is compared."""


def learn(runs: Iterable[Run], kind: ResyncKind) -> Rates:
    """The rates that the runs, the newest first, show for one of ``kind``."""
    ended = [run for run in runs if run.result == COMMITTED and run.compare_seconds > 0]
    alike = [
        run.total("different_bytes") / run.read_bytes for run in ended if run.kind == kind.value and run.read_bytes
    ][:MEDIAN_RUNS]
    reading = next((run for run in ended if _sent(run) <= READING and run.read_bytes >= TELLING_BYTES), None)
    sending = next((run for run in ended if _sent(run) >= SENDING and run.total("sent_bytes") >= TELLING_BYTES), None)
    per_sent, per_read = WIRE_PER_SENT, WIRE_PER_READ
    if sending is not None:
        sent = sending.total("sent_bytes")
        per_sent = min(per_sent, max(0.0, sending.wire_bytes - per_read * sending.read_bytes) / sent)
    if reading is not None:
        rest = reading.wire_bytes - per_sent * reading.total("sent_bytes")
        per_read = max(0.0, rest) / reading.read_bytes
    return Rates(
        _median(alike),
        len(alike),
        reading.read_bytes / reading.compare_seconds if reading is not None else None,
        sending.total("sent_bytes") / sending.compare_seconds if sending is not None else None,
        _median([run.active_seconds - run.compare_seconds for run in ended[:MEDIAN_RUNS]]) or 0.0,
        per_sent,
        per_read,
    )


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _sent(run: Run) -> float:
    return run.total("sent_bytes") / max(1, run.read_bytes)


def expect(
    kind: ResyncKind,
    found: Survey,
    rates: Rates,
    sampled: float | None,
    told: Sampled | None = None,
    untold: str = "",
) -> Forecast:
    """The forecast for what was surveyed; ``sampled`` is the measured rate of reading and hashing here.

    ``told`` is what a sample of blocks showed that both sides hashed, ``untold`` why there is none.
    """
    read, basis = found.read_bytes, [_scope_text(kind, found)]
    fraction = 1.0
    parts: tuple[float, float] | None = None
    if untold and kind is not ResyncKind.INITIAL:
        basis.append(f"The replica could not be asked for a sample: {untold}.")
    if told is not None and (told.blocks or told.all):
        fraction, parts = _from_sample(told, basis)
    elif kind is ResyncKind.INITIAL:
        basis.append("All that is no hole is sent.")
    elif rates.different is not None:
        fraction = min(1.0, rates.different)
        basis.append(f"{100 * fraction:.2f} % differed in the median of the last {rates.different_runs} such runs.")
    elif kind is ResyncKind.BOUNDED:
        basis.append("No such run is known yet: all that is in doubt is taken to differ.")
    else:
        fraction = 0.0
        basis.append("No such run is known yet: nothing is taken to differ, so this is the least.")
    different = round(fraction * read)
    compare = sampled if sampled is not None else rates.compare
    if sampled is not None:
        basis.append(f"{size_text(sampled)}/s are read and hashed here, measured on a sample of the disks just now.")
    elif compare is not None:
        basis.append(f"{size_text(compare)}/s were compared in the last run that sent little.")
    send = rates.send or compare
    if compare is not None and send is not None:
        if different and rates.send is not None:
            basis.append(f"{size_text(rates.send)}/s were sent and made durable in the last run that sent much.")
        elif different:
            basis.append("No run tells how fast this pair sends: as fast as it reads, at best.")
    else:
        basis.append("No rate of this pair is known.")

    def on_wire(differing: int) -> int:
        return round(rates.wire_per_read * read + rates.wire_per_sent * differing)

    def takes(differing: int) -> float | None:
        if compare is None or send is None:
            return None
        return (read - differing) / compare + differing / send + rates.beside

    low, high = (round(part * read) for part in parts) if parts is not None else (None, None)
    return Forecast(
        kind=kind.value,
        scope_bytes=found.scope_bytes,
        read_bytes=read,
        different_bytes=different,
        wire_bytes=on_wire(different),
        least_wire_bytes=on_wire(0),
        most_wire_bytes=round(rates.wire_per_read * read + read),
        seconds=takes(different),
        sampled_blocks=told.blocks if told is not None else 0,
        sampled_different=told.different if told is not None else 0,
        different_low_bytes=low,
        different_high_bytes=high,
        wire_low_bytes=on_wire(low) if low is not None else None,
        wire_high_bytes=on_wire(high) if high is not None else None,
        seconds_low=takes(low) if low is not None else None,
        seconds_high=takes(high) if high is not None else None,
        basis=basis,
    )


def _from_sample(told: Sampled, basis: list[str]) -> tuple[float, tuple[float, float]]:
    """The part of what is read that differs, and between which parts that lies with 90 % certainty."""
    if told.blocks == 0:
        basis.append("There is nothing to read, so nothing differs.")
        return 0.0, (0.0, 0.0)
    part = told.different / told.blocks
    low, high = (part, part) if told.all else interval(told.different, told.blocks)
    which = "All" if told.all else "Of"
    looked = f"{which} {told.blocks} blocks" if told.all else f"Of {told.blocks} random blocks"
    sure = "" if told.all else f", with 90 % certainty {_percent(low)} to {_percent(high)} of all"
    basis.append(f"{looked} that both sides hashed just now, {told.different} differ: {_percent(part)}{sure}.")
    if told.pieces:
        basis.append(
            f"{_percent(told.detail)} of a block that differs does, by {told.pieces} smaller blocks that were "
            "compared; only these are sent."
        )
    return part * told.detail, (low * told.detail, high * told.detail)


def _percent(part: float) -> str:
    return f"{100 * part:.2f} %" if part < 0.1 else f"{100 * part:.1f} %"


def _scope_text(kind: ResyncKind, found: Survey) -> str:
    holes = f"{size_text(found.scope_bytes - found.read_bytes)} of it are holes, which are not read."
    if kind is ResyncKind.BOUNDED:
        return f"The dirty map bounds it to {size_text(found.scope_bytes)}; {holes}"
    return f"Whole disks, {size_text(found.scope_bytes)}; {holes}"


def kind_of(parts: Parts) -> ResyncKind:
    """What kind a resync is, or would be if it began now. The replica may know better: then whole disks are compared.

    Of what the dirty map says only this side's half is looked at; the replica's position is, when it begins.
    """
    record, connection = parts.replication.record, parts.tap.connection
    if record.resync is not None:
        return record.resync.kind
    if record.epoch == NO_EPOCH:
        return ResyncKind.INITIAL
    doubt = connection.status.doubt if connection is not None else None
    bounded = bool(record.causes) and {cause.code for cause in record.causes} <= BOUNDED_CAUSES and not parts.whole
    return ResyncKind.BOUNDED if bounded and doubt is not None and doubt.complete else ResyncKind.RESYNC


async def forecast(parts: Parts, *, sample: bool = False, blocks: int | None = None) -> Forecast:
    """What the open resync, or one that began now, is expected to cost.

    ``sample``: measure reading and hashing here, also where past runs tell a rate. ``blocks`` random ones are compared
    with the replica; with None what such a sample showed a short while ago counts, once. Raises StorageError where a
    disk or the map can't be read.
    """
    ports, vm, kind = parts.surroundings.ports, parts.replication.vm, kind_of(parts)
    rates = learn(parts.replication.runs.newest(RUNS_LEARNT), kind)
    sampled = None
    try:
        scope = {disk.index: [(0, disk.size)] for disk in vm.disks}
        if kind is ResyncKind.BOUNDED:
            scope = await _bounded_scope(parts)
        found = await ports.workers.run(survey, ports.files, vm.disks, scope)
        if found.read_bytes and (sample or rates.compare is None):
            hasher = RangeHasher(ports.random.bytes(32), BLOCK_SIZE)
            started = ports.clock.monotonic()
            count = await ports.workers.run(hash_sample, ports.files, found, hasher)
            seconds = ports.clock.monotonic() - started
            sampled = count / seconds if seconds > 0 else None
    except OSError as error:
        raise VmreplicaError(
            f"A disk of {vm.name} can't be read: {error.strerror or error}.", "Look at `vmreplica status`."
        ) from error
    untold = await _ask(parts, kind, found, blocks) if blocks else ""
    told = parts.sampled if blocks != 0 else None
    if blocks is None:
        # It is about the disks as they were before this run.
        parts.sampled = None
    if told is not None and (told.kind is not kind or ports.clock.monotonic() - told.time > SAMPLE_COUNTS_SECONDS):
        told = None
    return expect(kind, found, rates, sampled, told, untold)


async def _bounded_scope(parts: Parts) -> dict[int, list[Range]]:
    """What bounds the resync: the tap's map, or what was kept of it and what is there of it. Raises StorageError."""
    ports, tap, vm = parts.surroundings.ports, parts.tap, parts.replication.vm
    resync = parts.replication.record.resync
    if resync is None or not resync.kept_round:
        return await ports.workers.run(read_scope, ports.files, tap.folder, vm.vm, vm.geometry)
    return await late_scope(ports, tap, tap.connection, vm, resync)


async def _ask(parts: Parts, kind: ResyncKind, found: Survey, blocks: int) -> str:
    """Compare random blocks with the replica; why that can't be done, empty where it was."""
    parts.sampled = None
    connection = parts.tap.connection
    if kind is ResyncKind.INITIAL:
        return ""
    if connection is None:
        return "the tap does not answer"
    surroundings, replication = parts.surroundings, parts.replication
    try:
        parts.sampled = await compare_sample(surroundings, replication, connection, parts.address, kind, found, blocks)
    except (VmreplicaError, ProtocolError, OSError) as error:
        return why_not(error)
    return ""


async def foresee(parts: Parts) -> None:
    """Put a forecast on the record of the open run, before it starts. A run goes on without one."""
    try:
        parts.replication.runs.forecast(await forecast(parts))
    except VmreplicaError as error:
        log.info("no forecast for this run", vm=parts.replication.vm.name, reason=str(error))
