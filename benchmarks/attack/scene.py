"""The model, its adapter as it is received, and the rows in their parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from examples.inputs.wheels import MODEL
from transformers import PreTrainedModel

from benchmarks.emulators.questions import TaskFiles, prepare
from offsite.audit.attack.attack import Rows
from offsite.audit.attack.held_out import draw_held_out
from offsite.audit.attack.planted import draw_secrets, with_candidates
from offsite.edge_client.privacy.unit_examples import UnitExamples
from offsite.emulator.adapters.adapter import Adapter, AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.adapters.untouched import untouched
from offsite.emulator.base_model import load_base_model, load_tokenizer
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.questions import read_questions
from offsite.emulator.training.tokens import Encoding, question_examples

TASK = "arc_easy"
MAX_TOKENS = 128
ENTROPY = bytes(range(32))
"""The same rows in every run."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is tuned on, and how long."""

    members: int
    held_out: int
    secrets: int
    candidates: int
    """Other values that a secret is ranked among."""
    ratio: float
    """Of the middle that stays in the emulator."""
    steps: int
    batch: int


FULL = Scale(600, 600, 10, 255, 0.5, 200, 64)
QUICK = Scale(150, 150, 5, 63, 0.16, 30, 32)


@dataclass(frozen=True, slots=True)
class Scene:
    """All but a tuned adapter."""

    model: PreTrainedModel
    adapter: Adapter
    before: Mapping[str, torch.Tensor]
    rows: Rows

    @property
    def units(self) -> UnitExamples:
        """What is tuned on."""
        secrets = [(plant.secret,) for plant in self.rows.planted]
        return UnitExamples((*map(tuple, self.rows.members), *secrets))


def make_scene(inputs: Path, scale: Scale) -> Scene:
    """Reads what lies under the inputs, made when missing."""
    prepare(inputs, [TASK])
    tokenizer, encoding = load_tokenizer(inputs / MODEL), Encoding(MAX_TOKENS)
    base = load_base_model(inputs / MODEL)
    emulator = build_emulator(base, Placement(2, 2), MethodName.UNIFORM_DROP, scale.ratio)
    model = emulator.model.float()  # type: ignore[no-untyped-call]
    adapter = make_adapter(AdapterSpec(AdapterKind.WHOLE_BLOCK), emulator.layer_map)
    count = scale.members + scale.held_out
    questions = read_questions(TaskFiles.of(inputs, TASK).train)[:count]
    units = [(example,) for example in question_examples(questions, tokenizer, encoding)]
    out = draw_held_out(len(units), scale.held_out, ENTROPY)
    secrets = draw_secrets(scale.secrets, ENTROPY)
    rows = Rows(
        [unit for place, unit in enumerate(units) if place not in out],
        [unit for place, unit in enumerate(units) if place in out],
        with_candidates(secrets, scale.candidates, tokenizer, encoding, ENTROPY),
    )
    return Scene(model, adapter, untouched(adapter, model), rows)
