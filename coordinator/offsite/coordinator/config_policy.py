"""The settings `[policy]`: whom a round asks, when it begins, and what counts as a gain."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from offsite.coordinator.config_problems import Problems
from offsite.coordinator.policy.eligibility import Eligibility, is_version
from offsite.coordinator.policy.sampling import Sample
from offsite.coordinator.policy.schedule import Schedule, Window
from offsite.coordinator.policy.settings import PolicySettings
from offsite.secure import limits
from offsite.secure.aggregation.round_config import MOST_MEMBERS
from offsite.secure.errors import ConfigError

if TYPE_CHECKING:
    from offsite.coordinator.config import CampaignSection

MAX_EXAMPLES = 10**12
MAX_MEMORY_MIB = 2**31
MAX_INTERVAL_S = 365 * 24 * 3600
MAX_WINDOWS = 24


@dataclass(frozen=True, slots=True)
class PolicySection:
    """Whom a round asks and when it begins (docs/campaigns.md)."""

    sample_share: Annotated[
        float, "share of the clients there that a round asks, drawn anew for every attempt"
    ] = 1.0
    sample_clients: Annotated[int, "clients that a round asks at most (0: any number)"] = 0
    min_cohort: Annotated[
        int, "clients asked for each sum at least (0: campaign.min_replies); more may drop out"
    ] = 0
    least_examples: Annotated[
        int, "ask only edges that state as many rows (0: any); private edges state none"
    ] = 0
    least_memory_mib: Annotated[int, "ask only edges that state as much free memory (0: any)"] = 0
    least_version: Annotated[str, "ask only edges of this version or later (empty: any)"] = ""
    interval_s: Annotated[float, "seconds from one round's beginning to the next at least"] = 0.0
    windows: Annotated[
        tuple[str, ...],
        'hours in which a round may begin, UTC, such as "22:00-05:00" (none: any hour)',
    ] = ()
    least_gain: Annotated[
        float, "acc that a round must gain, or it counts against campaign.patience"
    ] = 0.0

    def __post_init__(self) -> None:
        problems = Problems()
        problems.no_ratio("sample_share", self.sample_share)
        problems.outside("sample_clients", self.sample_clients, 0, limits.CLIENTS)
        problems.outside("min_cohort", self.min_cohort, 0, MOST_MEMBERS)
        problems.outside("least_examples", self.least_examples, 0, MAX_EXAMPLES)
        problems.outside("least_memory_mib", self.least_memory_mib, 0, MAX_MEMORY_MIB)
        problems.unless(
            not self.least_version or is_version(self.least_version),
            f"least_version: expected numbers such as 0.1.0, found {self.least_version[:40]!a}",
        )
        problems.outside("interval_s", self.interval_s, 0, MAX_INTERVAL_S)
        problems.outside("windows", len(self.windows), 0, MAX_WINDOWS)
        for text in self.windows:
            try:
                Window.parse(text)
            except ConfigError as error:
                problems.append(f"windows: {error}")
        problems.outside("least_gain", self.least_gain, 0, 1)
        problems.report()

    @property
    def settings(self) -> PolicySettings:
        """As the campaign uses them."""
        return PolicySettings(
            sample=Sample(self.sample_share, self.sample_clients),
            min_cohort=self.min_cohort,
            eligibility=Eligibility(self.least_examples, self.least_memory_mib, self.least_version),
            schedule=Schedule(self.interval_s, tuple(map(Window.parse, self.windows))),
            least_gain=self.least_gain,
        )


def check_policy(policy: PolicySection, campaign: "CampaignSection") -> None:
    """That the campaign's own numbers can be kept.

    Raises:
        ConfigError: they cannot; names both settings.
    """
    problems = Problems()
    cohorts, least = campaign.cohorts, max(policy.min_cohort, campaign.min_replies)
    problems.unless(
        cohorts * policy.min_cohort <= campaign.min_clients,
        f"policy.min_cohort: expected at most campaign.min_clients / campaign.cohorts = "
        f"{campaign.min_clients // cohorts}, found {policy.min_cohort}",
    )
    problems.unless(
        policy.sample_clients == 0 or policy.sample_clients >= cohorts * least,
        f"policy.sample_clients: expected 0, or at least {least} for each of {cohorts} sums, found "
        f"{policy.sample_clients}",
    )
    problems.report()
