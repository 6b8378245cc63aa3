"""The process that starts one per way, one after the other; see the package."""

import argparse
import json
import subprocess
import sys
import time

import benchmarks.emulator_build
from benchmarks.transport.saying import memory_mb, say

LIMIT = 1.3
"""Times the model's own bytes that a build may take."""
WAYS = ("kept", "consumed")
SLOTS = 2


def main() -> None:
    """Parses, measures and compares; `--role` is for the processes that it starts itself."""
    given = _arguments()
    if given.role:
        _build(given)
        return
    ratios = {way: _child(way) for way in given.ways}
    fields = {f"{way}_ratio": ratio for way, ratio in ratios.items()}
    say(what="summary", method=given.method, parameters=given.parameters, **fields, limit=LIMIT)


def _child(way: str) -> float:
    """Runs one way to its end and repeats its line; peak by model size."""
    command = [sys.executable, "-m", "benchmarks.emulator_build", *sys.argv[1:], "--role", way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} ended with exit code {done.returncode}: too little memory?")
    line = done.stdout.splitlines()[-1]
    print(line, flush=True)
    return float(json.loads(line)["ratio"])


def _build(given: argparse.Namespace) -> None:
    import torch

    from benchmarks.emulator_build.model import random_model
    from offsite.emulator.build import build_emulator
    from offsite.emulator.layer_map import Placement
    from offsite.emulator.methods.method import MethodName, make_method
    from offsite.emulator.weights import named_weights

    start_mb = memory_mb("VmRSS")
    model = random_model(given.parameters)
    model_mb = sum(tensor.nbytes for tensor in named_weights(model).values()) / 1e6
    shape = given.tokens // (2 * given.width), 2, given.width  # batches as `coordinator emulate`'s
    calibration = torch.randint(100, shape, generator=torch.Generator().manual_seed(1))
    method, placement = MethodName(given.method), Placement(SLOTS, SLOTS)
    needed = make_method(method).needs_calibration
    begin, reports = time.perf_counter(), list[tuple[int, int]]()
    emulator = build_emulator(
        model,
        placement,
        method,
        given.ratio,
        list(calibration) if needed else (),
        lambda done, total: reports.append((done, total)),
        consume=given.role == "consumed",
    )
    peak_mb = memory_mb("VmHWM")
    say(
        what=given.role,
        method=given.method,
        model_mb=round(model_mb, 1),
        emulator_mb=round(sum(t.nbytes for t in named_weights(emulator.model).values()) / 1e6, 1),
        start_mb=start_mb,
        peak_mb=peak_mb,
        ratio=round(peak_mb / model_mb, 3),
        seconds=round(time.perf_counter() - begin, 1),
        progress=len(reports),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.emulator_build", description=benchmarks.emulator_build.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--method", default="width_prune", help="how the middle is compressed")
    add("--parameters", type=float, default=1e9, help="size of the model")
    add("--ratio", type=float, default=0.7, help="share of the middle that stays")
    add("--tokens", type=int, default=4096, help="tokens of calibration")
    add("--width", type=int, default=512, help="tokens of a row; two rows are a batch")
    add("--ways", type=lambda text: text.split(","), default=list(WAYS), help=",".join(WAYS))
    add("--role", help="internal")
    return parser.parse_args()


if __name__ == "__main__":
    main()
