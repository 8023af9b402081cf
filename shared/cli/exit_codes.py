"""The exit codes of the command, collected from the error classes that carry them."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import VmreplicaError

SUCCESS = 0
INTERRUPTED = 130
"""Ctrl-C; work that an agent was asked to do goes on."""
NO_READER = 141
"""The output's reader went away, e.g. ``| head``."""


@dataclass(frozen=True, slots=True)
class ExitCode:
    """One exit code: ``name`` is the stable identifier that errors carry in JSON."""

    number: int
    name: str
    meaning: str


def exit_codes() -> list[ExitCode]:
    """All exit codes in order of their numbers; the meaning is the first line of the class's docstring."""
    import shared.errors

    codes = [
        ExitCode(SUCCESS, "", "Done; for `status` this says nothing about the health of the VMs."),
        ExitCode(INTERRUPTED, "", "Interrupted with Ctrl-C; what an agent was asked to do goes on."),
        ExitCode(NO_READER, "", "The reader of the output went away."),
    ]
    for member in vars(shared.errors).values():
        if isinstance(member, type) and issubclass(member, VmreplicaError):
            meaning = (member.__doc__ or "").partition("\n")[0]
            codes.append(ExitCode(member.exit_code, member.code, meaning))
    return sorted(codes, key=lambda each: each.number)
