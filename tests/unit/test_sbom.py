"""The bill of materials names every pinned package, and only such, and is of the form that CycloneDX asks for."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest

from scripts import sbom

BILL: dict[str, Any] = json.loads(sbom.PATH.read_text(encoding="utf-8"))
LOCK = sbom.LOCK.read_text(encoding="utf-8")


def test_recorded_bill_is_current() -> None:
    assert sbom.PATH.read_text(encoding="utf-8") == sbom.text(), (
        "make it anew: python -m scripts.sbom > packaging/vmreplica.cdx.json"
    )


def test_every_pinned_package_is_named_with_version_purl_and_hashes() -> None:
    # Counted in another way than the script does.
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", LOCK, re.MULTILINE))
    assert len(pinned) > 10
    assert {each["name"]: each["version"] for each in BILL["components"]} == pinned
    hashes = set(re.findall(r"sha256:([0-9a-f]{64})", LOCK))
    named = [each["content"] for part in BILL["components"] for each in part["externalReferences"][0]["hashes"]]
    assert set(named) == hashes
    assert len(named) == len(hashes)
    for part in BILL["components"]:
        assert part["purl"] == f"pkg:pypi/{part['name'].lower().replace('_', '-').replace('.', '-')}@{part['version']}"


def test_project_and_what_it_asks_for() -> None:
    project = tomllib.loads((sbom.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = BILL["metadata"]["component"]
    assert (own["name"], own["version"], own["purl"]) == (
        project["name"], project["version"], f"pkg:pypi/vmreplica@{project['version']}",
    )  # fmt: skip
    assert own["licenses"] == [{"license": {"id": project["license"]}}]
    (root,) = BILL["dependencies"]
    assert root["ref"] == own["bom-ref"]
    assert len(root["dependsOn"]) == len(project["dependencies"])


def test_form_is_that_of_the_specification() -> None:
    """What CycloneDX 1.6 requires of what is used here: fields, their types and values, unique and resolved refs."""
    assert BILL["bomFormat"] == "CycloneDX"
    assert BILL["specVersion"] == "1.6"
    assert BILL["version"] == 1
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", BILL["serialNumber"])
    assert set(BILL) <= {
        "$schema", "bomFormat", "specVersion", "serialNumber", "version", "metadata", "components", "dependencies",
        "compositions",
    }  # fmt: skip
    refs = [BILL["metadata"]["component"]["bom-ref"], *(each["bom-ref"] for each in BILL["components"])]
    assert len(refs) == len(set(refs))
    for part in BILL["components"]:
        assert part["type"] == "library"
        assert part["scope"] in ("required", "optional", "excluded")
        for reference in part["externalReferences"]:
            assert reference["type"] == "distribution"
            assert reference["url"].startswith("https://")
            for each in reference["hashes"]:
                assert each["alg"] == "SHA-256"
                assert re.fullmatch("[a-f0-9]{64}", each["content"])
        assert all(isinstance(each["name"], str) and each["value"] for each in part.get("properties", []))
    for each in BILL["dependencies"]:
        assert {each["ref"], *each["dependsOn"]} <= set(refs)
        assert len(each["dependsOn"]) == len(set(each["dependsOn"]))
    for each in BILL["compositions"]:
        assert each["aggregate"] in ("complete", "incomplete", "unknown")
        assert {*each.get("assemblies", []), *each.get("dependencies", [])} <= set(refs)


def test_pin_without_a_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="no pin with hashes"):
        sbom.read_lock("numpy==2.1\n")
    assert sbom.read_lock("a_b==1 ; x == 'y' \\\n    --hash=sha256:" + "0" * 64 + "\n") == [
        sbom.Pin("a_b", "1", "x == 'y'", ("0" * 64,))
    ]


def test_same_content_has_the_same_serial_number() -> None:
    assert sbom.text() == sbom.text()
    project = {"name": "a", "version": "1", "description": "", "license": "MIT", "dependencies": []}
    other = sbom.bill({**project, "version": "2"}, [])
    assert sbom.bill(project, [])["serialNumber"] != other["serialNumber"]


def test_packages_are_installed_by_their_hashes_alone() -> None:
    """Where scripts or the way to an installation use pip with a lock, it is told to check."""
    lines = [
        line
        for path in [sbom.ROOT / "scripts" / "setup", *(sbom.ROOT / "packaging").rglob("*")]
        if path.is_file() and path.suffix not in (".json", ".lock")
        for line in path.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ").splitlines()
        if re.search(r"\bpip3? install\b.*(\s-r\s|--requirement)", line)
    ]
    assert lines
    assert [line for line in lines if "--require-hashes" not in line] == []
