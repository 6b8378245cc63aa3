"""What an edge lends to a plan at most, whoever signed it.

Notable: the formats admit far more than any round needs, so that they need not change; the
machine's owner is protected here. A plan that is right otherwise may still ask for memory, for
days of work or for a round that never ends, by mistake or on purpose. It is refused whole, before
anything is loaded; nothing of it is cut down silently, for the coordinator must learn why.
"""

from dataclasses import dataclass

from offsite.emulator.rounds.plan import RoundPlan
from offsite.secure.errors import PolicyError


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """The largest settings that an edge obeys."""

    micro_batch_tokens: int = 65_536
    max_tokens: int = 32_768
    """Of one example."""
    local_steps: int = 1_000_000
    local_epochs: float = 1000.0
    deadline_s: float = 7 * 24 * 3600.0
    """How far ahead a deadline may lie."""

    def check(self, plan: RoundPlan, now_unix_s: float) -> None:
        """Raises PolicyError, naming the first setting of ``plan`` that asks for too much."""
        settings = plan.settings
        asked = (
            ("micro_batch_tokens", settings.micro_batch_tokens, self.micro_batch_tokens),
            ("max_tokens", settings.max_tokens, self.max_tokens),
            ("local_steps", settings.local_steps, self.local_steps),
            ("local_epochs", settings.local_epochs, self.local_epochs),
            ("deadline_unix_s", plan.deadline_unix_s, now_unix_s + self.deadline_s),
        )
        for name, value, limit in asked:
            if value > limit:
                raise PolicyError(
                    f"round {plan.round}: {name}: expected at most {_plain(limit)}, found "
                    f"{_plain(value)}; an edge does not lend more: ask for less"
                )


def _plain(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() or value > 1e6 else f"{value}"
