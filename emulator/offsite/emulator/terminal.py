"""How both commands speak: results, progress, errors, exit codes.

Notable:
- a result goes to standard output, as text or, with ``--json``, as one JSON document; everything
  else (progress, notes, errors) goes to standard error, so a script can read the one without the
  other;
- notes and results may quote a peer, so what would not print as itself becomes a space: nobody else
  moves the cursor or starts a line;
- progress is a bar on a terminal and plain lines elsewhere, at most one every few seconds;
- exit codes: 0 done, 1 a defect of ours, 2 wrong usage, 3 wrong setting or file, 4 what a peer
  sent is wrong, 5 something did not arrive, 6 it would break a guarantee, 7 this machine cannot,
  130 interrupted. They are those of `offsite.secure.errors`;
- a signal ends a command within ten seconds (`stopping`).
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import click
import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from offsite.emulator.printable import printable
from offsite.emulator.progress import Report
from offsite.emulator.stopping import INTERRUPTED, end_on_signals
from offsite.secure.errors import OffsiteError

PLAIN_INTERVAL_S = 10.0
QUIET = {
    "GRPC_VERBOSITY": "NONE",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
"""Libraries say on standard error what our errors say better, report to nobody and fetch nothing:
models and tokenizers are local files, and no setting of a peer may make a library download code."""


class Terminal:
    """Where a command writes."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._notes = Console(stderr=True, highlight=False)
        self._results = Console(highlight=False)

    def note(self, text: str) -> None:
        """A line for the person who watches."""
        self._notes.print(printable(text), markup=False, soft_wrap=True)

    def result(self, text: RenderableType, document: Mapping[str, object]) -> None:
        """What the command was asked for."""
        if self.as_json:
            print(json.dumps(document, default=str), flush=True)
        elif isinstance(text, str):
            self._results.print(printable(text, keep="\n"), markup=False, soft_wrap=True)
        else:
            self._results.print(text)

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Report]:
        """Progress of one long piece of work."""
        if not self._notes.is_terminal:
            yield _plain_lines(label, self.note)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self._notes) as bars:
            task = bars.add_task(label, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


def _plain_lines(label: str, write: Callable[[str], None]) -> Report:
    last = -PLAIN_INTERVAL_S

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= PLAIN_INTERVAL_S:
            last = now
            write(f"{label}: {done} of {total}")

    return report


def run(app: typer.Typer, name: str) -> None:
    """Runs a command line and ends the process with its documented exit code."""
    end_on_signals()
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        code = app(prog_name=name, standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OffsiteError as error:
        _end(f"{name}: {error}", error.exit_code)
    if code == INTERRUPTED:  # what click makes of Ctrl-C where it does not end the process itself
        _end(
            f"{name}: interrupted; what was finished is kept, the same command can be run again",
            INTERRUPTED,
        )
    sys.exit(code if isinstance(code, int) else 0)


def _end(text: str, code: int) -> None:
    print(printable(text, keep="\n"), file=sys.stderr, flush=True)
    sys.exit(code)
