"""The command; see the package."""

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from examples.demo.inputs import Inputs, prepare
from examples.demo.steps import audit, campaign, evaluate, release

import benchmarks.private_campaign

SETTINGS: Final = {
    "model.name": "SmolLM2-135M-Instruct",
    "emulator.calibration_tokens": "8192",
    "leak.heal_steps": "1",
    "adapter.kind": "lora",
    "adapter.rank": "4",
    "campaign.name": "private-arc-easy",
    "campaign.rounds": "3",
    "campaign.min_clients": "2",
    "campaign.min_replies": "2",
    "tuning.learning_rate": "2e-3",
    "tuning.batch_examples": "64",
    "tuning.local_steps": "30",
    "tuning.micro_batch_tokens": "1024",
    "gate.limit": "100",
    "gate.tolerance": "0.2",
}
"""The same for every epsilon, so that only the noise differs; the gate lets everything pass."""
COLUMNS: Final = ("full_zero_shot", "emulator_zero_shot", "emulator_tuned", "plug_in")


def main() -> None:
    """Runs what is missing, prints lines and summaries."""
    given = _arguments()
    lines = []
    for seed in range(given.seeds):
        for epsilon in given.epsilons:
            lines.append(_measured(given, seed, epsilon))
            print(json.dumps(lines[-1]), flush=True)
    for epsilon in given.epsilons:
        _summarise(epsilon, [line for line in lines if line["epsilon"] == epsilon])


def _measured(given: argparse.Namespace, seed: int, epsilon: float | None) -> dict[str, object]:
    """The line of one campaign, measured unless it is there."""
    changed = dict(given.set)
    folder = given.out / ",".join([f"seed-{seed}", *sorted(map("=".join, given.set))])
    path = folder / f"{_name(epsilon)}.json"
    if not path.exists():
        inputs = prepare(given.inputs, seed)
        line = _run(folder, inputs, seed, epsilon, given.questions, SETTINGS | changed)
        line |= {"set": changed} if changed else {}
        path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _run(
    folder: Path,
    inputs: Inputs,
    seed: int,
    epsilon: float | None,
    questions: int,
    settings: dict[str, str],
) -> dict[str, object]:
    owner, run = folder / "owner", folder / _name(epsilon)
    if not (owner / "done").exists():
        shutil.rmtree(owner, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        release(owner, inputs, settings)
        (owner / "done").touch()
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    state = run / "coordinator"
    shutil.copytree(owner, state)
    started = time.monotonic()
    privacy = () if epsilon is None else ("--epsilon", str(epsilon))
    campaign(state, inputs, run, ("--least-cohort", "2", *privacy))
    seconds = round(time.monotonic() - started, 1)
    table = evaluate(state, inputs, questions)
    spent = [] if epsilon is None else _spent(audit(run, len(inputs.edges)))
    line: dict[str, object] = {"what": "campaign", "seed": seed, "epsilon": epsilon}
    line |= {name: table[name]["acc"] for name in COLUMNS}
    line |= {"spent": spent, "seconds": seconds}
    shutil.rmtree(run)
    return line


def _spent(documents: Sequence[dict[str, object]]) -> list[float]:
    found = []
    for document in documents:
        accounts = document["data_sets"]
        assert isinstance(accounts, list)
        found += [round(float(account["spent"]), 4) for account in accounts]
    return found


def _summarise(epsilon: float | None, lines: list[dict[str, object]]) -> None:
    figures: dict[str, object] = {}
    for name in COLUMNS:
        values = [float(str(line[name])) for line in lines]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        figures[name] = [round(statistics.fmean(values), 4), error and round(error, 4)]
    print(
        json.dumps({"what": "summary", "epsilon": epsilon, "seeds": len(lines), **figures}),
        flush=True,
    )


def _name(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"epsilon-{epsilon:g}"


def _epsilons(text: str) -> list[float | None]:
    return [None if item == "none" else float(item) for item in text.split(",")]


def _setting(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"expected SECTION.KEY=VALUE, found {text!r}")
    return key, value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.private_campaign",
        description=benchmarks.private_campaign.__doc__,
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilons", type=_epsilons, default=[None, 8.0, 3.0])
    parser.add_argument("--questions", type=int, default=1000, help="test questions")
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="another setting of the coordinator than SETTINGS, to see what it changes",
    )
    parser.add_argument("--inputs", type=Path, default=Path("build/inputs"))
    parser.add_argument("--out", type=Path, default=Path("build/private_campaign"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
