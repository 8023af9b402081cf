"""The recorded vectors: they decode to what the index says, and encoding still makes the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.vectors.cases import FOLDER, Case, cases
from tests.vectors.record import INDEX, expectation

CASES = {case.name: case for case in cases()}
RECORDED: list[dict[str, Any]] = json.loads(INDEX.read_text(encoding="utf-8"))


def test_index_names_every_case_and_every_file() -> None:
    assert [entry["name"] for entry in RECORDED] == list(CASES)
    files = {path.name for path in [*FOLDER.glob("*.bin"), *FOLDER.glob("*.hrl")]}
    assert {entry["file"] for entry in RECORDED} == files


@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: str(entry["name"]))
def test_recorded_bytes_decode_as_the_index_says(entry: dict[str, Any]) -> None:
    assert expectation(CASES[entry["name"]]) == entry["decodes_to"]


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.remade], ids=lambda case: str(case.name))
def test_encoding_makes_the_recorded_bytes(case: Case) -> None:
    assert (FOLDER / case.file).read_bytes() == case.content
