"""From records to the figures of the table: a line for each row, task and seed, and summaries.

Recovery in a summary is the ratio of means over seeds, with a jackknife standard error: a mean of
ratios would be ruled by the seed with the smallest denominator. Over several tasks, accuracies are
averaged first.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.emulators.lab import Lab
from benchmarks.emulators.ledger import Json
from benchmarks.emulators.measured import Bench
from benchmarks.emulators.reference import Slots, asked_inputs, upper_inputs
from benchmarks.emulators.rows import Row
from benchmarks.emulators.scores import Score

ALL_TASKS = "all"
Figures = dict[str, float | None]
Estimate = tuple[float, float | None]
"""Mean and standard error over seeds; of a single seed there is none."""

_FROM_BUILD = (
    "bytes_shipped",
    "share_of_parameters",
    "verbatim_share",
    "verbatim_middle",
    "build_s",
    "distil_s",
)


@dataclass(frozen=True, slots=True)
class Summary:
    """One row on one task, or over all."""

    row: str
    task: str
    figures: "dict[str, Estimate | None]"


def summaries(lab: Lab, row: Row) -> list[Summary]:
    """Of every task, and of all together where there are several."""
    by_task = {task: _complete(lab, row, task) for task in lab.tasks}
    if len(by_task) > 1:
        by_task[ALL_TASKS] = over_tasks(list(by_task.values()))
    return [Summary(row.name, task, summarise(seeds)) for task, seeds in by_task.items()]


def _complete(lab: Lab, row: Row, task: str) -> list[Figures]:
    found = [seed_figures(lab, row, task, seed) for seed in range(lab.seeds)]
    return [figures for figures in found if figures is not None]


def refusal(lab: Lab, row: Row) -> str | None:
    """Why the method cannot do this row, if so."""
    found = lab.ledger.find("refused", Bench(lab, row).build_inputs)
    return None if found is None else str(found["reason"])


def seed_figures(lab: Lab, row: Row, task: str, seed: int) -> Figures | None:
    """The figures of one row, task and seed, once all of them are recorded."""
    bench, find = Bench(lab, row), lab.ledger.find
    slots = Slots.of(row)
    records = (
        find("full", asked_inputs(lab, task, seed)),
        find("upper", upper_inputs(lab, slots, task, seed)),
        find("build", bench.build_inputs),
        find("zero_shot", bench.emulator_inputs(task, seed)),
        find("healed", bench.healed_inputs(task, seed)),
        find("tuned", bench.tuned_inputs(task, seed)),
    )
    if any(record is None for record in records):
        return None
    full, upper, build, zero_shot, healed, tuned = (record or {} for record in records)
    scores = {
        "full_zero_shot": Score.from_json(full["score"]),
        "upper_bound": Score.from_json(upper["score"]),
        "emulator_zero_shot": Score.from_json(zero_shot),
        "emulator_healed": Score.from_json(healed["score"]),
        "emulator_tuned": Score.from_json(tuned["emulator_tuned"]),
        "plug_in": Score.from_json(tuned["corrected" if row.correction else "plug_in"]),
    }
    figures: Figures = {name: score.acc for name, score in scores.items()}
    figures |= derived({name: score.acc for name, score in scores.items()}, number(full["chance"]))
    figures |= {f"text_perplexity_{name}": s.text_perplexity for name, s in scores.items()}
    figures |= {f"answer_perplexity_{name}": s.answer_perplexity for name, s in scores.items()}
    figures |= {name: number(build[name]) for name in _FROM_BUILD}
    figures |= {"heal_s": number(healed["heal_s"]), "tune_s": number(tuned["tune_s"])}
    figures |= {"rate": number(tuned["rate"]), "upper_rate": number(upper["rate"])}
    return figures


def derived(accuracies: Mapping[str, float], chance: float) -> Figures:
    """Recovery, gap, and above-chance skill as a share of the full model's."""
    full, above_chance = accuracies["full_zero_shot"], accuracies["full_zero_shot"] - chance

    def skill(name: str) -> float | None:
        return (accuracies[name] - chance) / above_chance if above_chance > 0 else None

    room = accuracies["upper_bound"] - full
    return {
        "recovery": (accuracies["plug_in"] - full) / room if room > 0 else None,
        "gap": accuracies["plug_in"] - accuracies["emulator_tuned"],
        "zero_shot_skill": skill("emulator_zero_shot"),
        "tuned_skill": skill("emulator_tuned"),
        "healed_skill": skill("emulator_healed"),
        "chance": chance,
    }


def summarise(seeds: Sequence[Figures]) -> dict[str, Estimate | None]:
    """Mean and standard error of every figure over seeds; None where no seed has it."""
    summary = {name: _estimate([figures[name] for figures in seeds]) for name in seeds[0]}
    summary["recovery"] = jackknife(seeds, _ratio_of_means)
    return summary


def over_tasks(tasks: Sequence[Sequence[Figures]]) -> list[Figures]:
    """For every seed, the mean over tasks of each figure; of what is derived, of its parts."""
    averaged: list[Figures] = []
    for same_seed in zip(*tasks, strict=True):
        means: Figures = {}
        for name in same_seed[0]:
            values = [figures[name] for figures in same_seed]
            known = [value for value in values if value is not None]
            means[name] = statistics.fmean(known) if len(known) == len(values) else None
        accuracies = {name: value for name, value in means.items() if value is not None}
        averaged.append(means | derived(accuracies, accuracies["chance"]))
    return averaged


def jackknife(
    seeds: Sequence[Figures], estimate: Callable[[Sequence[Figures]], float | None]
) -> Estimate | None:
    """An estimate over seeds with its jackknife standard error."""
    value, count = estimate(seeds), len(seeds)
    if value is None:
        return None
    left_out = [estimate([*seeds[:i], *seeds[i + 1 :]]) for i in range(count)] if count > 1 else []
    known = [other for other in left_out if other is not None]
    if not known or len(known) < count:
        return value, None
    centre = statistics.fmean(known)
    squares = sum((other - centre) ** 2 for other in known)
    return value, math.sqrt((count - 1) / count * squares)


def number(value: object) -> float:
    """A figure out of a record."""
    assert isinstance(value, int | float)
    return float(value)


def rounded(figures: Mapping[str, float | Estimate | None]) -> Json:
    """For printing: five significant digits."""
    return {name: _rounded(value) for name, value in figures.items()}


def _rounded(value: float | Estimate | None) -> object:
    if isinstance(value, tuple):
        return [_rounded(part) for part in value]
    return None if value is None else float(f"{value:.5g}") if abs(value) < 1e5 else round(value)


def _ratio_of_means(seeds: Sequence[Figures]) -> float | None:
    full, plug_in, upper = (
        statistics.fmean(value for figures in seeds if (value := figures[name]) is not None)
        for name in ("full_zero_shot", "plug_in", "upper_bound")
    )
    return (plug_in - full) / (upper - full) if upper > full else None


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return statistics.fmean(known), error
