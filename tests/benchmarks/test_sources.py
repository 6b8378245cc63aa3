"""A record is found again for the same model, settings and code, and for no other."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.emulators import reference, sources
from benchmarks.emulators.lab import Lab
from benchmarks.emulators.measured import Bench
from benchmarks.emulators.reference import Slots, upper_bound, upper_inputs
from benchmarks.emulators.rows import ROWS, read_rows
from benchmarks.emulators.settings import Settings
from benchmarks.emulators.tuning import Tuner
from tests.benchmarks.inputs import write_inputs

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec
from offsite.emulator.layer_map import Placement

STAGES = ("build", "zero_shot", "healed", "tuned", "upper")
ALL_OF_A_ROW = {"build", "zero_shot", "healed", "tuned"}


def lab_of(folder: Path, settings: Settings, base: str = "ab") -> Lab:
    """Whose model is never read."""
    lab = Lab(folder, folder, settings, ("arc_easy",), 1)
    lab.__dict__["fingerprint"] = base * 32
    return lab


def inputs_of(lab: Lab, name: str) -> dict[str, object]:
    row = next(row for row in read_rows(ROWS) if row.name == name)
    bench = Bench(lab, row)
    found = (
        bench.build_inputs,
        bench.emulator_inputs("arc_easy", 0),
        bench.healed_inputs("arc_easy", 0),
        bench.tuned_inputs("arc_easy", 0),
        upper_inputs(lab, Slots.of(row), "arc_easy", 0),
    )
    return dict(zip(STAGES, found, strict=True))


def changed(before: dict[str, object], after: dict[str, object]) -> set[str]:
    return {stage for stage in STAGES if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("row", "file", "stages"),
    [
        ("uniform-62-distilled", "methods/uniform_drop.py", ALL_OF_A_ROW),
        ("uniform-62-distilled", "packing/nf4.py", ALL_OF_A_ROW),
        ("uniform-62-distilled", "distil.py", ALL_OF_A_ROW),
        ("gradient-62-int8", "distil.py", set()),
        ("gradient-62-int8", "training/loss.py", {"healed", "tuned", "upper"}),
        ("gradient-62-int8", "leak/heal.py", {"healed"}),
        ("gradient-62-int8", "correction.py", set()),
        ("svd-62-middle-lora", "correction.py", {"tuned"}),
        ("gradient-62-int8", "terminal.py", set()),
    ],
)
def test_what_other_code_made_is_measured_again(
    row: str, file: str, stages: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("emulator", "changed"):
        shutil.copytree(sources.EMULATOR, tmp_path / name)
    with (tmp_path / "changed" / file).open("a") as source:
        source.write("# changed\n")
    found = []
    for name in ("emulator", "changed"):
        monkeypatch.setattr(sources, "EMULATOR", tmp_path / name)
        found.append(inputs_of(lab_of(tmp_path, Settings()), row))
    assert changed(*found) == stages


def test_the_model_and_the_micro_batch_count(tmp_path: Path) -> None:
    row, settings = "gradient-62-int8", Settings()
    before = inputs_of(lab_of(tmp_path, settings), row)
    assert changed(before, inputs_of(lab_of(tmp_path, settings, "cd"), row)) == set(STAGES)
    smaller = lab_of(tmp_path, replace(settings, micro_batch_tokens=64))
    assert changed(before, inputs_of(smaller, row)) == {"tuned", "upper"}


def test_upper_bounds_of_two_models_share_no_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that was killed before its adapters were removed."""
    folders: list[Path] = []
    inputs = write_inputs(tmp_path / "inputs")

    def seen(slots: Slots, tuner: Tuner) -> float:
        folders.append(tuner.folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(reference, "_chosen_rate", seen)
    for base in ("ab", "cd"):
        lab = lab_of(tmp_path, Settings(), base)
        lab.__dict__["model"] = Lab(inputs, tmp_path, Settings(), (), 1).model
        with pytest.raises(KeyboardInterrupt):
            upper_bound(lab, Slots(Placement(1, 1), AdapterSpec(AdapterKind.LORA)), "arc_easy")
    assert folders[0] != folders[1]
