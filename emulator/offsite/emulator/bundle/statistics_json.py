"""Statistics as a JSON object: by kind of tensor, by block, and of what stands outside the blocks.

A block is described by how far its tensors are from the median of their kind over all blocks, since
kinds differ and blocks should not.
"""

from collections.abc import Callable, Sequence

import numpy as np

from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.statistics import HARMONISERS, Statistics, TensorStatistics
from offsite.emulator.strict_json import JsonObject, JsonValue

DOWN = ".down.weight"
_DIGITS = 4


def statistics_json(bundle: Bundle, statistics: Statistics) -> JsonObject:
    """What `edge-client inspect` shows of the tensors."""
    unmeasured: list[JsonValue] = [*statistics.unmeasured]
    return {
        "values": statistics.values,
        "values_read": statistics.values_read,
        "rows_drawn_from_seed": statistics.sampling.seed,
        "unmeasured": unmeasured,
        "kinds": [_kind(bundle, name, group) for name, group in statistics.kinds().items()],
        "blocks": _blocks(bundle, statistics),
        "outside": [
            _outside(tensor)
            for tensor in statistics.outside()
            if not tensor.name.startswith(f"{HARMONISERS}.")
        ],
        "harmonisers": _harmonisers(statistics),
    }


def _kind(bundle: Bundle, name: str, group: Sequence[TensorStatistics]) -> JsonObject:
    shapes = sorted({tensor.spec.shape for tensor in group})
    packed = {tensor.name in bundle.schema.packed for tensor in group}
    packing = bundle.schema.packing.value if True in packed else "none"
    return {
        "kind": name,
        "tensors": len(group),
        "shapes": [list(shape) for shape in shapes],
        "packing": f"{packing}, some" if len(packed) > 1 else packing,
        "rms": _range(group, lambda tensor: tensor.rms),
        "peak": _range(group, lambda tensor: tensor.peak),
        "kurtosis": _range(group, lambda tensor: tensor.kurtosis),
        "zeros": _range(group, lambda tensor: tensor.zeros),
    }


def _blocks(bundle: Bundle, statistics: Statistics) -> list[JsonValue]:
    layer_map = bundle.manifest.layer_map
    slots = {slot.emulator_block: slot.name for slot in layer_map.slots}
    kinds = statistics.kinds()
    medians = {kind: _median(group, lambda tensor: tensor.rms) for kind, group in kinds.items()}
    tensors: dict[int, list[TensorStatistics]] = {}
    for group in kinds.values():
        for tensor in group:
            tensors.setdefault(-1 if tensor.block is None else tensor.block, []).append(tensor)
    return [
        {
            "block": position,
            "base_block": base_block,
            "slot": slots.get(position),
            **_block(tensors[position], medians),
        }
        if position in tensors
        else {"block": position, "base_block": base_block, "slot": None, "shared": True}
        for position, base_block in enumerate(layer_map.kept)
    ]


def _block(tensors: Sequence[TensorStatistics], medians: dict[str, float]) -> JsonObject:
    matrices = [tensor for tensor in tensors if tensor.is_matrix]
    vectors = [tensor for tensor in tensors if not tensor.is_matrix]
    values = sum(tensor.spec.elements for tensor in matrices)
    zeros = sum(tensor.zeros * tensor.spec.elements for tensor in matrices)
    ranks: dict[str, JsonValue] = {
        tensor.kind.removesuffix(DOWN): tensor.spec.shape[0]
        for tensor in matrices
        if tensor.kind.endswith(DOWN)
    }
    return {
        "weights_of_kind": _times(matrices, medians),
        "vectors_of_kind": _times(vectors, medians),
        "peak": _short(max((tensor.peak for tensor in matrices), default=0.0)),
        "kurtosis": _short(max((tensor.kurtosis for tensor in matrices), default=0.0)),
        "zeros": _short(zeros / values if values else 0.0),
        "ranks": ranks,
    }


def _outside(tensor: TensorStatistics) -> JsonObject:
    above = tensor.row_norms[tensor.row_norms > 0]
    longest = above.max() / np.median(above) if len(above) > 1 else 1.0
    return {
        "tensor": tensor.name,
        "shape": list(tensor.spec.shape),
        "rms": _short(tensor.rms),
        "peak": _short(tensor.peak),
        "kurtosis": _short(tensor.kurtosis),
        "zeros": _short(tensor.zeros),
        "longest_row": _short(float(longest)),
        "repeated_rows": tensor.repeated,
    }


def _harmonisers(statistics: Statistics) -> list[JsonValue]:
    """Rank and size of every map, and a bound of what it multiplies a state by: its norms' product."""
    pairs: dict[str, dict[str, TensorStatistics]] = {}
    for tensor in statistics.outside():
        if tensor.name.startswith(f"{HARMONISERS}."):
            _, position, factor = tensor.name.split(".", 2)
            pairs.setdefault(position, {})[factor] = tensor
    return [
        {
            "before_block": int(position),
            "rank": min(factors["down.weight"].spec.shape),
            "size": max(factors["down.weight"].spec.shape),
            "gain_at_most": _short(factors["down.weight"].norm * factors["up.weight"].norm),
        }
        for position, factors in sorted(pairs.items(), key=lambda pair: int(pair[0]))
        if {"down.weight", "up.weight"} <= factors.keys()
    ]


_Figure = Callable[[TensorStatistics], float]


def _range(group: Sequence[TensorStatistics], figure: _Figure) -> JsonObject:
    found = [figure(tensor) for tensor in group]
    return {
        "low": _short(min(found)),
        "median": _short(float(np.median(found))),
        "high": _short(max(found)),
    }


def _median(group: Sequence[TensorStatistics], figure: _Figure) -> float:
    return float(np.median([figure(tensor) for tensor in group]))


def _times(tensors: Sequence[TensorStatistics], medians: dict[str, float]) -> JsonValue:
    """RMS over the median of the kind: the lowest and the highest of a block."""
    found = [t.rms / medians[t.kind] for t in tensors if medians[t.kind] > 0]
    return {"low": _short(min(found)), "high": _short(max(found))} if found else None


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
