"""An agent of today commands a tap of an older version: the recorded answers of one, and what that one would refuse."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared import tap_control
from shared.admin.methods import Params
from shared.ports.network import RealNetwork
from shared.tap_control import CONTROL_VERSION, TapClient, TapProtocolError, Tracking, is_outdated, read_notification

RECORDED = json.loads((Path(__file__).parents[2] / "vectors" / "tap-control.json").read_text())
METHOD_NOT_FOUND, INVALID_PARAMS = -32601, -32602


class OlderTap:
    """Answers as the recorded tap did; anything that was not in its parameters then is refused, as it did that."""

    def __init__(self) -> None:
        self.calls = list(RECORDED["calls"])
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = json.loads(line)
            answer = {"jsonrpc": "2.0", "id": request["id"], **self.answer(request["method"], request["params"])}
            writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()
        await writer.wait_closed()
        self.ended.set()

    def answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        recorded = [
            call for call in self.calls if call["method"] == method and call["params"].items() >= params.items()
        ]
        if recorded and "result" in recorded[0]:
            self.calls.remove(recorded[0])
            return {"result": recorded[0]["result"]}
        number = (
            INVALID_PARAMS
            if any(call["method"] == method and "result" in call for call in RECORDED["calls"])
            else (METHOD_NOT_FOUND)
        )
        code = {INVALID_PARAMS: "invalid_params", METHOD_NOT_FOUND: "unknown_method"}[number]
        return {
            "error": {"code": number, "message": "refused", "data": {"code": code, "text": "refused", "remedy": ""}}
        }


async def test_all_that_replication_needs_is_understood_both_ways(tmp_path: Path) -> None:
    """Streaming, cuts, releases, settings and resyncs go on with the tap that an upgrade found running."""
    tap = OlderTap()
    server = await asyncio.start_unix_server(tap.serve, str(tmp_path / "control.sock"))
    client = await TapClient.connect(RealNetwork(), str(tmp_path / "control.sock"), timeout=5)
    try:
        status = await client.subscribe()
        assert (status.tracking, status.control, status.latency.writes) == (Tracking.ON, 0, 0)
        assert is_outdated(status, status.version) and not is_outdated(status, "")
        assert status.epoch is not None
        epoch = bytes.fromhex(status.epoch)
        assert await client.status() == status
        await client.begin(epoch)
        cut = await client.cut("test")
        place = await client.locate_segment(epoch, cut.segment)
        assert (place.file, place.offset) < (cut.file, cut.offset)
        assert (await client.locate(cut.position())).file == cut.file
        await client.lease(cut.file, 60.0)
        await client.release(epoch, cut.segment)
        assert (await client.set(interval=2.0)).interval == 2.0
        await client.abandon(bytes(15) + b"\1")
        for asked in (client.latency(5), client.lease(cut.file, 1.0, weak=True)):
            with pytest.raises(TapProtocolError, match="another version") as refused:
                await asked
            assert "next start" in refused.value.remedy
        assert (await client.stop_tracking("test")).tracking is Tracking.OFF
        assert all("error" in call for call in tap.calls), "the rest of the recording was not asked for"
    finally:
        client.close()
        server.close()
        await tap.ended.wait()
        await server.wait_closed()


def test_recorded_notifications_are_read() -> None:
    for method, params in RECORDED["notifications"]:
        assert read_notification(method, params) is not None
    # A tap of a newer version may tell what this agent does not know.
    assert read_notification("something_new", {}) is None


def test_newer_taps_status_is_read_with_what_is_known() -> None:
    """After a rollback of the agent: fields that came later are ignored."""
    status = next(call["result"] for call in RECORDED["calls"] if call["method"] == "status")
    newer = {**status, "control": CONTROL_VERSION + 1, "colour": "blue", "disks": [{**status["disks"][0], "more": 1}]}
    read = msgspec.convert(newer, tap_control.TapStatus, strict=True)
    assert read.disks[0].path == status["disks"][0]["path"]
    assert is_outdated(read, status["version"])


def test_no_parameter_is_sent_that_was_left_at_its_default() -> None:
    """Else the next one that is added is refused by every tap that runs, as `weak` of `lease` was."""
    kinds = [kind for kind in vars(tap_control).values() if isinstance(kind, type) and issubclass(kind, Params)]
    assert len(kinds) > 8
    for kind in kinds:
        optional = [field.name for field in msgspec.structs.fields(kind) if not field.required]
        assert not optional or kind.__struct_config__.omit_defaults, f"{kind.__name__}: {', '.join(optional)}"
