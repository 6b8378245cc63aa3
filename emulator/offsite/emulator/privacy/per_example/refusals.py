"""What of a model is refused where privacy is promised, and why.

Choices that other stacks offer and that break the promise (adaptive clipping, losses over the tokens of a
batch, seeded noise, ...) have no setting here that could ask for them: `docs/sharp-edges.md` says why.
"""

from collections.abc import Iterator, Mapping

from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.training.batches import MicroBatch
from offsite.secure.errors import ConfigError

_ORIGINAL = "original_max_position_embeddings"
_NO_BOUND = 1 << 31


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
