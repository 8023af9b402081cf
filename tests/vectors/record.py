"""Records the test vectors, one file each, with an index of what they decode to, and the format pages' tables."""

from __future__ import annotations

import json
from typing import Any

from shared.hrl_report import check
from shared.ports.file_system import RealFileSystem
from tests.vectors import descriptions
from tests.vectors.cases import FOLDER, Case, cases, describe_frame
from tests.vectors.maps import VECTORS, write_all
from tests.vectors.tables import PAGES, rendered
from tests.vectors.undo import PATH as UNDO_PATH
from tests.vectors.undo import content as undo_content

INDEX = FOLDER / "index.json"


def expectation(case: Case) -> dict[str, Any]:
    """What the recorded file of a case decodes to."""
    path = FOLDER / case.file
    if case.kind == "frame":
        return describe_frame(path.read_bytes())
    report = check(RealFileSystem(), str(path))
    del report["path"]
    return report


def index(every: list[Case]) -> list[dict[str, Any]]:
    return [
        {"name": case.name, "file": case.file, "kind": case.kind, "what": case.what, "decodes_to": expectation(case)}
        for case in every
    ]


def main() -> None:
    every = cases()
    for old in [*FOLDER.glob("*.bin"), *FOLDER.glob("*.hrl")]:
        old.unlink()
    for case in every:
        (FOLDER / case.file).write_bytes(case.content)
    INDEX.write_text(json.dumps(index(every), indent=1) + "\n", encoding="utf-8")
    write_all()
    UNDO_PATH.write_bytes(undo_content())
    descriptions.write_all()
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{len(every) + len(VECTORS) + len(descriptions.VECTORS) + 1} vectors in {FOLDER}")


if __name__ == "__main__":
    main()
