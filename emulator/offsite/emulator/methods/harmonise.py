"""Harmonisers: the least important blocks go, and each run of them leaves a low-rank map.

A map x ← x + up·down·x takes the place of a run of dropped blocks. It is fitted in closed form to
the change of the hidden states over the run: ridge regression, weighed by 1/‖y‖² of the state y
after the run, then the reduced-rank form that loses least on the calibration tokens.

Notable decisions:

* No training: the source trains its harmonisers by gradients and importances by reinforcement
  learning. Here importance is that of `importance_drop`, and the fit needs two moments per run.
* The weights make every token count by its relative error, as the norm of the next block sees it.
  Plainly squared errors are those of the few tokens with enormous activations, which also drown
  the ridge; where those are tame, plain squares are as good (SmolLM2-135M: 0.02 nats better).
* A run's map is counted in the ratio, so the number of dropped blocks is the one whose share comes
  closest to it. A map must be smaller than one block.
* One map per run, on the input of the next kept block or slot; the last block of the model is kept
  when it is no slot, since nothing follows it.
* Memory: two (H, H) fp64 moments per run, in as many passes over the text as keep them within
  256 MiB at a time, at least one run.

Source: ScaleOT (arXiv 2412.09812: harmonisers); the closed-form fit of a linear map in the place of
blocks: ReplaceMe (arXiv 2505.02819), here low-rank on the residual.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks, parameter_count
from offsite.emulator.methods.block_activations import (
    check_calibration,
    check_depth,
    require_finite,
    run,
    runs_of,
    tokens_of,
    watching,
)
from offsite.emulator.methods.importance_drop import block_importance, least_important
from offsite.emulator.methods.kept_blocks import KeptBlocks
from offsite.emulator.methods.low_rank_fit import ridge_of, spectrum_by_inputs
from offsite.emulator.methods.method import Harmoniser, MethodName
from offsite.emulator.progress import Report
from offsite.secure.errors import ConfigError

RIDGE_SHARE = 1e-3
MOMENT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Harmonise:
    """See `Method`. The ratio is met as closely as whole blocks and their maps can."""

    rank: int
    name: MethodName = MethodName.HARMONISE
    needs_calibration: bool = True

    def plan(
        self,
        model: PreTrainedModel,
        middle: Sequence[int],
        ratio: float,
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> KeptBlocks:
        if ratio >= 1.0:
            return KeptBlocks(tuple(middle))
        modules = find_blocks(model).modules
        check_depth(self.name, model)
        map_parameters = self._map_parameters(model, modules[middle[0]])
        check_calibration(self.name, calibration)
        total = 2 * len(calibration)
        importance = block_importance(
            model, middle, calibration, lambda done, _: report(done, total)
        )
        sizes = {index: parameter_count(modules[index]) for index in middle}
        order = [index for index in least_important(importance) if index != len(modules) - 1]
        dropped = choose_dropped(order, sizes, map_parameters, ratio)
        maps = fit_maps(
            model,
            runs_of(dropped),
            self.rank,
            calibration,
            lambda done, _: report(len(calibration) + done, total),
        )
        return KeptBlocks(tuple(i for i in middle if i not in dropped), maps)

    def _map_parameters(self, model: PreTrainedModel, block: nn.Module) -> int:
        hidden: int = model.config.hidden_size
        parameters = 2 * self.rank * hidden
        if not 1 <= self.rank <= hidden:
            raise ConfigError(
                f"harmoniser_rank is {self.rank}; expected 1 to the hidden size, {hidden}"
            )
        if parameters >= parameter_count(block):
            raise ConfigError(
                f"a harmoniser of rank {self.rank} has {parameters} parameters and a block"
                f" {parameter_count(block)}; lower harmoniser_rank or use importance_drop"
            )
        return parameters


def choose_dropped(
    order: Sequence[int], sizes: Mapping[int, int], map_parameters: int, ratio: float
) -> tuple[int, ...]:
    """The blocks to drop, ascending, so that kept blocks and maps come closest to the ratio.

    Args:
        order: blocks that may go, the first to go first.
        sizes: parameters of every middle block.
        map_parameters: of the map that each run of dropped blocks costs.
        ratio: share of the middle's parameters that stays; one block at least stays.
    """
    total = sum(sizes.values())
    best: tuple[float, tuple[int, ...]] = (1.0 - ratio, ())
    for count in range(1, min(len(order), len(sizes) - 1) + 1):
        dropped = tuple(sorted(order[:count]))
        parameters = total - sum(sizes[index] for index in dropped)
        parameters += map_parameters * len(runs_of(dropped))
        best = min(best, (abs(parameters / total - ratio), dropped))
    return best[1]


def fit_maps(
    model: PreTrainedModel,
    runs: Sequence[tuple[int, ...]],
    rank: int,
    calibration: Sequence[torch.Tensor],
    report: Report,
) -> dict[int, Harmoniser]:
    """The map of each run of blocks, by the index of the block that follows the run."""
    hidden: int = model.config.hidden_size
    at_once = max(1, MOMENT_BYTES // (2 * hidden * hidden * 8))
    groups = [runs[start : start + at_once] for start in range(0, len(runs), at_once)]
    maps: dict[int, Harmoniser] = {}
    for number, group in enumerate(groups):
        moments = [RunMoments(blocks) for blocks in group]
        with _watching_runs(find_blocks(model).modules, moments):
            for done, batch in enumerate(calibration, start=1):
                run(model, batch)
                report((number * len(calibration) + done) // len(groups), len(calibration))
        for moment in moments:
            maps[moment.blocks[-1] + 1] = moment.fit(rank, model.dtype)
    return maps


class RunMoments:
    """Weighed sums over the tokens before a run of blocks and the change over it, (H, H) fp64."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        self.blocks = blocks
        self._before: torch.Tensor | None = None  # of the batch that is passing
        self._inputs: torch.Tensor | None = None  # sum of w·x·xᵀ
        self._changes: torch.Tensor | None = None  # sum of w·(y − x)·xᵀ

    def see(self, index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """The hidden states around the run's first or last block."""
        if index == self.blocks[0]:
            self._before = tokens_of(before)
        if index == self.blocks[-1]:
            assert self._before is not None  # the first block came before the last one
            self._add(self._before, tokens_of(after))
            self._before = None

    def _add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        weights = after.square().mean(-1, keepdim=True).clamp_min(1e-12).reciprocal()  # (N, 1)
        weighed = before * weights
        inputs = (before.T @ weighed).double()
        changes = ((after - before).T @ weighed).double()
        self._inputs = inputs if self._inputs is None else self._inputs + inputs
        self._changes = changes if self._changes is None else self._changes + changes

    def fit(self, rank: int, dtype: torch.dtype) -> Harmoniser:
        """The map of that rank which loses least, with a ridge on its weights."""
        assert self._inputs is not None and self._changes is not None  # calibration is not empty
        where = f"the run of blocks {self.blocks[0]} to {self.blocks[-1]}"
        require_finite(where, self._inputs, self._changes)
        size = len(self._inputs)
        ridge = ridge_of(float(self._inputs.trace()), size, RIDGE_SHARE)
        inputs = self._inputs + ridge * torch.eye(size, dtype=torch.float64).to(self._inputs.device)
        full = torch.cholesky_solve(self._changes.T, torch.linalg.cholesky(inputs)).T
        down, up = spectrum_by_inputs(full, inputs).low_rank(full, rank)
        return Harmoniser(down.to(dtype).contiguous(), up.to(dtype).contiguous())


@contextmanager
def _watching_runs(modules: nn.ModuleList, moments: Sequence[RunMoments]) -> Iterator[None]:
    """Feeds the moments while the model runs."""
    by_block = {index: moment for moment in moments for index in moment.blocks}
    ends = {i: modules[i] for moment in moments for i in (moment.blocks[0], moment.blocks[-1])}
    with watching(ends, lambda index, *states: by_block[index].see(index, *states)):
        yield
