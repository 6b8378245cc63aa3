"""Harmonisers: the fit against least squares, what is dropped, where the maps stand."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks, parameter_count
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods import harmonise
from offsite.emulator.methods.harmonise import (
    RIDGE_SHARE,
    Harmonise,
    RunMoments,
    choose_dropped,
    fit_maps,
)
from offsite.emulator.methods.importance_drop import block_importance
from offsite.emulator.methods.method import MethodName, MethodOptions
from offsite.emulator.progress import silent
from offsite.emulator.weights import named_weights
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]
MIDDLE = (1, 2, 3)
SANDWICH = Placement(1, 1)
RANK = 4


def hidden_states(model: PreTrainedModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Before every block, fp64 rows."""
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states
    return [state.flatten(0, 1).double() for state in states]


def least_squares(before: torch.Tensor, after: torch.Tensor, rank: int) -> torch.Tensor:
    """The map (H, H) by a dense solver on weighed and stacked rows, cut by a dense SVD."""
    root = after.square().mean(-1, keepdim=True).rsqrt()
    ridge = (RIDGE_SHARE * (before * root).square().mean() * len(before)).sqrt()
    rows = torch.cat([before * root, ridge * torch.eye(before.shape[1])])
    changes = torch.cat([(after - before) * root, torch.zeros(before.shape[1], before.shape[1])])
    full = torch.linalg.lstsq(rows, changes, driver="gelsd").solution  # (in, out)
    fitted = torch.linalg.svd(rows @ full, full_matrices=False)
    return (full @ fitted.Vh[:rank].T @ fitted.Vh[:rank]).T


def test_map_is_the_reduced_rank_least_squares_fit(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    states = hidden_states(base, tokens)
    maps = fit_maps(base, [(1, 2)], RANK, [tokens[:1], tokens[1:]], silent)
    assert list(maps) == [3]
    found = maps[3].up.double() @ maps[3].down.double()
    expected = least_squares(states[1], states[3], RANK)
    assert (found - expected).norm() / expected.norm() < 1e-3
    assert maps[3].down.shape == (RANK, 32) and maps[3].up.shape == (32, RANK)


def test_a_linear_change_of_low_rank_is_found_exactly() -> None:
    generator = torch.Generator().manual_seed(4)
    before = torch.randn(1, 400, 16, generator=generator)
    change = torch.randn(16, 2, generator=generator) @ torch.randn(2, 16, generator=generator)
    moments = RunMoments((1, 2))
    moments.see(1, before, before)
    moments.see(2, before, before + before @ change.T)
    found = moments.fit(2, torch.float32)
    # but for the ridge
    assert ((found.up @ found.down) - change).norm() / change.norm() < 10 * RIDGE_SHARE


def test_enormous_tokens_do_not_decide(make_model: MakeModel) -> None:
    """One token a thousand times as large as the others changes the map little."""
    generator = torch.Generator().manual_seed(4)
    before = torch.randn(1, 400, 16, generator=generator)
    change = 0.3 * torch.randn(16, 16, generator=generator)

    def fitted(scale: float) -> torch.Tensor:
        rows = before.clone()
        rows[:, 0] *= scale
        after = rows + rows @ change.T
        after[:, 0] = -rows[:, 0]
        moments = RunMoments((1,))
        moments.see(1, rows, after)
        harmoniser = moments.fit(16, torch.float64)
        return harmoniser.up @ harmoniser.down

    assert (fitted(1e3) - fitted(1.0)).norm() / fitted(1.0).norm() < 0.05


def test_emulator_computes_the_full_model_with_maps_in_place_of_blocks(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    options = MethodOptions(harmoniser_rank=RANK)
    emulator = build_emulator(base, SANDWICH, MethodName.HARMONISE, 0.72, [tokens], options=options)
    plan = Harmonise(RANK).plan(base, MIDDLE, 0.72, [tokens], silent)
    assert emulator.layer_map.kept == (0, *plan.kept, 4) and len(plan.kept) == 2
    (index,) = plan.harmonisers
    (dropped,) = set(MIDDLE) - set(plan.kept)
    assert index == dropped + 1
    down, up = plan.harmonisers[index].down, plan.harmonisers[index].up

    def instead(_: object, args: tuple, kwargs: dict, output: object) -> object:
        hidden = args[0] if args else kwargs["hidden_states"]
        mapped = hidden + (hidden @ down.T) @ up.T
        return (mapped, *output[1:]) if isinstance(output, tuple) else mapped

    find_blocks(base).modules[dropped].register_forward_hook(instead, with_kwargs=True)
    with torch.inference_mode():
        torch.testing.assert_close(emulator.model(tokens).logits, base(tokens).logits)


def test_maps_bring_the_hidden_states_closer(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """Than dropping the same blocks does, on the calibration tokens."""
    base = make_model(family)
    states = hidden_states(base, tokens)
    (harmoniser,) = fit_maps(base, [(1, 2)], 16, [tokens], silent).values()
    before, after = states[1], states[3]
    mapped = before + before @ harmoniser.down.double().T @ harmoniser.up.double().T
    lengths = after.norm(dim=-1)
    error, dropped = ((x - after).norm(dim=-1) / lengths for x in (mapped, before))
    assert error.square().mean() < 0.8 * dropped.square().mean()


def test_least_important_blocks_go_and_maps_are_counted(
    make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model("llama")
    importance = block_importance(base, MIDDLE, [tokens], silent)
    plan = Harmonise(RANK).plan(base, MIDDLE, 0.72, [tokens], silent)
    assert set(MIDDLE) - set(plan.kept) == {min(importance, key=importance.__getitem__)}
    emulator = build_emulator(
        base, SANDWICH, MethodName.HARMONISE, 0.72, [tokens],
        options=MethodOptions(harmoniser_rank=RANK),
    ).model  # fmt: skip
    block = parameter_count(find_blocks(base).modules[1])
    left = sum(t.numel() for t in named_weights(base).values())
    left -= sum(t.numel() for t in named_weights(emulator).values())
    assert left == block - 2 * RANK * 32


def test_number_of_dropped_blocks_comes_closest_to_the_ratio() -> None:
    sizes = dict.fromkeys(range(2, 12), 100)
    # far apart: each drop is a run with a map of its own
    assert choose_dropped((2, 6, 4, 8), sizes, 50, 0.85) == (2, 4, 6)
    # side by side: one map
    assert choose_dropped((2, 3, 4, 8), sizes, 50, 0.85) == (2, 3)
    assert choose_dropped((2, 6, 4, 8), sizes, 50, 0.99) == ()
    assert choose_dropped(range(2, 12), sizes, 1, 0.001) == tuple(range(2, 11))


def test_last_block_stays_when_no_slot_follows(make_model: MakeModel, tokens: torch.Tensor) -> None:
    base = make_model("llama")
    last = find_blocks(base).modules[4]
    last.self_attn.o_proj.weight.zero_()  # so it would be the first to go
    last.mlp.down_proj.weight.zero_()
    for ratio in (0.8, 0.1):
        options = MethodOptions(harmoniser_rank=RANK)
        emulator = build_emulator(
            base, Placement(1, 0), MethodName.HARMONISE, ratio, [tokens], options=options
        )
        assert emulator.layer_map.kept[-1] == 4
    assert emulator.layer_map.kept == (0, 4)


def test_map_may_stand_before_a_slot(make_model: MakeModel, tokens: torch.Tensor) -> None:
    options = MethodOptions(harmoniser_rank=RANK)
    emulator = build_emulator(
        make_model("llama"), Placement(1, 1, spread=1), MethodName.HARMONISE, 0.6, [tokens],
        options=options,
    )  # fmt: skip
    (dropped,) = {1, 3} - set(emulator.layer_map.kept)
    position = emulator.layer_map.kept.index(dropped + 1)
    assert f"harmonisers.{position}.down.weight" in named_weights(emulator.model)
    assert position in {slot.emulator_block for slot in emulator.layer_map.slots}


def test_runs_are_fitted_a_few_at_a_time(
    make_model: MakeModel, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same maps in one pass over the text and in several; progress ends at its total."""
    base, runs = make_model("llama"), [(0,), (2, 3)]
    together = fit_maps(base, runs, RANK, [tokens], silent)
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(harmonise, "MOMENT_BYTES", 1)
    batches = [tokens]
    apart = fit_maps(base, runs, RANK, batches, lambda *progress: done.append(progress))
    assert done[-1] == (1, 1) and len(done) == 2
    for index in (1, 4):
        assert torch.equal(together[index].down, apart[index].down)
        assert torch.equal(together[index].up, apart[index].up)


@pytest.mark.parametrize("rank", [0, 33])
def test_rank_outside_the_hidden_size_is_refused(
    rank: int, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    with pytest.raises(ConfigError, match=f"harmoniser_rank is {rank}; expected 1 to the hidden"):
        Harmonise(rank).plan(make_model("llama"), MIDDLE, 0.7, [tokens], silent)


def test_map_as_large_as_a_block_is_refused(make_model: MakeModel, tokens: torch.Tensor) -> None:
    base = make_model("llama")
    for block in find_blocks(base).modules:
        del block.mlp, block.self_attn.o_proj, block.self_attn.v_proj
    with pytest.raises(ConfigError, match="lower harmoniser_rank or use importance_drop"):
        Harmonise(32).plan(base, MIDDLE, 0.7, [tokens], silent)


def test_ratio_one_has_no_maps(make_model: MakeModel) -> None:
    plan = Harmonise(32).plan(make_model("llama"), MIDDLE, 1.0, [], silent)
    assert plan.kept == MIDDLE and not plan.harmonisers
