"""Whether a strategy can do what it promises with the sums that a campaign makes.

Of what edges tuned a campaign sees one mean per cohort (`docs/guarantees.md`, S1). So a strategy that
compares updates compares cohorts, and needs enough of *them*, with n cohorts, f of them hostile:

    krum, multikrum   n >= 2f + 3                    Blanchard et al., NeurIPS 2017, section 4
    multikrum         chosen <= n - f - 2            as Damaskinos et al. (SysML 2019) choose it
    bulyan            n >= 4f + 3                    El Mhamdi et al., arXiv 1802.07927, section 4
    fedtrimmedavg     floor(share · n) >= 1          else nothing is cut off
    fedmedian         n >= 3                         the median of two is their mean

A hostile member makes its cohort hostile: f counts cohorts, not clients.

Rules: what cannot hold is refused when the settings are read, with the number that is needed; a round
in which too many cohorts were lost is repeated like one with too few updates.
"""

from typing import TYPE_CHECKING

from offsite.coordinator.config_strategy import StrategyName, StrategySection
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.secure.errors import ConfigError

if TYPE_CHECKING:
    from offsite.coordinator.config import CampaignSection

ROBUST = frozenset(
    {
        StrategyName.FEDMEDIAN,
        StrategyName.FEDTRIMMEDAVG,
        StrategyName.KRUM,
        StrategyName.MULTIKRUM,
        StrategyName.BULYAN,
    }
)
"""They count every cohort alike: a weight is the word of its members."""
FEWEST_FOR_MEDIAN = 3


def fewest_cohorts(strategy: StrategySection) -> int:
    """The fewest means with which the strategy does what it promises."""
    hostile = strategy.hostile_cohorts
    match strategy.name:
        case StrategyName.FEDMEDIAN:
            return FEWEST_FOR_MEDIAN
        case StrategyName.FEDTRIMMEDAVG:
            return fewest_to_trim(strategy.trim_share)
        case StrategyName.KRUM:
            return 2 * hostile + 3
        case StrategyName.MULTIKRUM:
            return max(2 * hostile + 3, strategy.chosen_cohorts + hostile + 2)
        case StrategyName.BULYAN:
            return 4 * hostile + 3
        case _:
            return 1


def fewest_to_trim(share: float) -> int:
    """The least n of which floor(share · n) is 1, as Flower computes it."""
    cohorts = int(1 / share)
    while int(share * cohorts) < 1:
        cohorts += 1
    return cohorts


def chosen_of(strategy: StrategySection, cohorts: int) -> int:
    """How many means MultiKrum averages."""
    return strategy.chosen_cohorts or cohorts - strategy.hostile_cohorts - 2


def check_fit(strategy: StrategySection, campaign: "CampaignSection") -> None:
    """Raises ConfigError for a strategy that cannot do what it promises in a campaign."""
    fewest = fewest_cohorts(strategy)
    if campaign.cohorts >= fewest:
        return
    raise ConfigError(
        f"campaign.cohorts: expected at least {fewest} for strategy.name {strategy.name.value}"
        f"{_options(strategy)}, and with them campaign.min_clients of at least "
        f"{fewest * campaign.min_replies}; found {campaign.cohorts}: a strategy sees one mean per "
        "cohort, and no update by itself"
    )


def refuse_hidden_updates(strategy: StrategySection) -> None:
    """For campaigns of real edges.

    Raises:
        ConfigError: the way to aggregate LoRA needs every update by itself.
    """
    kind = strategy.lora_aggregation
    if kind is not LoraAggregation.AVERAGE:
        raise ConfigError(
            f"strategy.lora_aggregation: {kind.value} needs both factors of every single update, "
            "and a campaign learns nothing but the sum of a cohort; set average, which is exact "
            'with adapter.trains = "b", or try it in `coordinator simulate`'
        )


def _options(strategy: StrategySection) -> str:
    match strategy.name:
        case StrategyName.FEDMEDIAN:
            return ""
        case StrategyName.FEDTRIMMEDAVG:
            return f" with trim_share = {strategy.trim_share:g}"
        case StrategyName.MULTIKRUM if strategy.chosen_cohorts:
            return (
                f" with hostile_cohorts = {strategy.hostile_cohorts} and chosen_cohorts = "
                f"{strategy.chosen_cohorts}"
            )
        case _:
            return f" with hostile_cohorts = {strategy.hostile_cohorts}"
