"""Writes the bill of materials: what an installed vmreplica consists of, as CycloneDX 1.6 JSON.

``python -m scripts.sbom > packaging/vmreplica.cdx.json``. It is made from pyproject.toml and requirements.lock alone,
so that the same checkout always gives the same bytes: no time, and a serial number that follows from the content.
Python itself, OpenSSL and the C library are the distribution's and are not in it.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
PATH = ROOT / "packaging" / "vmreplica.cdx.json"
SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/vmreplica")
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[^\s;\\]+)\s*(?:;\s*(?P<marker>[^\\\n]+))?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of the lock: ``hashes`` are the SHA-256 of every file that was published of that version."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    @property
    def purl(self) -> str:
        """Its package URL; names as PyPI normalizes them."""
        return f"pkg:pypi/{normalized(self.name)}@{self.version}"


def normalized(name: str) -> str:
    """A package's name as PyPI compares them (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str) -> list[Pin]:
    """All pins of a lock file. Raises ValueError for a line that is none, and a pin without a hash."""
    pins = []
    for entry in text.replace("\\\n", " ").splitlines():
        if not entry.strip() or entry.startswith("#"):
            continue
        found = _PIN.match(entry.partition("--hash")[0])
        hashes = tuple(_HASH.findall(entry))
        if found is None or not hashes:
            raise ValueError(f"no pin with hashes: {entry[:80]}")
        pins.append(Pin(found["name"], found["version"], (found["marker"] or "").strip(), hashes))
    return pins


def bill(project: dict[str, Any], pins: list[Pin]) -> dict[str, Any]:
    """The bill of a project (the table of its pyproject.toml) with these pins."""
    own = f"pkg:pypi/{normalized(project['name'])}@{project['version']}"
    by_name = {normalized(pin.name): pin.purl for pin in pins}
    wanted = [normalized(re.split(r"[\s<>=!~;\[]", need)[0]) for need in project["dependencies"]]
    body = {
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": project["name"],
                "version": project["version"],
                "description": project["description"],
                "licenses": [{"license": {"id": project["license"]}}],
                "purl": own,
            }
        },
        "components": [_component(pin) for pin in pins],
        "dependencies": [{"ref": own, "dependsOn": sorted(by_name[name] for name in wanted)}],
        # Which of them needs which other one the lock does not say.
        "compositions": [
            {"aggregate": "complete", "assemblies": [own]},
            {"aggregate": "incomplete", "dependencies": [own]},
        ],
    }
    serial = uuid.uuid5(SPACE, json.dumps(body, sort_keys=True))
    head = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
    }
    return {**head, **body}


def _component(pin: Pin) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": pin.purl,
        "name": pin.name,
        "version": pin.version,
        "scope": "required",
        "purl": pin.purl,
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{normalized(pin.name)}/{pin.version}/#files",
                "comment": "one hash for each published file",
                "hashes": [{"alg": "SHA-256", "content": content} for content in pin.hashes],
            }
        ],
    }
    if pin.marker:
        component["properties"] = [{"name": "vmreplica:marker", "value": pin.marker}]
    return component


def text() -> str:
    """The bill of this checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return json.dumps(bill(project, read_lock(LOCK.read_text(encoding="utf-8"))), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
