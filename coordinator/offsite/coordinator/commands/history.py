"""`coordinator history`: every attempt, every order, and a picture of them."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from offsite.coordinator.history import Attempt, History, history_of, in_words
from offsite.coordinator.history_plot import write_history_plot
from offsite.coordinator.workspace import open_workspace
from offsite.emulator.printable import printable
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError

COLUMNS = ("round", "attempt", "state", "begun (UTC)", "seconds", "updates", "left out", "gate", "")


def show_history(root: Path, campaign: int, plot: Path | None, terminal: Terminal) -> None:
    """Works while the coordinator serves. `campaign` 0 is the newest.

    Raises:
        ConfigError: there is no such campaign, or nothing to draw yet.
    """
    if plot is not None and not plot.parent.is_dir():
        raise ConfigError(f"{plot}: expected a file in a folder that exists")
    with open_workspace(root, exclusive=False) as workspace:
        table = workspace.store.campaigns
        row = table.get(campaign) if campaign else table.current()
        if row is None:
            raise ConfigError(
                f"campaign {campaign or ''}: there is none; `coordinator serve` begins the first"
            )
        history = history_of(table, row)
    document = history.to_json()
    if plot is not None:
        if not write_history_plot(plot, history):
            raise ConfigError("nothing to draw: no round is closed yet")
        document["plot"] = str(plot)
        terminal.note(f"drawn in {plot}")
    terminal.result(render(history), document)


def render(history: History) -> RenderableType:
    """For a terminal."""
    table = Table(*COLUMNS, title=f"campaign {history.campaign_id}: {history.stage}")
    for attempt in history.attempts:
        table.add_row(*map(Text, _cells(attempt)))
    full = "none" if history.full_acc is None else f"{history.full_acc:.4f}"
    lines = [f"gate of the full model: {full}", *map(in_words, history.orders)]
    if history.reason:
        lines.append(history.reason)
    return Group(table, *(Text(printable(line)) for line in lines))


def _cells(attempt: Attempt) -> tuple[str, ...]:
    seconds = "-" if attempt.seconds is None else f"{attempt.seconds:.1f}"
    gate = "-" if attempt.gate is None else f"{attempt.gate:.4f} ± {attempt.gate_stderr or 0:.4f}"
    counts = attempt.state.value != "open"
    return (
        str(attempt.round),
        str(attempt.attempt),
        attempt.state.value,
        attempt.begun,
        seconds,
        str(attempt.updates) if counts else "-",
        str(attempt.left_out) if counts else "-",
        gate,
        attempt.note,
    )
