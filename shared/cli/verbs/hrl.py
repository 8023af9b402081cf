"""Verbs that look into files of the replication log; they speak to no agent."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable

from shared import hrl_report
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import printable
from shared.errors import NotFoundError, StorageError
from shared.hrl_report import Record, Report, Verdict
from shared.ports.file_system import RealFileSystem

WORTH = {Verdict.SOUND, Verdict.TORN}
"""Verdicts that end with success: a crash may tear the tail, and of a file in use it is torn most of the time."""


def dump(options: argparse.Namespace, context: Context) -> int:
    """Print every valid record, then what the file is worth. JSON: one record a line, the report last."""
    console = context.console

    def emit(record: Record) -> None:
        if options.json:
            console.print_json(record, compact=True)
        else:
            console.write(hrl_report.record_lines(record))

    report = _inspected(options.file, lambda path: hrl_report.dump(RealFileSystem(), path, emit))
    if options.json:
        console.print_json(report, compact=True)
    else:
        console.print(_printable(hrl_report.report_lines(report)))
    return _exit_code(report)


def check(options: argparse.Namespace, context: Context) -> int:
    """Tell what the file is worth, and how it ends."""
    report = _inspected(options.file, lambda path: hrl_report.check(RealFileSystem(), path))
    if options.json:
        context.console.print_json(report)
    else:
        context.console.print(_printable(hrl_report.report_lines(report)))
    return _exit_code(report)


def _inspected(file: str, inspect: Callable[[str], Report]) -> Report:
    # The file system follows no symbolic link in the last component, but people may.
    path = os.path.realpath(file)
    try:
        return inspect(path)
    except FileNotFoundError:
        raise NotFoundError(f"{file} does not exist.", "Log files are named NNNNNNNN.hrl in a tap's folder.") from None
    except OSError as error:
        raise StorageError(f"{file} can't be read: {error.strerror or error}.", "Run the command as root.") from error


def _printable(lines: Iterable[str]) -> Iterable[str]:
    return (printable(line) for line in lines)


def _exit_code(report: Report) -> int:
    return SUCCESS if Verdict(report["verdict"]) in WORTH else StorageError.exit_code
