"""Every cut, not merely the last one: what the replica exports is what the client had written, over both disks."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pair.content import SECTOR, content
from tests.pair.hosts import MIB, VM, Hosts, Status, compare
from tests.pair.journal import Journal, NotACutError
from tests.places import is_thorough

CUTS = 10 if is_thorough() else 5
WRITES = 200
"""Writes at least between two cuts."""


def applied_beyond(segment: int) -> Callable[[Status], bool]:
    return lambda vm: vm["applied_cut"] is not None and vm["applied_cut"]["segment"] > segment


def wrote_more(hosts: Hosts) -> None:
    """Wait until the client has written a lot more."""
    before = hosts.tap("status")["writes"]
    hosts.wait("writes", "primary", lambda vm: vm["tap"]["writes"] >= before + WRITES)


def read_out(hosts: Hosts, export: Status) -> list[Path]:
    """The images of an export, as an NBD client reads them."""
    images = []
    for index, uri in enumerate(export["uris"]):
        image = hosts.folder / f"export-{export['id']}-{index}.raw"
        subprocess.run(["nbdcopy", uri, str(image)], check=True)
        images.append(image)
    return images


def keep(hosts: Hosts, shadows: list[Path], number: int) -> list[Path]:
    """A copy of the shadows."""
    kept = [hosts.folder / f"kept-{number}-{index}.raw" for index, _ in enumerate(shadows)]
    for shadow, copy in zip(shadows, kept, strict=True):
        subprocess.run(["cp", str(shadow), str(copy)], check=True)
    return kept


@dataclasses.dataclass
class Kept:
    """An export that is still served, and what it has to show."""

    export: Status
    expected: list[Path]

    def check(self, hosts: Hosts) -> None:
        for image, expected in zip(read_out(hosts, self.export), self.expected, strict=True):
            compare(image, expected)

    def end(self, hosts: Hosts) -> None:
        hosts.call("replica", "vm.unexport", vm=VM, id=self.export["id"])
        for path in self.expected:
            path.unlink()


@pytest.mark.slow
def test_every_cut_is_the_clients_shadow_also_while_later_ones_are_applied(hosts: Hosts) -> None:
    """I1, I2, R37: exports are read at once, and again when later cuts were applied under the next writes."""
    hosts.replicate(16 * MIB, 5 * MIB)
    writer = hosts.start_writer(31, depth=16)
    former: Kept | None = None
    segments = []
    for number in range(CUTS):
        writer.go()
        wrote_more(hosts)
        if former is not None:
            hosts.wait("a later cut", "replica", applied_beyond(former.export["cut"]["segment"]))
            former.check(hosts)
        writer.settle()
        hosts.caught_up()
        present = Kept(hosts.call("replica", "vm.export", vm=VM), keep(hosts, writer.shadows, number))
        if number % 2 == 0:
            # Every other export is first read when the disks have moved on.
            present.check(hosts)
        if former is not None:
            former.check(hosts)
            former.end(hosts)
        former = present
        segments.append(present.export["cut"]["segment"])
    assert segments == sorted(set(segments))
    hosts.assert_same(writer.shadows)
    assert former is not None
    former.check(hosts)


@pytest.mark.slow
def test_cuts_under_load_have_all_that_came_before_on_either_disk(hosts: Hosts) -> None:
    """I1, I2: nothing waits; each cut that is exported is judged by the journal of the client."""
    hosts.replicate(16 * MIB, 5 * MIB)
    bases = [disk.read_bytes() for disk in hosts.disks]
    writer = hosts.start_writer(32, depth=16, pause=0.001)
    writer.go()
    wrote_more(hosts)
    cuts: list[tuple[Status, list[bytes]]] = []
    segment = hosts.caught_up()["applied_cut"]["segment"]
    while len(cuts) < CUTS:
        hosts.wait("a newer cut", "replica", applied_beyond(segment))
        export = hosts.call("replica", "vm.export", vm=VM)
        paths = read_out(hosts, export)
        cuts.append((export["cut"], [path.read_bytes() for path in paths]))
        hosts.call("replica", "vm.unexport", vm=VM, id=export["id"])
        for path in paths:
            path.unlink()
        segment = export["cut"]["segment"]
    journal = Journal(bases, writer.finish())
    newest = [journal.judge(images, cut["time"]) for cut, images in cuts]
    assert newest == sorted(set(newest))
    assert newest[0] > 0
    assert newest[-1] < journal.writes[-1].sent
    # The judge is not blind: one disk of the first cut and the other one of the last are no cut.
    with pytest.raises(NotACutError, match="overwritten by"):
        journal.judge([cuts[0][1][0], cuts[-1][1][1]])
    hosts.assert_same(writer.shadows)


# --- the judge itself --------------------------------------------------------------------------------------------


def write(disk: int, sent: int, done: int, offset: int = 0, *, kind: str = "data", length: int = 2) -> dict[str, Any]:
    """A line of a journal; ``offset`` and ``length`` in sectors."""
    return {
        "disk": disk, "kind": kind, "offset": offset * SECTOR, "length": length * SECTOR,
        "number": sent, "sent": sent, "done": done, "sent_ns": sent * 1_000_000, "done_ns": done * 1_000_000,
    }  # fmt: skip


BASES = [b"\1" * 8 * SECTOR, bytes(8 * SECTOR)]


def image_of(*lines: dict[str, Any]) -> list[bytes]:
    """Both disks after these writes."""
    images = [bytearray(base) for base in BASES]
    for line in lines:
        data = content(line["number"], line["length"]) if line["kind"] == "data" else bytes(line["length"])
        images[line["disk"]][line["offset"] : line["offset"] + line["length"]] = data
    return [bytes(image) for image in images]


@pytest.mark.quick
def test_write_whose_forerunner_on_the_other_disk_is_missing_is_no_cut() -> None:
    before, after = write(0, 1, 2), write(1, 3, 4)
    journal = Journal(BASES, [before, after])
    assert [journal.judge(image_of(*lines)) for lines in ([], [before], [before, after])] == [0, 1, 3]
    with pytest.raises(NotACutError, match=r"disk 0, sector 0 \(and 1 more\) shows what was there at the start"):
        journal.judge(image_of(after))


@pytest.mark.quick
def test_writes_under_way_at_the_same_time_may_be_there_or_not() -> None:
    one, other = write(0, 1, 3), write(1, 2, 4)
    journal = Journal(BASES, [one, other])
    assert [journal.judge(image_of(*lines)) for lines in ([], [one], [other], [one, other])] == [0, 1, 2, 2]


@pytest.mark.quick
def test_overwritten_data_that_comes_back_is_no_cut() -> None:
    old, new, witness = write(0, 1, 2), write(0, 3, 4, 1), write(1, 5, 6)
    journal = Journal(BASES, [old, new, witness])
    assert journal.judge(image_of(old, new, witness)) == 5
    assert journal.judge(image_of(old)) == 1
    with pytest.raises(NotACutError, match="disk 0, sector 1 .* shows Write"):
        journal.judge(image_of(old, witness))


@pytest.mark.quick
def test_zeroes_prove_no_more_than_they_must() -> None:
    old, zeroes, witness = write(0, 1, 2), write(0, 3, 4, kind="discard"), write(1, 5, 6)
    journal = Journal(BASES, [old, zeroes, witness])
    assert journal.judge(image_of(old, zeroes, witness)) == 5
    assert journal.judge(image_of(old, zeroes)) == 3
    with pytest.raises(NotACutError, match="disk 0"):
        journal.judge(image_of(old, witness))
    # On a disk that was zero the same zeroes prove nothing, unless data was there in between.
    data, zeroed, later = write(1, 1, 2), write(1, 3, 4, kind="zero"), write(0, 5, 6)
    journal = Journal(BASES, [data, zeroed, later])
    assert journal.judge(image_of()) == 0
    assert journal.judge(image_of(data, zeroed, later)) == 5
    with pytest.raises(NotACutError, match="disk 1"):
        journal.judge(image_of(data, later))


@pytest.mark.quick
def test_zeroes_may_be_what_proves_that_another_write_is_missing() -> None:
    first, zeroes = write(1, 1, 2), write(0, 3, 4, kind="zero")
    journal = Journal(BASES, [first, zeroes])
    with pytest.raises(NotACutError, match="disk 1"):
        journal.judge(image_of(zeroes))


@pytest.mark.quick
def test_what_nobody_wrote_is_no_cut() -> None:
    journal = Journal(BASES, [write(0, 1, 2)])
    images = image_of(write(0, 1, 2))
    for damage, words in ((b"\2" * SECTOR, "nobody wrote that"), (images[0][:SECTOR], "not as written")):
        with pytest.raises(NotACutError, match=words):
            journal.judge([images[0][:SECTOR] + damage + images[0][2 * SECTOR :], images[1]])
    with pytest.raises(NotACutError, match="nobody zeroed that"):
        journal.judge([bytes(8 * SECTOR), images[1]])
    with pytest.raises(NotACutError, match="nobody wrote number 0x7"):
        journal.judge(image_of(write(0, 7, 8)))
    with pytest.raises(NotACutError, match="not as written"):
        journal.judge([BASES[0][: 4 * SECTOR] + images[0][: 4 * SECTOR], images[1]])


@pytest.mark.quick
def test_cut_has_what_was_answered_before_its_time_and_nothing_that_was_sent_after() -> None:
    line = write(0, 1, 2)
    journal = Journal(BASES, [line])
    assert journal.judge(image_of(), 0.0015) == 0
    assert journal.judge(image_of(line), 0.0015) == 1
    with pytest.raises(NotACutError, match="sent after that"):
        journal.judge(image_of(line), 0.0005)
    with pytest.raises(NotACutError, match="shows what was there at the start"):
        journal.judge(image_of(), 0.003)
