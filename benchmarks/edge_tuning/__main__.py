"""The process that starts the others, one after the other; see the package."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import benchmarks.edge_tuning
from benchmarks.transport.saying import say

WAYS = ("full", "full_lora", "offsite", "offsite_lora")
PREPARE = "prepare"
Line = dict[str, float]


def main() -> None:
    """Parses, prepares, measures and compares; `--role` is for the processes it starts itself."""
    given = _arguments()
    if given.role == PREPARE:
        _prepare(given)
    elif given.role:
        from benchmarks.edge_tuning.ways import Batch, measure

        measure(given.role, given.work, Batch(given.rows, given.width, given.steps))
    else:
        with tempfile.TemporaryDirectory(prefix="offsite-edge-tuning-", dir=given.scratch) as work:
            _child(PREPARE, Path(work))
            lines = {way: _child(way, Path(work)) for way in given.ways}
            _compare({way: line for way, line in lines.items() if line is not None}, given)


def _prepare(given: argparse.Namespace) -> None:
    from examples.inputs.wheels import MODEL, prepare_model

    from benchmarks.edge_tuning.models import write_bundles, write_random
    from offsite.emulator.methods.method import MethodName

    model = given.model or prepare_model(given.inputs)
    if given.parameters:
        write_random(given.work, given.parameters, model)
    else:
        (given.work / MODEL).symlink_to(model.resolve(), target_is_directory=True)
    write_bundles(given.work, MethodName(given.method), given.ratio)


def _child(role: str, work: Path) -> Line | None:
    """Runs one role to its end; repeats its line. A way that fails has none, the others go on."""
    command = [sys.executable, "-m", "benchmarks.edge_tuning", *sys.argv[1:]]
    command += ["--role", role, "--work", str(work)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode and role == PREPARE:
        raise SystemExit(f"{role} ended with exit code {done.returncode}")
    if done.returncode:  # -9 is what the system does to one that wants more memory than there is
        say(what=role, exit_code=done.returncode)
        return None
    if role == PREPARE:
        return None
    line: Line = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(line), flush=True)
    return line


def _compare(lines: dict[str, Line], given: argparse.Namespace) -> None:
    """Memory: how many times less. Throughput: how many times more."""
    ratios: dict[str, str | float] = {}
    for way in ("offsite", "offsite_lora"):
        for baseline in ("full", "full_lora"):
            if way in lines and baseline in lines:
                ours, theirs = lines[way], lines[baseline]
                ratios[f"{way}_memory_vs_{baseline}"] = round(
                    theirs["peak_mb"] / ours["peak_mb"], 2
                )
                faster = ours["tokens_per_s"] / theirs["tokens_per_s"]
                ratios[f"{way}_throughput_vs_{baseline}"] = round(faster, 2)
    model = f"random, {given.parameters:g} parameters" if given.parameters else "SmolLM2-135M"
    batch = f"{given.rows} x {given.width} tokens"
    how = f"{given.method} {given.ratio:g}, 2 + 2 slots"
    say(what="summary", model=model, emulator=how, batch=batch, **ratios)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.edge_tuning", description=benchmarks.edge_tuning.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--parameters", type=float, default=0.0, help="a random Llama of this size, as 1e9")
    add("--model", type=Path, help="a model folder in place of SmolLM2 (its tokenizer serves both)")
    add("--inputs", type=Path, default=Path("build/inputs"), help="where SmolLM2 is made")
    add("--method", default="uniform_drop", help="how the middle is compressed")
    add("--ratio", type=float, default=0.62, help="share of the middle that stays")
    add("--rows", type=int, default=1, help="rows of the batch")
    add("--width", type=int, default=512, help="tokens of a row")
    add("--steps", type=int, default=6, help="steps of each way")
    add("--ways", type=lambda text: text.split(","), default=list(WAYS), help=",".join(WAYS))
    add("--scratch", type=Path, help="where model and bundles lie meanwhile")
    add("--role", help="internal")
    add("--work", type=Path, help="internal")
    return parser.parse_args()


if __name__ == "__main__":
    main()
