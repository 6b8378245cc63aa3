"""The weights of a bundle, put into a model of zeros one tensor at a time."""

from pathlib import Path

import torch
from torch import nn

from offsite.emulator.bundle.tensor_schema import BundleSchema
from offsite.emulator.packing.packing import unpack
from offsite.emulator.schema import TensorFile, check_finite
from offsite.emulator.weights import named_weights
from offsite.secure.errors import IntegrityError


@torch.no_grad()
def fill(model: nn.Module, path: Path, schema: BundleSchema) -> None:
    """Overwrites every weight of a model that was instantiated for exactly `schema.emulator`.

    Packed tensors are unpacked; values are cast to the dtype of the model. Raises PeerError when
    the file does not fit.
    """
    targets = named_weights(model)
    assert targets.keys() == schema.emulator.keys(), "instantiate() has compared them"
    with TensorFile(path, schema.stored_emulator) as file:
        for name in schema.emulator:
            targets[name].copy_(_read(file, name, schema))
            # What was finite in the file may not be in this dtype: F64, or a large scale.
            check_finite(name, targets[name])


def _read(file: TensorFile, name: str, schema: BundleSchema) -> torch.Tensor:
    if name not in schema.packed:
        return file.read(name)
    parts = {suffix: file.read(f"{name}.{suffix}") for suffix in schema.parts(name)}
    try:
        return unpack(parts, schema.emulator[name].shape, schema.packing)
    except IntegrityError as error:
        raise IntegrityError(f"tensor {name}: {error}") from None
