"""Whether a campaign or a release may start: all of it, or nothing.

    (1) it breaks no rule of the ledger (`rules.py`)
    (2) there is a limit for its data set, and for every set that overlaps it
    (3) by itself it stays below the campaign's limit
    (4) with everything that its records were used for, and everything reserved, the account of its
        data set *and of every set that overlaps it* stays below that set's limit

What exceeds a limit is refused before anything of it is written, with the number of steps that
would fit. Accountants are an argument: the fold knows mechanisms, not epsilons.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offsite.secure.errors import ConfigError, OverBudgetError, PolicyError
from offsite.secure.privacy.ledger.accountants import Accounting, Terms
from offsite.secure.privacy.ledger.bodies import (
    Adaptivity,
    LimitSet,
    Refused,
    ReleasedOther,
    Reserved,
)
from offsite.secure.privacy.ledger.budget import Budget
from offsite.secure.privacy.ledger.entries import NO_ENTRY, SALT_BYTES, Entry
from offsite.secure.privacy.ledger.rules import broken_rules
from offsite.secure.privacy.mechanisms import Mechanism

Use = Reserved | ReleasedOther
"""What takes from a budget."""


@dataclass(frozen=True, slots=True)
class Account:
    """One data set's epsilon before and after, and the most it may be."""

    data_set: bytes
    before: float
    after: float
    limit: LimitSet
    adaptivity: Adaptivity


@dataclass(frozen=True, slots=True)
class Admission:
    """A use that may be written, and what it does to every account that it touches."""

    use: Use
    alone: float
    accounts: tuple[Account, ...]


@dataclass(frozen=True, slots=True)
class Excess:
    """An account above its limit, or one that nobody can tell it of."""

    data_set: bytes
    problem: str


def admit(budget: Budget, use: Use, accounting: Accounting) -> Admission:
    """Decides (1) to (4). Nothing is changed: also the answer to "what if".

    Raises:
        OverBudgetError: a limit would be exceeded; says by how much, and how many steps would fit.
        PolicyError: it breaks a rule, or no limit was ever set.

    Guarantees: no account's exposure ever exceeds its limit by what was admitted
        (`test_what_is_admitted_never_exceeds_a_limit`).
    """
    # (1)
    _check_rules(budget, use)
    # (2)
    limits = _limits(budget, use.data_set)
    # (3), (4)
    own = limits[use.data_set]
    alone = accounting.epsilon((use.mechanism,), _alone(use, own))
    accounts = tuple(_account(budget, use, at, limits[at], accounting) for at in limits)
    problem = _too_large(alone, own) or next(filter(None, map(_too_much, accounts)), None)
    if problem is None:
        return Admission(use, alone, accounts)
    fitting = steps_that_fit(budget, use, accounting)
    raise OverBudgetError(f"{problem}; {fitting} of {use.mechanism.uses} steps would fit", fitting)


def is_admissible(budget: Budget, use: Use, accounting: Accounting) -> bool:
    """Whether no limit forbids it, without figures: for a search over noise or steps.

    Raises:
        PolicyError: it breaks a rule, or no limit was ever set.
    """
    _check_rules(budget, use)
    return _fits(_sums(budget, use), use.mechanism, accounting)


def steps_that_fit(budget: Budget, use: Use, accounting: Accounting) -> int:
    """The most uses of its mechanism, up to as many as it has, that no limit forbids."""
    sums, mechanism = _sums(budget, use), use.mechanism
    return _largest(lambda uses: _fits(sums, mechanism.repeated(uses), accounting), mechanism.uses)


def refusal(use: Reserved, error: OverBudgetError) -> Refused:
    """The entry that says that a campaign was refused."""
    return Refused(
        use.campaign_id, use.data_set, use.mechanism, error.steps_that_fit, "it exceeds the limit"
    )


def epsilon_of_account(
    budget: Budget, data_set: bytes, accounting: Accounting, *, only_spent: bool = False
) -> float:
    """What an account comes to now: all exposure, or only what was spent. 0 for nothing.

    Raises:
        PolicyError: there is no limit, and so no delta.
    """
    limit, first = budget.limit_of(data_set), budget.first_use(data_set)
    if limit is None:
        raise _no_limit(data_set)
    adaptivity = budget.adaptivity(data_set)
    used = budget.spent(data_set) if only_spent else budget.exposure(data_set, adaptivity)
    if first is None or not used:
        return 0.0
    return accounting.epsilon(used, Terms(limit, adaptivity, first))


def exceeded(budget: Budget, data_set: bytes, accounting: Accounting) -> tuple[Excess, ...]:
    """For an auditor: the accounts that a use of `data_set` touched and that are above their limit."""
    found = []
    for member in sorted(budget.family(data_set)):
        limit = budget.limit_of(member)
        if limit is None:
            problem = f"the records of {_short(member)} are used without a limit"
            found.append(Excess(member, problem))
            continue
        try:
            epsilon = epsilon_of_account(budget, member, accounting)
        except (PolicyError, ConfigError) as error:  # mixed units, or accountants that disagree
            found.append(Excess(member, f"{_short(member)} has no epsilon: {error}"))
            continue
        if not epsilon <= limit.epsilon:
            problem = (
                f"epsilon of {_short(member)} at delta {limit.delta:g} is {epsilon:.4f}, its limit "
                f"is {limit.epsilon:g}"
            )
            found.append(Excess(member, problem))
    return tuple(found)


def campaign_excess(budget: Budget, use: Use, accounting: Accounting) -> Excess | None:
    """For an auditor: (3), for a use that stands in the ledger, by the limit that holds now."""
    own = budget.limit_of(use.data_set)
    if own is None or own.campaign_epsilon is None:
        return None
    try:
        problem = _too_large(accounting.epsilon((use.mechanism,), _alone(use, own)), own)
    except (PolicyError, ConfigError) as error:
        problem = f"the campaign has no epsilon by itself: {error}"
    return None if problem is None else Excess(use.data_set, problem)


def _check_rules(budget: Budget, use: Use) -> None:
    entry = Entry(budget.size, NO_ENTRY, bytes(SALT_BYTES), budget.time_unix_s, use)
    faults = broken_rules(budget, entry)
    if faults:
        raise PolicyError("it would break the ledger's rules: " + "; ".join(map(str, faults)))


def _limits(budget: Budget, data_set: bytes) -> dict[bytes, LimitSet]:
    """The limit of every account that a use of this set touches."""
    found = {}
    for member in sorted(budget.family(data_set)):
        limit = budget.limit_of(member)
        if limit is None:
            raise _no_limit(member)
        found[member] = limit
    return found


def _alone(use: Use, own: LimitSet) -> Terms:
    """For (3): the campaign's own limit, or that of the data set if there is none."""
    limit = dataclasses.replace(own, epsilon=own.campaign_epsilon or own.epsilon)
    return Terms(limit, use.adaptivity, use.mechanism)


def _terms(budget: Budget, use: Use, data_set: bytes, limit: LimitSet) -> Terms:
    """For (4): how the account is added up once the use is in it."""
    kinds = (budget.adaptivity(data_set), use.adaptivity)
    adaptivity = Adaptivity.FILTER if Adaptivity.FILTER in kinds else Adaptivity.PREREGISTERED
    return Terms(limit, adaptivity, budget.first_use(data_set) or use.mechanism)


def _sums(budget: Budget, use: Use) -> list[tuple[tuple[Mechanism, ...], Terms]]:
    """What the use would be added to, and for which limit: by itself, and in every account."""
    limits = _limits(budget, use.data_set)
    sums: list[tuple[tuple[Mechanism, ...], Terms]] = [((), _alone(use, limits[use.data_set]))]
    for member, limit in limits.items():
        terms = _terms(budget, use, member, limit)
        sums.append((budget.exposure(member, terms.adaptivity), terms))
    return sums


def _fits(
    sums: Sequence[tuple[tuple[Mechanism, ...], Terms]], more: Mechanism, accounting: Accounting
) -> bool:
    return all(accounting.fits((*used, more), terms) for used, terms in sums)


def _account(
    budget: Budget, use: Use, data_set: bytes, limit: LimitSet, accounting: Accounting
) -> Account:
    terms = _terms(budget, use, data_set, limit)
    before = epsilon_of_account(budget, data_set, accounting)
    used = budget.exposure(data_set, terms.adaptivity)
    after = accounting.epsilon((*used, use.mechanism), terms)
    return Account(data_set, before, after, limit, terms.adaptivity)


def _too_large(alone: float, own: LimitSet) -> str | None:
    # "not <=" rather than ">": a figure that is no number admits nothing.
    if own.campaign_epsilon is None or alone <= own.campaign_epsilon:
        return None
    return (
        f"expected a campaign of epsilon at most {own.campaign_epsilon:g} at delta "
        f"{own.delta:g}, found {alone:.4f}"
    )


def _too_much(account: Account) -> str | None:
    limit = account.limit
    if account.after <= limit.epsilon:
        return None
    return (
        f"expected epsilon at most {limit.epsilon:g} at delta {limit.delta:g} for data set "
        f"{_short(account.data_set)}, found {account.after:.4f} with this on top of "
        f"{account.before:.4f}"
    )


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 if none does; what fits, fits below, too."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _no_limit(data_set: bytes) -> PolicyError:
    return PolicyError(
        f"expected a limit for data set {_short(data_set)}, found none: the owner sets it "
        "(--epsilon and --delta) before anything may be spent"
    )


def _short(data_set: bytes) -> str:
    return data_set.hex()[:16]
