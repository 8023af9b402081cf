"""Everything about one VM as a page of text: pure functions from a status to lines."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo

from shared.cli.console import Palette
from shared.cli.progress import progress_lines
from shared.cli.render import health_paint, is_failed_over_to, link_text
from shared.cli.text import time_text, wrapped
from shared.cli.verify_text import verified_text
from shared.guest_status import ConsistencyStatus
from shared.point_status import PointProof
from shared.rates import duration_text, size_text
from shared.status import CutStatus, DiskStatus, ExportStatus, FailoverStatus, TapStatus, VmStatus

LABEL_WIDTH = 14


def page_lines(vm: VmStatus, now: float, width: int | None, palette: Palette, zone: tzinfo | None = None) -> list[str]:
    """The VM's page. ``now`` is when the status was taken; times are shown in ``zone`` (None: the host's)."""
    lines = [f"{palette.strong(vm.name)}  {vm.role}"]
    for label, text in _facts(vm, now, palette, zone):
        lines += wrapped(text, width, LABEL_WIDTH + 2, f"  {label.ljust(LABEL_WIDTH)}")
    if vm.progress is not None:
        lines += ["", *progress_lines(vm, width or 1000, palette)]
    return lines


def _facts(vm: VmStatus, now: float, palette: Palette, zone: tzinfo | None) -> Iterator[tuple[str, str]]:
    yield "summary", vm.summary
    yield "state", vm.state
    yield "health", health_paint(vm, vm.health, palette)
    for label, text in _numbered("reason", vm.reasons):
        yield label, text
    for label, text in _numbered("to do", [*dict.fromkeys(each for each in (vm.remedy, *vm.remedies) if each)]):
        yield label, palette.strong(text)
    if vm.waiting and vm.waiting not in vm.reasons:
        yield "to come", vm.waiting
    if vm.verify is not None and (vm.verify.running or vm.verify.last is not None or vm.verify.next_time is not None):
        yield "verified", verified_text(vm.verify, now, zone)
    for label, text in _numbered("cause", [f"{time_text(each.time, zone)}  {each.text}" for each in vm.causes]):
        yield label, text
    if vm.failover is not None:
        yield "failed over", _failover(vm.failover, zone)
    if vm.fenced:
        yield "fenced", vm.fenced
    elif vm.planned is not None:
        yield "planned", f"{vm.planned.step}: {vm.planned.text}"
    yield "interval", duration_text(vm.interval_seconds)
    if vm.lag_seconds is not None and not is_failed_over_to(vm):
        pending = "" if vm.pending_bytes is None else f", {size_text(vm.pending_bytes)} {_pending_words(vm)}"
        yield "behind", duration_text(vm.lag_seconds) + pending
    for label, cut in _cuts(vm):
        yield label, f"{cut.segment}" if cut.time is None else f"{cut.segment} of {time_text(cut.time, zone)}"
    yield "link", _link(vm, now)
    for each in vm.link.certificates:
        if each.what == "peer":
            yield "certificate", f"{each.subject}, from {each.issuer}, until {time_text(each.not_after_time, zone)}"
    if vm.tap is not None:
        yield "tap", _tap(vm.tap)
    for label, text in _numbered("disk", [_disk(disk) for disk in vm.disks]):
        yield label, text
    for label, text in _numbered("not replicated", vm.excluded_disks):
        yield label, text
    # What was promoted may lack disks that the newest point has.
    kind, points = ("removed disk", "older") if vm.failover is None else ("other disk", "other")
    for label, text in _numbered(kind, [f"{_disk(disk)}, for {points} points" for disk in vm.former_disks]):
        yield label, text
    shown = {disk.uri for disk in vm.disks}
    for label, text in _numbered("served at", [uri for uri in vm.uris if uri not in shown]):
        yield label, text
    if vm.older_points:
        oldest = "" if vm.oldest_point_time is None else f", the oldest of {time_text(vm.oldest_point_time, zone)}"
        pinned = f"; {vm.points_pinned} pinned" if vm.points_pinned else ""
        yield "points", f"{vm.older_points} older{oldest}; they take {size_text(vm.points_bytes)}{pinned}"
    if vm.test_failover is not None:
        test = vm.test_failover
        text = test.error or f"{test.name}, point {test.point}, since {time_text(test.started_time, zone)}"
        yield "test", f"{text}; to end it: vmreplica failover {vm.name} --test --stop"
    if vm.proof is not None:
        yield "read", _proof(vm.proof, zone)
    if vm.seeded:
        yield "seed", "a copy from elsewhere was imported; the initial replication compares all of it"
    if vm.export_folder:
        yield "courier", f"{vm.export_folder}, {'complete' if vm.export_complete else 'being written'}"
    for label, text in _numbered("export", [_export(export) for export in vm.exports]):
        yield label, text
    if vm.consistency is not None and vm.consistency.setting != "none":
        yield "freezing", _freezing(vm.consistency, zone)
    if vm.definition is not None and vm.definition.files:
        size = sum(file.size_bytes for file in vm.definition.files)
        kept = "kept at the replica" if vm.definition.kept and vm.role == "primary" else ""
        count = f"{len(vm.definition.files)} file(s), {size_text(size)}"
        yield "definition", "  ".join(part for part in (vm.definition.setting, count, kept) if part)
    if vm.epoch:
        yield "epoch", vm.epoch
    yield "uuid", vm.uuid
    if vm.folder:
        yield "folder", vm.folder
    if vm.store_free_bytes is not None:
        full = vm.store_full_seconds
        soon = "" if full is None else f", full in {duration_text(full)} at the rate of the last hour"
        yield "volume", f"{size_text(vm.store_free_bytes)} free{soon}"
    if vm.quota_limit_bytes is not None and vm.quota_used_bytes is not None:
        full = vm.quota_full_seconds
        soon = "" if full is None else f", full in {duration_text(full)} at the rate of the last hour"
        yield "quota", f"{size_text(vm.quota_used_bytes)} of {size_text(vm.quota_limit_bytes)} used{soon}"


def _numbered(label: str, texts: list[str]) -> Iterator[tuple[str, str]]:
    """The label beside the first text only."""
    return ((label if at == 0 else "", text) for at, text in enumerate(texts))


def _pending_words(vm: VmStatus) -> str:
    return "not yet acknowledged" if vm.role == "primary" else "not yet applied"


def _cuts(vm: VmStatus) -> Iterator[tuple[str, CutStatus]]:
    newest = "newest cut" if vm.role == "primary" else "received"
    for label, cut in ((newest, vm.newest_cut), ("acknowledged", vm.acked_cut), ("applied", vm.applied_cut)):
        if cut is not None and not (label == "acknowledged" and vm.role == "replica"):
            yield label, cut
    if vm.application_cut is not None:
        yield "consistent", vm.application_cut


def _link(vm: VmStatus, now: float) -> str:
    link = vm.link
    peer = f" to {link.peer}" if link.peer else ""
    traffic = f"{size_text(link.bytes_sent)} sent, {size_text(link.bytes_received)} received"
    damaged = f"data was damaged on its way {_times(link.damaged)}"
    if link.connected:
        told = f"; {damaged}" if link.damaged else ""
        return f"{link_text(vm, now)}{peer}, {traffic}{told}"
    parts = [f"{link_text(vm, now) or 'down'}{peer}"]
    if link.last_error:
        parts.append(link.last_error.rstrip("."))
    if link.last_error and not link.retryable:
        parts.append("it does not heal by itself")
    if link.next_attempt_seconds is not None:
        parts.append(f"next attempt in {duration_text(link.next_attempt_seconds)}")
    elif link.attempts:
        parts.append("trying now")
    if link.damaged:
        parts.append(damaged)
    return "; ".join(parts)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _tap(tap: TapStatus) -> str:
    if not tap.running:
        return f"not running: {tap.error}" if tap.error else "not running"
    log = f"log {size_text(tap.log_used_bytes)} of {size_text(tap.log_limit_bytes)}"
    lost = f" ({tap.lost_text or tap.lost_reason})" if tap.tracking == "lost" else ""
    clients = f"{tap.clients} client{'' if tap.clients == 1 else 's'}"
    written = f"{size_text(tap.bytes_written)} written"
    older = f"; runs version {tap.version}, the agent's from its next start on" if tap.outdated else ""
    return f"process {tap.pid}, tracking {tap.tracking}{lost}, {log}, {written}, {clients}{older}"


def _disk(disk: DiskStatus) -> str:
    device = "(block device)" if disk.block_device else ""
    parts = [f"{disk.index}", size_text(disk.size_bytes), disk.path, device, disk.uri or disk.export]
    return "  ".join(part for part in parts if part)


def _export(export: ExportStatus) -> str:
    if export.error:
        return f"{export.id}  cut {export.cut.segment}  not readable: {export.error}"
    held = f"  (keeps {size_text(export.held_bytes)} of undo logs)" if export.held_bytes else ""
    full = ", and finds no room for more" if export.full else ""
    written = f"  (writable: {size_text(export.written_bytes)} written{full})" if export.writable else ""
    return f"{export.id}  cut {export.cut.segment}  {'  '.join(export.uris)}{written}{held}"


def _failover(failover: FailoverStatus, zone: tzinfo | None) -> str:
    cut = f", to cut {failover.cut.segment}" if failover.cut is not None else ""
    if failover.undoing:
        stands = "being undone"
    elif failover.undoable:
        stands = f"not committed; {size_text(failover.written_bytes)} written since, beside the disks"
    elif failover.layered:
        settled, total = size_text(failover.settled_bytes), size_text(failover.settling_bytes)
        stands = f"committed; {settled} of about {total} has settled in the disks"
    else:
        stands = "kept for good"
    return f"{time_text(failover.time, zone)}{cut}; {stands}"


def _proof(proof: PointProof, zone: tzinfo | None) -> str:
    if proof.running:
        return f"point {proof.point}, {size_text(proof.done_bytes)} of {size_text(proof.total_bytes)} now"
    when = f" at {time_text(proof.ended_time, zone)}" if proof.ended_time is not None else ""
    return f"point {proof.point}{when}, {proof.outcome}: {proof.text}"


def _freezing(cuts: ConsistencyStatus, zone: tzinfo | None) -> str:
    parts = [cuts.setting, f"every {cuts.hours} h" if cuts.hours else "by order only"]
    if cuts.last_frozen_seconds is not None:
        parts.append(f"the guest was frozen for {duration_text(cuts.last_frozen_seconds)}")
    if failed := sum(cuts.failures_since_start.values()):
        parts.append(f"failed {_times(failed)} of {failed + cuts.taken_since_start} since the agent started")
    if cuts.next_time is not None:
        parts.append(f"next at {time_text(cuts.next_time, zone)}")
    return ", ".join(parts)
