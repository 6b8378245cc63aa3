"""The search on emulators that are formulas: order, budgets, resume, and what it says."""

import json
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from rich.console import Console

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import EmulatorSection, PlacementSection, SearchSection
from offsite.coordinator.search.candidates import (
    bound_of,
    candidates,
    key_of,
    label_of,
    snippet_of,
)
from offsite.coordinator.search.explore import Outcome, Search, explore
from offsite.coordinator.search.plot import write_plot
from offsite.coordinator.search.shown import (
    outcome_json,
    recovery_of,
    render_outcome,
    shortfall,
)
from offsite.coordinator.store import Store
from offsite.coordinator.tables.points import PointKey, PointRow, PointTable, Stage
from offsite.emulator.methods.method import MethodName
from offsite.emulator.packing.packing import Packing
from offsite.emulator.settings import load_settings
from offsite.secure.errors import ConfigError

DROP, WIDTH, GRADIENT = MethodName.UNIFORM_DROP, MethodName.WIDTH_PRUNE, MethodName.GRADIENT
TRIED = SearchSection(
    methods=(DROP, WIDTH),
    ratios=(0.3, 0.6),
    packings=(Packing.NONE, Packing.NF4),
    placements=(PlacementSection(2, 2),),
)
SKILL = {DROP: 0.8, WIDTH: 0.5}


@dataclass
class Formula:
    """Skill grows with the ratio; every measurement takes ten seconds of its own clock."""

    stop_after: int = 10**6
    now: float = 0.0
    done: list[tuple[Stage, str]] = field(default_factory=list)
    prepared: int = 0

    def prepare(self) -> None:
        assert not self.done
        self.prepared += 1

    def clock(self) -> float:
        return self.now

    def measure(self, stage: Stage, section: EmulatorSection) -> dict[str, float]:
        if len(self.done) >= self.stop_after:
            raise KeyboardInterrupt
        self.done.append((stage, label_of(section)))
        self.now += 10.0
        if section.method not in SKILL:
            raise ConfigError("this model has no such layers")
        skill = SKILL[section.method] * section.ratio
        size = 1000 * section.ratio * (0.3 if section.packing is Packing.NF4 else 1.0)
        quick = {"perplexity": 20 - 10 * section.ratio, "zero_shot": skill, "bytes": size}
        if stage is Stage.QUICK:
            return quick
        if stage is Stage.BOUND:
            return {"tuned_acc": 0.7}
        gain = {DROP: 0.05, WIDTH: 0.15}[section.method] * section.ratio / 0.6
        return {"healed": skill + 0.1, "plug_in": 0.5 + gain, "full_acc": 0.5}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


def config_of(**changes: object) -> CoordinatorConfig:
    return CoordinatorConfig(search=replace(TRIED, **changes))  # type: ignore[arg-type]


def search_of(store: Store, measurer: Formula, **changes: object) -> Search:
    values: dict[str, object] = {
        "candidates": candidates(config_of()),
        "limits": {},
        "compute_s": 1e9,
        "base_fingerprint": "ab" * 32,
        "measured_with": "cd" * 32,
        "seed": 0,
        "measurer": measurer,
        "points": store.points,
        "note": lambda text: None,
        "clock": measurer.clock,
    }
    return Search(**(values | changes))  # type: ignore[arg-type]


def text_of(outcome: Outcome) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render_outcome(outcome))
    return capture.get()


# ---- candidates


def test_every_combination_is_tried_once() -> None:
    found = candidates(config_of())
    assert len(found) == len({key_of(section) for section in found}) == 8
    assert {s.method for s in found} == {DROP, WIDTH} and {s.ratio for s in found} == {0.3, 0.6}


def test_lora_on_compressed_blocks_is_tried_only_where_it_can_be() -> None:
    placements = (PlacementSection(2, 2, 0, True),)
    assert candidates(config_of(placements=placements)) == ()
    lora = load_settings(CoordinatorConfig, None, ["adapter.kind=lora"])
    found = candidates(replace(lora, search=config_of(placements=placements).search))
    assert {section.method for section in found} == {WIDTH}


def test_a_key_holds_what_matters_to_its_method_and_nothing_else() -> None:
    section = EmulatorSection(gradient_lambda=0.5, release_days=3)
    assert key_of(section) == key_of(EmulatorSection())
    gradient = replace(section, method=GRADIENT)
    assert key_of(gradient) != key_of(replace(gradient, gradient_lambda=0.0))
    assert key_of(bound_of(section)) == key_of(bound_of(replace(section, ratio=0.2)))


def test_the_snippet_is_the_settings(tmp_path: Path) -> None:
    section = replace(EmulatorSection(), method=GRADIENT, ratio=0.45, packing=Packing.NF4, top=3)
    path = tmp_path / "coordinator.toml"
    path.write_text(snippet_of(section))
    assert load_settings(CoordinatorConfig, path).emulator == section


# ---- explore


def test_cheap_measurements_come_first_and_expensive_ones_only_of_what_is_left(
    store: Store,
) -> None:
    measurer = Formula()
    outcome = explore(search_of(store, measurer))
    stages = [stage for stage, _ in measurer.done]
    assert stages == sorted(stages, key=[Stage.QUICK, Stage.BOUND, Stage.FULL].index)
    assert stages.count(Stage.QUICK) == 8 and stages.count(Stage.BOUND) == 1
    full = {label for stage, label in measurer.done if stage is Stage.FULL}
    assert full == {"width_prune 0.3 2+2 nf4", "width_prune 0.6 2+2 nf4"}  # others are dominated
    assert outcome.best is not None and outcome.best.label == "width_prune 0.6 2+2 nf4"
    assert recovery_of(outcome, outcome.best) == pytest.approx(0.75)
    assert outcome.spent_s == 10.0 * len(measurer.done) and outcome.left_out == 0


@pytest.mark.parametrize("stop_after", range(11))
def test_a_search_that_was_stopped_goes_on_where_it_was(store: Store, stop_after: int) -> None:
    first, second = Formula(stop_after), Formula()
    with pytest.raises(KeyboardInterrupt):
        explore(search_of(store, first))
    outcome = explore(search_of(store, second))
    whole = Formula()
    assert first.done + second.done == explored(whole)
    assert len(first.done) == stop_after
    assert outcome.spent_s == 10.0 * len(whole.done)
    third = Formula()
    assert explore(search_of(store, third)) == outcome and third.done == []
    assert (second.prepared, third.prepared) == (1, 0)


def explored(measurer: Formula) -> list[tuple[Stage, str]]:
    """What one uninterrupted search measures."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "fresh.sqlite") as fresh:
        explore(search_of(fresh, measurer))
    return measurer.done


@pytest.mark.parametrize(
    "changes",
    [{"base_fingerprint": "00" * 32}, {"measured_with": "00" * 32}, {"seed": 1}],
)
def test_what_was_measured_of_something_else_does_not_count(
    store: Store, changes: dict[str, object]
) -> None:
    first, second = Formula(), Formula()
    explore(search_of(store, first))
    explore(search_of(store, second, **changes))
    assert second.done == first.done


def test_time_that_was_spent_before_counts(store: Store) -> None:
    first = Formula()
    outcome = explore(search_of(store, first, compute_s=35.0))
    assert len(first.done) == 4  # two quick ones in half of the time, the bound, one in full
    assert outcome.left_out == 6
    again = Formula()
    assert explore(search_of(store, again, compute_s=35.0)).spent_s == 40.0
    assert again.done == []
    more = Formula()
    explore(search_of(store, more, compute_s=1e9))
    assert not set(more.done) & set(first.done)


def test_what_breaks_a_limit_is_not_measured_in_full(store: Store) -> None:
    measurer = Formula()
    outcome = explore(search_of(store, measurer, limits={"zero_shot": 0.2}))
    full = {label for stage, label in measurer.done if stage is Stage.FULL}
    assert full == {"width_prune 0.3 2+2 nf4"}
    assert outcome.best is not None and outcome.best.label in full
    over = [point for point in outcome.points if point.broken]
    assert {point.section.ratio for point in over} == {0.3, 0.6} and len(over) == 6


def test_a_limit_that_only_the_full_measurement_shows_is_kept_too(store: Store) -> None:
    outcome = explore(search_of(store, Formula(), limits={"healed": 0.3}))
    assert outcome.best is not None and outcome.best.label == "width_prune 0.3 2+2 nf4"
    assert [p.label for p in outcome.full if p.broken] == ["width_prune 0.6 2+2 nf4"]
    said = "over a limit: width_prune 0.6 2+2 nf4: healed: at most 0.3, found 0.4000"
    assert said in text_of(outcome)


def test_the_closest_is_named_when_nothing_keeps_the_limits(store: Store) -> None:
    outcome = explore(search_of(store, Formula(), limits={"healed": 0.2, "bytes": 500.0}))
    assert outcome.best is None and outcome.frontier == []
    assert shortfall(outcome) == (
        "no emulator keeps every limit; the closest is width_prune 0.3 2+2 nf4, which breaks "
        "healed: at most 0.2, found 0.2500"
    )
    nothing = explore(search_of(store, Formula(), compute_s=1e-9, seed=1))
    assert shortfall(nothing) == "no emulator was measured in full"


def test_what_cannot_be_built_is_said_and_remembered(store: Store) -> None:
    tried = candidates(config_of(methods=(WIDTH, GRADIENT), ratios=(0.3,)))
    first, second = Formula(), Formula()
    outcome = explore(search_of(store, first, candidates=tried))
    assert "refused: gradient 0.3 2+2: this model has no such layers" in text_of(outcome)
    explore(search_of(store, second, candidates=tried))
    assert second.done == []


# ---- time


def test_more_time_is_spent_on_more_emulators(store: Store) -> None:
    """What was spent on tuning takes nothing from the quick half of a larger budget."""
    first, more = Formula(), Formula()
    explore(search_of(store, first, compute_s=35.0))
    assert [stage for stage, _ in first.done].count(Stage.QUICK) == 2
    explore(search_of(store, more, compute_s=70.0))  # 40 s are spent, 20 s of them quick
    assert [stage for stage, _ in more.done] == [Stage.QUICK, Stage.QUICK, Stage.FULL]


# ---- what goes wrong


@dataclass
class Breaking(Formula):
    """Of one emulator it raises something."""

    breaks: str = ""
    error: BaseException = field(default_factory=MemoryError)

    def measure(self, stage: Stage, section: EmulatorSection) -> dict[str, float]:
        if label_of(section) == self.breaks:
            self.now += 10.0
            raise self.error
        return super().measure(stage, section)


FOUND = "width_prune 0.6 2+2 nf4"
"""What would be the best."""


@pytest.mark.parametrize("error", [RuntimeError("out of memory\ntrace"), MemoryError(), OSError(5)])
def test_a_candidate_that_fails_costs_itself_alone(store: Store, error: Exception) -> None:
    outcome = explore(search_of(store, Breaking(breaks=FOUND, error=error)))
    assert outcome.best is not None and outcome.best.label != FOUND
    failed = next(point for point in outcome.points if point.label == FOUND)
    reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    assert failed.refused.startswith(f"failed: {reason}; search.try_again")
    assert f"refused: {FOUND}: failed" in text_of(outcome)
    again = Formula()
    assert explore(search_of(store, again)) == outcome and again.done == []
    explore(search_of(store, again, tries_again=True))
    assert [label for _, label in again.done] == [FOUND, FOUND]  # quick, full


class KilledError(BaseException):
    """Nothing of the program runs after it."""


def test_a_candidate_that_took_the_program_down_is_passed_by_and_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            PointTable, "forget", lambda *_: None, raising=False
        )  # a kill cleans nothing up
        with pytest.raises(KilledError):
            explore(search_of(store, Breaking(breaks=FOUND, error=KilledError())))
    notes: list[str] = []
    outcome = explore(search_of(store, Formula(), note=notes.append))
    assert outcome.best is not None and outcome.best.label != FOUND
    said = f"passed by: quick of {FOUND}: the program ended while it was measured (from 20"
    assert any(note.startswith(said) for note in notes)
    assert f"refused: {FOUND}: the program ended" in text_of(outcome)


def test_whoever_stops_the_search_blames_no_candidate(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        explore(search_of(store, Breaking(breaks=FOUND, error=KeyboardInterrupt())))
    outcome = explore(search_of(store, Formula()))
    assert outcome.best is not None and outcome.best.label == FOUND


def test_an_emulator_without_a_perplexity_comes_last(store: Store) -> None:
    class Broken(Formula):
        def measure(self, stage: Stage, section: EmulatorSection) -> dict[str, float]:
            found = super().measure(stage, section)
            if stage is Stage.QUICK and section.ratio == 0.3:
                del found["perplexity"]
            return found

    measurer = Broken()
    explore(search_of(store, measurer))
    full = [label for stage, label in measurer.done if stage is Stage.FULL]
    assert full == ["width_prune 0.6 2+2 nf4", "width_prune 0.3 2+2 nf4"]


# ---- what it says


def test_the_table_and_the_document_say_the_same(store: Store) -> None:
    outcome = explore(search_of(store, Formula(), limits={"zero_shot": 0.4}))
    text, document = text_of(outcome), json.loads(json.dumps(outcome_json(outcome)))
    assert document["best"]["method"] == "width_prune" and document["toml"] in text
    assert "* width_prune 0.6 2+2 nf4" in text and "–" in text
    assert sum(line.startswith("!") for line in text.splitlines()) == 2
    assert [p["emulator"] for p in document["points"] if p["frontier"]] == [
        point.label for point in outcome.points if point in outcome.frontier
    ]
    assert document["bound_acc"] == 0.7


def test_the_plot_is_the_same_for_the_same_outcome(store: Store, tmp_path: Path) -> None:
    outcome = explore(search_of(store, Formula()))
    for name in ("a.svg", "b.svg"):
        assert write_plot(tmp_path / name, outcome, 0.5)
    data = (tmp_path / "a.svg").read_bytes()
    assert data == (tmp_path / "b.svg").read_bytes()
    assert ET.fromstring(data).tag.endswith("svg")
    assert b"leak budget" in data and b"width_prune 0.6 2+2 nf4" in data
    nothing = replace(outcome, points=())
    assert not write_plot(tmp_path / "c.svg", nothing, None)
    assert not (tmp_path / "c.svg").exists()


# ---- rows


def test_the_first_row_of_a_measurement_stays(store: Store) -> None:
    key = PointKey("a", "b", Stage.QUICK, "{}", 0)
    store.points.add(PointRow(key, {"zero_shot": 0.5}, "", 1.0, 2.0))
    store.points.add(PointRow(key, {"zero_shot": 0.9}, "", 1.0, 3.0))
    assert store.points.all() == [PointRow(key, {"zero_shot": 0.5}, "", 1.0, 2.0)]
    assert store.points.get(replace(key, seed=1)) is None


def test_a_database_of_before_gets_the_table(tmp_path: Path) -> None:
    from offsite.coordinator.tables import database
    from offsite.coordinator.tables.schema import INITIAL

    path = tmp_path / "old.sqlite"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database, "MIGRATIONS", (INITIAL,))
        database.Database(path).close()
    with Store(path) as store:
        assert store.points.all() == []
