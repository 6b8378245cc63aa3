"""What a block receives and gives.

The hidden states of a block are its first argument or the one named `hidden_states`, and its
output those, or the first of a tuple; so it is in every decoder of the transformers library.
"""

from collections.abc import Mapping

import torch

from offsite.secure.errors import ConfigError

HIDDEN = "hidden_states"

Arguments = tuple[object, ...]
Keywords = dict[str, object]


def block_input(args: Arguments, kwargs: Mapping[str, object]) -> torch.Tensor:
    """The hidden states (B, T, H) that a block is called with."""
    return _hidden(args[0] if args else kwargs.get(HIDDEN), "called with")


def with_input(
    args: Arguments, kwargs: Mapping[str, object], hidden: object
) -> tuple[Arguments, Keywords]:
    """The arguments of the same call with other hidden states."""
    if args:
        return (hidden, *args[1:]), dict(kwargs)
    return args, {**kwargs, HIDDEN: hidden}


def block_output(output: object) -> torch.Tensor:
    """The hidden states (B, T, H) that a block gives back."""
    return _hidden(output[0] if isinstance(output, tuple) else output, "giving")


def _hidden(value: object, verb: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise ConfigError(
            f"expected a block {verb} hidden states first, found {type(value).__name__}; this"
            " model is not one that emulators can be built of"
        )
    return value
