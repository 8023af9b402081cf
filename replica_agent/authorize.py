"""Who may replicate which VMs to where: a decision on a peer's certificate, default deny (I19)."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from shared.config_sections import ReplicaConfig
from shared.ports import Peer


@dataclass(frozen=True, slots=True)
class Grant:
    """One entry: peers with this certificate key (SHA-256 of its SubjectPublicKeyInfo, lower hex) and this name may
    replicate ``vms`` (None: all) into ``storage``. At least one of key and name is given; both given must both fit.

    Their copies may take ``quota`` bytes and be ``vms_max`` (0: no limit). Entries of one ``trust_group`` are for hosts
    that move VMs among each other: each may go on with the others' copies.
    """

    storage: str
    fingerprint: str = ""
    name: str = ""
    vms: frozenset[bytes] | None = None
    trust_group: str = ""
    quota: int = 0
    vms_max: int = 0

    def fits(self, peer: Peer) -> bool:
        """Whether the entry is about this peer."""
        if not self.fingerprint and not self.name:
            return False
        if self.fingerprint and self.fingerprint != peer.fingerprint:
            return False
        return not self.name or self.name.lower() in {name.lower() for name in peer.names}

    def allows(self, vm: bytes) -> bool:
        return self.vms is None or vm in self.vms


@dataclass(frozen=True, slots=True)
class Authorization:
    """All entries; the first that fits decides where a VM is kept."""

    grants: tuple[Grant, ...] = ()

    @classmethod
    def of(cls, config: ReplicaConfig) -> Authorization:
        """The entries of a configuration."""
        return cls(
            tuple(
                Grant(
                    entry.storage,
                    entry.fingerprint,
                    entry.name,
                    None if entry.vms == ["*"] else frozenset(UUID(vm).bytes for vm in entry.vms),
                    entry.trust_group,
                    entry.quota_bytes,
                    entry.vms_max,
                )
                for entry in config.authorize
            )
        )

    def knows(self, peer: Peer) -> bool:
        """Whether any entry is about this peer."""
        return any(grant.fits(peer) for grant in self.grants)

    def find(self, peer: Peer, vm: bytes, storage: str | None = None) -> Grant | None:
        """The entry by which ``peer`` may replicate ``vm``, or None.

        ``storage`` is where a copy of the VM is kept already: an entry for another location is none for that VM, so
        that nobody can take over the copy of a host that has a location of its own; but for hosts of one trust group.
        """
        for grant in self.grants:
            if grant.fits(peer) and grant.allows(vm) and (storage is None or self.reaches(grant, storage)):
                return grant
        return None

    def reaches(self, grant: Grant, storage: str) -> bool:
        """Whether the copies of that location are open to the entry: its own, and those of its trust group."""
        return grant.storage == storage or (
            bool(grant.trust_group)
            and any(other.storage == storage and other.trust_group == grant.trust_group for other in self.grants)
        )

    def entries_of(self, vm: bytes, storage: str | None) -> list[Grant]:
        """The entries that are about a copy there, whoever may replicate it."""
        return [g for g in self.grants if storage is not None and g.allows(vm) and self.reaches(g, storage)]

    @property
    def storages(self) -> list[str]:
        """All storage locations, each once."""
        return list(dict.fromkeys(grant.storage for grant in self.grants))
