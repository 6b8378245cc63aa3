"""The command; see the package."""

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from examples.demo.inputs import TASK, Inputs, prepare
from examples.demo.processes import command, output
from examples.demo.steps import release
from examples.inputs.tasks import Part, as_completion, questions, write_rows
from examples.inputs.wheels import open_archive

import benchmarks.simulation

SETTINGS: Final = {
    "model.name": "SmolLM2-135M-Instruct",
    "emulator.calibration_tokens": "8192",
    "leak.heal_steps": "1",
    "adapter.kind": "lora",
    "adapter.rank": "8",
    "campaign.name": "simulated-arc-easy",
    "tuning.learning_rate": "2e-3",
    "tuning.batch_examples": "16",
    "tuning.local_epochs": "2",
    "tuning.micro_batch_tokens": "1024",
    "tuning.validation_share": "0",
    "gate.limit": "200",
    "gate.tolerance": "0.05",
}
QUICK: Final = {
    "emulator.calibration_tokens": "1024",
    "leak.tune_steps": "1",
    "leak.heal_tokens_per_step": "64",
    "tuning.local_steps": "1",
    "tuning.batch_examples": "4",
    "gate.limit": "8",
    "campaign.min_replies": "3",
}
SHAPE: Final = ("--clients", "100", "--partition", "dirichlet", "--alpha", "0.3", "--by", "label")
WEATHER: Final = ("--dropout", "0.1", "--stragglers", "0.1")


def main() -> None:
    """Makes what is missing, simulates, prints the lines."""
    given = _arguments()
    inputs = prepare(given.inputs, given.seed)
    data = _rows(given.inputs, given.seed)
    state = _owner(given.out / ("quick" if given.quick else "full"), inputs, given.quick)
    size = (
        ("--sample", "8", "--rounds", "1")
        if given.quick
        else ("--sample", "10", "--rounds", str(given.rounds))
    )
    folder = given.out / "runs" / time.strftime("%Y%m%d-%H%M%S")
    flags = [*SHAPE, *WEATHER, *size, "--strategy", given.strategies, "--stack", given.stack]
    flags += ["--seed", str(given.seed), "--data", str(data), "--out", str(folder)]
    if given.plot is not None:
        flags += ["--plot", str(given.plot)]
    started = time.monotonic()
    threads = os.cpu_count() or 1
    document = json.loads(
        output(command("coordinator", "simulate", "--state", str(state), *flags, "--json"), threads)
    )
    for line in document["rounds"]:
        print(json.dumps(line), flush=True)
    summary = _summary(document, round(time.monotonic() - started, 1))
    print(json.dumps(summary), flush=True)


def _summary(document: Mapping[str, object], seconds: float) -> dict[str, object]:
    strategies = document["strategies"]
    assert isinstance(strategies, list)
    keys = ("gate_full", "gate_best", "best_round", "gate_last", "rounds", "real_s", "failed")
    return {
        "what": "summary",
        "clients": document["clients"],
        "asked": document["asked"],
        "data": document["data"],
        "strategies": {one["strategy"]: {key: one[key] for key in keys} for one in strategies},
        "comparison": document["comparison"],
        "seconds": seconds,
    }


def _owner(folder: Path, inputs: Inputs, quick: bool) -> Path:
    """The owner's state with a release, made once."""
    state = folder / "coordinator"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        release(state, inputs, SETTINGS | (QUICK if quick else {}))
        (folder / "done").touch()
    return state


def _rows(folder: Path, seed: int) -> Path:
    """The training questions as completions, with the place of the right answer as label."""
    path = folder / f"seed-{seed}" / "labelled.jsonl"
    with open_archive(folder) as archive:
        rows = questions(archive, TASK, Part.TRAIN, seed)
        write_rows(path, (as_completion(row) | {"label": row["gold"]} for row in rows))
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation", description=benchmarks.simulation.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--strategies", default="fedavg,fedadam,fedyogi")
    parser.add_argument("--stack", default="1", help="1, a number, or auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--inputs", type=Path, default=Path("build/inputs"))
    parser.add_argument("--out", type=Path, default=Path("build/simulation"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
