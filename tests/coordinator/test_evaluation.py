"""The four rows of the table, each scored on the model that it names."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.coordinator.models import make_tuned, weights_of

from offsite.coordinator.evaluation import ROWS, Questions, evaluate
from offsite.emulator.adapters.adapter import AdapterKind
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.questions import Question
from offsite.emulator.scoring import score_questions

QUESTIONS = [
    Question(
        f"Question {i}: water and light, what is {i}?",
        ("a star", "ice", "iron"),
        (0, 0, 0, 1, 1, 2)[i % 6],
    )
    for i in range(60)
]


@pytest.mark.parametrize("kind", list(AdapterKind))
def test_each_row_is_the_model_it_names(kind: AdapterKind, tmp_path: Path) -> None:
    tuned = make_tuned(
        "llama", kind, tmp_path, change=lambda name, value: value + 2 * torch.randn(value.shape)
    )
    emulator = build_emulator(tuned.model, Placement(2, 1), MethodName.UNIFORM_DROP, 0.5).model
    full_before, emulator_before = weights_of(tuned.model), weights_of(emulator)
    seen: list[tuple[int, int]] = []
    found = evaluate(
        tuned.model,
        emulator,
        tuned.tokenizer,
        tuned.adapter,
        tuned.tensors,
        QUESTIONS,
        batch_tokens=1024,
        report=lambda done, total: seen.append((done, total)),
    )

    def score(model):
        return score_questions(model, tuned.tokenizer, QUESTIONS, batch_tokens=1024)

    assert tuple(found.rows) == ROWS
    assert found.rows["full_zero_shot"] == score(tuned.model)
    assert found.rows["emulator_zero_shot"] == score(emulator)
    with plugged_in(emulator, tuned.adapter, tuned.tensors):
        assert found.rows["emulator_tuned"] == score(emulator)
    with plugged_in(tuned.model, tuned.adapter, tuned.tensors):
        assert found.rows["plug_in"] == score(tuned.model)
    assert found.rows["emulator_tuned"] != found.rows["emulator_zero_shot"]
    assert found.rows["plug_in"] != found.rows["full_zero_shot"]
    assert seen[-1] == (240, 240) and seen == sorted(seen)
    gain = found.rows["plug_in"].acc - found.rows["full_zero_shot"].acc
    assert found.over_full.mean == pytest.approx(gain)
    for model, before in ((tuned.model, full_before), (emulator, emulator_before)):
        assert all((before[name] == value).all() for name, value in weights_of(model).items())
    _check_output(found)


def _check_output(found) -> None:
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["plug_in"]["acc"] == found.rows["plug_in"].acc
    assert set(plain["plug_in"]) == {
        "acc",
        "acc_stderr",
        "acc_norm",
        "acc_norm_stderr",
        "questions",
    }
    assert set(plain["plug_in_minus_full"]) == {"mean", "stderr", "questions"}
    console = Console(width=120)
    with console.capture() as capture:
        console.print(found.to_table())
    text = capture.get()
    assert "the gate" not in text
    assert "emulator zero shot" in text and "60 questions" in text and "paired" in text
    with console.capture() as capture:
        console.print(found.to_table(Questions.GATE))
    assert "chose the round" in capture.get()
