"""The one error tree, its roots by whose fault it is.

A message says what was expected, what was found and what to do; it never holds a secret. The
commands turn a root into an exit code, the gRPC edge turns it into a status. Leaves exist only
where a caller acts on them.

    OffsiteError
    ├── PeerError        what arrived is wrong: forged, corrupt, misshapen, replayed
    ├── TransportError   it did not arrive: refused, cut, late
    ├── PolicyError      it would break a guarantee: leak, budget, gate, revoked identity
    ├── ConfigError      what the user asked for or gave is wrong: flag, key, file, row
    └── MachineError     this machine cannot: disk full, state folder in use, out of memory
"""

from typing import ClassVar, Final

ERROR_KEY: Final = "offsite-error"
"""Key of the trailing metadata under which a refused call names the class of its error."""
RETRY_KEY: Final = "offsite-retry-after-s"
"""Key of the trailing metadata under which a BusyError says when to come back."""


class OffsiteError(Exception):
    """Root of everything that Offsite raises on purpose."""

    exit_code: ClassVar[int] = 1


class PeerError(OffsiteError):
    """What arrived is wrong; nothing of it was used."""

    exit_code = 4


class TransportError(OffsiteError):
    """Something did not arrive; the same command may be tried again."""

    exit_code = 5


class BusyError(TransportError):
    """The other side has too much to do for us now, and says when to come back."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PolicyError(OffsiteError):
    """It would break a guarantee, so it was not done."""

    exit_code = 6


class TermsRefusedError(PolicyError):
    """Terms of a secure sum below what this machine demands.

    The message is for the machine's owner and says what is demanded; `public` is for the peer, who
    may know which of its own terms were refused and nothing more.
    """

    def __init__(self, message: str, public: str) -> None:
        super().__init__(message)
        self.public = public


class ConfigError(OffsiteError):
    """A setting, a flag or a file given by the user is wrong."""

    exit_code = 3


class MachineError(OffsiteError):
    """This machine cannot do it now; nothing accepted earlier was lost."""

    exit_code = 7


class SitsOutError(PolicyError):
    """What the owner of this machine allows does not let it take part.

    The message is for the owner and may tell of its data; the peer learns `PUBLIC`.
    """

    PUBLIC: ClassVar[str] = "this edge sits this round out"


class OverBudgetError(PolicyError):
    """More privacy would be spent than the data's owner allows.

    `steps_that_fit` is how many steps of what was asked would not exceed the limit.
    """

    def __init__(self, message: str, steps_that_fit: int) -> None:
        super().__init__(message)
        self.steps_that_fit = steps_that_fit


class NoNoiseFitsError(PolicyError):
    """No noise keeps so many steps within this epsilon."""


class SignatureError(PeerError):
    """A signature does not verify, or its key is not the expected one."""


class IntegrityError(PeerError):
    """Bytes differ from the digest, size or schema that was signed."""


class ExpiredError(PeerError):
    """A token, certificate, release or instruction is past its time."""


class TokenError(PeerError):
    """A join token is malformed, unknown, used or forged."""


class IdentityError(PeerError):
    """Peer, claimed identity and directory entry do not agree, or the entry is revoked."""


class StaleReleaseError(PeerError):
    """A plan of our coordinator is for another release than the one at hand: fetch, then obey."""


class StateLockedError(MachineError):
    """Another process uses the same state folder."""


class DiskFullError(MachineError):
    """No room to write; what was written before is intact."""
