"""The engine gives what autograd gives for one unit at a time, or raises."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.emulator.conftest import FAMILIES, MakeModel
from tests.emulator.privacy.backends.cells import (
    UNITS,
    Checkpointing,
    Kind,
    Subject,
    checkpointed,
    clipped,
    exact_gradients,
    largest_difference,
    make_batch,
    make_subject,
)
from tests.emulator.privacy.per_example.square import SIDE, square_batch

from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.training.batches import MicroBatch
from offsite.secure.errors import ConfigError

MakeSubject = Callable[[str, Kind], Subject]


@pytest.fixture(scope="module")
def subject_of() -> MakeSubject:
    """A subject is made once; the tests leave it as it was."""
    made: dict[tuple[str, Kind], Subject] = {}

    def make(family: str, kind: Kind) -> Subject:
        if (family, kind) not in made:
            made[family, kind] = make_subject(family, kind)
        return made[family, kind]

    return make


def sums(
    subject: Subject,
    clip: float,
    *,
    batch: MicroBatch | None = None,
    units: torch.Tensor = UNITS,
    group_units: int = 8,
    pass_tokens: int = 4096,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(total, norms), without dropout, for at most so many units and tokens at once."""
    total = torch.zeros(subject.gradients.shape[1])
    engine = PerExampleEngine(
        subject.model,
        subject.parameters,
        buffer_bytes=4 * len(total) * group_units,
        pass_tokens=pass_tokens,
    )
    with checkpointed(subject.model, Checkpointing.NONE), engine:
        norms = engine.clipped_sum_into(batch or make_batch(), units, clip, total)
    return total, norms


def without_dropout_exact(subject: Subject, batch: MicroBatch, units: torch.Tensor) -> torch.Tensor:
    """The gradients [U, P] in fp64."""
    with checkpointed(subject.model, Checkpointing.NONE):
        return exact_gradients(subject.model, subject.parameters, batch, units)


@pytest.mark.parametrize("how", Checkpointing)
@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_batch_of_one(
    family: str, kind: Kind, how: Checkpointing, subject_of: MakeSubject
) -> None:
    """Whatever is clipped; against fp64, at unit scale."""
    assert largest_difference(PerExampleEngine, subject_of(family, kind), how) < 1e-6


@pytest.mark.parametrize("kind", [Kind.LORA, Kind.BLOCKS], ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("group_units", [1, 2, 4])
@pytest.mark.parametrize("pass_tokens", [1, 40, 4096])
def test_it_does_not_matter_how_the_batch_is_cut(
    family: str, kind: Kind, group_units: int, pass_tokens: int, subject_of: MakeSubject
) -> None:
    """Unit 1 has two rows, which `pass_tokens` tears apart."""
    subject = subject_of(family, kind)
    norms = subject.gradients.norm(dim=1)
    clip = float(norms.median())
    total, found = sums(subject, clip, group_units=group_units, pass_tokens=pass_tokens)
    torch.testing.assert_close(total.double(), clipped(subject.gradients, clip), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.double(), norms, rtol=1e-6, atol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_either_attention(implementation: str, subject_of: MakeSubject) -> None:
    subject = subject_of("llama", Kind.LORA)
    before = subject.model.config._attn_implementation
    subject.model.set_attn_implementation(implementation)
    try:
        assert largest_difference(PerExampleEngine, subject, Checkpointing.NONE) < 1e-6
    finally:
        subject.model.set_attn_implementation(before)


@pytest.mark.parametrize("kind", [Kind.LORA, Kind.BLOCKS], ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("how", Checkpointing)
def test_a_bf16_model(kind: Kind, how: Checkpointing) -> None:
    """LoRA stays in fp32; whole blocks are bf16, and so is what a layer makes of their gradients.

    The reference computes with the same weights in fp64, so this holds to the digits of bf16.
    """
    subject = make_subject("llama", kind)
    names = {id(parameter) for parameter in subject.parameters.values()}
    for parameter in subject.model.parameters():
        if kind is Kind.BLOCKS or id(parameter) not in names:
            parameter.data = parameter.data.bfloat16()
    exact = without_dropout_exact(subject, make_batch(), UNITS)
    total = torch.zeros(exact.shape[1])
    engine = PerExampleEngine(subject.model, subject.parameters)
    with checkpointed(subject.model, how), engine:
        norms = engine.clipped_sum_into(make_batch(), UNITS, 1.0, total)
    torch.testing.assert_close(norms.double(), exact.norm(dim=1), rtol=3e-2, atol=0)
    wanted = clipped(exact, 1.0)
    assert (total - wanted).norm() < 3e-2 * wanted.norm()


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_one_unit_moves_the_sum_by_at_most_the_clip_norm(
    family: str, kind: Kind, subject_of: MakeSubject
) -> None:
    """Each left out once: no other gradient is another then, though rows are ragged."""
    subject, clip = subject_of(family, kind), 0.1
    whole, norms = sums(subject, clip)
    assert (norms > clip).all()
    for unit in range(5):
        without, others = sums(subject, clip, **left_out(unit))
        moved = float((whole - without).norm()) / clip
        assert 0.9999 < moved <= 1.0001  # clipped, and not thrown away
        kept = torch.arange(5) != unit
        torch.testing.assert_close(others, norms[kept], rtol=2e-6, atol=0)


def left_out(unit: int) -> dict[str, MicroBatch | torch.Tensor]:
    """The batch without one unit, and the units of its rows."""
    batch, rows = make_batch(), (UNITS != unit).nonzero().flatten()
    place = torch.full((len(UNITS),), -1)
    place[rows] = torch.arange(len(rows))
    kept = place[batch.rows] >= 0
    rest = dataclasses.replace(
        batch,
        ids=batch.ids[rows],
        rows=place[batch.rows][kept],
        columns=batch.columns[kept],
        targets=batch.targets[kept],
    )
    return {"batch": rest, "units": UNITS[rows] - (UNITS[rows] > unit).long()}


def test_a_layer_that_runs_twice_has_the_sum_of_its_gradients(
    subject_of: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of("llama", Kind.BLOCKS)
    mlp = type(subject.model.model.layers[0].mlp)
    once = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: once(self, x) + once(self, x.flip(-1)) / 2)
    exact = without_dropout_exact(subject, make_batch(), UNITS)
    total, _ = sums(subject, 1.0)
    assert not torch.allclose(exact, subject.gradients)
    torch.testing.assert_close(total.double(), clipped(exact, 1.0), rtol=0, atol=1e-6)


def test_a_square_batch(subject_of: MakeSubject) -> None:
    """As many rows as tokens: the engine cuts it, and the sum is the same."""
    subject, square, units = subject_of("opt", Kind.LORA), square_batch(), torch.arange(SIDE)
    exact = without_dropout_exact(subject, square, units)
    total, norms = sums(subject, 0.5, batch=square, units=units)
    torch.testing.assert_close(norms.double(), exact.norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(total.double(), clipped(exact, 0.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj", "fc1"], use_rslora=True, r=4),
        LoraConfig(target_modules=["k_proj", "fc2"], bias="lora_only", r=4),
        LoraConfig(target_modules=["fc1", "fc2"], r=4, layers_to_transform=[1]),
    ],
    ids=["rslora", "biases", "feed-forward alone"],
)
@pytest.mark.parametrize("frozen", ["nothing", "lora_A"])
def test_other_ways_to_lora(config: LoraConfig, frozen: str, make_model: MakeModel) -> None:
    """On OPT, whose feed-forward layers see the tokens of all rows in one line."""
    model = make_model("opt")
    get_peft_model(model, config)  # in place
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name in [name for name in parameters if frozen in name]:
        parameters.pop(name).requires_grad_(False)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.03 * torch.randn_like(parameter))
    gradients = exact_gradients(model.eval(), parameters, make_batch(), UNITS)
    subject = Subject(model.train(), parameters, gradients)
    assert largest_difference(PerExampleEngine, subject, Checkpointing.NONE) < 1e-6


def test_evaluation_inside_the_context_is_as_ever(subject_of: MakeSubject) -> None:
    subject = subject_of("gpt2", Kind.BLOCKS)
    ids = torch.arange(3, 30)[None]
    subject.model.eval()
    with torch.no_grad():
        before = subject.model(ids).logits
        with PerExampleEngine(subject.model, subject.parameters):
            assert torch.equal(subject.model(ids).logits, before)
    subject.model.train()


def test_the_model_is_plain_again_after_an_error(subject_of: MakeSubject) -> None:
    subject = subject_of("gpt2", Kind.BLOCKS)
    with pytest.raises(ZeroDivisionError), PerExampleEngine(subject.model, subject.parameters):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in subject.model.modules())
    assert not any(parameter._backward_hooks for parameter in subject.model.parameters())


def test_dropout_draws_for_every_row(subject_of: MakeSubject) -> None:
    """GPT-2 has it; gradient checkpointing must draw the same masks again."""
    subject = subject_of("gpt2", Kind.LORA)
    totals = []
    for how in Checkpointing:
        if how is not Checkpointing.NONE:
            subject.model.gradient_checkpointing_enable(
                {"use_reentrant": how is Checkpointing.REENTRANT}
            )
        total = torch.zeros(subject.gradients.shape[1])
        torch.manual_seed(5)
        with PerExampleEngine(subject.model, subject.parameters) as engine:
            engine.clipped_sum_into(make_batch(), UNITS, 1.0, total)
        subject.model.gradient_checkpointing_disable()
        subject.model.disable_input_require_grads()
        totals.append(total)
    assert not torch.allclose(totals[0].double(), clipped(subject.gradients, 1.0), atol=1e-3)
    torch.testing.assert_close(totals[1], totals[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(totals[2], totals[0], rtol=0, atol=1e-6)


def test_outside_its_context_it_raises(subject_of: MakeSubject) -> None:
    subject = subject_of("llama", Kind.LORA)
    engine = PerExampleEngine(subject.model, subject.parameters)
    with pytest.raises(ConfigError, match="context"):
        engine.clipped_sum_into(make_batch(), UNITS, 1.0, torch.zeros(subject.gradients.shape[1]))
