"""The weights of a bundle, streamed into a model of zeros one tensor at a time."""

from pathlib import Path

import torch
from torch import nn

from offsite.emulator.instantiate import named_weights
from offsite.emulator.schema import Schema, iter_checked


@torch.no_grad()
def fill(model: nn.Module, path: Path, schema: Schema) -> None:
    """Overwrites every weight of a model that was instantiated for exactly `schema`.

    Values are cast to the dtype of the model. Raises PeerError when the file does not fit.
    """
    targets = named_weights(model)
    assert targets.keys() == schema.keys(), "instantiate() has compared them"
    for name, tensor in iter_checked(path, schema):
        targets[name].copy_(tensor)
