"""The clients of a simulation: names, keys, a directory, data; and what they share in memory.

Keys follow from the seed and sign nothing outside: neither the coordinator's own key nor any
edge's takes part, so nothing that a simulation leaves behind passes for a real plan, directory or
update."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from offsite.coordinator.campaign_parts import Member
from offsite.edge_client.data import Data
from offsite.secure import envelope
from offsite.secure.directory import Directory, DirectoryEntry, Role, Status, sign_directory
from offsite.secure.identity import IdentityKey
from offsite.secure.names import node_id
from offsite.simulation.partition import Parts

COORDINATOR: Final = "coordinator"


@dataclass(frozen=True, slots=True)
class Client:
    """One simulated data owner."""

    client_id: str
    key: IdentityKey = field(repr=False)
    data: Data
    place: int
    """Its number, from 0."""

    @property
    def node(self) -> int:
        """Its Flower node id."""
        return node_id(self.client_id)

    def folder(self, root: Path) -> Path:
        """Where it keeps its state, under the folder of a run."""
        return root / "clients" / self.client_id


@dataclass(frozen=True, slots=True)
class Fleet:
    """All clients, and whom they trust."""

    clients: tuple[Client, ...]
    coordinator: IdentityKey = field(repr=False)
    authority: IdentityKey = field(repr=False)

    @classmethod
    def of(cls, data: Data, parts: Parts, seed: int) -> "Fleet":
        """The clients of a divided data set; their names are in the order of the parts."""
        digits = len(str(len(parts) - 1))
        names = [f"client-{number:0{digits}}" for number in range(len(parts))]
        clients = tuple(
            Client(name, _key(seed, name), _rows_of(data, part), place)
            for place, (name, part) in enumerate(zip(names, parts, strict=True))
        )
        return cls(clients, _key(seed, "the coordinator"), _key(seed, "the authority"))

    def members(self) -> Mapping[int, Member]:
        """As a campaign knows them."""
        return {c.node: Member(c.client_id, c.key.public) for c in self.clients}

    def directory(self) -> Directory:
        """Version 1; nobody comes or goes."""
        entries = [
            DirectoryEntry(name, key.public, role, Status.ACTIVE, 0.0)
            for name, key, role in (
                (COORDINATOR, self.coordinator, Role.COORDINATOR),
                *((c.client_id, c.key, Role.CLIENT) for c in self.clients),
            )
        ]
        return Directory(1, tuple(sorted(entries, key=lambda entry: entry.client_id)))

    def signed_directory(self) -> bytes:
        """The directory as the authority signs it."""
        return envelope.to_bytes(sign_directory(self.directory(), self.authority))


def _rows_of(data: Data, part: Sequence[int]) -> Data:
    return Data(tuple(data.rows[place] for place in part), data.report)


def _key(seed: int, name: str) -> IdentityKey:
    return IdentityKey.from_seed(
        hashlib.sha256(f"offsite/simulation/1|{seed}|{name}".encode()).digest()
    )
