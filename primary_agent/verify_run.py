"""One verify from its first reading to what it found: both sides are compared at one cut while replication goes on."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from primary_agent.block_map import BlockMap
from primary_agent.parts import Parts
from primary_agent.tap_link import CONNECT_SECONDS
from primary_agent.undecided import UndecidedError
from primary_agent.verify_comparing import Asking, Finding
from primary_agent.verify_files import VerifyFiles
from primary_agent.verify_reading import LiveReader
from protocol.messages import BLOCK_SIZE
from protocol.position import Position
from shared.progress_status import HeldBack
from shared.states import ReplicationState
from shared.tap_control import Sealed, TapClient
from shared.tasks import together, uninterrupted

READING, WAITING, COMPARING = "reading", "waiting for the replica", "comparing"

Scope = dict[int, BlockMap] | None


@dataclass(slots=True)
class RunProgress:
    """How far it is, in bytes of the disks; both sides' work counts."""

    phase: str = READING
    done: int = 0
    total: int = 0
    held_back: HeldBack | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found at a cut."""

    cut: Sealed
    finding: Finding


class VerifyRun:
    """Verifies the blocks in ``scope``, or whole disks for None. ``folder`` is the VM's."""

    def __init__(self, parts: Parts, folder: str, scope: Scope, progress: RunProgress) -> None:
        self._parts = parts
        self._folder = folder
        self._scope = scope
        self._progress = progress
        self._ports = parts.surroundings.ports.in_background()
        vm = parts.replication.vm
        self._sizes = {disk.index: disk.size for disk in vm.disks}
        self._epoch = parts.replication.record.epoch
        self._state = parts.replication.state
        self._asking: Asking | None = None

    async def run(self) -> Verified:
        """Raises UndecidedError, or another VmreplicaError, where both sides can't be compared to the end."""
        return await together(self._verify(), self._watch(), self._parts.precedence.watch(self._progress))

    async def _watch(self) -> None:
        """Whatever takes the ground from under it ends it: a resync, a failover, a suspend, another connection."""
        parts, replication = self._parts, self._parts.replication
        connection, dialled = parts.tap.require(), parts.link.dialled
        while True:
            if replication.state is not self._state:
                raise UndecidedError(f"The VM is in state {replication.state.title} now.")
            if replication.record.epoch != self._epoch:
                raise UndecidedError("The VM has another baseline now.")
            if parts.link.dialled is not dialled:
                raise UndecidedError("The connection to the replica was lost.")
            if not connection.tracks(self._epoch):
                raise UndecidedError("The tap ended, or does not track the writes any more.")
            await parts.tap.changed.wait_for(1.0)

    async def _verify(self) -> Verified:
        parts, run = self._parts, self._ports.workers.run
        full = sum(self._sizes.values())
        if self._scope is not None:
            full = sum(len(blocks) for blocks in self._scope.values()) * BLOCK_SIZE
        self._progress.phase, self._progress.done, self._progress.total = READING, 0, 2 * full
        try:
            files = await run(VerifyFiles, self._ports.files, self._folder, self._sizes)
        except OSError as error:
            raise UndecidedError(f"{self._folder}: {error.strerror or error}.", "Check the volume.") from error
        try:
            socket = parts.tap.config.control_socket
            client = await TapClient.connect(self._ports.network, socket, timeout=CONNECT_SECONDS)
            try:
                reader = LiveReader(
                    self._ports,
                    client,
                    parts.replication.vm.vm,
                    parts.replication.vm.disks,
                    self._epoch,
                    parts.surroundings.pacing.pacer(
                        lambda: parts.replication.vm, initial=False, precedence=parts.precedence
                    ),
                    files,
                    announce=self._announce,
                    withdraw=self._withdraw,
                    decided=self._decided,
                    read=self._read,
                )
                cut = self._prepared(await reader.build(self._scope))
            finally:
                client.close()
            self._progress.phase, self._progress.done = WAITING, full
            asking = self._asking
            assert asking is not None
            await asking.held(cut.position())
            self._progress.phase = COMPARING
            finding = await asking.compare(parts, files.leaves, self._sizes, self._scope, self._compared)
            await asking.close()
            self._asking = None
            return Verified(cut, finding)
        except OSError as error:
            raise UndecidedError(f"{error.filename or self._folder}: {error.strerror or error}.") from error
        finally:
            await self._withdraw()
            await uninterrupted(run(files.close))

    async def _announce(self) -> None:
        self._asking = await Asking.open(self._parts, self._parts.tap.require())

    async def _withdraw(self) -> None:
        if self._asking is not None:
            self._asking.abort()
            self._asking = None

    def _decided(self, cut: Position) -> None:
        assert self._asking is not None
        self._asking.name(self._last_cut() or cut)

    def _last_cut(self) -> Position | None:
        """While a failover is prepared: the cut that it is for, which is the last that the replica gets."""
        planned = self._parts.replication.record.planned
        if self._state is not ReplicationState.PREPARED_FOR_FAILOVER or planned is None or planned.cut is None:
            return None
        return planned.cut.position

    def _prepared(self, cut: Sealed) -> Sealed:
        """The last cut in the place of one that was sealed behind it, with nothing in between: by a tap that was
        started anew meanwhile. Raises UndecidedError where anything was logged.
        """
        last = self._last_cut()
        if last is None or last == cut.position():
            return cut
        if (last.epoch.hex(), last.entry) != (cut.epoch, cut.entry):
            raise UndecidedError(f"Changes were logged after cut {last.segment}, though none is taken.")
        return msgspec.structs.replace(cut, segment=last.segment, chain=last.chain.hex())

    def _read(self, count: int) -> None:
        # What is read again in a later pass is no progress.
        self._progress.done = min(self._progress.done + count, self._progress.total // 2)

    def _compared(self, count: int) -> None:
        self._progress.done += count
