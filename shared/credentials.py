"""The files of a host's identity as configured: paths, or credentials that systemd handed to the service."""

from __future__ import annotations

from shared.config_sections import CREDENTIAL, TlsSection
from shared.errors import UsageError
from shared.ports.tls import TlsIdentity

FOLDER_VARIABLE = "CREDENTIALS_DIRECTORY"
"""Where systemd puts what LoadCredential= names."""


def identity_of(tls: TlsSection, folder: str) -> TlsIdentity:
    """The files that ``[tls]`` names; ``folder`` is that of the credentials, empty where there are none.

    Raises UsageError for a credential that this process was not given.
    """
    ca, certificate, key, crl = (
        _path(name, value, folder)
        for name, value in (("ca", tls.ca), ("certificate", tls.certificate), ("key", tls.key), ("crl", tls.crl))
    )
    return TlsIdentity(ca, certificate, key, crl)


def _path(name: str, value: str, folder: str) -> str:
    if not value.startswith(CREDENTIAL):
        return value
    credential = value.removeprefix(CREDENTIAL)
    if not folder:
        raise UsageError(
            f"tls.{name} = {value!r} names a credential, and no service manager gave us any.",
            f"Have LoadCredential={credential}:/path in the unit (docs/install.md), or configure the file's path.",
        )
    return f"{folder}/{credential}"
