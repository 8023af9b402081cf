"""How a guest is frozen and where its definition lies: judged before they are taken; files are read within bounds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from primary_agent.admin import with_settings
from primary_agent.definition_reading import DefinitionError, DefinitionReader
from primary_agent.record import VmRecord
from protocol.messages import MAX_DEFINITION_FILE, MAX_DEFINITION_TEXT
from shared.errors import UsageError
from shared.guest_settings import LIBVIRT_FOLDER, FreezeKind, FreezeSetting, parse_consistency, parse_definition
from shared.ports.file_system import RealFileSystem
from tests.vectors.descriptions import PRIMARY

RECORD: VmRecord = PRIMARY.vm


@pytest.mark.parametrize(
    "settings",
    [
        {"consistency": "program:relative"},
        {"consistency": "agent:/run/../etc"},
        {"consistency": "libvirt:-x"},
        {"consistency": "vss"},
        {"consistency_hours": 13},
        {"definition": "libvirt:../../etc/shadow"},
        {"definition": "file:web.xml"},
        {"definition_files": ["/a", "/a"]},
        {"definition_files": [f"/{number}" for number in range(32)]},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        with_settings(RECORD, settings)


def test_settings_say_what_is_meant() -> None:
    settings = {"consistency": "libvirt:web", "consistency_hours": 4, "definition": "libvirt:web"}
    record = with_settings(RECORD, settings | {"definition_files": ["/nvram/web_VARS.fd"]})
    assert parse_consistency(record.consistency) == FreezeSetting(FreezeKind.LIBVIRT, "web")
    assert parse_definition(record.definition) == f"{LIBVIRT_FOLDER}/web.xml"
    assert (parse_consistency("none"), parse_definition("none")) == (None, "")


def test_a_file_is_read_when_it_changed_and_within_its_bounds(tmp_path: Path) -> None:
    definition, variables = tmp_path / "web.xml", tmp_path / "VARS.fd"
    paths = [str(definition), str(variables)]
    reader = DefinitionReader(RealFileSystem())
    with pytest.raises(DefinitionError, match="does not exist"):
        reader.read(paths)
    definition.write_bytes(b"<domain/>")
    variables.write_bytes(b"v" * 3000)
    before = reader.read(paths)
    assert [each.digest for each in before] == [
        hashlib.sha256(path.read_bytes()).digest() for path in (definition, variables)
    ]
    assert reader.part(before[1], 1000, 4000) == b"v" * 2000
    assert reader.read(paths) is not before and reader.read(paths) == before

    variables.write_bytes(b"w" * 3000)
    # What is sent is what was read, or nothing.
    with pytest.raises(DefinitionError, match="changed while it was sent"):
        reader.part(before[1], 0, 10)
    assert reader.read(paths) != before

    with variables.open("r+b") as file:
        file.truncate(MAX_DEFINITION_FILE + 1)
    with pytest.raises(DefinitionError, match="has more than 64"):
        reader.read(paths)
    with definition.open("r+b") as file:
        file.truncate(MAX_DEFINITION_TEXT + 1)
    with pytest.raises(DefinitionError, match="has more than 1"):
        reader.read([str(definition)])
