"""Recovery, gap, skill and their standard errors."""

import math
from pathlib import Path

import pytest
from benchmarks.emulators.figures import Figures, Summary, derived, over_tasks, summarise
from benchmarks.emulators.lab import Lab
from benchmarks.emulators.settings import Settings
from benchmarks.emulators.table import write_plot, write_table


def seed(plug_in: float, full: float = 0.5, upper: float = 0.6, tuned: float = 0.4) -> Figures:
    accuracies = {
        "full_zero_shot": full,
        "upper_bound": upper,
        "plug_in": plug_in,
        "emulator_tuned": tuned,
        "emulator_zero_shot": 0.3,
        "emulator_healed": 0.375,
    }
    return {**accuracies, **derived(accuracies, 0.25)}


SIX = (
    "full_zero_shot",
    "upper_bound",
    "plug_in",
    "emulator_tuned",
    "emulator_zero_shot",
    "emulator_healed",
)


OTHERS: Figures = {
    "bytes_shipped": 2e8,
    "share_of_parameters": 0.7,
    "verbatim_share": 0.5,
    "text_perplexity_full_zero_shot": 30.0,
    "text_perplexity_plug_in": 25.0,
    "answer_perplexity_plug_in": 12.0,
    "rate": 5e-4,
    "build_s": 10.0,
}


def test_what_is_derived() -> None:
    figures = seed(0.59)
    assert figures["recovery"] == pytest.approx(0.9)
    assert figures["gap"] == pytest.approx(0.19)
    assert figures["healed_skill"] == pytest.approx(0.5)
    assert figures["tuned_skill"] == pytest.approx(0.6)
    assert figures["zero_shot_skill"] == pytest.approx(0.2)


def test_no_room_gives_no_recovery() -> None:
    assert seed(0.59, full=0.6)["recovery"] is None
    assert derived({**dict.fromkeys(SIX, 0.25)}, 0.25)["healed_skill"] is None


def test_a_summary_has_mean_and_standard_error() -> None:
    summary = summarise([seed(0.58), seed(0.60), seed(0.59)])
    mean, error = summary["plug_in"] or (0.0, None)
    assert mean == pytest.approx(0.59) and error == pytest.approx(0.01 / math.sqrt(3))
    recovery, error = summary["recovery"] or (0.0, None)
    assert recovery == pytest.approx(0.9)
    # All have the same room of 0.1, where the jackknife is the standard error of the mean.
    assert error == pytest.approx(0.1 / math.sqrt(3))


def test_recovery_is_a_ratio_of_means() -> None:
    summary = summarise([seed(0.55, upper=0.51), seed(0.59, upper=0.69)])
    assert summary["recovery"] is not None
    assert summary["recovery"][0] == pytest.approx(0.07 / 0.1)


def test_one_seed_has_no_standard_error() -> None:
    assert summarise([seed(0.59)])["plug_in"] == (pytest.approx(0.59), None)


def test_over_tasks_accuracies_are_averaged_first() -> None:
    averaged = over_tasks([[seed(0.59)], [seed(0.51, upper=0.5)]])
    assert averaged[0]["plug_in"] == pytest.approx(0.55)
    assert averaged[0]["recovery"] == pytest.approx(0.05 / 0.05)


def test_the_frontier_is_drawn_and_tabled(tmp_path: Path) -> None:
    seeds = [{**seed(0.58), **OTHERS}, {**seed(0.6), **OTHERS}]
    found = [Summary(row, "arc_easy", summarise(seeds)) for row in ("one-62", "two-62")]
    write_plot(tmp_path / "plots" / "frontier.svg", found)
    assert "one-62" in (tmp_path / "plots" / "frontier.svg").read_text()
    lab = Lab(tmp_path, tmp_path, Settings(), ("arc_easy",), 2)
    write_table(tmp_path / "table.md", found, lab)
    row = next(x for x in (tmp_path / "table.md").read_text().splitlines() if "two-62" in x)
    assert "59.0 ± 1.0" in row and "0.90 ± 0.10" in row and "| 200 |" in row


def test_of_refused_rows_alone_nothing_is_drawn(tmp_path: Path) -> None:
    write_plot(tmp_path / "frontier.svg", [])
    write_table(tmp_path / "table.md", [], Lab(tmp_path, tmp_path, Settings(), ("arc_easy",), 1))
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
