"""The leak that an owner allows, and which figures of a report go beyond it.

A limit is compared with the figure as it was found; its standard error is in the report for whoever
sets limits with a margin.

Rule: a limit on a figure that was not measured, or means nothing, is not kept: nobody could say
that it is.
"""

from dataclasses import dataclass, fields

from offsite.emulator.leak.report import LeakReport
from offsite.emulator.strict_json import JsonObject
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LeakBudget:
    """The largest value of each figure (see `report`); None is no limit."""

    zero_shot: float | None = None
    tuned: float | None = None
    healed: float | None = None
    kept: float | None = None
    verbatim: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits().items():
            if not 0 <= limit < float("inf"):
                raise ConfigError(f"leak budget {name} is {limit}; expected a share of 0 or more")

    def limits(self) -> dict[str, float]:
        """The limits that are set, by the name of the figure."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in values.items() if limit is not None}

    def broken_by(self, report: LeakReport) -> tuple[str, ...]:
        """One line for every figure beyond its limit: its name, the limit and what was found."""
        figures, lines = report.figures(), list[str]()
        for name, limit in self.limits().items():
            figure = figures[name]
            if figure.value is None:
                lines.append(f"{name}: expected at most {limit:g}, cannot be judged: {figure.why}")
            elif not figure.value <= limit:
                lines.append(f"{name}: expected at most {limit:g}, found {figure}")
        return tuple(lines)

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values, of the limits that are set."""
        return dict(self.limits())
