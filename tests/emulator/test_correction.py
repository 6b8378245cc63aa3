"""The corrected LoRA does in the full layer what the tuned one did in the emulator's."""

import math

import pytest
import torch
from tests.emulator.conftest import MakeModel

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, TrainedFactors
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.build import build_emulator
from offsite.emulator.correction import corrected, corrected_factor
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.methods.method import MethodName
from offsite.secure.errors import ConfigError

SCALING = 2.0


def problem(rank: int = 4) -> tuple[torch.Tensor, ...]:
    """A (rank, 20), B (12, rank), W and E (12, 20), all fp64."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((rank, 20), (12, rank), (12, 20), (12, 20))
    low, high, full, small = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return low, high, full, full + 0.1 * small


def test_the_layers_agree_on_the_span_of_a() -> None:
    low, high, full, small = problem()
    changed = corrected_factor(low, high, full - small, SCALING, math.inf)
    inside = torch.randn(7, 4, dtype=torch.float64) @ low  # x in the span of A's rows
    wanted = inside @ (small + SCALING * high @ low).T
    found = inside @ (full + SCALING * changed @ low).T
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_off_the_span_the_full_layer_stays_itself() -> None:
    low, high, full, small = problem()
    changed = corrected_factor(low, high, full - small, SCALING, math.inf)
    outside = torch.linalg.svd(low)[2][4:]  # orthogonal to A's rows
    found = outside @ (full + SCALING * changed @ low).T
    torch.testing.assert_close(found, outside @ full.T, rtol=0, atol=1e-12)


def test_it_is_the_closed_form() -> None:
    """B' = B - (W - E)·A⁺/s, and no other B' brings the layers together on the span.


    Brute force: least squares on many random directions, for B' alone.
    """
    low, high, full, small = problem()
    changed = corrected_factor(low, high, full - small, SCALING, math.inf)
    closed = high - (full - small) @ torch.linalg.pinv(low) / SCALING
    torch.testing.assert_close(changed, closed, rtol=0, atol=1e-12)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64) @ low
    goal = x @ (small + SCALING * high @ low - full).T  # what s·B'·A must give
    searched = torch.linalg.lstsq(SCALING * x @ low.T, goal).solution.T
    torch.testing.assert_close(changed, searched, rtol=0, atol=1e-9)


def test_untouched_stays_untouched() -> None:
    low, high, full, small = problem()
    for clamp in (0.0, 3.0, math.inf):
        nothing = torch.zeros_like(high)
        assert not corrected_factor(low, nothing, full - small, SCALING, clamp).any()


def test_a_direction_that_was_not_tuned_is_not_corrected() -> None:
    low, high, full, small = problem()
    high = high[:, :1] @ torch.ones(1, 4, dtype=torch.float64)  # rank 1: one direction in use
    changed = corrected_factor(low, high, full - small, SCALING, math.inf)
    assert torch.linalg.matrix_rank(changed @ low - high @ low, atol=1e-9) == 1


@pytest.mark.parametrize("clamp", [0.0, 0.01, 0.3, 3.0])
def test_no_direction_is_corrected_beyond_the_clamp(clamp: float) -> None:
    low, high, full, small = problem()
    high = high * torch.tensor([1.0, 1e-1, 1e-2, 1e-3], dtype=torch.float64)
    changed = corrected_factor(low, high, full - small, SCALING, clamp)
    _, lengths, directions = torch.linalg.svd(high @ low)
    moved = ((changed - high) @ low @ directions[:4].T).norm(dim=0)
    free = ((full - small) @ directions[:4].T).norm(dim=0) / SCALING
    wanted = torch.minimum(free, clamp * lengths[:4])
    torch.testing.assert_close(moved, wanted, rtol=1e-9, atol=1e-12)


def test_it_does_not_matter_how_the_product_is_split() -> None:
    low, high, full, small = problem()
    mixed = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    other_low, other_high = mixed @ low, high @ torch.linalg.inv(mixed)
    one = corrected_factor(low, high, full - small, SCALING, 0.02) @ low
    other = corrected_factor(other_low, other_high, full - small, SCALING, 0.02) @ other_low
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    free = corrected_factor(low, high, full - small, SCALING, math.inf) @ low
    assert (one - free).norm() > 0.1 * (free - high @ low).norm()  # the clamp did bind


def tuned_values(adapter: LoraAdapter, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        name: 0.1 * torch.randn(spec.shape, generator=generator)
        for name, spec in adapter.specs(model).items()
    }


@pytest.mark.parametrize(
    ("family", "trains"),
    [
        ("llama", TrainedFactors.B),
        ("llama", TrainedFactors.AB),
        ("gpt2", TrainedFactors.B),
        ("phi3", TrainedFactors.AB),
    ],
)
def test_slots_are_left_bit_for_bit_and_middle_layers_are_corrected(
    family: str, trains: TrainedFactors, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    placement = Placement(1, 1, middle_lora=True)
    emulator = build_emulator(base, placement, MethodName.ACTIVATION_SVD, 0.5, (tokens,))
    spec = AdapterSpec(AdapterKind.LORA, 4, 8, trains=trains)
    adapter = LoraAdapter(spec, emulator.layer_map)
    tensors = tuned_values(adapter, base)
    found = corrected(tensors, adapter, base, emulator.model, clamp=math.inf)
    assert found.keys() == tensors.keys()
    small = {t.wire_name: t.layer for t in adapter.targets(emulator.model)}
    changed = 0
    for target in adapter.targets(base):
        low, _ = adapter.factors(target, tensors)
        high = target.name("lora_B")
        if trains is TrainedFactors.AB:
            assert found[target.name("lora_A")] is low
        if torch.equal(found[high], tensors[high]):
            continue
        changed += 1
        full = target.layer.weight.T if family == "gpt2" else target.layer.weight
        x = torch.randn(5, 4) @ low
        wanted = small[target.wire_name](x) + adapter.spec.scaling * x @ (tensors[high] @ low).T
        bias = 0 if target.layer.bias is None else target.layer.bias
        got = x @ full.T + bias + adapter.spec.scaling * x @ (found[high] @ low).T
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
        assert target.wire_name.startswith("middle.")
    assert changed


def test_equal_models_change_nothing(make_model: MakeModel) -> None:
    base = make_model("llama")
    adapter = LoraAdapter(
        AdapterSpec(AdapterKind.LORA, 4, 8), LayerMap.of(Placement(1, 1), 5, range(1, 4))
    )
    tensors = tuned_values(adapter, base)
    found = corrected(tensors, adapter, base, make_model("llama"))
    assert all(found[name] is tensors[name] for name in tensors)
    with pytest.raises(ConfigError, match="expected 0 or more"):
        corrected(tensors, adapter, base, base, clamp=math.nan)
