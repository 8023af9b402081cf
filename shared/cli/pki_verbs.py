"""The grammar of the verbs that make and look at certificates."""

from __future__ import annotations

import argparse

from shared.cli.grammar import Verb, json_option


def _pki_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="where the authority and its key will lie")
    parser.add_argument(
        "--name", default="vmreplica CA", metavar="NAME", help="common name of the authority (default: vmreplica CA)"
    )
    json_option(parser)


def _ca_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ca", required=True, metavar="FOLDER", help="folder of the authority")


def _pki_issue(parser: argparse.ArgumentParser) -> None:
    _ca_option(parser)
    parser.add_argument(
        "hosts",
        nargs="+",
        metavar="HOST[,NAME...]",
        help="a host, with all DNS names and IP addresses by which the other side dials it",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="gets a folder for each host")
    json_option(parser)


def _pki_renew(parser: argparse.ArgumentParser) -> None:
    _ca_option(parser)
    parser.add_argument(
        "certificates",
        nargs="+",
        metavar="CERTIFICATE",
        help="file of the certificate, of this authority or of the one before it; or serial number or host name",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="gets a folder for each host")
    json_option(parser)


def _pki_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ca", required=True, action="append", metavar="FOLDER", help="folder of an authority (repeatable)"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="gets ca.pem and crl.pem, replacing such files")
    json_option(parser)


def _pki_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a PEM file of certificates or a revocation list")


def _pki_revoke(parser: argparse.ArgumentParser) -> None:
    _ca_option(parser)
    parser.add_argument(
        "certificate", metavar="CERTIFICATE", help="serial number, host name (its newest), or file of the certificate"
    )
    json_option(parser)


_PKI = "shared.cli.verbs.pki"
PKI_VERBS = (
    Verb("init", "make a certificate authority", f"{_PKI}:init", _pki_init, agents=False),
    Verb("issue", "make key and certificate for hosts", f"{_PKI}:issue", _pki_issue, agents=False),
    Verb("renew", "issue anew, with the same names and key", f"{_PKI}:renew", _pki_renew, agents=False),
    Verb("bundle", "join authorities while one replaces another", f"{_PKI}:bundle", _pki_bundle, agents=False),
    Verb("show", "print what is in a certificate", f"{_PKI}:show", _pki_show, agents=False),
    Verb("revoke", "put it on the revocation list", f"{_PKI}:revoke", _pki_revoke, agents=False),
)
