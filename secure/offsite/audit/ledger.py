"""`privacy-audit ledger`: a data owner's privacy ledger, verified without trusting its owner.

    FOLDER/entries        the ledger: one signed line an entry
    FOLDER/receipts/*     checkpoints that the coordinator counter-signed   (and --receipt FILE)

Every line, signature and link is checked, every rule of the ledger, every checkpoint, and every
epsilon is computed again from the stored mechanisms by the accountants of record and their
cross-checks. What is wrong is named with the entries that it concerns.

What it does not show: that the machine really clipped and noised. Each campaign's level of assurance
says what is known about that (`privacy.ledger.assurance`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from offsite.audit.files import read_file
from offsite.audit.keys import LedgerKeys
from offsite.secure.errors import ConfigError, IntegrityError, OffsiteError, PolicyError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord, Accounting
from offsite.secure.privacy.ledger.admission import epsilon_of_account
from offsite.secure.privacy.ledger.assurance import Assurance, assurance_of
from offsite.secure.privacy.ledger.bodies import Adaptivity, LimitSet
from offsite.secure.privacy.ledger.budget import Budget, Campaign
from offsite.secure.privacy.ledger.chain import Record, root_of, split_lines
from offsite.secure.privacy.ledger.notes import NOTE_BYTES
from offsite.secure.privacy.ledger.verification import Findings, verify_ledger

ENTRIES: Final = "entries"
RECEIPTS: Final = "receipts"
LEDGER_BYTES: Final = 1 << 32
MOST_RECEIPTS: Final = 100_000
_KEY_DIGITS: Final = 64
_ADVICE: Final = "give the folder `ledger` of an edge's state, or a copy of its file `entries`"


@dataclass(frozen=True, slots=True)
class AccountLine:
    """What the records of one data set have been used for, at their limit's delta."""

    data_set: bytes
    limit: LimitSet | None
    adaptivity: Adaptivity
    spent: float | None
    """None where there is no figure: accountants disagree, or it is beyond any use."""
    exposed: float | None
    """With what open campaigns may still use: what the limit bounds."""
    cross_checks: dict[str, float]
    """What was spent, by the other accountants; empty where a filter decides."""
    never_ran: int = 0
    """Steps of campaigns that ended early, counted as spent; see `privacy.ledger.budget`."""

    def document(self) -> dict[str, object]:
        """For `--json`."""
        limit = self.limit
        return {
            "data_set": self.data_set.hex(),
            "limit_epsilon": None if limit is None else limit.epsilon,
            "delta": None if limit is None else limit.delta,
            "adaptivity": self.adaptivity.value,
            "spent": self.spent,
            "steps_that_never_ran": self.never_ran,
            "spent_and_reserved": self.exposed,
            **self.cross_checks,
        }


@dataclass(frozen=True, slots=True)
class LedgerAudit:
    """What was established about a ledger."""

    findings: Findings
    keys: LedgerKeys
    accounts: tuple[AccountLine, ...]

    @property
    def countersigned(self) -> int | None:
        """Up to how many entries the coordinator signed; None: that was not checked."""
        return None if self.keys.coordinator is None else self.findings.countersigned

    @property
    def campaigns(self) -> dict[str, tuple[Campaign, Assurance]]:
        """Every campaign and how much its words are worth."""
        budget = self.findings.budget
        return {name: (item, assurance_of(budget, name)) for name, item in budget.campaigns.items()}

    def check(self) -> None:
        """Raises IntegrityError with every fault, if there is one."""
        self.findings.check()

    def document(self) -> dict[str, object]:
        """For `--json`."""
        found = self.findings
        digests = [record.digest for record in found.records]
        opened = found.budget.opened
        return {
            "is_valid": not found.faults,
            "faults": [
                {"kind": f.kind.value, "first": f.first, "last": f.last, "problem": f.problem}
                for f in found.faults
            ],
            "owner": None if opened is None else opened.owner,
            "owner_key": self.keys.owner.raw.hex(),
            "owner_key_is_stated": self.keys.is_stated,
            "entries": len(digests),
            "countersigned": self.countersigned,
            "limits": [
                {
                    "entry": seq,
                    "epsilon": limit.epsilon,
                    "delta": limit.delta,
                    "campaign_epsilon": limit.campaign_epsilon,
                    "data_set": None if limit.data_set is None else limit.data_set.hex(),
                }
                for seq, limit in found.budget.limit_changes
            ],
            "root": root_of(digests, len(digests)).hex(),
            "data_sets": [account.document() for account in self.accounts],
            "campaigns": [
                {
                    "campaign": name,
                    "data_set": item.reserved.data_set.hex(),
                    "mechanism": item.reserved.mechanism.to_json(),
                    "clip_norm": item.reserved.clip_norm,
                    "reserved": item.reserved.mechanism.uses,
                    "spent": item.spent,
                    "never_ran": item.never_ran(item.reserved.adaptivity),
                    "charged_after_crashes": item.charged,
                    "is_open": item.is_open,
                    "assurance": level.value,
                }
                for name, (item, level) in self.campaigns.items()
            ],
        }


def audit_ledger(
    path: Path,
    key: str | None = None,
    coordinator: str | None = None,
    receipts: Sequence[Path] = (),
    accounting: Accounting | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> LedgerAudit:
    """Everything that a ledger says, and everything that is wrong with it.

    Args:
        key: the owner's identity key, 64 hex digits, from a directory; None: the ledger's own word.
        coordinator: whose counter-signatures count, 64 hex digits; None: nobody's.
        receipts: further checkpoints, from whoever kept them.

    Raises:
        ConfigError: a file is missing, or a key cannot be one.
        IntegrityError: it is no ledger at all.
    """
    folder = path if path.is_dir() else path.parent
    entries = path / ENTRIES if path.is_dir() else path
    data = read_file(entries, LEDGER_BYTES, _ADVICE)
    owner = _key("--key", key) if key is not None else _own_key(data)
    notes = [read_file(note, NOTE_BYTES, "a receipt") for note in _receipts(folder, receipts)]
    checker = None if coordinator is None else _key("--coordinator", coordinator)
    accounting = accounting or AccountantsOfRecord()
    findings = verify_ledger(data, owner, notes, checker, accounting)
    accounts = []
    for number, data_set in enumerate(findings.budget.data_sets, start=1):
        accounts.append(_account(findings.budget, data_set, accounting))
        report(number, len(findings.budget.data_sets))
    return LedgerAudit(findings, LedgerKeys(owner, key is not None, checker), tuple(accounts))


def read_ledger(path: Path, key: str | None = None) -> Findings:
    """A ledger's entries, signatures and rules, without computing an epsilon.

    Raises:
        IntegrityError: there is a fault.
    """
    entries = path / ENTRIES if path.is_dir() else path
    data = read_file(entries, LEDGER_BYTES, _ADVICE)
    findings = verify_ledger(data, _key("--key", key) if key is not None else _own_key(data))
    findings.check()
    return findings


def _account(budget: Budget, data_set: bytes, accounting: Accounting) -> AccountLine:
    limit, adaptivity = budget.limit_of(data_set), budget.adaptivity(data_set)
    if limit is None:
        return AccountLine(data_set, None, adaptivity, None, None, {})
    spent = _figure(partial(epsilon_of_account, budget, data_set, accounting, only_spent=True))
    exposed = _figure(partial(epsilon_of_account, budget, data_set, accounting))
    checks = {} if spent is None else _cross_checks(budget, data_set, limit)
    unused = budget.never_ran(data_set)
    return AccountLine(data_set, limit, adaptivity, spent, exposed, checks, unused)


def _figure(epsilon: Callable[[], float]) -> float | None:
    """An epsilon that can be reported."""
    try:
        found = epsilon()
    except (PolicyError, ConfigError):  # the ledger's faults say so, too
        return None
    return found if math.isfinite(found) else None


def _cross_checks(budget: Budget, data_set: bytes, limit: LimitSet) -> dict[str, float]:
    from offsite.secure.privacy.accounting.view import epsilon_of

    spent = budget.spent(data_set)
    if not spent or budget.adaptivity(data_set) is Adaptivity.FILTER:
        return {}
    view = epsilon_of(spent, limit.delta)
    return {"pld": view.pld, "prv": view.prv, "rdp": view.rdp}


def _receipts(folder: Path, more: Sequence[Path]) -> list[Path]:
    beside = folder / RECEIPTS
    try:
        found = sorted(beside.iterdir()) if beside.is_dir() else []
    except OSError as error:
        raise ConfigError(f"{beside} cannot be read: {error.strerror}") from None
    if len(found) > MOST_RECEIPTS:
        raise IntegrityError(f"{beside}: expected at most {MOST_RECEIPTS} files, found more")
    return [*found, *more]


def _own_key(data: bytes) -> IdentityPublicKey:
    """The key that the first entry names."""
    try:
        lines, torn = split_lines(data)
        first = Record.from_line(lines[0] if lines else torn)
        return IdentityPublicKey(first.entry.body.signer_key)  # type: ignore[union-attr]
    except (OffsiteError, AttributeError, IndexError):
        raise IntegrityError(
            "expected a ledger that begins with its opening, found something else: " + _ADVICE
        ) from None


def _key(flag: str, text: str) -> IdentityPublicKey:
    digits = text.strip().lower()
    if len(digits) != _KEY_DIGITS or not set(digits) <= set("0123456789abcdef"):
        raise ConfigError(f"{flag}: expected {_KEY_DIGITS} hex digits, found {text[:80]!r}")
    return IdentityPublicKey(bytes.fromhex(digits))
