"""Measuring, and saying it as JSON lines."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Took:
    """What moving `size` bytes cost the client: time on the clock and on its processors."""

    size: int
    seconds: float
    cpu_s: float


def timed(work: Callable[[], int]) -> Took:
    start, cpu_start = time.perf_counter(), time.process_time()
    size = work()
    return Took(size, time.perf_counter() - start, time.process_time() - cpu_start)


def say_rate(took: Took) -> None:
    """The line of one run."""
    rate = round(took.size / took.seconds / 1e9, 3)
    say(seconds=round(took.seconds, 3), cpu_s=round(took.cpu_s, 3), gb_per_s=rate)


def say(**fields: str | float) -> None:
    """One JSON line."""
    print(json.dumps(fields), flush=True)


def memory_mb(field: str) -> float:
    """A line of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise AssertionError(f"no {field} in /proc/self/status")
