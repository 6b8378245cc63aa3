"""Runs both engines for each size; see the package for what is measured."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import benchmarks.engines
from benchmarks.engines import stock_engine

GOAL_SPEED = 5.0
GOAL_MEMORY = 1 / 3


def child(*arguments: object) -> "subprocess.Popen[str]":
    """This program in another role."""
    command = [sys.executable, "-m", "benchmarks.engines", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def line_of(process: "subprocess.Popen[str]") -> dict[str, float]:
    """The next line that a process says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a process of the benchmark ended with {process.wait()}")
    return dict(json.loads(line))


def measure_grpc(work: Path, megabytes: int, rounds: int) -> dict[str, float]:
    """A campaign on our engine."""
    from benchmarks.coordinator_memory import scene

    scene.write_certificates(work, 2)
    shape = ("--work", work, "--mb", megabytes, "--rounds", rounds)
    coordinator = child("--role", "coordinator", *shape)
    try:
        begun = line_of(coordinator)
        port = int(begun["port"])
        names = [scene.client_name(index) for index in range(2)]
        edges = [child("--role", "edge", *shape, "--port", port, "--name", n) for n in names]
        found = line_of(coordinator)
        for process in (*edges, coordinator):
            process.wait(120)
        return found | {"idle_mb": begun["idle_mb"]}
    finally:
        coordinator.kill()


def measure(megabytes: int, rounds: int) -> dict[str, float]:
    """Both engines for one size; a line for each."""
    found = {}
    for engine, run in (("grpc", measure_grpc), ("flower", stock_engine.measure)):
        with tempfile.TemporaryDirectory(prefix="offsite-engines-") as folder:
            found[engine] = run(Path(folder), megabytes, rounds)
        line = {"engine": engine, "mb": megabytes, "rounds": rounds, **found[engine]}
        print(json.dumps(line), flush=True)
    ours, stock = found["grpc"], found["flower"]
    return {
        "mb": megabytes,
        "times_faster": round(stock["seconds_per_round"] / ours["seconds_per_round"], 2),
        "share_of_memory": round(ours["peak_mb"] / stock["peak_mb"], 3),
    }


def main() -> None:
    """Parses and measures; `--role` is for the processes that it starts itself."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engines",
        description=benchmarks.engines.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="1 MB, two rounds")
    parser.add_argument("--mb", type=int, nargs="+", default=[1, 50, 512], help="sizes of updates")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", help="internal")
    parser.add_argument("--work", type=Path, help="internal")
    parser.add_argument("--port", type=int, help="internal")
    parser.add_argument("--name", help="internal")
    given = parser.parse_args()
    if given.role is not None:
        from benchmarks.engines import grpc_engine

        if given.role == "coordinator":
            grpc_engine.coordinator(given.work, given.mb[0], given.rounds)
        else:
            grpc_engine.edge(given.work, given.port, given.mb[0], given.name)
        return
    sizes, rounds = ([1], 2) if given.quick else (given.mb, given.rounds)
    rows = [measure(megabytes, rounds) for megabytes in sizes]
    print(
        json.dumps(
            {
                "what": "summary",
                "sizes": rows,
                "goal_times_faster_small": GOAL_SPEED,
                "goal_share_of_memory_512": round(GOAL_MEMORY, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
