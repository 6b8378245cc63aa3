"""What is refused where privacy is promised, and why.

`Refused` names choices that other stacks offer; asking for one is an error that says the reason.
The checks below look at the model itself. Figures are measurements, `docs/sharp-edges.md`.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NoReturn

from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.training.batches import MicroBatch
from offsite.secure.errors import ConfigError

_ORIGINAL = "original_max_position_embeddings"
_NO_BOUND = 1 << 31


class Refused(StrEnum):
    """A choice that is not offered."""

    ADAPTIVE_CLIPPING = "adaptive_clipping"
    GDP_ACCOUNTANT = "gdp_accountant"
    GHOST_PARTIAL_BATCHES = "ghost_partial_batches"
    RAND_ON_EMPTY = "rand_on_empty"
    SEEDED_NOISE = "seeded_noise"
    TOKEN_MEAN_LOSS = "token_mean_loss"


REASONS: Mapping[Refused, str] = {
    Refused.ADAPTIVE_CLIPPING: (
        "its clip norm moves inside a batch that is computed in parts, while the noise is scaled by"
        " the last one: sensitivity 1.66 times what the noise is for; and its count is released"
    ),
    Refused.GDP_ACCOUNTANT: "it reports too little: asked for epsilon 8, it spent 10.06",
    Refused.GHOST_PARTIAL_BATCHES: (
        "with a batch in parts its clip norm and its sums belong to different batches"
    ),
    Refused.RAND_ON_EMPTY: (
        "a made-up example in the place of an empty batch is a change of its own: 1.49 times the"
        " clip norm; an empty batch is noise alone here, and accounted"
    ),
    Refused.SEEDED_NOISE: "who finds the seed has the gradient without noise; it took 0.65 s",
    Refused.TOKEN_MEAN_LOSS: (
        "it divides by the tokens of the whole batch, so one long example changes what all others"
        " add: up to 4.16 times the clip norm; the loss of a unit is the mean over its own tokens"
    ),
}


def refuse(choice: Refused) -> NoReturn:
    """Raise ConfigError with the reason."""
    raise ConfigError(f"{choice} is not available with differential privacy: {REASONS[choice]}")


def check_owned(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Check that ``parameters``, by wire name, are all that trains, each in one place.

    Raises:
        ConfigError: naming the parameter.
    """
    if not parameters:
        raise ConfigError("the adapter has no parameters; attach it first")
    wire_names = {id(parameter): name for name, parameter in parameters.items()}
    places: dict[int, str] = {}
    for place, parameter in _places(model):
        name = wire_names.get(id(parameter))
        if name is None and parameter.requires_grad:
            raise ConfigError(f"{place} requires gradients, but is no part of the adapter")
        if name is not None and not parameter.requires_grad:
            raise ConfigError(f"{name} ({place}) is a part of the adapter, but is frozen")
        if name is not None and places.setdefault(id(parameter), place) != place:
            raise ConfigError(
                f"{name} is both {places[id(parameter)]} and {place}; the gradients of single "
                "examples of a tied parameter are not known"
            )
    for name, parameter in parameters.items():
        if id(parameter) not in places:
            raise ConfigError(f"{name} is a part of the adapter, but not of the model")


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter of every module; of modules that stand in several places, once."""
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{path}.{own}", parameter


def check_uncoupled(model: PreTrainedModel) -> None:
    """Check that nothing in the model lets one example see another.

    Raises:
        ConfigError: naming the module.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"{path} ({type(module).__name__}) computes with the whole batch, so that no "
                "example's gradient is its own"
            )


def check_width(model: PreTrainedModel, width: int) -> None:
    """Check that rows of ``width`` tokens do not change how the model sees shorter ones.

    Rotary embeddings of kind `dynamic` and `longrope` are others for every row of a batch as soon
    as one of them is longer than the model was first made for.

    Raises:
        ConfigError: they are too long.
    """
    bound = _rotary_bound(model)
    if bound is not None and width > bound:
        raise ConfigError(
            f"rows of {width} tokens, beyond {bound}, change the rotary embedding of all rows of "
            "their batch; with differential privacy lower max_tokens"
        )


def most_width(model: PreTrainedModel, batch: MicroBatch) -> int:
    """Return the positions that a row may have: the model's, and never less than the batch has.

    BLOOM has no positions of its own, only distances, and so no bound.
    """
    bound = _rotary_bound(model)
    stated = getattr(model.config, "max_position_embeddings", _NO_BOUND)
    return max(int(stated if bound is None else bound), batch.ids.shape[1])


def _rotary_bound(model: PreTrainedModel) -> int | None:
    kinds = [str(getattr(module, "rope_type", "")) for module in model.modules()]
    if not any("dynamic" in kind or "longrope" in kind for kind in kinds):
        return None
    settings = model.config.rope_parameters
    by_layer = [value for value in settings.values() if isinstance(value, dict)]
    stated = [part.get(_ORIGINAL) for part in (settings, *by_layer)]
    return min(int(bound) for bound in (*stated, model.config.max_position_embeddings) if bound)
