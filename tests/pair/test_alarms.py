"""From a VM in trouble to the command that somebody is told by: agent, events, alarms and a real program."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from primary_agent.attachments import AttachmentWatch
from shared import operations as module
from shared.config_sections import AlarmSection, PrimaryConfig
from shared.events import EventId
from shared.operations import Operations
from shared.ports.alarm_ways import RealAlarmWays
from shared.ports.disk_use import ProcDiskUse
from tests.pair.hosts import MIB
from tests.pair.rig import Pair
from tests.unit.ports.test_disk_use import opener

EVENT_FIELDS = {"time", "event", "name", "level", "text", "cause", "before", "after", "data"}
FIELDS = {"alarm", "host", "role", "vm", "uuid", "count"} | EVENT_FIELDS
PLAIN = FIELDS - {"time", "data", "count"}
"""What docs/operations.md has in the alarm's JSON, and of that in the command's environment."""


class NoJournal:
    """Stands where systemd's journal would be."""

    def send(self, fields: object) -> None:
        """Nobody asks for it."""


def teller(folder: Path, name: str) -> list[str]:
    """A command that keeps what it was told: a line for each run, of its environment and its input."""
    code = (
        "import json, os, sys; told = {n: v for n, v in os.environ.items() if n.startswith('VMREPLICA_')}; "
        f"open({str(folder / name)!r}, 'a').write(json.dumps([told, json.load(sys.stdin)]) + '\\n')"
    )
    return [sys.executable, "-c", code]


def told(folder: Path, name: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_vm_that_becomes_critical_runs_the_command_with_what_is_documented(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    config = msgspec.structs.replace(
        msgspec.convert({"tls": {"ca": "/a", "certificate": "/b", "key": "/c"}}, PrimaryConfig),
        host="alpha",
        state_dir=str(tmp_path / "operations"),
        alarms=[
            AlarmSection(name="pager", health=["Critical"], hold_seconds=0, command=teller(tmp_path, "pager")),
            AlarmSection(
                name="writes", health=[], events=[EventId.BYPASSED], hold_seconds=0, command=teller(tmp_path, "writes")
            ),
            AlarmSection(name="others", vms=["mail"], hold_seconds=0, command=teller(tmp_path, "others")),
        ],
    )
    operations = Operations(
        "primary", str(tmp_path / "primary.toml"), config, pair.primary.ports,
        journal=NoJournal(), ways=RealAlarmWays(), blocking=asyncio.to_thread,
    )  # fmt: skip
    await operations.open()
    try:
        await pair.replicate(4 * MIB)
        await operations.started("1.0", pair.primary.known, lambda: pair.primary.ports.network.trust)
        watch = AttachmentWatch(pair.primary, ProcDiskUse(), operations.bypassed)
        with opener(pair.disk(0), "r+b") as stranger:
            await watch.look()
            await pair.until("the pager", lambda: told(tmp_path, "pager"))
            await pair.until("the other alarm", lambda: told(tmp_path, "writes"))
    finally:
        await operations.close()
    ((environment, payload),) = told(tmp_path, "pager")
    assert payload.keys() == FIELDS
    assert environment == {f"VMREPLICA_{name.upper()}": str(payload[name]) for name in PLAIN}
    assert (payload["alarm"], payload["host"], payload["role"], payload["count"]) == ("pager", "alpha", "primary", 1)
    assert (payload["vm"], payload["uuid"]) == ("web", pair.vm.uuid)
    assert (payload["event"], payload["name"], payload["level"]) == (60205, "health_changed", "error")
    assert payload["after"] == "Critical" and f"Process {stranger} " in payload["text"]
    ((_, payload),) = told(tmp_path, "writes")
    assert (payload["event"], payload["vm"], payload["data"]["vm_disk"]) == (60210, "web", str(pair.disk(0)))
    assert told(tmp_path, "others") == []
