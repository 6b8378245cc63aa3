"""LoRA on compressed blocks at plug-in: as it came or corrected, as the gate finds better."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.coordinator.fleet import Fleet, FormulaGate, campaign
from tests.coordinator.models import changed, make_model
from tests.coordinator.owner import add_campaign, run, write_inputs
from tests.tiny import save_tokenizer
from torch import Tensor

from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import Campaign
from offsite.coordinator.commands import serve
from offsite.coordinator.config_release import Correction
from offsite.coordinator.gate import GateScore
from offsite.coordinator.plug_in import ModelGate
from offsite.coordinator.plug_in_forms import Corrector, Form, corrector_of, forms_of
from offsite.coordinator.round_metrics import BASELINE, CORRECTED, GATE
from offsite.coordinator.tables.campaigns import CampaignState
from offsite.emulator.adapters.adapter import Adapter, AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.questions import Question
from offsite.emulator.scoring import score_choices
from offsite.secure.errors import MachineError

LORA = AdapterSpec(AdapterKind.LORA, rank=2, alpha=4)


def noisy(name: str, value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return value + 0.1 * torch.randn(value.shape, generator=generator)


@dataclass(frozen=True)
class Middle:
    """A model, an emulator whose compressed blocks are tuned too, and a tuned adapter."""

    model: torch.nn.Module
    emulator: torch.nn.Module
    adapter: Adapter
    tensors: dict[str, Tensor]


@pytest.fixture(scope="module")
def middle() -> Middle:
    model = make_model("llama")
    text = [torch.arange(2 * 16).reshape(2, 16)]
    placement = Placement(1, 1, middle_lora=True)
    built = build_emulator(model, placement, MethodName.ACTIVATION_SVD, 0.5, text)
    adapter = make_adapter(LORA, built.layer_map)
    return Middle(model, built.model, adapter, changed(built.model, adapter, noisy))


def forms(middle: Middle, setting: Correction) -> tuple[Form, ...]:
    corrector = corrector_of(setting, middle.adapter, middle.model, middle.emulator)
    return forms_of(corrector, middle.tensors)


def test_the_setting_says_which_forms_there_are(middle: Middle) -> None:
    assert [f.is_corrected for f in forms(middle, Correction.OFF)] == [False]
    assert [f.is_corrected for f in forms(middle, Correction.ON)] == [True]
    plain, better = forms(middle, Correction.AUTO)
    assert (plain.is_corrected, better.is_corrected) == (False, True)
    assert plain.tensors is middle.tensors


def test_only_compressed_blocks_are_corrected(middle: Middle) -> None:
    (form,) = forms(middle, Correction.ON)
    different = {n for n, t in form.tensors.items() if not torch.equal(t, middle.tensors[n])}
    assert different and all(name.startswith("middle.") for name in different)
    assert all(name.endswith("lora_B.weight") for name in different)


def test_without_tuned_compressed_blocks_there_is_nothing_to_correct(middle: Middle) -> None:
    built = build_emulator(make_model("llama"), Placement(1, 1), MethodName.UNIFORM_DROP, 0.5)
    for spec in (LORA, AdapterSpec(AdapterKind.WHOLE_BLOCK)):
        adapter = make_adapter(spec, built.layer_map)
        assert corrector_of(Correction.ON, adapter, middle.model, built.model) is None


class Fixed(Corrector):
    """Two forms of which one is known to be broken."""

    def forms(self, tensors):
        broken = {name: torch.full_like(value, 1e30) for name, value in tensors.items()}
        better = tensors if self.setting is Correction.ON else broken
        worse = broken if self.setting is Correction.ON else tensors
        return Form(False, worse), Form(True, better)


@pytest.mark.parametrize("is_better", [False, True])
def test_the_gate_takes_the_better_form(middle: Middle, is_better: bool, tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    asked = [Question(f"Question {i}: the sun is", ("a star", "ice"), 0) for i in range(8)]
    scores = score_choices(middle.model, tokenizer, asked, batch_tokens=512)
    golds = [max((0, 1), key=found.log_likelihoods.__getitem__) for found in scores]
    asked = [replace(q, gold=gold) for q, gold in zip(asked, golds, strict=True)]
    setting = Correction.ON if is_better else Correction.OFF
    corrector = Fixed(setting, middle.adapter, middle.model, middle.emulator)
    untouched = changed(middle.model, middle.adapter, lambda name, value: value)
    gate = ModelGate(middle.model, tokenizer, middle.adapter, asked, 512, corrector=corrector)
    score = gate.score(untouched)
    assert (score.acc, score.is_corrected) == (1.0, is_better)
    assert ModelGate(middle.model, tokenizer, middle.adapter, asked, 512).score(untouched).acc == 1


def test_of_equal_forms_the_one_that_came_is_taken(middle: Middle, tmp_path: Path) -> None:
    asked = [Question(f"Question {i}: the sun is", ("a star", "ice"), 0) for i in range(4)]
    untouched = changed(middle.model, middle.adapter, lambda name, value: value)

    class Same(Corrector):
        def forms(self, tensors):
            return Form(False, tensors), Form(True, tensors)

    corrector = Same(Correction.AUTO, middle.adapter, middle.model, middle.emulator)
    tokenizer = save_tokenizer(tmp_path)
    gate = ModelGate(middle.model, tokenizer, middle.adapter, asked, 512, corrector=corrector)
    assert gate.score(untouched).is_corrected is False


# ---- recorded by the round


class CorrectingGate(FormulaGate):
    def score(self, adapter):
        return replace(super().score(adapter), is_corrected=True)


@pytest.mark.parametrize(
    ("gate", "expected"), [(CorrectingGate(), True), (FormulaGate(), False), (None, None)]
)
def test_a_round_remembers_in_which_form_it_was_judged(gate, expected, tmp_path: Path) -> None:
    made = campaign(tmp_path, Fleet(), rounds=1, gate=gate)
    assert run_campaign(made).is_corrected is expected
    (row,) = made.record.store.rounds(1)
    assert (CORRECTED in row.metrics) is bool(expected)
    assert GateScore(0.5, 0.1).is_corrected is False


# ---- evaluate and export


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a release that tunes its compressed blocks."""
    folder = tmp_path_factory.mktemp("owner")
    write_inputs(folder)
    settings = (
        "adapter.kind=lora",
        "adapter.rank=2",
        "emulator.middle_lora=true",
        "emulator.ratio=0.4",
        "emulator.method=activation_svd",
        "emulator.bottom=1",
        "emulator.top=1",
        "leak.heal_steps=0",
        "model.dtype=float32",
    )
    flags = ("--model", folder / "mine", "--gate", folder / "questions.jsonl")
    flags += ("--calibration", folder / "public.txt", "--state", folder / "state")
    words = [word for setting in settings for word in ("--set", setting)]
    assert run("init", *map(str, flags), *words).exit_code == 0
    assert run("emulate", "--state", str(folder / "state")).exit_code == 0
    return folder


@pytest.mark.parametrize(
    ("metrics", "setting", "expected"),
    [
        ({GATE: 0.6, BASELINE: 0.5, CORRECTED: 1.0}, "off", True),  # the gate's word counts
        ({GATE: 0.6, BASELINE: 0.5}, "on", False),
        ({}, "on", True),
        ({}, "auto", False),
    ],
)
def test_what_is_evaluated_and_exported_is_the_form_that_was_judged(
    released: Path, tmp_path: Path, metrics: dict[str, float], setting: str, expected: bool
) -> None:
    state = tmp_path / "state"
    shutil.copytree(released / "state", state)
    add_campaign(state, CampaignState.ENDED, closed=True, change=noisy, metrics=metrics)
    flags = ("--set", f"adapter.correction={setting}", "--json", "--state", str(state))
    evaluated = json.loads(run("evaluate", *flags).stdout)
    exported = json.loads(run("export", *flags).stdout)
    assert evaluated["corrected"] is exported["corrected"] is expected
    description = json.loads((state / "export" / "peft" / "offsite.json").read_text())
    assert description["corrected_at_plug_in"] is expected
    tensors = load_file(state / "export" / "adapter" / "adapter.safetensors")
    tuned = load_file(state / "adapters" / "campaign-1-round-1.safetensors")
    same = {name for name, value in tensors.items() if torch.equal(value, tuned[name])}
    assert (same == set(tuned)) is not expected
    assert {name for name in tuned if not name.startswith("middle.")} <= same


@pytest.mark.parametrize(("setting", "has_corrector"), [("auto", True), ("off", False)])
def test_the_gate_of_a_campaign_corrects_if_it_may(
    released: Path,
    tmp_path: Path,
    setting: str,
    has_corrector: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = tmp_path / "state"
    shutil.copytree(released / "state", state)
    gates: list[ModelGate] = []

    def stop(campaign: Campaign) -> None:
        assert isinstance(campaign.gate, ModelGate)
        gates.append(campaign.gate)
        raise MachineError("seen")

    monkeypatch.setattr(serve, "run_campaign", stop)
    monkeypatch.setattr(serve, "_logging", lambda *_: nullcontext())
    flags = ("--set", "server.listen=127.0.0.1:0", "--set", f"adapter.correction={setting}")
    with pytest.raises(MachineError, match="seen"):
        run("serve", *flags, "--state", str(state))
    assert (gates[0].corrector is not None) is has_corrector
