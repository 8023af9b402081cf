"""Defences to take out, one at a time: for each row of docs/fault-matrix.md, a test must then fail.

``python -m tests.faults.defences`` runs them all, each in a pytest of its own, and prints what each test said. The
environment variable VMR_DEFENCE_OUT names the defence; ``outside/sitecustomize.py`` takes it out of every process that
the test starts, and so of the real agents and taps, too.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUTSIDE = Path(__file__).with_name("outside")
SWITCH = "VMR_DEFENCE_OUT"

Make = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Defence:
    """What is taken out: ``place`` is ``module:Class.attribute``, ``make`` its replacement from the original.

    ``test`` is what must fail without it; with ``quick`` that takes no more than some seconds.
    """

    row: str
    text: str
    place: str
    make: Make
    test: str
    quick: bool = False


def nothing(_original: Any) -> Any:
    return lambda *_args, **_options: None


def says(value: Any) -> Make:
    """Always this answer."""
    return lambda _original: lambda *_args, **_options: value


def forgives(original: Any) -> Any:
    """Errors of the system are taken for success."""

    def call(*args: Any, **options: Any) -> Any:
        try:
            return original(*args, **options)
        except OSError:
            return None

    return call


def retries(original: Any) -> Any:
    """What failed is tried once more, and then counts."""

    def call(*args: Any, **options: Any) -> Any:
        try:
            return original(*args, **options)
        except OSError:
            return original(*args, **options)

    return call


def leaves_the_rest(_original: Any) -> Any:
    """A write that was cut short counts as whole."""

    def write(file: Any, offset: int, data: Any) -> None:
        os.pwrite(file._descriptor, data, offset)

    return write


def leaves_the_rest_of_many(_original: Any) -> Any:
    def write(file: Any, offset: int, buffers: Any) -> int:
        os.pwritev(file._descriptor, buffers, offset)
        return sum(memoryview(buffer).nbytes for buffer in buffers)

    return write


def goes_by_the_wall(_original: Any) -> Any:
    import time

    return lambda _clock: time.time()


def an_error(_original: Any) -> Any:
    """Something else than a lack of space."""
    return lambda volume, *_rest: OSError(errno.EIO, "an error", volume)


def zeroes_for_what_cannot_be_read(original: Any) -> Any:
    def read(file: Any, offset: int, buffer: Any) -> int:
        try:
            return int(original(file, offset, buffer))
        except OSError:
            return len(buffer)

    return read


def gives_up(_original: Any) -> Any:
    async def give_way(_history: Any, _reason: str) -> bool:
        return False

    return give_way


def forgets_the_beginning(original: Any) -> Any:
    """A header that has come in part only is thrown away."""

    def received(reader: Any, count: int) -> Any:
        frames = original(reader, count)
        if reader._frame is None:
            reader._fill = 0
        return frames

    return received


def takes_what_was_received(_original: Any) -> Any:
    return lambda spool, _header: (spool._cursor.copy(), False)


def ends_at_once(_original: Any) -> Any:
    return lambda link, error: link._fail(error)


def does_not_wait(_original: Any) -> Any:
    async def wait(*_args: Any) -> None:
        import asyncio

        await asyncio.sleep(0)

    return wait


def no_name(_original: Any) -> Any:
    from shared.errors import UnreachableError

    return lambda address, **_options: UnreachableError(f"TLS with {address} failed.")


def believes_lengths(original: Any) -> Any:
    """Whatever a header claims is received."""

    def decode(reader: Any, at: int) -> Any:
        import protocol.frames

        most = 1 << 32
        reader.limit = most
        protocol.frames.PAYLOAD_CAPS = dict.fromkeys(protocol.frames.PAYLOAD_CAPS, most)
        return original(reader, at)

    return decode


def stays_where_it_is(_original: Any) -> Any:
    """Every message is allowed in every state."""
    return lambda session, _sender, _kind: session.state


def takes_what_is_wrong(original: Any) -> Any:
    """What breaks the protocol counts as nothing."""

    def call(*args: Any, **options: Any) -> Any:
        from protocol.errors import ProtocolError

        try:
            return original(*args, **options)
        except ProtocolError:
            return None

    return call


def without_a_bound(_original: Any) -> Any:
    def decompress(data: Any, _raw_length: int) -> bytes:
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)

    return decompress


def lets_all_in(_original: Any) -> Any:
    def begin(admission: Any, connection: Any, host: str) -> None:
        admission._half_open[connection] = host

    return begin


def without_a_key(_original: Any) -> Any:
    import xxhash

    return lambda _name, _key: xxhash.xxh3_128_digest


TAP = "tests/faults/test_tap_storage.py::"
PAIR = "tests/faults/test_pair_storage.py::"
UNIT = "tests/unit/tap/"
COPY = "tests/unit/replica/"
BREAKS = "tests/pair/test_links_breaks.py::"
SILENCE = "tests/pair/test_links_silence.py::"
NETWORK = "tests/pair/test_links_network.py::"
RECOVERY = "primary_agent.tap.recovery:"


def with_context(change: Callable[[ssl.SSLContext], None]) -> Make:
    """TLS contexts as they are made, and then changed."""

    def make(original: Any) -> Any:
        def context(*args: Any) -> ssl.SSLContext:
            made: ssl.SSLContext = original(*args)
            change(made)
            return made

        return context

    return make


def certificate_is_optional(context: ssl.SSLContext) -> None:
    context.verify_mode = ssl.CERT_OPTIONAL


def verifies_nothing(context: ssl.SSLContext) -> None:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE


def asks_no_list(context: ssl.SSLContext) -> None:
    context.verify_flags &= ~ssl.VERIFY_CRL_CHECK_LEAF


def accepts_older_versions(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2


def sends_tickets(context: ssl.SSLContext) -> None:
    context.options &= ~ssl.OP_NO_TICKET
    with contextlib.suppress(ValueError):
        # Only a server has them.
        context.num_tickets = 2


def _end_of_any_stream() -> Any:
    from shared.ports.links import StreamLink

    return StreamLink._finish


START = "primary_agent.tap.start:"

TLS = "tests/unit/ports/test_tls_links.py::"
TRUST = "tests/unit/ports/test_tls_trust.py::"

DEFENCES = {
    "certificate_optional": Defence(
        "A1", "a client may come without a certificate", "shared.ports.tls:_context",
        with_context(certificate_is_optional), f"{TLS}test_client_without_certificate",
    ),
    "any_certificate": Defence(
        "A2, A3", "whatever a server shows is taken", "shared.ports.tls:_context", with_context(verifies_nothing),
        f"{TLS}test_wrong_certificate_of_a_server",
    ),
    "no_list": Defence(
        "A4", "the revocation list is not asked", "shared.ports.tls:_context", with_context(asks_no_list),
        f"{TLS}test_revoked_client_is_refused",
    ),
    "judged_once": Defence(
        "A4, A9", "what was accepted once is accepted for ever", "shared.ports.tls_trust:TlsTrust.objection", nothing,
        f"{TRUST}test_certificate_that_was_revoked", quick=True,
    ),
    "list_loaded_once": Defence(
        "A4", "a changed list is not noticed", "shared.ports.network:RealNetwork._look_at_crl", says(()),
        f"{TRUST}test_changed_list_is_noticed",
    ),
    "any_usage": Defence(
        "A5", "usages are not looked at beside OpenSSL", "shared.certificates:missing_usages", says(()),
        f"{TLS}test_certificate_for_one_role_only",
    ),
    "any_vm": Defence(
        "A6", "an entry allows every VM", "replica_agent.authorize:Grant.allows", says(True),
        f"{COPY}test_sessions.py::test_unknown_and_forbidden_vm_get_the_same_answer",
    ),
    "older_tls": Defence(
        "A7", "TLS 1.2 is accepted", "shared.ports.tls:_context", with_context(accepts_older_versions),
        f"{TLS}test_older_version_is_refused",
    ),
    "tickets": Defence(
        "A8", "sessions may be resumed", "shared.ports.tls:_context", with_context(sends_tickets),
        f"{TLS}test_no_session_can_be_resumed",
    ),
    "removed_ca_stays": Defence(
        "A9", "a CA that was removed still counts for sessions", "shared.ports.tls_trust:TlsTrust._anchored",
        lambda _original: lambda _trust, chain: list(chain), f"{TRUST}test_ca_that_was_removed",
    ),
    "any_version": Defence(
        "A22", "whatever version a replica chooses is spoken", "protocol.session:PrimarySession._meet", nothing,
        "tests/unit/protocol/test_session.py::test_welcome_that_was_not_offered_is_refused",
    ),
    "cut_is_an_end": Defence(
        "A23", "an end without close_notify is an orderly one", "shared.ports.tls_links:TlsLink._finish",
        lambda _original: _end_of_any_stream(),
        f"{COPY}test_greeting.py::test_stream_that_is_cut_in_the_middle_of_a_segment",
    ),
    "any_acknowledgement": Defence(
        "A25", "what the replica acknowledges is believed", "primary_agent.streaming:CutLedger.acknowledge", says([]),
        "tests/unit/primary/test_cut_ledger.py::test_an_acknowledgement_of_what_was_not_sent_is_refused",
    ),
    "no_witness": Defence(
        "P1", "what a kill left in doubt is not looked at", f"{START}still_in_doubt", says({}),
        f"{UNIT}test_crashes.py::test_killed_at_some_places",
    ),
    "same_boot": Defence(
        "P2", "a start after power loss takes itself for one after a kill", f"{START}lost_power", says(False),
        f"{UNIT}test_crashes.py::test_power_loss_ends_in_resync_required", quick=True,
    ),
    "no_hot_regions": Defence(
        "P2", "the hot regions are not compared", "shared.map_file:MapFile.ranges", says(()),
        "tests/faults/test_crash_states.py::test_every_state_of_a_tap_is_recovered_from",
    ),
    "full_is_an_error": Defence(
        "P3", "a log that is full is the guest's error", "primary_agent.tap.tracker:Tracker.lose", nothing,
        f"{UNIT}test_faults.py::test_log_that_cannot_be_written", quick=True,
    ),
    "short_write": Defence(
        "P4", "the rest of a write that was cut short is left out", "shared.ports.files:RealFile.write",
        leaves_the_rest, f"{TAP}test_write_that_is_cut_short_is_completed",
    ),
    "short_writes": Defence(
        "P4", "the same of a write of several buffers", "shared.ports.files:RealFile._write_vector",
        leaves_the_rest_of_many, f"{TAP}test_write_that_is_cut_short_is_completed",
    ),
    "log_sync_retried": Defence(
        "P5", "a failed sync is tried again", "shared.ports.files:RealFile.sync", retries,
        f"{TAP}test_log_whose_sync_fails_once_is_never_trusted_again",
    ),
    "disk_sync_retried": Defence(
        "P6", "a failed sync is tried again", "shared.ports.files:RealFile.sync", retries,
        f"{TAP}test_disk_whose_sync_fails_once_says_so_for_ever", quick=True,
    ),
    "no_log_checksum": Defence(
        "P7-P10", "records are taken without their checksum", "protocol.chain:check_chain", nothing,
        "tests/unit/test_hrl_files.py",
    ),
    "cut_told_early": Defence(
        "P11", "syncs return at once", "shared.ports.files:RealFile.sync", nothing,
        f"{TAP}test_disk_that_stalls_holds_cuts_up_and_nothing_more",
    ),
    "unreadable_is_zero": Defence(
        "P12", "what can't be read counts as zeroes", "tests.unit.replica.failing:FailingFile.read_into",
        zeroes_for_what_cannot_be_read,
        f"{COPY}test_failures.py::test_part_of_the_copy_that_can_not_be_read_is_sent_anew",
    ),
    "nothing_differs": Defence(
        "P13, R6", "a compare finds no difference", "primary_agent.detail:RangeDifferences.spans", says([]),
        f"{PAIR}test_rot_in_the_copy_is_found_by_the_next_whole_compare",
    ),
    "log_loss_forgiven": Defence(
        "P14", "a log that can't be read counts as empty", "primary_agent.tap.map_tracking:read_changes",
        lambda _original: lambda *_args, **_options: _no_changes(),
        "tests/pair/test_tap_refusals.py::test_log_folder_that_vanishes",
    ),
    "leak": Defence(
        "P15", "files are not closed", "shared.ports.files:RealFile.close", nothing,
        f"{TAP}test_open_that_fails_is_a_clean_error_and_leaks_nothing",
    ),
    "edits_unseen": Defence(
        "P16, P18", "the disks' stamps are not compared", f"{START}check_disks", nothing,
        f"{UNIT}test_starting.py::test_replaced_disk", quick=True,
    ),
    "edits_under_tap_unseen": Defence(
        "P17", "the running tap does not look", "primary_agent.tap.watch:Watch.check_unchanged", nothing,
        f"{UNIT}test_starting.py::test_disk_edited_under_the_running_tap", quick=True,
    ),
    "sizes_unseen": Defence(
        "P19", "another size is not taken note of", "primary_agent.tap.watch:Watch._note_size", nothing,
        f"{UNIT}test_resized.py::test_a_size_is_noticed_behind_a_write_that_hides_the_time", quick=True,
    ),
    "wall_timers": Defence(
        "P20", "durations go by the wall clock", "shared.ports.clock:RealClock.monotonic", goes_by_the_wall,
        "tests/faults/test_clock_and_memory.py::test_clock_that_steps_changes_nothing",
    ),
    "killed_unseen": Defence(
        "P21", "what a kill left in doubt is not looked at", f"{START}_take_up", nothing,
        "tests/faults/test_clock_and_memory.py::test_killed_for_its_memory_is_killed",
    ),
    "no_limit": Defence(
        "P22", "the log's limit is not kept", "primary_agent.tap.log_files:LogFiles._most",
        lambda _original: property(lambda _files: 10_000),
        f"{UNIT}test_faults.py::test_log_that_is_full",
    ),
    "full_is_a_failure": Defence(
        "R3", "a full volume of the replica is an error like any other", "replica_agent.space:no_space", an_error,
        "tests/pair/test_replica_full.py::test_full_volume_pauses_a_resync_and_it_goes_on",
    ),
    "points_keep_their_room": Defence(
        "R4", "older points never make room", "replica_agent.history:History.give_way", gives_up,
        f"{COPY}test_points.py::test_the_oldest_points_make_room_and_replication_goes_on", quick=True,
    ),
    "merge_sync_forgiven": Defence(
        "R5", "a failed sync of the disks counts", "replica_agent.disks:BaseDisks.sync", forgives,
        f"{PAIR}test_failed_sync_in_a_merge_is_not_told_and_everything_is_sent_anew",
    ),
    "no_retry": Defence(
        "N1", "a link that is lost is not dialled again soon", "primary_agent.session_loop:_heals", says(False),
        f"{BREAKS}test_cut_in_the_middle_of_a_frame",
    ),
    "no_retry_of_many": Defence(
        "N14", "the same, of twenty sessions", "primary_agent.session_loop:_heals", says(False),
        "tests/pair/test_links_many.py::test_many_sessions_that_stall_at_random",
    ),
    "no_deadline": Defence(
        "N2-N4", "a peer that is silent is waited for", "shared.channel:Channel._overdue", says(""),
        f"{SILENCE}test_black_hole",
    ),
    "resent_only": Defence(
        "N4, N7", "nothing is sent before the last cut was acknowledged",
        "primary_agent.streaming:MAX_UNACKNOWLEDGED_CUTS", lambda _original: 1,
        f"{SILENCE}test_only_the_acknowledgements_are_lost",
    ),
    "steady_attempts": Defence(
        "N5", "every wait is as long as the one before", "primary_agent.session_loop:SessionLoop._next_delay",
        says(0.1), f"{BREAKS}test_attempts_back_off_with_jitter_and_are_shown", quick=True,
    ),
    "log_left_open": Defence(
        "N5", "a session that ends leaves the log open", "primary_agent.streaming:LogSender.close", nothing,
        f"{BREAKS}test_link_that_flaps",
    ),
    "slow_link_is_an_error": Defence(
        "N6", "a log that is full is the guest's error", "primary_agent.tap.tracker:Tracker.lose", nothing,
        f"{NETWORK}test_link_that_is_slower_than_the_guest_writes",
    ),
    "unread_forgiven": Defence(
        "N8", "a peer that does not read is kept", "shared.channel:Channel._is_unread", says(False),
        f"{SILENCE}test_peer_that_reads_a_byte_a_second",
    ),
    "no_back_pressure": Defence(
        "N8", "a sender does not wait for room in the queue", "shared.ports.links:StreamLink.drain", does_not_wait,
        f"{SILENCE}test_peer_that_reads_a_byte_a_second",
    ),
    "damage_unnamed": Defence(
        "N9", "damage is a failure like any other", "shared.ports.tls_refusals:damaged", no_name,
        f"{BREAKS}test_bit_that_flips_on_the_way",
    ),
    "no_alert": Defence(
        "N9", "the peer gets no alert", "shared.ports.tls_links:TlsLink._give_up", ends_at_once,
        f"{BREAKS}test_bit_that_flips_on_the_way",
    ),
    "parts_are_lost": Defence(
        "N10", "part of a header is thrown away", "protocol.frames:FrameReader.buffer_updated", forgets_the_beginning,
        "tests/unit/protocol/test_splits.py::test_every_split_into_two_gives_the_same", quick=True,
    ),
    "stale_taken": Defence(
        "N11", "what was received is not known again", "replica_agent.spool:Spool._place", takes_what_was_received,
        f"{COPY}test_order.py::test_segments_that_come_again_are_acknowledged_and_nothing_more", quick=True,
    ),
    "gaps_taken": Defence(
        "N12", "order and chain of the log are not looked at", "protocol.chain:Cursor.follow", nothing,
        f"{COPY}test_order.py::test_gap_is_refused_and_the_log_without_it_goes_on",
    ),
    "older_session_stays": Defence(
        "N13", "an older session is not ended", "replica_agent.connections:Connections._end_all", does_not_wait,
        f"{COPY}test_order.py::test_reconnect_while_the_merge_of_an_older_session_runs",
    ),
    "no_caps": Defence(
        "A10", "lengths are believed", "protocol.frames:FrameReader._decode_header", believes_lengths,
        "tests/unit/protocol/test_frames.py::test_claimed_length_takes_no_memory", quick=True,
    ),
    "any_order": Defence(
        "A11", "messages are taken in any order", "protocol.session:Session._following", stays_where_it_is,
        "tests/unit/protocol/test_session.py::test_message_is_accepted_or_refused_as_the_table_says",
    ),
    "any_manifest": Defence(
        "A12", "a manifest that does not add up is taken", "protocol.bulk:decode_manifest", takes_what_is_wrong,
        "tests/unit/protocol/test_bulk.py::test_wrong_manifest_is_refused_as_a_whole",
    ),
    "no_bound": Defence(
        "A13", "decompressing has no bound", "protocol.compression:decompress", without_a_bound,
        "tests/unit/protocol/test_compression.py::test_bomb_that_understates_its_size_is_refused",
    ),
    "any_name": Defence(
        "A14", "names are not looked at", "replica_agent.sessions:_judge_names", nothing,
        f"{COPY}test_sessions.py::test_name_of_a_vm_leads_nowhere",
    ),
    "planted_taken": Defence(
        "A15", "who owns a VM's folder, and who may write there, does not matter",
        "shared.ports.store:require_own_folder", nothing,
        f"{COPY}test_planted.py::test_planted_vm_is_named_and_left_alone",
    ),
    "links_of_others": Defence(
        "A26", "links are followed in anybody's folder", "shared.ports.beneath:_Walk._is_trusted", says(True),
        "tests/unit/ports/test_beneath.py::test_folder_that_became_a_link_leads_nowhere", quick=True,
    ),
    "half_open_pile_up": Defence(
        "A16", "half-open connections have no limit", "shared.ports.admission:Admission.begin", lets_all_in,
        "tests/unit/ports/test_tls_links.py::test_half_open_connections_are_capped_and_a_peer_still_gets_in",
    ),
    "no_rate": Defence(
        "A17", "an address may fail as often as it likes", "shared.ports.admission:Admission.may_try", says(True),
        "tests/unit/ports/test_admission.py::test_address_over_its_rate_is_ended_unheard_and_another_gets_in",
        quick=True,
    ),
    "known_hash": Defence(
        "A18", "blocks are compared by a hash without a key", "shared.disks.hashing:_tagger", without_a_key,
        "tests/unit/primary/test_detail.py::test_blocks_with_equal_xxh3_are_found_and_sent",
    ),
    "anybody_orders": Defence(
        "A19", "whoever gets to the admin socket may do everything", "shared.admin.access:Access.__call__", nothing,
        "tests/unit/admin/test_access.py::test_everybody_else_is_refused", quick=True,
    ),
    "any_depth": Defence(
        "A20", "messages may be nested as deep as they like", "shared.admin.codec:depth", says(0),
        "tests/unit/admin/test_codec.py::test_depth_at_the_limit_is_taken_and_one_deeper_refused",
    ),
    "open_key": Defence(
        "A21", "a private key that others may read is taken", "shared.ports.tls:_check_key_mode", nothing,
        "tests/unit/ports/test_tls.py::test_key_that_others_may_use_is_refused",
    ),
    "no_row_digests": Defence(
        "A24", "records have no checksum", "shared.ports.store_file:record_digest", says(bytes(16)),
        "tests/unit/ports/test_store.py::test_rows_that_were_meddled_with_are_found",
    ),
    "orders_meet_what_ends": Defence(
        "F1", "an order takes what is about to end", "replica_agent.reopening:Reopening._ending", nothing,
        f"{COPY}test_undo_failover.py::test_an_order_that_comes_during_an_undo_meets_the_vm_as_it_is_afterwards",
    ),
    "fence_stays": Defence(
        "F2", "a fence stays after an undo", "primary_agent.unfencing:is_undone", says(False),
        "tests/unit/primary/test_unfencing.py::test_lifts",
    ),
    "lifts_for_anything": Defence(
        "F3", "whatever does not refuse lifts a fence", "primary_agent.unfencing:is_undone", says(True),
        "tests/unit/primary/test_unfencing.py::test_waits_for_an_administrator",
    ),
    "present_disks_are_served": Defence(
        "F4", "a failover serves the newest disks", "replica_agent.promoted_layers:promoted_disks",
        lambda _original: lambda vm, _record: vm.disks,
        f"{COPY}test_disk_sets.py::test_a_failover_to_a_point_of_other_disks_serves_these_and_is_undone_or_settles",
    ),
    "nothing_set_aside": Defence(
        "F5", "the loser's content is a point like any other", "replica_agent.handing_over:set_aside",
        lambda original: lambda points, *rest: original(type(points)(), *rest),
        "tests/pair/test_reverse.py::test_split_brain_is_named_and_resolved_for_either_side",
    ),
    "standing_cut_passed": Defence(
        "F6", "a verify waits for a later cut", "replica_agent.verify:VerifyConnection._is_prepared", says(False),
        "tests/pair/test_planned.py::test_planned_failover_loses_nothing_and_its_primary_learns_of_it",
    ),
}  # fmt: skip


def _no_changes() -> Any:
    from primary_agent.tap.changes import LoggedChanges

    return LoggedChanges(0)


def take_out(name: str) -> None:
    """Take a defence out of this process, for good."""
    defence = DEFENCES[name]
    module, _, path = defence.place.partition(":")
    owner = importlib.import_module(module)
    *classes, attribute = path.split(".")
    for one in classes:
        owner = getattr(owner, one)
    setattr(owner, attribute, defence.make(vars(owner)[attribute]))


def run_without(name: str) -> subprocess.CompletedProcess[str]:
    """Run the defence's test without it."""
    defence = DEFENCES[name]
    path = ":".join(filter(None, [str(OUTSIDE), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", defence.test]
    environment = {**os.environ, SWITCH: name, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    missed = 0
    for name in sys.argv[1:] or DEFENCES:
        defence = DEFENCES[name]
        result = run_without(name)
        missed += result.returncode != 1
        last = [line for line in result.stdout.splitlines() if line.startswith("E  ")][:1]
        print(f"{defence.row:8} {name:24} {'seen' if result.returncode == 1 else 'NOT SEEN'} {last}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
