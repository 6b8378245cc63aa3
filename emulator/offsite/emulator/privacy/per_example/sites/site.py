"""A module whose parameters train, computing as ever and telling single rows apart on the way back.

For as long as a site is attached its module's `forward` is the site's. No hooks: what a hook saw on
the way forward must be matched with the way back by counting, which gradient checkpointing upsets.
A custom autograd function has its own inputs at hand whenever its backward pass runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from offsite.emulator.privacy.per_example.flat_buffer import FlatBuffer
from offsite.secure.errors import ConfigError


class Site(ABC):
    """One module; ``names`` are the wire names of those of its parameters that train."""

    def __init__(
        self, path: str, module: nn.Module, names: Mapping[str, str], buffer: FlatBuffer
    ) -> None:
        self.path, self.module, self.names, self.buffer = path, module, names, buffer
        self.plain = module.forward

    def attach(self) -> None:
        """Take the place of the module's `forward`."""
        self.module.__dict__["forward"] = self._forward

    def detach(self) -> None:
        """Give the module its `forward` back; harmless when repeated."""
        self.module.__dict__.pop("forward", None)

    def _forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        if self.buffer.current is None:  # an evaluation
            output: torch.Tensor = self.plain(*args, **kwargs)
            return output
        if len(args) != 1 or kwargs:
            raise ConfigError(
                f"{self.path} is called with {len(args)} inputs and {list(kwargs)}; expected one, "
                "for the gradients of single rows are known of layers with a single input"
            )
        return self.forward(args[0], self.buffer.current.by_row(args[0], self.path))

    @abstractmethod
    def forward(self, x: torch.Tensor, by_row: torch.Tensor) -> torch.Tensor:
        """Compute what the module would for ``x``, which is ``by_row`` [B, T, ...] as well."""

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by their names in the module."""
        return {own: self.module.get_parameter(own) for own in self.names}
