"""What agents and taps find of their own at a start: the tap's state, its maps, and the records of a store."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from random import Random
from typing import Any
from unittest import mock

import msgpack
import msgspec
import numpy as np
import xxhash

import primary_agent.record as primary_record
import primary_agent.tap.state
import replica_agent.record as replica_record
import shared.map_file
from primary_agent.tap.dirty_map import DirtyMap, DirtyNote
from primary_agent.tap.hot_regions import HotNote
from primary_agent.tap.state import LogEnd, Loss, Stamp, StateFile, Status, TapState
from protocol.hrl import Geometry
from protocol.messages import ResyncKind
from protocol.position import NO_EPOCH
from shared.errors import StoreDamagedError
from shared.map_file import MapDamagedError, MapFile, MapKind
from shared.ports.store_rows import decode, encode
from shared.states import ReplicationState
from shared.status import VerifyResult
from shared.tap_control import LostReason, Tracking
from tests.fuzz.memory_files import MemoryFiles
from tests.fuzz.mutators import set_field, tweak
from tests.fuzz.naive import number
from tests.fuzz.target import Plant, Target
from tests.fuzz.targets.wire import change_value
from tests.vectors.logs import DISKS, EPOCH, OTHER_EPOCH, VM
from tests.vectors.maps import DIRTY_NOTE, HOT_NOTE

PAGE = 4096

# --- tap.state -----------------------------------------------------------------------------------------------------

STATE = "/tap/tap.state"
SLOT_MAGIC = b"VMRTAP\x01\n"
AN_END = TapState(
    vm=VM,
    status=Status.CLEAN,
    boot_id="b" * 36,
    tracking=Tracking.ON,
    epoch=EPOCH,
    first_file=7,
    loss=None,
    disks=[Stamp(0, 1, 2, 1 << 20, 3, 4), Stamp(3, 1, 5, 4 << 20, 6, 7)],
    end=LogEnd(9, 8192, 4, 100, bytes(16)),
)
LOST = msgspec.structs.replace(
    AN_END,
    status=Status.ACTIVE,
    tracking=Tracking.LOST,
    loss=Loss(LostReason.LOG_FULL, "the log is full", 1.5),
    end=None,
    doubt=True,
)


def slot_wrong(page: bytes) -> bool:
    """Whether docs/tap.md says that a slot is not valid, before its body is looked at."""
    if len(page) < PAGE or page[:8] != SLOT_MAGIC or number(page, 16, 4) > PAGE - 40:
        return True
    body = page[40 : 40 + number(page, 16, 4)]
    return bool(xxhash.xxh3_128(page[8:20] + body).digest() != page[24:40])


def slot_number(page: bytes) -> int:
    return number(page, 8, 8)


def slot_body(page: bytes) -> Any:
    return msgpack.unpackb(page[40 : 40 + number(page, 16, 4)], raw=False)


def agree(one: Any, other: Any) -> bool:
    """Whether two values are the same as far as both go."""
    if isinstance(one, list) and isinstance(other, list):
        return all(agree(*pair) for pair in zip(one, other, strict=False))
    return bool(one == other) or (one != one and other != other)  # noqa: PLR0124 - not a number


def fuzz_tap_state(content: bytes) -> None:
    """Damage is named and never taken for a state; what is sound is the newer slot; writing heals the file."""
    files = MemoryFiles({STATE: content})
    state_file, loaded = StateFile.open(files, STATE)
    slots = [content[:PAGE], content[PAGE : 2 * PAGE]]
    wrong = [slot_wrong(slot) for slot in slots]
    assert loaded.damage or not any(wrong), "a slot whose checksum is wrong was taken"
    if not loaded.damage or loaded.gap:
        assert loaded.state is not None
        newest = max(map(slot_number, slots))
        again = msgpack.unpackb(msgspec.msgpack.encode(loaded.state), raw=False)
        bodies = [slot_body(slot) for slot in slots if slot_number(slot) == newest]
        # A later version may have appended fields; this one has optional ones at the end.
        assert any(agree(body, again) for body in bodies)
        assert loaded.gap is (abs(slot_number(slots[0]) - slot_number(slots[1])) != 1)
    for place in range(64):
        witness = state_file.read_witness(place)
        record = content[2 * PAGE + 40 * place :][:40]
        right = len(record) == 40 and xxhash.xxh3_64(record[:32], place).intdigest() == number(record, 32, 8)
        assert (witness is not None) is right
    if max(map(slot_number, slots)) < (1 << 64) - 4:
        heal(state_file, files)


def heal(state_file: StateFile, files: MemoryFiles) -> None:
    for state in (LOST, AN_END):
        state_file.write(state)
    state_file.witness(1, 5, 6, 7, 8)
    again, loaded = StateFile.open(files, STATE)
    assert (loaded.damage, loaded.state) == ("", AN_END)
    assert again.read_witness(1) == primary_agent.tap.state.Witness(5, 6, 7, 8)


def made_slot(sequence: int, body: bytes) -> bytes:
    head = struct.pack("<QI", sequence, len(body))
    page = SLOT_MAGIC + head + bytes(4) + xxhash.xxh3_128(head + body).digest() + body
    return page.ljust(PAGE, b"\0")[:PAGE]


def made_state(first: int, second: int, one: TapState = LOST, other: TapState = AN_END) -> bytes:
    witness = struct.pack("<QQQQ", 1, 2, 3, 4)
    witnesses = b"".join(witness + struct.pack("<Q", xxhash.xxh3_64(witness, place).intdigest()) for place in range(2))
    slots = made_slot(first, msgspec.msgpack.encode(one)), made_slot(second, msgspec.msgpack.encode(other))
    return b"".join(slots) + witnesses.ljust(PAGE, b"\0")


def seeds_tap_state() -> Iterable[bytes]:
    yield made_state(4, 5)
    yield made_state(6, 5)
    yield made_state(8, 5)
    yield bytes(3 * PAGE)
    yield b""
    yield made_state(4, 5)[: PAGE + 100]
    yield made_slot(4, b"\x9a" + b"\x91" * 2000) + made_state(4, 5)[PAGE:]
    appended = msgspec.msgpack.encode([*msgspec.to_builtins(LOST, builtin_types=(bytes,)), "later"])
    yield made_slot(4, appended) + made_state(4, 5)[PAGE:]
    deep = msgspec.msgpack.encode(msgspec.to_builtins(LOST, builtin_types=(bytes,)))
    yield made_slot(4, b"\x9b" + deep[1:] + b"\x91" * 3000 + b"\xc0") + made_state(4, 5)[PAGE:]


def mutate_tap_state(content: bytes, random: Random) -> bytes:
    """Change a slot's number, body or length, or a witness, and put the checksum right."""
    if len(content) < 3 * PAGE or random.random() < 0.1:
        return tweak(content, random)
    at = PAGE * random.randrange(2)
    slot = content[at : at + PAGE]
    body = slot[40 : 40 + number(slot, 16, 4)]
    match random.randrange(4):
        case 0:
            slot = made_slot(number(set_field(slot, (8, 8), random), 8, 8), body)
        case 1:
            slot = made_slot(number(slot, 8, 8), tweak(body, random)[: PAGE - 40])
        case 2:
            slot = set_field(slot, random.choice(((0, 8), (8, 8), (16, 4), (24, 8))), random)
        case _:
            try:
                plain = change_value(msgpack.unpackb(body, raw=False, strict_map_key=False), random)
                slot = made_slot(number(slot, 8, 8), msgpack.packb(plain)[: PAGE - 40])
            except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
                slot = made_slot(number(slot, 8, 8), tweak(body, random)[: PAGE - 40])
    return content[:at] + slot + content[at + PAGE :]


def any_slot() -> Any:
    """The checksum of a slot is not looked at."""

    def read(page: bytes) -> Any:
        length = number(page, 16, 4)
        body = page[40 : 40 + length]
        fixed = page[:24] + xxhash.xxh3_128(page[8:20] + body).digest() + page[40:]
        return real(fixed if length <= PAGE - 40 else page)

    real = primary_agent.tap.state._read_slot
    return mock.patch.object(primary_agent.tap.state, "_read_slot", read)


def any_sequence() -> Any:
    """A hole between the numbers of the slots is nothing."""
    load_ = StateFile._load

    def lax(self: StateFile) -> Any:
        loaded = load_(self)
        return type(loaded)(loaded.state) if loaded.gap else loaded

    return mock.patch.object(StateFile, "_load", lax)


# --- maps ----------------------------------------------------------------------------------------------------------

MAP = "/tap/a.map"
MAP_DISKS = [Geometry(0, (32704 + 100) << 16, bytes(16)), Geometry(2, (1 << 20) + 512, bytes(16))]
"""Two pages of bitmap for the first disk, one for the second."""
BITS = 16
BASE = MemoryFiles()


def made_map(kind: MapKind) -> bytes:
    """A map with some regions, a note and an annex."""
    made = MapFile.create(BASE, MAP, kind, VM, BITS, MAP_DISKS)
    made.set_range(0, 5 << BITS, 2 << BITS)
    made.set_range(0, 32703 << BITS, 2 << BITS)
    made.set_range(2, 1 << 20, 512)
    made.write()
    made.write_note(DIRTY_NOTE.encode() if kind is MapKind.DIRTY else HOT_NOTE.encode())
    made.write_annex(struct.pack("<Q16s", 3, bytes(16)) + struct.pack("<Q16s", 4, EPOCH))
    return bytes(BASE.content[MAP])


MAPS = {kind: made_map(kind) for kind in MapKind}
BITMAP_PAGES = 3
ANNEX = 3 + BITMAP_PAGES
PAGES = len(MAPS[MapKind.HOT]) // PAGE


def edited_map(content: bytes) -> tuple[MapKind, bytes]:
    """The map that an input stands for: a kind, then edits.

    An edit is page, flags, offset u16, length u8 and so many bytes. Flag 1 puts the page's checksum right, flag 2 wipes
    the page first, flag 4 cuts the file off at that place.
    """
    kind = MapKind.DIRTY if content[:1] and content[0] & 1 else MapKind.HOT
    image = bytearray(MAPS[kind])
    at = 1
    while len(content) - at >= 5:
        page, flags, offset, length = struct.unpack_from("<BBHB", content, at)
        page %= PAGES
        start = page * PAGE
        piece = content[at + 5 : at + 5 + length]
        at += 5 + length
        if flags & 2:
            image[start : start + PAGE] = bytes(PAGE)
        place = start + offset % PAGE
        if flags & 4 and len(piece) == 0:
            del image[place:]
            break
        image[place : place + len(piece)] = piece
        del image[PAGES * PAGE :]
        if flags & 1:
            put_right(image, page)
    return kind, bytes(image)


def put_right(image: bytearray, page: int) -> None:
    start = page * PAGE
    if page < ANNEX:
        check = xxhash.xxh3_64(bytes(image[start : start + PAGE - 8]), page).intdigest()
        image[start + PAGE - 8 : start + PAGE] = struct.pack("<Q", check)
    else:
        start = ANNEX * PAGE
        length = min(number(bytes(image), start + 8, 4), 64 * PAGE - 16)
        check = xxhash.xxh3_64(bytes(image[start + 8 : start + 16 + length]), 64).intdigest()
        image[start : start + 8] = struct.pack("<Q", check)


def is_right(image: bytes, page: int) -> bool:
    start = page * PAGE
    seen = xxhash.xxh3_64(image[start : start + PAGE - 8], page).intdigest()
    return bool(seen == number(image, start + PAGE - 8, 8))


def fuzz_maps(content: bytes) -> None:
    """A bit that was durable is never lost: a damaged page counts as wholly set, a damaged header as no map at all."""
    kind, image = edited_map(content)
    files = MemoryFiles({MAP: image})
    try:
        found = MapFile.open(files, MAP, kind, VM, BITS, MAP_DISKS)
    except MapDamagedError:
        notes = [is_right(image, page) and number(image, page * PAGE + 8, 4) <= PAGE - 24 for page in (1, 2)]
        assert len(image) != PAGES * PAGE or image[:PAGE] != MAPS[kind][:PAGE] or not any(notes)
        return
    assert len(image) == PAGES * PAGE
    assert image[:PAGE] == MAPS[kind][:PAGE]
    sizes = {disk.index: disk.size for disk in MAP_DISKS}
    total = 0
    for index, first, pages in ((0, 3, 2), (2, 5, 1)):
        expected = set_regions(image, first, pages, -(-sizes[index] >> BITS))
        total += len(expected)
        check_regions(found, index, expected, sizes[index])
    assert found.set_bytes() == total << BITS
    check_notes(found, image, kind)
    if max(number(image, page * PAGE, 8) for page in (1, 2)) >= (1 << 64) - 4:
        return
    found.set_range(0, 0, 1)
    found.write()
    found.write_note(b"next")
    again = MapFile.open(files, MAP, kind, VM, BITS, MAP_DISKS)
    assert again.note == b"next"
    assert again.is_set(0, 0)
    assert again.set_bytes() == found.set_bytes()


def set_regions(image: bytes, first: int, pages: int, regions: int) -> list[int]:
    """The regions that docs/maps.md says are set: what a page says, all of its regions where it is damaged."""
    found: list[int] = []
    for page in range(first, first + pages):
        base = (page - first) * (PAGE - 8) * 8
        whole = image[page * PAGE : page * PAGE + PAGE]
        if is_right(image, page):
            bits = np.unpackbits(np.frombuffer(whole[:-8], np.uint8), bitorder="little")
            found += (np.flatnonzero(bits) + base).tolist()
        elif any(whole):
            found += range(base, min(base + (PAGE - 8) * 8, regions))
    return found


def check_regions(found: MapFile, index: int, expected: list[int], size: int) -> None:
    if len(expected) > 2000:
        # A damaged page: looking at all of its regions one by one would take all the time of a run.
        assert all(found.is_set(index, region) for region in expected[::211])
        return
    assert list(found.regions(index)) == expected
    covered = list(found.ranges(index))
    if all(region << BITS < size for region in expected):
        assert all(offset >= 0 and length > 0 and offset + length <= size for offset, length in covered)
    for region in expected[:1] + expected[-1:]:
        at = region << BITS
        assert at >= size or any(offset <= at < offset + length for offset, length in covered), "it is in no range"


def check_notes(found: MapFile, image: bytes, kind: MapKind) -> None:
    """The newest valid note and the annex are what is there; what they mean is always something."""
    notes = []
    for page in (1, 2):
        sequence, length = number(image, page * PAGE, 8), number(image, page * PAGE + 8, 4)
        if is_right(image, page) and length <= PAGE - 24:
            notes.append((sequence, image[page * PAGE + 16 : page * PAGE + 16 + length]))
    assert found.note == max(notes)[1]
    annex = found.read_annex()
    start = ANNEX * PAGE
    length = number(image, start + 8, 4)
    good = length <= 64 * PAGE - 16
    plain = image[start + 8 : start + 16 + length]
    good = good and xxhash.xxh3_64(plain, 64).intdigest() == number(image, start, 8)
    assert annex == (plain[8:] if good else b"")
    if kind is MapKind.HOT:
        assert HotNote.decode(found.note).encode() == (found.note if len(found.note) == 40 else HotNote().encode())
    elif len(annex) % 24 == 0:
        note = DirtyNote.decode(found.note)
        kept = DirtyMap(found)
        assert kept.note == note
        assert len(kept.cuts()) == len(annex) // 24
        for segment, chain in kept.cuts():
            assert 0 <= segment < 1 << 64
            assert len(chain) == 16


def edit(page: int, flags: int, offset: int, piece: bytes) -> bytes:
    return struct.pack("<BBHB", page, flags, offset, len(piece)) + piece


def seeds_maps() -> Iterable[bytes]:
    for kind in (0, 1):
        yield bytes([kind])
        yield bytes([kind]) + edit(3, 0, 100, b"\xff")
        yield bytes([kind]) + edit(4, 1, 0, b"\x01\x02") + edit(5, 1, 0, b"\x01")
        yield bytes([kind]) + edit(5, 0, 4090, b"x") + edit(1, 0, 0, b"x")
        yield bytes([kind]) + edit(1, 1, 8, struct.pack("<I", 3)) + edit(2, 1, 0, struct.pack("<QI", 9, 48))
        yield bytes([kind]) + edit(1, 0, 0, b"x") + edit(2, 0, 0, b"x")
        yield bytes([kind]) + edit(0, 1, 9, b"\x07")
        yield bytes([kind]) + edit(6, 1, 8, struct.pack("<I", 24)) + edit(6, 0, 40, b"x")
        yield bytes([kind]) + edit(6, 1, 8, struct.pack("<I", 64 * PAGE))
        yield bytes([kind]) + edit(40, 4, 0, b"")


def mutate_maps(content: bytes, random: Random) -> bytes:
    page = random.choice((0, 1, 1, 2, 2, 3, 4, 5, 5, 6, 6, random.randrange(PAGES)))
    offset = random.choice((0, 8, 16, random.randrange(PAGE)))
    piece = random.choice((b"\0", b"\xff" * 8, struct.pack("<I", random.choice((0, 24, 40, 48, 4072, 4073)))))
    piece = random.choice((piece, random.randbytes(random.choice((1, 4, 8, 24)))))
    return content + edit(page, random.choice((0, 1, 1, 1, 2, 3, 4)), offset, piece)


def damaged_is_empty() -> Any:
    """A bitmap page that is damaged counts as empty."""
    return mock.patch.object(MapFile, "_fill_page", lambda *_arguments: None)


def any_page() -> Any:
    """A bitmap page's checksum is not looked at."""

    def load_disk(self: MapFile, index: int) -> None:
        first = self._first_page[index]
        for page in range(first, first + -(-self._regions[index] // shared.map_file.BITS)):
            self._pages[page] = bytearray(self._file.read(page * PAGE, PAGE)[: PAGE - 8])

    return mock.patch.object(MapFile, "_load_disk", load_disk)


def first_note() -> Any:
    """The first valid note counts, not the newest."""
    return mock.patch.object(shared.map_file, "max", min, create=True)


# --- records of a store --------------------------------------------------------------------------------------------


class OneRecord:
    """A store that has one record under every name."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def get(self, _name: str) -> Any:
        return decode(self._body)

    def names(self, prefix: str = "") -> list[str]:
        return ["record"]


KINDS: tuple[Any, ...] = (
    replica_record.VmRecord,
    replica_record.ReplicationRecord,
    replica_record.ResyncRecord,
    replica_record.PromotionRecord,
    primary_record.VmRecord,
    primary_record.ReplicationRecord,
    primary_record.VerifyRecord,
)
LOADERS: tuple[Any, ...] = (
    replica_record.load_vm,
    replica_record.load_replication,
    lambda store: replica_record.load(store, "resync", replica_record.ResyncRecord),
    lambda store: replica_record.load(store, "promotion", replica_record.PromotionRecord),
    lambda store: primary_record.load(store, "vm", primary_record.VmRecord),
    lambda store: primary_record.load(store, "replication", primary_record.ReplicationRecord),
    lambda store: primary_record.load(store, "verify", primary_record.VerifyRecord),
)


def fuzz_records(content: bytes) -> None:
    """A record is refused as damaged, or is the whole of what was stored, and stays so when it is stored again."""
    if not content:
        return
    which = content[0] % len(KINDS)
    store: Any = OneRecord(content[1:])
    try:
        plain = store.get("record")
    except (ValueError, TypeError, msgpack.UnpackException):
        # Opening a store decodes every record, and says that it is damaged where one does not decode.
        return
    try:
        record = LOADERS[which](store)
    except StoreDamagedError as error:
        assert error.text
        assert error.remedy
        return
    if plain is None:
        assert record is None
        return
    assert type(record) is KINDS[which]
    assert isinstance(plain, dict)
    kept = replica_record.plain(record)
    assert set(plain) <= set(kept), f"unknown fields were taken: {set(plain) - set(kept)}"
    again = encode(kept)
    assert encode(replica_record.plain(LOADERS[which](OneRecord(again)))) == again
    for name in ("geometry", "ancestors", "replica"):
        getattr(record, name, None)
    for name in ("applied", "applying", "end", "differences_end"):
        position = getattr(record, name, None)
        assert position is None or (len(position.position.epoch), len(position.position.chain)) == (16, 16)


def examples() -> list[Any]:
    position = replica_record.PositionRecord(epoch=EPOCH, segment=3, entry=40, chain=bytes(16))
    ancestor = replica_record.AncestorRecord(epoch=EPOCH, parent=NO_EPOCH, parent_segment=0)
    disks = [replica_record.DiskRecord(index=disk.index, uuid=disk.uuid, size=disk.size) for disk in DISKS]
    identity = replica_record.IdentityRecord(index=0, inode=1, size=2, mtime_ns=3, ctime_ns=4)
    primary_disks = [
        primary_record.DiskRecord(index=disk.index, uuid=disk.uuid, size=disk.size, path="/disk", export="disk")
        for disk in DISKS
    ]
    return [
        replica_record.VmRecord(vm=VM, name="web", disks=disks, created_time=1.5, peer="ab"),
        replica_record.ReplicationRecord(
            state=ReplicationState.REPLICATING,
            epoch=EPOCH,
            lineage=[ancestor],
            applied=position,
            applied_time=2.5,
            applying=position,
            identities=[identity],
            boot_id="boot",
            interval_seconds=30.0,
        ),
        replica_record.ResyncRecord(
            id=VM,
            kind=ResyncKind.RESYNC,
            epoch=OTHER_EPOCH,
            parent=EPOCH,
            parent_segment=3,
            round=1,
            started_time=1.5,
            in_place=False,
            end=position,
            differences_end=position,
            differences_length=5000,
        ),
        replica_record.PromotionRecord(
            epoch=OTHER_EPOCH, parent=EPOCH, parent_segment=3, entry=40, time=1.5, host="beta", serving=True
        ),
        primary_record.VmRecord(
            vm=VM,
            name="web",
            disks=primary_disks,
            replica_host="beta",
            replica_port=8443,
            interval_seconds=30.0,
            log_limit_bytes=0,
            created_time=1.5,
        ),
        primary_record.ReplicationRecord(state=ReplicationState.REPLICATING, epoch=EPOCH),
        primary_record.VerifyRecord(
            last=VerifyResult(outcome="equal", text="The replica equalled the primary.", started_time=1, ended_time=2),
            at=3.5,
            schedule="daily 03:00",
        ),
    ]


def seeds_records() -> Iterable[bytes]:
    for index, record in enumerate(examples()):
        yield bytes([index]) + encode(replica_record.plain(record))
        yield bytes([index]) + encode(replica_record.plain(record) | {"later": 1})
    yield b"\0\xc0"
    yield b"\1" + b"\x91" * 3000
    newer = replica_record.plain(examples()[0]) | {"version": 2}
    yield b"\0" + encode(newer)


def mutate_records(content: bytes, random: Random) -> bytes:
    try:
        plain = msgpack.unpackb(content[1:], raw=False, strict_map_key=False)
        return content[:1] + bytes(msgpack.packb(change_value(plain, random), use_bin_type=True))
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        return tweak(content, random)


def unknown_fields() -> Any:
    """Fields that this version does not know are dropped."""

    def convert(plain: Any, kind: Any, **more: Any) -> Any:
        known = {field.name for field in msgspec.structs.fields(kind)}
        if isinstance(plain, dict):
            plain = {name: value for name, value in plain.items() if name in known}
        return msgspec.convert(plain, kind, **more)

    fake = mock.Mock(convert=convert, ValidationError=msgspec.ValidationError, to_builtins=msgspec.to_builtins)
    return mock.patch.object(replica_record, "msgspec", fake)


def raw_error() -> Any:
    """What is not valid raises the library's error."""

    def load_(store: Any, name: str, kind: Any) -> Any:
        plain = store.get(name)
        return None if plain is None else msgspec.convert(plain, kind, strict=True, builtin_types=(bytes,))

    return mock.patch.object(replica_record, "load", load_)


TARGETS = {
    "tap_state": Target(
        fuzz_tap_state,
        seeds_tap_state,
        mutate_tap_state,
        (Plant("any_slot", any_slot), Plant("any_sequence", any_sequence)),
        max_bytes=3 * PAGE,
    ),
    "maps": Target(
        fuzz_maps,
        seeds_maps,
        mutate_maps,
        (
            Plant("damaged_is_empty", damaged_is_empty),
            Plant("any_page", any_page),
            Plant("first_note", first_note),
        ),
        max_bytes=600,
    ),
    "records": Target(
        fuzz_records,
        seeds_records,
        mutate_records,
        (Plant("unknown_fields", unknown_fields), Plant("raw_error", raw_error)),
        max_bytes=4096,
    ),
}
