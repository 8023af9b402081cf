"""Planted bugs of a reversal: what is in doubt, how a VM changes its agent, and what both sides are asked first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import primary_agent.handing_over
import primary_agent.resolving
import primary_agent.resync
import primary_agent.reversing
import replica_agent.handing_over
import replica_agent.resync
from primary_agent.agent import PrimaryAgent
from primary_agent.fencing import Told
from primary_agent.parts import Parts
from primary_agent.vm import PrimaryVm
from replica_agent.baseline import Baseline
from replica_agent.history import History
from replica_agent.ledger import Draft
from shared.handover import HandOver
from tests.simulation.mutants_kit import Patch, nothing, nothing_async


def no_ranges(original: Any) -> Any:
    """Whatever a map names is forgotten."""

    def read(*arguments: Any) -> dict[int, list[tuple[int, int]]]:
        return {disk: [] for disk in original(*arguments)}

    return read


def former_doubts_left_out() -> Sequence[Patch]:
    """R41: what the former primary wrote and the other side never got is not named when the VM is handed over."""
    return [(primary_agent.handing_over, "read_map", no_ranges)]


def own_doubts_left_out() -> Sequence[Patch]:
    """R41: what was written since the failover on the side that counts is not compared."""
    return [(primary_agent.resync, "read_scope", no_ranges)]


def reverse_map_ignored() -> Sequence[Patch]:
    """R41: where a promoted point differs from the newest cut that was here is not compared."""
    return [(primary_agent.reversing, "keep_ranges", lambda _original: lambda *_arguments: False)]


def doubts_not_settled() -> Sequence[Patch]:
    """R41: a replica takes a commit before its own doubts are settled, from a primary that forgot what it was told."""

    def make(original: Any) -> Any:
        async def ready(resync: Any, key: Any) -> Any:
            settled = await original(resync, key)
            resync._told_doubt = {disk.index: [] for disk in resync._disks}
            return settled

        return ready

    return [(primary_agent.resync.ResyncDriver, "_ready", make), (replica_agent.resync, "judge_settled", nothing)]


def loser_left_out() -> Sequence[Patch]:
    """R41: where a failover is given up, what was written since is not named."""

    def make(original: Any) -> Any:
        def write(files: Any, path: str, vm: bytes, disks: Any, ranges: dict[int, Any]) -> None:
            original(files, path, vm, disks, {disk: [] for disk in ranges})

        return write

    return [(replica_agent.handing_over, "write_map", make)]


def loser_not_kept() -> Sequence[Patch]:
    """R15: what a former primary alone has is no recovery point of its copy."""

    turned: list[History] = []

    def commit(original: Any) -> Any:
        async def begun(baseline: Baseline, *arguments: Any) -> None:
            if baseline.parts.ledger.replication.reversal is not None:
                turned.append(baseline.parts.history)
            await original(baseline, *arguments)

        return begun

    def advance(original: Any) -> Any:
        def dropped(history: History, draft: Draft) -> None:
            if history in turned:
                turned.remove(history)
                history.unguard(draft)
            original(history, draft)

        return dropped

    return [(Baseline, "_commit", commit), (History, "advance", advance)]


def hand_over_undurable() -> Sequence[Patch]:
    """R41: a hand-over is answered before it is on record that the VM was let go."""

    def make(original: Any) -> Any:
        del original

        async def record(parts: Parts, handed: HandOver | None, text: str) -> None:
            del text
            parts.handed_over = handed

        return record

    return [(primary_agent.handing_over, "_record", make)]


def let_go_forgotten() -> Sequence[Patch]:
    """R41: a primary agent that is started anew looks after a VM again that it had let go."""

    def make(original: Any) -> Any:
        def start(vm: PrimaryVm) -> None:
            vm.parts.handed_over = None
            original(vm)

        return start

    return [(PrimaryVm, "start", make), (PrimaryAgent, "let_go", nothing_async)]


def kept_while_failed_over() -> Sequence[Patch]:
    """I6: a former primary goes on at an administrator's word, although the other side is still failed over."""

    def make(original: Any) -> Any:
        del original

        async def ask(_parts: Parts) -> Told:
            return Told(False)

        return ask

    return [(primary_agent.resolving, "ask", make)]


def split_brain_unnoticed() -> Sequence[Patch]:
    """I8: that a former primary was written after the failover is not looked for."""

    def make(original: Any) -> Any:
        del original

        async def is_later(*_arguments: Any) -> bool:
            return False

        return is_later

    return [(primary_agent.handing_over, "_is_later", make)]


def loss_untold() -> Sequence[Patch]:
    """I8: a former primary is overwritten, and nobody is asked about what only it has."""
    return [(primary_agent.handing_over, "_lost", lambda _original: lambda *_arguments: "")]
