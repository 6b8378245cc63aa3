"""Starts the processes of each measurement; see the package for what is measured."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import benchmarks.coordinator_memory
from benchmarks.coordinator_memory import scene, uploads

GOAL_MB = 300


def child(*arguments: object) -> "subprocess.Popen[str]":
    """This program in another role."""
    command = [sys.executable, "-m", "benchmarks.coordinator_memory", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: "subprocess.Popen[str]") -> dict[str, float]:
    """The next line that a process says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args!r} ended with {process.wait()}")
    return dict(json.loads(line))


def measure_uploads(clients: int, megabytes: int) -> dict[str, float]:
    """One measurement in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="offsite-memory-") as folder:
        work = Path(folder)
        scene.write_certificates(work, clients)
        uploads.prepare(work, megabytes)
        shape = ("--work", work, "--clients", clients, "--mb", megabytes)
        coordinator = child("--role", "coordinator", *shape)
        port = int(line_of(coordinator)["port"])
        edges = child("--role", "edges", *shape, "--port", port)
        line_of(edges)
        assert coordinator.stdin is not None
        coordinator.stdin.write("go\n")
        coordinator.stdin.flush()
        found = line_of(coordinator)
        for process in (edges, coordinator):
            process.wait(60)
        return found


def main() -> None:
    """Parses and measures; `--role` is for the processes that it starts itself."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coordinator_memory",
        description=benchmarks.coordinator_memory.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="40 uploads of 8 MB")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--mb", type=int, default=40, help="size of an upload")
    parser.add_argument("--role", help="internal")
    parser.add_argument("--work", type=Path, help="internal")
    parser.add_argument("--port", type=int, help="internal")
    given = parser.parse_args()
    match given.role:
        case "coordinator":
            uploads.coordinator(given.work, given.clients, given.mb)
        case "edges":
            uploads.edges(given.work, given.port, given.clients)
        case _:
            clients, megabytes = (40, 8) if given.quick else (given.clients, given.mb)
            found = measure_uploads(clients, megabytes)
            shape = {"clients": clients, "mb": megabytes}
            print(json.dumps({"what": "uploads", **shape, **found}), flush=True)
            kept = ("idle_mb", "peak_mb", "above_idle_mb", "seconds", "last_s", "exact")
            summary = {name: found[name] for name in kept}
            goal = {"goal_above_idle_mb": GOAL_MB}
            print(json.dumps({"what": "summary", **shape, **summary, **goal}))


if __name__ == "__main__":
    main()
