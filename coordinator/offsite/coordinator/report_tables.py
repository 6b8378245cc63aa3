"""Fidelity and leak of the emulators of a release, as tables."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from offsite.coordinator.measuring import Measured
from offsite.emulator.fidelity import Fidelity
from offsite.emulator.figures import Figure
from offsite.emulator.leak.budget import LeakBudget
from offsite.emulator.perplexity import Perplexity
from offsite.emulator.scoring import Accuracy

NOT_MEASURED = "not measured"
LEAK_ROWS = {
    "zero_shot": "as shipped: share of the full model's skill",
    "tuned": "tuned on the stand-in for the task: the same",
    "healed": "healed on public text: the same",
    "kept": "adapter never returned: share of the plug-in's skill",
    "verbatim": "weights shipped as they are, packed or not: share of the full model's",
}


def render_measured(emulators: Mapping[str, Measured], budget: LeakBudget) -> RenderableType:
    """A column for each emulator; what gives no figure says why below."""
    leak, reasons = _leak(emulators, budget)
    return Group(_fidelity(emulators), leak, *map(Text, reasons))


def _fidelity(emulators: Mapping[str, Measured]) -> Table:
    table = Table(title="Fidelity", title_justify="left")
    table.add_column("")
    table.add_column("full model", justify="right")
    for name in emulators:
        table.add_column(name, justify="right")
    reports = [measured.fidelity for measured in emulators.values()]
    base = reports[0]
    table.add_row(
        "parameters",
        f"{base.base.parameters:,}",
        *(f"{r.emulator.parameters:,}" for r in reports),
    )
    table.add_row(
        "MB shipped",
        f"{base.base.bytes / 1e6:.1f}",
        *(f"{r.shipped_bytes / 1e6:.1f}" for r in reports),
    )
    table.add_row("hidden-state error, last", "", *(_last_error(r) for r in reports))
    table.add_row(
        "perplexity",
        _perplexity(base.base_perplexity),
        *(_perplexity(r.perplexity) for r in reports),
    )
    table.add_row(
        "accuracy on the gate",
        _accuracy(base.base_accuracy),
        *(_accuracy(r.accuracy) for r in reports),
    )
    return table


def _leak(emulators: Mapping[str, Measured], budget: LeakBudget) -> tuple[Table, list[str]]:
    table = Table(title="Leak", title_justify="left")
    table.add_column("")
    table.add_column("limit", justify="right")
    for name in emulators:
        table.add_column(name, justify="right")
    limits, reasons = budget.limits(), dict[str, None]()
    for row, meaning in LEAK_ROWS.items():
        figures = [measured.leak.figures()[row] for measured in emulators.values()]
        limit = limits.get(row)
        cells = [_figure(figure, limit) for figure in figures]
        table.add_row(f"{row}: {meaning}", "" if limit is None else f"{limit:g}", *cells)
        reasons |= {f"{row}: {figure.reason}": None for figure in figures if figure.reason}
    return table, list(reasons)


def _figure(figure: Figure, limit: float | None) -> Text:
    if figure.value is None:
        return Text(NOT_MEASURED, "bold red" if limit is not None else "")
    is_over = limit is not None and not figure.value <= limit
    return Text(str(figure), "bold red" if is_over else "")


def _last_error(fidelity: Fidelity) -> str:
    if not fidelity.hidden_error:
        return NOT_MEASURED
    return f"{fidelity.hidden_error[-1].error:.3f}"


def _perplexity(found: Perplexity | None) -> str:
    return NOT_MEASURED if found is None else f"{found.value:.2f}"


def _accuracy(found: Accuracy | None) -> str:
    return NOT_MEASURED if found is None else f"{found.acc:.4f} ± {found.acc_stderr:.4f}"
