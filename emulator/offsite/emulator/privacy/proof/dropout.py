"""Dropout off for a while, in a model that stays in training mode.

Masks differ between two runs on the same rows, so with dropout no two sums can be compared. The
mechanism itself may use it: masks do not depend on data.

Notable: some decoders hold their rate in an `nn.Dropout`, others as a number beside the weights
(`self.dropout`, `self.attention_dropout`) that their forward reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Set every rate to 0, and back afterwards."""
    rates = [(module, name, rate) for module in model.modules() for name, rate in _rates(module)]
    for module, name, _ in rates:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)


def _rates(module: nn.Module) -> Iterator[tuple[str, float]]:
    for name, value in list(vars(module).items()):
        is_rate = "dropout" in name or (
            name == "p" and isinstance(module, nn.modules.dropout._DropoutNd)
        )
        if is_rate and isinstance(value, float):
            yield name, value
