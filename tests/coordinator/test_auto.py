"""`coordinator emulate --auto` on a tiny model: what it measures, remembers, shows and releases."""

import json
import shutil
from pathlib import Path

import pytest
from tests.coordinator.owner import SETTINGS, add_campaign, answerable, digests, run, sets
from tests.tiny import save_llama, write_jsonl, write_text

from offsite.coordinator.config_release import EmulatorSection
from offsite.coordinator.release import settings_unlike, stored_release
from offsite.coordinator.search.measurer import ModelMeasurer, measured_with
from offsite.coordinator.store import Store
from offsite.coordinator.tables.campaigns import CampaignState
from offsite.coordinator.tables.points import Stage
from offsite.coordinator.workspace import open_workspace
from offsite.secure.errors import ConfigError, PolicyError

SEARCH = {
    "search.methods": "uniform_drop,width_prune",
    "search.ratios": "0.4",
    "search.packings": "none,int8",
    "search.placements": "[{bottom = 1, top = 1}]",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder without a release whose search was run once."""
    folder = tmp_path_factory.mktemp("owner")
    save_llama(folder / "mine", blocks=5)
    write_jsonl(folder / "gate.jsonl", answerable(folder / "mine", 40, start=7))
    write_jsonl(folder / "task.jsonl", answerable(folder / "mine", 12, start=100))
    write_text(folder / "public.jsonl", 64)
    flags = ("--model", folder / "mine", "--gate", folder / "gate.jsonl")
    flags += ("--calibration", folder / "public.jsonl", "--state", folder / "state")
    settings = SETTINGS | SEARCH | {"leak.task": str(folder / "task.jsonl")}
    assert run("init", *map(str, flags), *sets(settings)).exit_code == 0
    shutil.copytree(folder / "state", folder / "fresh")
    done = run("emulate", "--auto", "--json", "--state", str(folder / "state"))
    (folder / "first.json").write_text(done.stdout)
    return folder


@pytest.fixture
def state(inputs: Path, tmp_path: Path) -> Path:
    """A copy of the state folder after the search."""
    shutil.copytree(inputs / "state", tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def fresh(inputs: Path, tmp_path: Path) -> Path:
    """A copy of it before the search."""
    shutil.copytree(inputs / "fresh", tmp_path / "fresh")
    return tmp_path / "fresh"


def auto(state: Path, *flags: str) -> dict[str, object]:
    return json.loads(run("emulate", "--auto", "--json", *flags, "--state", str(state)).stdout)


def test_it_measures_shows_and_draws_and_releases_nothing(inputs: Path, state: Path) -> None:
    found = json.loads((inputs / "first.json").read_text())
    with Store(state / "coordinator.sqlite") as store:
        rows = store.points.all()
    stages = [row.key.stage for row in rows]
    assert stages.count(Stage.QUICK) == 4 and stages.count(Stage.BOUND) == 1
    assert stages.count(Stage.FULL) == sum("healed" in p["figures"] for p in found["points"]) >= 1
    assert found["best"]["method"] in found["toml"] and found["bound_acc"] is not None
    assert Path(found["plot"]).is_file() and not (state / "bundle").exists()
    assert [path.name for path in (state / "reports").iterdir()] == ["frontier.svg"]
    int8 = next(p for p in found["points"] if p["emulator"] == "width_prune 0.4 1+1 int8")
    none = next(p for p in found["points"] if p["emulator"] == "width_prune 0.4 1+1")
    assert int8["figures"]["bytes"] < none["figures"]["bytes"]


def test_a_second_run_measures_nothing_and_says_the_same(
    inputs: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelMeasurer, "measure", lambda *_: pytest.fail("measured again"))
    again, first = auto(state), json.loads((inputs / "first.json").read_text())
    assert again | {"plot": ""} == first | {"plot": ""}


@pytest.mark.parametrize("stop_after", [1, 5])
def test_a_run_that_was_stopped_goes_on_with_what_is_left(
    fresh: Path, inputs: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[Stage, str]] = []
    measure = ModelMeasurer.measure

    def counted(self: ModelMeasurer, stage: Stage, section: EmulatorSection) -> dict[str, float]:
        if len(measured) == stop_after:
            raise KeyboardInterrupt
        found = measure(self, stage, section)
        measured.append((stage, repr(section)))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(ModelMeasurer, "measure", counted)
        assert run("emulate", "--auto", "--state", str(fresh)).exit_code == 130
    with Store(fresh / "coordinator.sqlite") as store:
        assert len(store.points.all()) == stop_after
    found, first = auto(fresh), json.loads((inputs / "first.json").read_text())
    assert [p["figures"] for p in found["points"]] == [p["figures"] for p in first["points"]]
    assert found["best"] == first["best"]


def test_limits_that_nothing_keeps_are_an_error_that_says_how_close_it_came(state: Path) -> None:
    flags = sets({"leak.max_verbatim": "0.01"})
    with pytest.raises(PolicyError, match=r"the closest is .* breaks verbatim: at most 0\.01"):
        run("emulate", "--auto", *flags, "--state", str(state))
    with pytest.raises(PolicyError, match=r"bytes: at most 10"):
        run("emulate", "--auto", *sets({"search.max_bundle_bytes": "10"}), "--state", str(state))
    assert not (state / "bundle").exists()


def test_without_time_nothing_is_chosen(fresh: Path) -> None:
    flags = sets({"search.compute_s": "1e-9"})
    with pytest.raises(ConfigError, match=r"no emulator was measured in full; raise search\.comp"):
        run("emulate", "--auto", *flags, "--state", str(fresh))


def test_the_best_is_released_when_asked_for(state: Path) -> None:
    found = auto(state, "--release-best")
    best = found["search"]["best"]
    with open_workspace(state, exclusive=True) as workspace:
        manifest = stored_release(workspace).manifest
        assert manifest.facts.provenance["built"] == {**best, "seed": 0}
        changed = {f"emulator.{key}" for key in best}
        assert set(settings_unlike(workspace.config, manifest)) <= changed
    assert found["release"]["report"].endswith("1-leak.json")
    snippet = state / "coordinator.toml"
    text = snippet.read_text()
    section = found["search"]["toml"].partition("\n")[2]
    for line in section.splitlines():
        key = line.partition(" = ")[0]
        old = next(row for row in text.splitlines() if row.startswith(f"{key} = "))
        text = text.replace(old, line, 1)
    snippet.write_text(text)
    with open_workspace(state, exclusive=True) as workspace:
        assert settings_unlike(workspace.config, manifest) == []


def test_the_variants_of_the_file_are_checked_before_anything_is_measured(
    inputs: Path, fresh: Path
) -> None:
    variant = '[{name = "small", method = "width_prune", ratio = 0.3}]'
    changes = {"search.methods": "uniform_drop", "emulator.variants": variant}
    changes |= {"emulator.calibration": "", "leak.text": str(inputs / "public.jsonl")}
    flags = sets(changes | {"model.path": "nowhere"})
    with pytest.raises(ConfigError, match=r"emulator\.calibration: width_prune looks at"):
        run("emulate", "--auto", "--release-best", *flags, "--state", str(fresh))


def test_variants_that_cannot_be_built_are_named_before_anything_is_measured(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelMeasurer, "measure", lambda *_: pytest.fail("it was measured"))
    variant = '[{name = "small", method = "width_prune", ratio = 0.01}]'
    flags = sets({"emulator.variants": variant})
    with pytest.raises(ConfigError, match=r"^variant small: width_prune cannot keep only 0\.01"):
        run("emulate", "--auto", "--release-best", *flags, "--state", str(fresh))


def test_emulators_whose_adapter_cannot_travel_are_not_built(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offsite.coordinator.publishing.ADAPTER_BYTES", 1000)
    monkeypatch.setattr(
        "offsite.coordinator.search.measurer.build", lambda *_: pytest.fail("it was built")
    )
    with pytest.raises(ConfigError, match="no emulator was measured in full"):
        run("emulate", "--auto", "--state", str(fresh))
    with Store(fresh / "coordinator.sqlite") as store:
        reasons = [row.refused for row in store.points.all()]
    assert len(reasons) == 4 and all("expected an adapter of at most" in r for r in reasons)


def test_a_search_does_not_touch_the_present_release(state: Path) -> None:
    assert run("emulate", "--state", str(state)).exit_code == 0
    add_campaign(state, CampaignState.ENDED, closed=True)
    before = digests(state / "bundle")
    auto(state)
    assert digests(state / "bundle") == before
    with pytest.raises(ConfigError, match="coordinator export"):
        run("emulate", "--auto", "--release-best", "--state", str(state))
    assert digests(state / "bundle") == before


def test_questions_that_judge_nothing_end_it_before_anything_is_measured(
    inputs: Path, fresh: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (inputs / "gate.jsonl").read_text().splitlines()]
    gate = [row | {"gold": row["gold"] ^ (i % 2)} for i, row in enumerate(rows)]
    path = write_jsonl(tmp_path / "gate.jsonl", gate)
    with pytest.raises(ConfigError, match=r"gate\.questions: the full model is not above chance"):
        run("emulate", "--auto", *sets({"gate.questions": str(path)}), "--state", str(fresh))
    with Store(fresh / "coordinator.sqlite") as store:
        assert store.points.all() == []


@pytest.mark.parametrize("missing", ["gate.questions", "leak.task"])
def test_what_judges_must_be_named(state: Path, missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        run("emulate", "--auto", *sets({missing: ""}), "--state", str(state))


def test_release_best_without_a_search_is_wrong_usage(state: Path) -> None:
    assert run("emulate", "--release-best", "--state", str(state)).exit_code == 2


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"leak.max_healed": "0.5"}, True),
        ({"emulator.ratio": "0.3"}, True),
        ({"search.compute_s": "5"}, True),
        ({"leak.heal_steps": "3"}, False),
        ({"adapter.rank": "3"}, False),
        ({"tuning.learning_rate": "0.5"}, False),
        ({"gate.limit": "3"}, False),
    ],
)
def test_points_are_known_by_all_that_decides_what_is_measured_and_nothing_else(
    state: Path, changes: dict[str, str], is_same: bool
) -> None:
    overrides = [f"{key}={value}" for key, value in changes.items()]
    with open_workspace(state, exclusive=False) as workspace:
        before = measured_with(workspace.config)
    with open_workspace(state, overrides, exclusive=False) as workspace:
        assert (measured_with(workspace.config) == before) is is_same


def test_another_text_in_the_same_place_is_another_measurement(
    inputs: Path, state: Path, tmp_path: Path
) -> None:
    moved, changed = tmp_path / "moved.jsonl", tmp_path / "changed.jsonl"
    shutil.copy(inputs / "task.jsonl", moved)
    changed.write_text("".join((inputs / "task.jsonl").open().readlines()[1:]))
    digests_of = []
    for path in (inputs / "task.jsonl", moved, changed):
        with open_workspace(state, [f"leak.task={path}"], exclusive=False) as workspace:
            digests_of.append(measured_with(workspace.config))
    assert digests_of[0] == digests_of[1] != digests_of[2]
