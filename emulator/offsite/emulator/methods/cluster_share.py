"""Cluster, remove and share: neighbours that compute alike become copies of one of them.

The middle is cut into contiguous clusters of blocks whose outputs are similar by linear CKA. Of
each cluster one block stays, and stands in the places of all others, so the emulator is as deep as
the full model and holds each kept block once.

Notable decisions:

* The cut is the best one, not a greedy merge: dynamic programming over the number of clusters,
  which costs nothing beside the calibration. It minimises the sum of 1 − CKA between every block
  and the one that stands in for it; that one is the medoid of its cluster.
* A cluster never reaches over a slot, since a block before a slot cannot stand in for one after it
  and still come from before the slot in the layer map.
* CKA is measured on public calibration text and is one cut for all tasks. The original clusters on
  samples of the downstream task, which an owner does not have.
* Sharing repeats what a block adds to the hidden states. Blocks of small models are not similar
  enough for that: SmolLM2-135M speaks worse with its blocks shared than with them dropped.
* Memory: the outputs of every block at up to 512 token positions, evenly over the text; each is
  divided by its length first, as the norm of the next block would. Otherwise the few tokens with
  enormous activations (the first of each row) decide alone.

Source: CRaSh (arXiv 2310.15477, section 4); linear CKA: Kornblith et al. (arXiv 1905.00414,
section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks
from offsite.emulator.methods.block_activations import (
    check_calibration,
    check_depth,
    runs_of,
    tokens_of,
    watch,
)
from offsite.emulator.methods.kept_blocks import KeptBlocks
from offsite.emulator.methods.method import MethodName
from offsite.emulator.progress import Report
from offsite.secure.errors import ConfigError

SAMPLED_TOKENS = 512


@dataclass(frozen=True, slots=True)
class ClusterShare:
    """See `Method`. The ratio is that of blocks held, rounded to whole ones, at least one."""

    name: MethodName = MethodName.CLUSTER_SHARE
    needs_calibration: bool = True

    def plan(
        self,
        model: PreTrainedModel,
        middle: Sequence[int],
        ratio: float,
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> KeptBlocks:
        count = max(1, round(ratio * len(middle)))
        if count == len(middle):
            return KeptBlocks(tuple(middle))
        check_depth(self.name, model)
        check_calibration(self.name, calibration)
        runs = runs_of(middle)
        if count < len(runs):
            raise ConfigError(
                f"cluster_share cannot keep only {ratio:g} of the middle: its slots part it into"
                f" {len(runs)}, each of which keeps a block, so the smallest ratio is"
                f" {len(runs) / len(middle):.3f}; or place fewer spread slots"
            )
        outputs = sampled_outputs(model, middle, calibration, report)
        distance = 1.0 - linear_cka([outputs[index] for index in middle])
        stand_ins = best_clusters(distance, [len(run) for run in runs], count)
        return KeptBlocks(tuple(middle[i] for i in stand_ins))


def sampled_outputs(
    model: PreTrainedModel,
    indices: Sequence[int],
    calibration: Sequence[torch.Tensor],
    report: Report,
) -> dict[int, torch.Tensor]:
    """Outputs of the blocks at the same sampled tokens, each of length 1: (tokens, H) fp32."""
    modules = find_blocks(model).modules
    total = sum(batch.numel() for batch in calibration)
    count = min(SAMPLED_TOKENS, total)
    positions = torch.arange(count) * total // count
    seen: dict[int, list[torch.Tensor]] = {index: [] for index in indices}
    passed = dict.fromkeys(indices, 0)

    def add(index: int, _: torch.Tensor, after: torch.Tensor) -> None:
        rows = tokens_of(after)
        here = positions - passed[index]
        here = here[(here >= 0) & (here < len(rows))].to(rows.device)
        seen[index].append(normalize(rows[here], dim=-1).cpu())
        passed[index] += len(rows)

    watch(model, {index: modules[index] for index in indices}, add, calibration, report)
    return {index: torch.cat(rows) for index, rows in seen.items()}


def linear_cka(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Similarity of every two representations (tokens, H) of the same tokens, (N, N) fp64.

    CKA(X, Y) = ⟨K, L⟩ / (‖K‖·‖L‖) with K = XXᵀ, L = YYᵀ of centred features; 1 on the diagonal.
    """
    kernels = []
    for rows in features:
        centred = rows.double() - rows.double().mean(0)
        kernel = (centred @ centred.T).flatten()
        kernels.append(normalize(kernel, dim=0))
    stacked = torch.stack(kernels)
    return stacked @ stacked.T


def best_clusters(distance: torch.Tensor, runs: Sequence[int], count: int) -> list[int]:
    """For each block the one that stands in for it, itself if that stays; N in all, ascending.

    Args:
        distance: (N, N) between blocks.
        runs: lengths of the stretches that no cluster reaches over; N in sum.
        count: how many blocks stay, from len(runs) to N.
    """
    total = len(distance)
    firsts: list[int] = []  # of every block, the first of its run
    for length in runs:
        firsts += [len(firsts)] * length
    # cheapest[end][n]: cost of the blocks before `end` in n clusters, and where the last one starts
    unreachable = (float("inf"), 0)
    cheapest = [[unreachable] * (count + 1) for _ in range(total + 1)]
    cheapest[0][0] = (0.0, 0)
    for end in range(1, total + 1):
        for start in range(firsts[end - 1], end):
            cost, _ = _medoid(distance, start, end)
            for n in range(1, count + 1):
                candidate = (cheapest[start][n - 1][0] + cost, start)
                cheapest[end][n] = min(cheapest[end][n], candidate)
    stand_ins: list[int] = []
    end = total
    for n in range(count, 0, -1):
        start = cheapest[end][n][1]
        stand_ins = [_medoid(distance, start, end)[1]] * (end - start) + stand_ins
        end = start
    return stand_ins


def _medoid(distance: torch.Tensor, start: int, end: int) -> tuple[float, int]:
    """The least sum of distances from one block of a cluster to all, and the first such block."""
    sums = distance[start:end, start:end].sum(0).tolist()
    least = min(sums)
    return least, start + sums.index(least)
