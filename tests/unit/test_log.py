"""Tests of log lines: form, fields of the task, priorities for the journal, and no secrets."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Iterator

import pytest
import structlog

from shared import log


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Leave structlog as it was."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def logged(log_format: str = "text", *, journal: bool = False) -> tuple[io.StringIO, structlog.BoundLogger]:
    stream = io.StringIO()
    log.configure(log_format, stream, journal=journal)
    return stream, structlog.get_logger()


def test_text_is_key_and_value() -> None:
    stream, logger = logged()
    logger.warning("link lost", peer="10.0.0.1:8443", reason='it said "no"', attempt=3)
    timestamp, rest = stream.getvalue().split(" ", 1)
    assert timestamp.startswith("timestamp=2")
    assert rest.startswith('level=warning event="link lost"')
    assert 'reason="it said \\"no\\""' in rest
    assert rest.endswith("\n")


def test_json_is_one_object_a_line() -> None:
    stream, logger = logged("json")
    logger.info("cut", segment=7, path=os.fspath("/x"), odd=object())
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["segment"]) == ("cut", "info", 7)
    assert line["odd"].startswith("<object")


def test_debug_is_left_out() -> None:
    stream, logger = logged()
    logger.debug("detail")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("log_format", log.FORMATS)
def test_lines_for_the_journal_carry_their_priority(log_format: str) -> None:
    stream, logger = logged(log_format, journal=True)
    logger.error("a")
    logger.info("b")
    first, second = stream.getvalue().splitlines()
    assert first.startswith("<3>")
    assert second.startswith("<6>")
    assert "timestamp" not in stream.getvalue()


def test_journal_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    state = os.fstat(write)
    with os.fdopen(write, "w") as stream, os.fdopen(read) as lines:
        monkeypatch.setenv("JOURNAL_STREAM", f"{state.st_dev}:{state.st_ino}")
        log.configure("text", stream)
        structlog.get_logger().info("to the journal")
        stream.flush()
        assert lines.readline().startswith("<6>level=info")
        monkeypatch.setenv("JOURNAL_STREAM", f"{state.st_dev}:{state.st_ino + 1}")
        log.configure("text", stream)
        structlog.get_logger().info("to a file")
        stream.flush()
        assert lines.readline().startswith("timestamp=")


@pytest.mark.parametrize("name", ["key", "hash_key", "token", "session_token", "PASSWORD", "secrets", "tls_keys"])
@pytest.mark.parametrize("log_format", log.FORMATS)
def test_secrets_are_blotted_out(log_format: str, name: str) -> None:
    stream, logger = logged(log_format)
    logger.info("resync", **{name: "hunter2", "body": {name: "hunter2", "list": [{name: "hunter2"}]}})
    assert "hunter2" not in stream.getvalue()
    assert log.BLOT in stream.getvalue()


@pytest.mark.parametrize("name", ["key_id", "fingerprint", "monkey", "peer"])
def test_what_is_no_secret_stays(name: str) -> None:
    stream, logger = logged()
    logger.info("resync", **{name: "value"})
    assert f"{name}=value" in stream.getvalue()


def test_of_bytes_only_the_number_is_shown() -> None:
    stream, logger = logged()
    logger.info("x", payload=b"guest data", many=[memoryview(b"guest data")])
    assert "guest" not in stream.getvalue()
    assert "(10 bytes)" in stream.getvalue()


def test_exceptions_are_part_of_their_line() -> None:
    stream, logger = logged("json")
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("failed")
    assert "ValueError: wrong" in json.loads(stream.getvalue())["exception"]


async def test_bound_fields_belong_to_their_task() -> None:
    stream, logger = logged("json")

    async def work(vm: str) -> None:
        log.bind(vm=vm)
        await asyncio.sleep(0)
        logger.info("work")
        await asyncio.create_task(inner())

    async def inner() -> None:
        logger.info("inner")

    await asyncio.gather(work("a"), work("b"))
    logger.info("outside")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sorted((line["event"], line.get("vm")) for line in lines[:-1]) == [
        ("inner", "a"),
        ("inner", "b"),
        ("work", "a"),
        ("work", "b"),
    ]
    assert "vm" not in lines[-1]
