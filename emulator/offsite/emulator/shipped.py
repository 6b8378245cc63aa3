"""How much of the full model a release ships, in numbers that are signed into its provenance.

Sizes only. Dropping blocks and pruning channels copy what they keep, so whatever is shipped is a
verbatim copy. How well a thief could tune or heal an emulator is not measured here yet.
"""

import torch
from transformers import PreTrainedModel

from offsite.emulator.instantiate import named_weights


def measure_shipped(
    base_model: PreTrainedModel, emulator: PreTrainedModel
) -> dict[str, int | float]:
    """Parameters of both models, tied ones once, and the emulator's share of the full model's."""
    base, shipped = (_elements(named_weights(model)) for model in (base_model, emulator))
    return {
        "base_parameters": base,
        "emulator_parameters": shipped,
        "share_of_parameters": round(shipped / base, 4),
    }


def _elements(weights: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())
