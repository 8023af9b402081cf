"""Reads the disks of a VM that runs, follows its log meanwhile, and makes the leaves of a cut: as a live image asks.

The log is followed over a connection to the tap of its own, with its own lease (R36): never more of it is kept for this
than what was not followed yet, or, for a moment at the end, what is gone through twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from primary_agent.block_map import BlockMap
from primary_agent.live_image import (
    Cut,
    Finish,
    Follow,
    Hash,
    Keep,
    LiveImage,
    Mark,
    NotSettledError,
    Place,
    Replay,
)
from primary_agent.pacing import Pacer
from primary_agent.record import DiskRecord
from primary_agent.undecided import UndecidedError
from primary_agent.verify_files import VerifyFiles
from protocol.chain import body_of
from protocol.hrl import ENTRY_BYTES, RecordKind, decode_entries
from protocol.messages import BLOCK_SIZE
from protocol.position import Position
from shared.disks.leaves import UNREADABLE, leaves_of, read_exactly
from shared.errors import VmreplicaError
from shared.hrl_files import Run
from shared.hrl_follower import LogDamagedError, LogFollower, LogGoneError
from shared.ports import File, Ports
from shared.tap_control import LogPlace, Sealed, TapClient
from shared.tasks import all_of, uninterrupted

PIECE_BLOCKS = 256
"""Blocks that are read and hashed in one step."""
HASHERS = 2
KEEP_BLOCKS = 64
FOLLOW_SECONDS = 1.0
FOLLOW_BYTES = 4 << 20
"""Bytes of log that are followed in one step."""
LEASE_SECONDS = 60.0
LEASE_RENEW_SECONDS = 15.0

T = TypeVar("T")


class LiveReader:
    """One making of the leaves of a cut.

    ``announce`` is awaited before the first cut of an end, ``withdraw`` where that end came to nothing, ``decided`` is
    told the cut that it is going to be, and ``read`` the bytes that were read.
    """

    def __init__(
        self,
        ports: Ports,
        client: TapClient,
        vm: bytes,
        disks: list[DiskRecord],
        epoch: bytes,
        pacer: Pacer,
        files: VerifyFiles,
        *,
        announce: Callable[[], Awaitable[None]],
        withdraw: Callable[[], Awaitable[None]],
        decided: Callable[[Position], None],
        read: Callable[[int], None],
    ) -> None:
        self._ports = ports
        self._client = client
        self._vm = vm
        self._records = {disk.index: disk for disk in disks}
        self._sizes = {disk.index: disk.size for disk in disks}
        self._epoch = epoch
        self._pacer = pacer
        self._verify_files = files
        self._announce = announce
        self._withdraw = withdraw
        self._decided = decided
        self._read = read
        self._files: dict[int, File | None] = {}
        self._image: LiveImage
        self._follower: LogFollower
        self._following = asyncio.Lock()
        self._leased = (0, 0.0)
        self._mark: tuple[int, int, Position] | None = None
        self._announced = False
        self._cut: Sealed | None = None

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        """In a worker, to its end even where this is cancelled: it uses files that are closed then."""
        return await uninterrupted(self._ports.workers.run(work, *arguments))

    async def build(self, scope: dict[int, BlockMap] | None) -> Sealed:
        """Make the leaves of the blocks in ``scope`` (of whole disks for None), and return the cut that they are of.

        Raises UndecidedError where that is not possible, and what the tap raises.
        """
        files = self._verify_files
        self._image = LiveImage(self._sizes, BLOCK_SIZE, files.leaves, files.kept, scope)
        await self._begin()
        try:
            for step in self._image.steps():
                await self._do(step)
        except NotSettledError as error:
            raise UndecidedError(f"The guest writes faster than its disks can be read: {error}.") from error
        except LogGoneError as error:
            raise UndecidedError(f"The log was not kept: {error.text}") from error
        except LogDamagedError as error:
            raise UndecidedError(f"The log can't be read: {error.text}") from error
        except OSError as error:
            raise UndecidedError(f"{error.filename or 'A file'}: {error.strerror or error}.") from error
        finally:
            await self._end()
        assert self._cut is not None
        return self._cut

    async def _begin(self) -> None:
        # All of the log is kept until the place is known from which it is followed.
        await self._client.lease(0, LEASE_SECONDS, weak=True)
        place = await self._settled()
        status = await self._client.status()
        self._follower = LogFollower(self._ports.files, status.log.folder, self._vm)
        await self._run(self._follower.seek, place.file, place.offset, place.position.position())
        await self._lease()
        for index, record in self._records.items():
            self._files[index] = await self._run(self._open, record.path)

    def _open(self, path: str) -> File | None:
        try:
            return self._ports.files.open_disk(path)
        except (OSError, VmreplicaError):
            # Every block of it is unreadable then, and told so.
            return None

    async def _end(self) -> None:
        if hasattr(self, "_follower"):
            self._follower.close()
        for file in self._files.values():
            if file is not None:
                file.close()
        with suppress(VmreplicaError):
            await self._client.lease(0, 0)

    async def _do(self, step: object) -> None:
        match step:
            case Follow():
                place = await self._settled()
                await self._follow(place.file, place.offset)
            case Hash(blocks):
                if self._announced:
                    self._announced = False
                    await self._withdraw()
                await self._hash(blocks)
            case Mark():
                self._mark = (self._follower.sequence, self._follower.offset, self._follower.position)
            case Keep(places):
                for at in range(0, len(places), KEEP_BLOCKS):
                    await self._pacer.disk(len(places[at : at + KEEP_BLOCKS]) * BLOCK_SIZE)
                    self._read(await self._run(self._keep, places[at : at + KEEP_BLOCKS]))
                    await self._lease()
            case Cut():
                if not self._announced:
                    await self._announce()
                    self._announced = True
                self._cut = await self._client.cut("verify")
                self._check_epoch(self._cut.epoch)
                await self._follow(self._cut.file, self._cut.offset)
            case Replay():
                assert self._cut is not None
                self._decided(self._cut.position())
                await self._replay()
            case Finish():
                await self._run(self._image.finish)

    # --- the log ---------------------------------------------------------------------------------------------------

    async def _settled(self) -> LogPlace:
        """A place up to which everything that is logged is on the disks."""
        place = await self._client.relog()
        self._check_epoch(place.position.epoch)
        return place

    def _check_epoch(self, epoch: str) -> None:
        if epoch != self._epoch.hex():
            raise UndecidedError("Another baseline is tracked now.")

    async def _follow(self, file: int, offset: int) -> None:
        """Give all entries up to there to the image."""
        async with self._following:
            while await self._run(self._feed, self._follower, file, offset, self._logged):
                await self._lease()
            await self._lease()

    def _feed(self, follower: LogFollower, file: int, offset: int, take: Callable[[Run], None]) -> bool:
        """The next few MiB; whether there may be more before ``offset`` of ``file``. Blocks."""
        size = 0
        while size < FOLLOW_BYTES:
            run = follower.read(file, offset)
            if run is None:
                return False
            take(run)
            size += len(run.data)
        return True

    def _logged(self, run: Run) -> None:
        for disk, offset, length, _ in self._entries(run):
            self._image.logged(disk, offset, length)

    def _overlay(self, run: Run) -> None:
        for entry in self._entries(run):
            self._image.overlay(*entry)

    def _entries(self, run: Run) -> Iterator[tuple[int, int, int, memoryview | None]]:
        """Disk, offset, length and payload (None for zeroes) of the entries of a run, in order."""
        for record in run.records:
            if record.header.kind is not RecordKind.BATCH:
                continue
            body = body_of(record.record)
            at = record.header.count * ENTRY_BYTES
            for disk, _kind, _flags, payload, offset, length in decode_entries(
                record.header, body, self._sizes
            ).tolist():
                yield disk, offset, length, body[at : at + payload] if payload else None
                at += payload

    async def _replay(self) -> None:
        """From the mark up to the cut, over a reader of its own."""
        assert self._mark is not None and self._cut is not None
        again = LogFollower(self._ports.files, self._follower.folder, self._vm)
        try:
            await self._run(again.seek, *self._mark)
            while await self._run(self._feed, again, self._cut.file, self._cut.offset, self._overlay):
                await self._lease()
        finally:
            again.close()
        self._mark = None

    async def _lease(self) -> None:
        """Keep what is still needed of the log, and no more, as long as the log has room for its own."""
        needed = self._mark[0] if self._mark is not None else self._follower.sequence
        now = self._ports.clock.monotonic()
        file, at = self._leased
        if needed != file or now - at >= LEASE_RENEW_SECONDS:
            await self._client.lease(needed, LEASE_SECONDS, weak=True)
            self._leased = (needed, now)

    # --- the disks -------------------------------------------------------------------------------------------------

    async def _hash(self, blocks: dict[int, BlockMap]) -> None:
        pieces = ((disk, *piece) for disk in sorted(blocks) for piece in blocks[disk].pieces(PIECE_BLOCKS))
        done = asyncio.Event()
        left = HASHERS

        async def hasher() -> None:
            nonlocal left
            try:
                for disk, first, end in pieces:
                    length = min(end * BLOCK_SIZE, self._sizes[disk]) - first * BLOCK_SIZE
                    await self._pacer.disk(length)
                    await self._run(self._hash_piece, disk, first, length)
                    self._read(length)
            finally:
                left -= 1
                if not left:
                    done.set()

        await all_of(*(hasher() for _ in range(HASHERS)), self._follow_until(done))

    async def _follow_until(self, done: asyncio.Event) -> None:
        """Follow the log now and then, so that little of it is kept."""
        while not done.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_SECONDS):
                    await done.wait()
            place = await self._settled()
            await self._follow(place.file, place.offset)

    def _hash_piece(self, disk: int, first: int, length: int) -> None:
        """Blocks."""
        file = self._files[disk]
        if file is None:
            leaves: bytes | bytearray = UNREADABLE * -(-length // BLOCK_SIZE)
        else:
            leaves, _ = leaves_of(file, first * BLOCK_SIZE, length, BLOCK_SIZE)
        self._image.hashed(disk, first, leaves)

    def _keep(self, places: list[Place]) -> int:
        """Blocks."""
        total = 0
        for disk, block in places:
            file, offset = self._files[disk], block * BLOCK_SIZE
            length = min(BLOCK_SIZE, self._sizes[disk] - offset)
            try:
                content = read_exactly(file, offset, length) if file is not None else None
            except OSError:
                content = None
            self._image.keep(disk, block, content)
            total += length
        return total
