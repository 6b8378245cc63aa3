"""With whose keys a ledger was verified, which decides what a verified ledger is worth.

A ledger names its own owner's key. Verified with that key alone it is consistent, and may be one that
anybody made; only a key from elsewhere, a signed directory, says whose it is. Counter-signatures are
checked only where the coordinator's key was given: without it, how many there are is not known, not 0.
"""

from dataclasses import dataclass
from typing import Final

from offsite.secure.identity import IdentityPublicKey

OWN_WORD: Final = (
    "the owner's key is the ledger's own word: anybody could have made and signed this ledger; give "
    "--key, the owner's identity key from a signed directory"
)
NOT_CHECKED: Final = "not checked: give --coordinator, the key that the directory has for it"


@dataclass(frozen=True, slots=True)
class LedgerKeys:
    """The keys that signatures were verified with."""

    owner: IdentityPublicKey
    is_stated: bool
    """Whether the owner's key came from somewhere else than the ledger."""
    coordinator: IdentityPublicKey | None = None
    """None: counter-signatures were not checked."""
