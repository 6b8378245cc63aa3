"""A log of all results that nobody can change unseen: a Merkle tree with a signed head.

    evidence/log        every signed result, in order, each behind its length
    evidence/log.head   size and root of the tree over them, signed by the coordinator

Whoever keeps a head can later be shown that the log only grew (`merkle.consistency_proof`), and that a
result stands in it (`merkle.inclusion_proof`). The head alone promises neither: it must be kept by
somebody else than the coordinator.
"""

from pathlib import Path
from typing import Final, Protocol

from offsite.emulator.durable import write_atomic
from offsite.secure import envelope
from offsite.secure.aggregation import merkle
from offsite.secure.aggregation.encoding import integer, pack, pack_list
from offsite.secure.identity import IdentityKey

LOG: Final = "log"
HEAD: Final = "log.head"
HEAD_TYPE: Final = "application/vnd.offsite.secagg.log-head"


class Results(Protocol):
    """The rows of the log."""

    def add(self, sum_id: str, result: bytes) -> None: ...
    def all(self) -> list[bytes]: ...


def publish(results: Results, sum_id: str, result: bytes, folder: Path, key: IdentityKey) -> None:
    """Appends a result, unless it is there; the files follow the rows."""
    results.add(sum_id, result)
    leaves = results.all()
    root = merkle.root([merkle.leaf_digest(leaf) for leaf in leaves])
    head = envelope.sign(HEAD_TYPE, pack((integer(len(leaves)), root)), key)
    write_atomic(folder / LOG, pack_list(leaves))
    write_atomic(folder / HEAD, envelope.to_bytes(head))
