"""The adapter in the full model, and the model afterwards as if nothing had been."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.coordinator.models import changed, logits_of, make_tuned, untouched, weights_of

from offsite.coordinator.plug_in import ModelGate, merged_in
from offsite.emulator.adapters.adapter import AdapterKind
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.progress import Report
from offsite.emulator.questions import Question
from offsite.secure.errors import PeerError

KINDS = pytest.mark.parametrize("kind", list(AdapterKind))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
FAMILIES = pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
WAYS = pytest.mark.parametrize("way", [plugged_in, merged_in])


@KINDS
@DTYPES
@FAMILIES
@WAYS
def test_the_model_is_restored_bit_for_bit(way, family, dtype, kind, tmp_path: Path) -> None:
    tuned = make_tuned(family, kind, tmp_path, dtype)
    before, logits = weights_of(tuned.model), logits_of(tuned.model)
    with way(tuned.model, tuned.adapter, tuned.tensors):
        assert not torch.equal(logits_of(tuned.model), logits)
    after = weights_of(tuned.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in tuned.model.parameters())


@KINDS
@FAMILIES
@WAYS
def test_an_untouched_adapter_plugged_in_is_the_full_model(
    way, family, kind, tmp_path: Path
) -> None:
    tuned = make_tuned(family, kind, tmp_path, torch.bfloat16, untouched)
    logits = logits_of(tuned.model)
    with way(tuned.model, tuned.adapter, tuned.tensors):
        assert torch.equal(logits_of(tuned.model), logits)


@KINDS
@WAYS
def test_a_tensor_that_does_not_fit_changes_nothing(way, kind, tmp_path: Path) -> None:
    tuned = make_tuned("llama", kind, tmp_path)
    before = weights_of(tuned.model)
    name = max(tuned.tensors)
    wrong = {**tuned.tensors, name: torch.zeros(3, 5, 7)}
    with pytest.raises(PeerError, match=name), way(tuned.model, tuned.adapter, wrong):
        raise AssertionError("it was plugged in")
    after = weights_of(tuned.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@KINDS
def test_the_model_is_restored_when_scoring_fails(kind, tmp_path: Path) -> None:
    tuned = make_tuned("llama", kind, tmp_path)
    before = weights_of(tuned.model)
    with pytest.raises(KeyError), plugged_in(tuned.model, tuned.adapter, tuned.tensors):
        raise KeyError
    after = weights_of(tuned.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_gate_scores_the_plug_in_and_leaves_the_model(tmp_path: Path) -> None:
    tuned = make_tuned("llama", AdapterKind.WHOLE_BLOCK, tmp_path)
    questions = [Question(f"Question {i}: the sun is", ("a star", "ice"), i % 2) for i in range(8)]
    gate = ModelGate(tuned.model, tuned.tokenizer, tuned.adapter, questions, batch_tokens=512)
    baseline = gate.baseline()
    same = changed(tuned.model, tuned.adapter, untouched)
    assert gate.score(same) == baseline
    gate.score(tuned.tensors)
    assert gate.baseline() == baseline


@pytest.mark.parametrize("value", [1e30, -3e38])
def test_the_gate_gives_nothing_for_scores_that_are_not_finite(
    value: float, tmp_path: Path
) -> None:
    tuned = make_tuned("llama", AdapterKind.WHOLE_BLOCK, tmp_path)
    questions = [Question(f"Question {i}: the sun is", ("a star", "ice"), 0) for i in range(8)]
    gate = ModelGate(tuned.model, tuned.tokenizer, tuned.adapter, questions, batch_tokens=512)
    broken = {name: torch.full_like(tensor, value) for name, tensor in tuned.tensors.items()}
    assert gate.score(broken).acc == 0.0


def test_every_scoring_of_the_gate_shows_its_progress(tmp_path: Path) -> None:
    tuned = make_tuned("llama", AdapterKind.LORA, tmp_path)
    seen: list[tuple[str, int, int]] = []

    @contextmanager
    def progress(label: str) -> Iterator[Report]:
        yield lambda done, total: seen.append((label, done, total))

    questions = [Question(f"Question {i}: the sun is", ("a star", "ice"), i % 2) for i in range(8)]
    gate = ModelGate(tuned.model, tuned.tokenizer, tuned.adapter, questions, 512, progress)
    gate.baseline()
    gate.score(tuned.tensors)
    labels = {label for label, done, total in seen if (done, total) == (8, 8)}
    assert labels == {"scoring the full model on the gate", "scoring the plug-in on the gate"}
