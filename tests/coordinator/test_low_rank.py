"""The low-rank form of tuned blocks: closest of its rank, and honest about what it drops."""

from pathlib import Path

import pytest
import torch
from tests.coordinator.models import make_tuned, untouched
from torch import Tensor

from offsite.coordinator.export import low_rank
from offsite.coordinator.export.low_rank import LowRankOptions, kept_share, low_rank_form
from offsite.emulator.adapters.adapter import AdapterKind
from offsite.secure.errors import ConfigError

FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2"])


def _linear_only(name: str, value: Tensor) -> Tensor:
    is_linear = value.ndim == 2
    return value + 0.05 * torch.randn(value.shape) if is_linear else value


@FAMILIES
def test_full_rank_holds_every_linear_change(family: str, tmp_path: Path) -> None:
    tuned = make_tuned(family, AdapterKind.WHOLE_BLOCK, tmp_path, change=_linear_only)
    form = low_rank_form(tuned.model, tuned.adapter, tuned.tensors, LowRankOptions(1000))
    assert form.dropped == () and form.kept_energy == pytest.approx(1.0, abs=1e-6)
    for name, value in tuned.tensors.items():
        torch.testing.assert_close(form.tensors[name], value, rtol=0, atol=1e-5)


@FAMILIES
def test_a_rank_is_the_truncated_decomposition(family: str, tmp_path: Path) -> None:
    tuned = make_tuned(family, AdapterKind.WHOLE_BLOCK, tmp_path, change=_linear_only)
    originals = make_tuned(family, AdapterKind.WHOLE_BLOCK, tmp_path, change=untouched).tensors
    form = low_rank_form(tuned.model, tuned.adapter, tuned.tensors, LowRankOptions(5))
    for name, factors in form.factors.items():
        change = tuned.tensors[name] - originals[name]
        values = torch.linalg.svdvals(change)
        rest = tuned.tensors[name] - form.tensors[name]
        assert factors.rank == 5
        torch.testing.assert_close(rest.norm(), values[5:].norm(), rtol=1e-4, atol=1e-6)


def test_norms_and_biases_are_named_and_stay_as_they_were(tmp_path: Path) -> None:
    tuned = make_tuned("gpt2", AdapterKind.WHOLE_BLOCK, tmp_path)
    originals = make_tuned("gpt2", AdapterKind.WHOLE_BLOCK, tmp_path, change=untouched).tensors
    form = low_rank_form(tuned.model, tuned.adapter, tuned.tensors, LowRankOptions(1000))
    expected = {name for name, value in tuned.tensors.items() if value.ndim == 1}
    assert set(form.dropped) == expected
    assert all(torch.equal(form.tensors[name], originals[name]) for name in expected)
    changes = {name: tuned.tensors[name] - originals[name] for name in originals}
    lost = sum(float(changes[name].square().sum()) for name in expected)
    total = sum(float(change.square().sum()) for change in changes.values())
    assert form.kept_energy == pytest.approx(1 - lost / total, abs=1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_energy_takes_the_smallest_rank_that_keeps_it(energy: float, tmp_path: Path) -> None:
    tuned = make_tuned("llama", AdapterKind.WHOLE_BLOCK, tmp_path, change=_linear_only)
    originals = make_tuned("llama", AdapterKind.WHOLE_BLOCK, tmp_path, change=untouched).tensors
    form = low_rank_form(tuned.model, tuned.adapter, tuned.tensors, LowRankOptions(1000, energy))
    for name, factors in form.factors.items():
        squares = torch.linalg.svdvals(tuned.tensors[name] - originals[name]).double().square()
        shares = squares.cumsum(0) / squares.sum()
        assert shares[factors.rank - 1] >= energy - 1e-6
        assert factors.rank == 1 or shares[factors.rank - 2] < energy + 1e-6


def test_the_randomised_decomposition_is_close_and_repeatable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def low(name: str, value: Tensor) -> Tensor:
        if value.ndim != 2:
            return value
        return value + 0.05 * torch.randn(value.shape[0], 3) @ torch.randn(3, value.shape[1])

    tuned = make_tuned("llama", AdapterKind.WHOLE_BLOCK, tmp_path, change=low)
    monkeypatch.setattr(low_rank, "EXACT_DIMENSION", 4)
    monkeypatch.setattr(low_rank, "OVERSAMPLING", 4)
    state = torch.random.get_rng_state()
    first, second = (
        low_rank_form(tuned.model, tuned.adapter, tuned.tensors, LowRankOptions(3))
        for _ in range(2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.kept_energy == pytest.approx(1.0, abs=1e-4)
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_layers_that_did_not_change_are_left_out(tmp_path: Path) -> None:
    def one(name: str, value: Tensor) -> Tensor:
        return value + 1.0 if name == "top.0.self_attn.q_proj.weight" else value

    tuned = make_tuned("llama", AdapterKind.WHOLE_BLOCK, tmp_path, change=one)
    form = low_rank_form(tuned.model, tuned.adapter, tuned.tensors, LowRankOptions())
    assert list(form.factors) == ["top.0.self_attn.q_proj.weight"]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [((0.5, 0.6, 0.58), 0.8), ((0.5, 0.5, 0.4), None), ((0.5, 0.4, 0.5), None)],
)
def test_kept_share(scores: tuple[float, float, float], expected: float | None) -> None:
    assert kept_share(*scores) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("options", [{"rank": 0}, {"energy": 0.0}, {"energy": 1.1}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        LowRankOptions(**options)  # type: ignore[arg-type]
