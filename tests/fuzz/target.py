"""What a fuzz target is, the list of all of them, and where their inputs lie."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
CORPUS = FOLDER / "corpus"
REGRESSIONS = FOLDER / "regressions"
WORK = ROOT / ".fuzz"
"""What runs find, kept from run to run and out of version control."""

Mutator = Callable[[bytes, Random], bytes]
"""Changes an input so that checksums stay right: without it a run would not get behind the first check."""

MODULES = {
    "frames": "wire",
    "session": "wire",
    "messages": "wire",
    "bulk": "bulk",
    "compression": "bulk",
    "hrl_records": "logs",
    "hrl_files": "logs",
    "hrl_follower": "logs",
    "spool": "received",
    "spool_frames": "received",
    "differencing": "received",
    "tap_state": "state",
    "maps": "state",
    "records": "state",
    "nbd_handshake": "nbd",
    "nbd_requests": "nbd",
    "nbd_connection": "nbd",
    "admin": "control",
    "tap_control": "control",
    "config": "control",
    "tap_config": "control",
}
"""The targets, and the module of each."""


@dataclass(frozen=True)
class Plant:
    """A bug to plant into the product: ``apply`` takes a defence out for as long as its context lasts."""

    name: str
    apply: Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Target:
    """One function that reads bytes and raises AssertionError, or anything else, where a property does not hold.

    ``seeds`` makes the first inputs from valid ones. ``mutate`` knows the structure, None where bytes need no help.
    ``plants`` are bugs that the target must notice.
    """

    fuzz: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    mutate: Mutator | None = None
    plants: tuple[Plant, ...] = ()
    max_bytes: int = 1 << 14


def load(name: str) -> Target:
    """The target; its module, and with it the part of the product that it fuzzes, is imported only now."""
    module = importlib.import_module(f"tests.fuzz.targets.{MODULES[name]}")
    target = module.TARGETS[name]
    assert isinstance(target, Target)
    return target


def file_name(data: bytes) -> str:
    """The name under which an input is kept."""
    return hashlib.sha256(data).hexdigest()[:16]


def inputs(name: str) -> list[Path]:
    """Corpus and regressions of a target."""
    folders = (CORPUS / name, REGRESSIONS / name)
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
