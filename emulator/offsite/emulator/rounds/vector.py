"""An update as one vector of fp32 values: what is encoded, masked and added up.

The tensors of the adapter stand in it in the order of their names, each flattened in C order, so
that edge and coordinator agree without a word; the terms of a sum name names and shapes by digest.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from offsite.emulator.schema import TensorSpec
from offsite.secure.aggregation.encoding import digest, integer
from offsite.secure.aggregation.fixed_point import Values

Schema = Mapping[str, TensorSpec]


def schema_digest(schema: Schema) -> bytes:
    """What the terms of a sum call a schema: names and shapes, by name."""
    fields: list[bytes] = []
    for name in sorted(schema):
        fields += [name.encode(), *(integer(size) for size in schema[name].shape), b"/"]
    return digest("schema", *fields)


def value_count(schema: Schema) -> int:
    """d: values of an update."""
    return sum(math.prod(spec.shape) for spec in schema.values())


def to_vector(update: Mapping[str, Tensor], schema: Schema) -> Values:
    """The update, fp32 by adapter name, as values (d,)."""
    vector = np.empty(value_count(schema), np.float32)
    start = 0
    for name in sorted(schema):
        values = update[name].detach().cpu().contiguous().numpy().reshape(-1)
        vector[start : start + values.size] = values
        start += values.size
    assert start == len(vector)  # the update fits its schema: it was made from it
    return vector


def from_vector(vector: Values, schema: Schema) -> dict[str, Tensor]:
    """The tensors of a vector (d,), views of it, in the order of the schema."""
    views: dict[str, Tensor] = {}
    start = 0
    for name in sorted(schema):
        shape = schema[name].shape
        end = start + math.prod(shape)
        views[name] = torch.from_numpy(vector[start:end]).reshape(shape)
        start = end
    return {name: views[name] for name in schema}
