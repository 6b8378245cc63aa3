"""The process that spreads the work and prints; see the package for what is measured."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

import benchmarks.emulators
from benchmarks.emulators import figures, questions, workers
from benchmarks.emulators.lab import Lab
from benchmarks.emulators.ledger import Json
from benchmarks.emulators.measured import Bench
from benchmarks.emulators.reference import Slots, full, upper_bound
from benchmarks.emulators.rows import ROWS, Row, read_rows, select
from benchmarks.emulators.settings import QUICK, Settings
from benchmarks.emulators.table import write_plot, write_table
from offsite.secure.errors import OffsiteError


def main() -> None:
    """Parses, prepares, measures and sums up."""
    given = _arguments()
    try:
        rows = select(read_rows(given.rows), given.methods, given.quick)
        questions.prepare(given.inputs, given.tasks)
    except OffsiteError as error:
        raise SystemExit(str(error)) from error
    given.out.mkdir(parents=True, exist_ok=True)
    settings = QUICK if given.quick else Settings()
    lab = Lab(given.inputs, given.out, settings, tuple(given.tasks), given.seeds)
    units = plan(lab, rows)
    if given.role == "worker":
        workers.serve(units)
        return
    with FileLock(given.out / "lock", timeout=0):
        _measure(lab, rows, units, min(given.workers, len(units)))
        summaries = _sum_up(lab, rows)
    if given.table:
        write_table(given.table, summaries, lab)
    if given.plot:
        write_plot(given.plot, summaries)


def plan(lab: Lab, rows: Sequence[Row]) -> dict[str, Callable[[], None]]:
    """The units of work by name, in the order of the rows, each configuration once.

    What a row is compared with stands before it, so that a run cut short leaves whole rows.
    """
    units: dict[str, Callable[[], None]] = {}
    different: dict[str, Row] = {}
    for row in rows:
        different.setdefault(row.identity, row)
    for task in lab.tasks:
        units[f"full {task}"] = lambda t=task: _every_seed(lab, t)  # type: ignore[misc]
    for row in different.values():
        slots = Slots.of(row)
        for task in lab.tasks:
            name = f"upper bound {slots.identity} {task}"
            units[name] = lambda s=slots, t=task: upper_bound(lab, s, t)  # type: ignore[misc]
        # A bench of its own for each run, so that its emulator goes with it.
        units[f"row {row.name}"] = lambda r=row: Bench(lab, r).run()  # type: ignore[misc]
    return units


def _every_seed(lab: Lab, task: str) -> None:
    for seed in range(lab.seeds):
        full(lab, task, seed)


def _measure(
    lab: Lab, rows: Sequence[Row], units: dict[str, Callable[[], None]], processes: int
) -> None:
    """All units; prints the line of a row, task and seed as soon as it is complete."""
    printed: set[tuple[str, str, int]] = set()

    def finished(name: str) -> None:
        for row in rows:
            for task in lab.tasks:
                for seed in range(lab.seeds):
                    if (row.name, task, seed) in printed:
                        continue
                    found = figures.seed_figures(lab, row, task, seed)
                    if found is not None:
                        printed.add((row.name, task, seed))
                        _say("seed", row, task, figures.rounded(found), seed=seed)

    finished("")
    if processes == 1:
        workers.run_here(units, finished)
    else:
        command = [sys.executable, "-m", "benchmarks.emulators", *sys.argv[1:]]
        workers.run_spread(list(units), [*command, "--role", "worker"], processes, finished)


def _sum_up(lab: Lab, rows: Sequence[Row]) -> "list[figures.Summary]":
    """Prints and returns the summaries of all rows, for every task and over all of them."""
    summaries: list[figures.Summary] = []
    for row in rows:
        if reason := figures.refusal(lab, row):
            print(json.dumps({"what": "refused", "row": row.name, "reason": reason}), flush=True)
            continue
        for summary in figures.summaries(lab, row):
            summaries.append(summary)
            _say("summary", row, summary.task, figures.rounded(summary.figures), seeds=lab.seeds)
    return summaries


def _say(what: str, row: Row, task: str, found: Json, **more: int) -> None:
    line = {"what": what, "row": row.name, "task": task, **more, **found}
    print(json.dumps(line), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.emulators", description=benchmarks.emulators.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--tasks", type=_names, help="arc_easy,piqa; of --quick arc_easy alone")
    add("--seeds", type=int, help="3; of --quick 1")
    add("--quick", action="store_true", help="few rows, fewer steps and questions: 20 minutes")
    add("--methods", type=_names, default=[], help="only rows of these names or methods")
    add("--rows", type=Path, default=ROWS, help="the rows of the table, TOML")
    add("--out", type=Path, default=Path("build/emulators"), help="records; goes on with them")
    add("--inputs", type=Path, default=Path("build/inputs"), help="made when missing")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes; as many as cores")
    add("--table", type=Path, help="write the summaries as Markdown")
    add("--plot", type=Path, help="write recovery against healed skill, SVG or PNG")
    add("--role", help="internal")
    given = parser.parse_args()
    given.tasks = given.tasks or (["arc_easy"] if given.quick else ["arc_easy", "piqa"])
    given.seeds = given.seeds or (1 if given.quick else 3)
    return given


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    main()
