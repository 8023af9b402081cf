"""Verbs that make and show certificates; they speak to no agent."""

from __future__ import annotations

import argparse
from pathlib import Path

from shared import pki
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.text import printable
from shared.errors import StorageError


def init(options: argparse.Namespace, context: Context) -> int:
    """Make a certificate authority."""
    folder = Path(options.folder)
    try:
        fingerprint = pki.init_ca(folder, options.name)
    except OSError as error:
        raise _failed(error, folder) from error
    if options.json:
        context.console.print_json({"folder": str(folder), "fingerprint": fingerprint})
        return SUCCESS
    context.console.print(
        [
            f"The certificate authority lies in {folder}. Keep {folder / pki.CA_KEY} secret, and off both hosts.",
            f"Next: vmreplica pki issue --ca {folder} --out FOLDER HOST HOST",
        ]
    )
    return SUCCESS


def issue(options: argparse.Namespace, context: Context) -> int:
    """Make key and certificate for each host."""
    hosts = [[name for name in host.split(",") if name] for host in options.hosts]
    try:
        made = pki.issue_hosts(Path(options.ca), hosts, Path(options.out))
    except OSError as error:
        raise _failed(error, Path(options.out)) from error
    _tell(made, options, context, "Copy each folder to its host, readable by root only.")
    return SUCCESS


def renew(options: argparse.Namespace, context: Context) -> int:
    """Make certificates in the place of others, with the same names and keys."""
    try:
        made = pki.renew(Path(options.ca), options.certificates, Path(options.out))
    except OSError as error:
        raise _failed(error, Path(options.out)) from error
    advice = f"Copy each {pki.CERTIFICATE} to its host in the place of the former one, and reload the agent there."
    _tell(made, options, context, advice)
    return SUCCESS


def bundle(options: argparse.Namespace, context: Context) -> int:
    """Join the CAs and revocation lists of several authorities."""
    out = Path(options.out)
    try:
        names = pki.bundle([Path(folder) for folder in options.ca], out)
    except OSError as error:
        raise _failed(error, out) from error
    if options.json:
        context.console.print_json({"ca": str(out / pki.CA), "crl": str(out / pki.CRL), "authorities": names})
        return SUCCESS
    context.console.print(
        [
            f"{out / pki.CA} and {out / pki.CRL} hold {', '.join(printable(name) for name in names)}.",
            "Copy both files to all hosts, and reload the agents there.",
        ]
    )
    return SUCCESS


def _tell(made: list[pki.Issued], options: argparse.Namespace, context: Context, advice: str) -> None:
    """What was made, and what to do with it."""
    if options.json:
        context.console.print_json(
            {
                "certificates": [
                    {
                        "folder": str(each.folder),
                        "names": list(each.names),
                        "fingerprint": each.fingerprint,
                        "serial": each.serial,
                        "not_after_time": each.not_after.timestamp(),
                    }
                    for each in made
                ]
            }
        )
        return
    for each in made:
        context.console.print(
            [
                f"{', '.join(each.names)}: {each.folder}, valid until {each.not_after:%Y-%m-%d}",
                f"  fingerprint {each.fingerprint}",
            ]
        )
    context.console.print(advice)


def show(options: argparse.Namespace, context: Context) -> int:
    """What is in a certificate or revocation list."""
    path = Path(options.file)
    try:
        text = pki.show(path)
    except OSError as error:
        raise _failed(error, path) from error
    context.console.print(printable(line) for line in text.split("\n"))
    return SUCCESS


def revoke(options: argparse.Namespace, context: Context) -> int:
    """Put a certificate on the revocation list."""
    folder = Path(options.ca)
    try:
        serial = pki.revoke(folder, options.certificate)
    except OSError as error:
        raise _failed(error, folder) from error
    if options.json:
        context.console.print_json({"serial": serial, "crl": str(folder / pki.CRL)})
        return SUCCESS
    context.console.print(
        [
            f"{serial} is revoked.",
            f"Copy {folder / pki.CRL} to all hosts: agents load it by themselves.",
        ]
    )
    return SUCCESS


def _failed(error: OSError, path: Path) -> StorageError:
    return StorageError(f"{error.filename or path}: {error.strerror or error}.", "Check the folder's permissions.")
