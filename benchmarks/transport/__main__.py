"""The process that runs the others; see the package for what is measured."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import benchmarks.transport
from benchmarks.transport.client import client, half, rest, stream
from benchmarks.transport.release import prepare
from benchmarks.transport.saying import say
from benchmarks.transport.server import serve, serve_bare
from offsite.secure import limits


def child(work: Path, role: str, *arguments: str) -> "subprocess.Popen[str]":
    """A process of this module in one of its roles."""
    command = [sys.executable, "-m", "benchmarks.transport", "--role", role, "--work", str(work)]
    return subprocess.Popen(
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def lines_of(process: "subprocess.Popen[str]") -> Iterator[dict[str, str | float]]:
    """What a process says, until it ends."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)
    process.wait()


class Server:
    """A server process."""

    def __init__(self, work: Path, role: str) -> None:
        self._process = child(work, role)
        self._said = lines_of(self._process)
        started = next(self._said)
        self.port = str(started["port"])
        self._idle_mb = float(started["idle_mb"])

    def stop(self) -> float:
        """Stops it; returns its peak memory above idle, MB."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        peak_mb = float(next(self._said)["peak_mb"])
        self._process.wait()
        return round(peak_mb - self._idle_mb, 1)


def measure(work: Path, runs: int) -> None:
    """Runs all processes, repeats their lines and sums up."""
    real, bare = Server(work, "serve"), Server(work, "serve-bare")
    ports = {"bare": bare.port, "bare_tuned": real.port, "fetch": real.port}
    rates: dict[str, list[float]] = {what: [] for what in ports}
    peaks_mb: list[float] = []
    for run in range(runs):
        for what, port in ports.items():
            for fields in lines_of(child(work, what, "--port", port)):
                if "peak_mb" in fields:
                    peaks_mb.append(float(fields["peak_mb"]) - float(fields["idle_mb"]))
                    continue
                print(json.dumps({"what": what, "run": run} | fields), flush=True)
                rates[what].append(float(fields["gb_per_s"]))
    child(work, "half", "--port", real.port).wait()
    resumed = next(lines_of(child(work, "rest", "--port", real.port)))
    print(json.dumps(resumed), flush=True)
    bare.stop()
    median = {what: statistics.median(values) for what, values in rates.items()}
    say(
        what="summary",
        bare_gb_per_s=round(median["bare"], 3),
        bare_tuned_gb_per_s=round(median["bare_tuned"], 3),
        fetch_gb_per_s=round(median["fetch"], 3),
        ratio=round(median["fetch"] / median["bare"], 3),
        ratio_tuned=round(median["fetch"] / median["bare_tuned"], 3),
        client_peak_mb=round(max(peaks_mb), 1),
        server_peak_mb=real.stop(),
        share_sent_after_restart=round(
            float(resumed["sent_after_restart"]) / float(resumed["size"]), 3
        ),
    )


def main() -> None:
    """Parses, prepares and measures; `--role` is for the processes that it starts itself."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transport", description=benchmarks.transport.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--gib", type=float, default=1.0, help="size of the release")
    parser.add_argument("--runs", type=int, default=3, help="runs of either kind")
    parser.add_argument("--quick", action="store_true", help="64 MiB, one run")
    parser.add_argument("--role", help="internal")
    parser.add_argument("--work", type=Path, help="internal")
    parser.add_argument("--port", type=int, help="internal")
    given = parser.parse_args()
    match given.role:
        case "serve":
            serve(given.work)
        case "serve-bare":
            serve_bare(given.work)
        case "bare" | "bare_tuned":
            stream(given.work, given.port, tuned=given.role == "bare_tuned")
        case "fetch":
            client(given.work, given.port)
        case "half":
            half(given.work, given.port)
        case "rest":
            rest(given.work, given.port)
        case _:
            size = 64 * limits.MIB if given.quick else int(given.gib * 1024) * limits.MIB
            with tempfile.TemporaryDirectory(prefix="offsite-transport-") as work:
                prepare(Path(work), size)
                measure(Path(work), 1 if given.quick else given.runs)


if __name__ == "__main__":
    main()
