"""Measures every way on every adapter; see the package."""

import argparse
import gc
import math
import time
import warnings
from collections.abc import Sequence

import torch

import benchmarks.dp
from benchmarks.dp.measured import Time, once_a_step, peak_mb, times
from benchmarks.dp.setups import ADAPTERS, size_of
from benchmarks.dp.ways import ENGINE, NON_PRIVATE, WAYS
from benchmarks.transport.saying import say
from offsite.emulator.privacy.backends.backend import flat_size

TIME_GOALS = {"lora_qv": 1.05, "lora_all": 1.05, "blocks_2_2": 1.10}
MEMORY_GOAL = 1.05
SECONDS, QUICK_SECONDS = 240.0, 15.0
"""Of taking turns, for each adapter."""


def main() -> None:
    """Parses, measures and sums up."""
    given = _arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import opacus.grad_sample  # noqa: F401  before any process is started: it takes memory

    ways = [NON_PRIVATE, *(way for way in given.ways if way != NON_PRIVATE)]
    # Memory first: what this process once held and gave back, its children would have for nothing.
    peaks = {adapter: _memory(adapter, ways, given) for adapter in given.adapters}
    summary: dict[str, str | float] = {}
    for adapter in given.adapters:
        summary |= _time(adapter, ways, given)
        summary[f"{adapter}_memory"] = peaks[adapter].get(ENGINE, math.nan)
    say(what="summary", quick=given.quick, **summary, goals_met=_goals_met(summary))


def _memory(adapter: str, ways: Sequence[str], given: argparse.Namespace) -> dict[str, float]:
    size = size_of(adapter, is_quick=given.quick)
    peaks = {way: peak_mb(adapter, size, way) for way in ways}
    ratios = {way: round(peak / peaks[NON_PRIVATE], 3) for way, peak in peaks.items()}
    for way, peak in peaks.items():
        say(what="memory", adapter=adapter, way=way, peak_mb=round(peak, 1), ratio=ratios[way])
    return ratios


def _time(adapter: str, ways: Sequence[str], given: argparse.Namespace) -> dict[str, float]:
    size = size_of(adapter, is_quick=given.quick)
    setup = ADAPTERS[adapter](size)
    found = times(setup, size, ways, time.monotonic() + given.seconds)
    for way, one in found.items():
        _say_time(adapter, way, one)
    once = once_a_step(setup)
    batches = -(-given.logical // size.rows)
    plain = batches * found[NON_PRIVATE].batch_s + once.adamw_s
    ratio = math.nan
    if ENGINE in found:
        private = batches * found[ENGINE].ratio * found[NON_PRIVATE].batch_s
        ratio = round((private + once.noise_s + once.adamw_s) / plain, 3)
    say(
        what="noise",
        adapter=adapter,
        values=flat_size(setup.parameters),
        noise_s=round(once.noise_s, 4),
        adamw_s=round(once.adamw_s, 4),
        logical=given.logical,
        step_ratio=ratio,
    )
    del setup
    gc.collect()
    engine = found[ENGINE].ratio if ENGINE in found else math.nan
    return {f"{adapter}_time": round(engine, 3), f"{adapter}_step": ratio}


def _say_time(adapter: str, way: str, one: Time) -> None:
    say(
        what="time",
        adapter=adapter,
        way=way,
        batch_s=round(one.batch_s, 4),
        ratio=round(one.ratio, 3),
        low=round(one.quartiles[0], 3),
        high=round(one.quartiles[1], 3),
        rounds=one.rounds,
    )


def _goals_met(summary: dict[str, str | float]) -> str:
    """The goals that were met, of those that were measured."""
    goals = {f"{adapter}_time": goal for adapter, goal in TIME_GOALS.items()}
    goals |= {f"{adapter}_memory": MEMORY_GOAL for adapter in TIME_GOALS}
    measured = {name: goal for name, goal in goals.items() if name in summary}
    met = [name for name, goal in measured.items() if float(summary[name]) <= goal]
    return f"{len(met)} of {len(measured)}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dp", description=benchmarks.dp.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--quick", action="store_true", help="smaller models, three minutes at most")
    add("--adapters", type=_names, default=list(ADAPTERS), help=",".join(ADAPTERS))
    add("--ways", type=_names, default=list(WAYS), help=",".join(WAYS))
    add("--logical", type=int, default=256, help="rows of a logical batch")
    add("--seconds", type=float, help=f"for each adapter; {SECONDS:g}, or {QUICK_SECONDS:g}")
    given = parser.parse_args()
    given.seconds = given.seconds or (QUICK_SECONDS if given.quick else SECONDS)
    return given


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
