"""The owner's rows in three parts: tuned on, held out, and the secrets planted among the former.

units     u0 u1 u2 u3 u4 …            rows, or persons where privacy is by person
held out        u2                    drawn; no step ever sees them
tuned on  u0 u1    u3 u4 …  s0 s1     the rest, in its order, then the planted secrets
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedTokenizerBase

from offsite.audit.attack.attack import Rows
from offsite.audit.attack.forward import Unit
from offsite.audit.attack.membership import LEAST_ROWS
from offsite.audit.attack.planted import Planted, draw_secrets, with_candidates
from offsite.edge_client.attack.draws import Draw
from offsite.edge_client.privacy.unit_examples import UnitExamples
from offsite.edge_client.workbench import Examples
from offsite.emulator.training.tokens import Encoding, Example, digest
from offsite.secure.errors import ConfigError

CANDIDATES = 255
"""Other values that a planted secret is ranked among: exposure is 8 bits at most."""


@dataclass(frozen=True, slots=True)
class Parted:
    """The rows of one campaign, ready for tuning and for the attack after it."""

    draw: Draw
    tuned: UnitExamples
    held_out: tuple[Unit, ...]
    planted: tuple[Planted, ...]

    def used(self, ready: Examples) -> Examples:
        """What may be tuned on, in the order of its units, in place of all examples."""
        found = tuple(chain.from_iterable(self.tuned.of_unit))
        units = [number for number, unit in enumerate(self.tuned.of_unit) for _ in unit]
        return Examples(found, digest(found), ready.report, tuple(units))

    def rows(self, learnt: frozenset[int] | None) -> Rows:
        """For the attack: the units that were learnt, and those that were held out.

        Args:
            learnt: places of the examples that took part, as `used` orders them; None where that is
                drawn in secret, and every unit could have.
        """
        units, first, seen = self.tuned.of_unit, 0, list[int]()
        for number, unit in enumerate(units):
            places = range(first, first + len(unit))
            first += len(unit)
            if unit and (learnt is None or not learnt.isdisjoint(places)):
                seen.append(number)
        members = len(units) - len(self.planted)
        return Rows(
            [units[number] for number in seen if number < members],
            self.held_out,
            [self.planted[number - members] for number in seen if number >= members],
        )


def part(
    units: UnitExamples, draw: Draw, tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> Parted:
    """Part the units as they were drawn; the secrets follow from the draw, too.

    Raises ConfigError where too few of either side have anything to learn.
    """
    out = draw.places
    members = [unit for number, unit in enumerate(units.of_unit) if number not in out]
    held_out = [unit for number, unit in enumerate(units.of_unit) if number in out and unit]
    for name, part_ in (("that may be tuned on", members), ("that are held out", held_out)):
        if (found := sum(map(bool, part_))) < LEAST_ROWS:
            raise ConfigError(
                f"expected at least {LEAST_ROWS} usable rows {name} to attack the adapter with, "
                f"found {found}"
            )
    planted = _planted(draw, tokenizer, encoding)
    secrets: Sequence[tuple[Example, ...]] = [(plant.secret,) for plant in planted]
    return Parted(draw, UnitExamples((*members, *secrets)), tuple(held_out), planted)


def _planted(
    draw: Draw, tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> tuple[Planted, ...]:
    if not draw.planted:
        return ()
    secrets = draw_secrets(draw.planted, draw.entropy_of("secrets"))
    entropy = draw.entropy_of("candidates")
    return with_candidates(secrets, CANDIDATES, tokenizer, encoding, entropy)
