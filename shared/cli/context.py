"""What a verb runs with, and the command's own version."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shared.cli.console import Console


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of one run."""

    console: Console
    environment: Mapping[str, str]


Handler = Callable[[argparse.Namespace, Context], int]
"""Runs a verb and returns its exit code; raises VmreplicaError."""


def version() -> str:
    """The installed version of the command."""
    # Importing it costs more than most verbs do.
    from importlib import metadata

    return metadata.version("vmreplica")
