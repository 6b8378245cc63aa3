"""The outcome of a search for a person, for a program, and for `coordinator.toml`."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from offsite.coordinator.search.candidates import settings_of, snippet_of
from offsite.coordinator.search.explore import Outcome, Point
from offsite.emulator.printable import printable

NOT_MEASURED = "–"
SHARES = {
    "zero_shot": "zero\nshot",
    "tuned": "tuned",
    "healed": "healed",
    "kept": "kept",
    "verbatim": "verb-\natim",
}
"""Columns of the table, by the names that the leak budget uses."""
CAPTION = (
    "*: frontier; !: over a limit; –: not measured. Shares of the full model's skill above chance (verbatim: of its "
    "weights). Recovery: what the plug-in gains, of what the adapter gains on the full model."
)


def recovery_of(outcome: Outcome, point: Point) -> float | None:
    """(plug-in − full zero-shot) / (adapter on the full model − full zero-shot); None: no gain."""
    zero_shot, plug_in = point.figures.get("full_acc"), point.figures.get("plug_in")
    if outcome.bound is None or zero_shot is None or plug_in is None:
        return None
    gain = outcome.bound - zero_shot
    return (plug_in - zero_shot) / gain if gain > 0 else None


def render_outcome(outcome: Outcome) -> RenderableType:
    """The table, what was refused, and the settings that were chosen."""
    parts: list[RenderableType] = [_table(outcome)]
    for point in outcome.full:
        parts += [Text(f"over a limit: {point.label}: {breach}") for breach in point.broken]
    refused = [point for point in outcome.points if point.refused]
    parts += [Text(printable(f"refused: {p.label}: {p.refused}")) for p in refused]
    if outcome.left_out:
        parts.append(
            Text(f"no time for {outcome.left_out} measurements; a larger search.compute_s goes on")
        )
    if outcome.best is not None:
        parts.append(Text(f"\n{snippet_of(outcome.best.section)}"))
    return Group(*parts)


def outcome_json(outcome: Outcome) -> dict[str, object]:
    """A dict of plain JSON values."""
    frontier = [point.label for point in outcome.frontier]
    best = outcome.best
    return {
        "points": [_point_json(outcome, point, frontier) for point in outcome.points],
        "bound_acc": outcome.bound,
        "spent_s": round(outcome.spent_s, 1),
        "left_out": outcome.left_out,
        "best": None if best is None else dict(settings_of(best.section)),
        "toml": None if best is None else snippet_of(best.section),
    }


def shortfall(outcome: Outcome) -> str:
    """Why there is nothing to choose."""
    closest = outcome.closest
    if closest is None:
        return "no emulator was measured in full"
    broken = "; ".join(map(str, closest.broken))
    return f"no emulator keeps every limit; the closest is {closest.label}, which breaks {broken}"


def _table(outcome: Outcome) -> Table:
    table = Table(
        title="Emulators, best plug-in first",
        title_justify="left",
        caption=CAPTION,
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    table.add_column("emulator", overflow="fold")
    for header in ("MB", "per-\nplex.", *SHARES.values(), "plug-in", "reco-\nvery"):
        table.add_column(header, justify="right", no_wrap=True)
    on_frontier = {point.label for point in outcome.frontier}
    measured = [point for point in outcome.points if point.figures]
    for point in sorted(measured, key=_plug_in_first):
        figures = point.figures
        table.add_row(
            "!" if point.broken else "*" if point.label in on_frontier else "",
            point.label,
            _number(figures.get("bytes"), 1e-6, 1),
            _number(figures.get("perplexity"), 1.0, 1),
            *(_number(figures.get(name), 1.0, 2) for name in SHARES),
            _number(figures.get("plug_in"), 1.0, 3),
            _number(recovery_of(outcome, point), 1.0, 2),
        )
    return table


def _plug_in_first(point: Point) -> tuple[float, str]:
    return (-point.figures.get("plug_in", -1.0), point.label)


def _number(value: float | None, scale: float, digits: int) -> str:
    return NOT_MEASURED if value is None else f"{value * scale:.{digits}f}"


def _point_json(outcome: Outcome, point: Point, frontier: list[str]) -> Mapping[str, object]:
    return {
        "emulator": point.label,
        "settings": dict(settings_of(point.section)),
        "figures": dict(point.figures),
        "recovery": recovery_of(outcome, point),
        "refused": point.refused,
        "broken": [breach.name for breach in point.broken],
        "frontier": point.label in frontier,
    }
