"""The gradients of single units, side by side in one matrix while they are computed.

Every site writes its share of the columns during the backward pass, with matrix products that put
their results straight where they belong. A row is then the whole gradient of a unit: its norm, its
clipping and its sum need nothing else.

Not done: keeping inputs and output gradients of whole blocks in place of their products, with norms
from Gram matrices ("book-keeping", Bu et al. 2022). It needs fewer values, but such a norm errs in
proportion to what is summed and not to the sum: by 6 parts in 100,000 for inputs whose mean is a
hundred times their spread, of the 10 that a proof of sensitivity allows. Passes of fewer rows save
the memory as well.

Rules, each of them an error that names the parameter or the site:

* Outside a pass nothing is written.
* After a pass every parameter was written. One that was written twice, since its module ran twice,
  holds the sum.
* A tensor is taken only if its sizes say which row each of its entries belongs to: [B, T, ...],
  [B, ..., T, ...] or, tokens flattened, [B·T, H].

Axes: ``B`` rows of a pass, ``T`` its tokens, ``U`` units of a group, ``P`` values.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from offsite.emulator.privacy.per_example.clipping import add_clipped
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """The sizes of what runs at once, and the unit of each of its rows."""

    units: torch.Tensor
    """[B] int64."""
    width: int
    """T."""
    one_row_each: bool
    """Row b is the only one of unit b, and there is no other unit."""

    def by_row(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        """Return ``tensor`` as [B, T, ...], a view.

        Raises:
            ConfigError: naming the site; which row an entry belongs to cannot be told.
        """
        rows, width = len(self.units), self.width
        if tensor.dim() > 2 and tensor.shape[0] == rows and width in tensor.shape[1:-1]:
            return tensor
        if tensor.dim() == 2 and tensor.shape[0] == rows * width:
            return tensor.reshape(rows, width, -1)
        raise ConfigError(
            f"{site} is given {tuple(tensor.shape)} in a batch of {rows} rows of {width} tokens; "
            f"expected ({rows}, {width}, ...) or ({rows * width}, ...), for otherwise the gradients "
            "of single rows cannot be told apart"
        )


class FlatBuffer:
    """See the module."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take the columns in the order of ``parameters``; no memory yet."""
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._columns: dict[str, slice] = {}
        self.size = 0
        for name, parameter in parameters.items():
            self._columns[name] = slice(self.size, self.size + parameter.numel())
            self.size += parameter.numel()
        self._memory = torch.empty(0, self.size)
        self._gradients = self._memory
        self._started: set[str] = set()  # in this group
        self._written: set[str] = set()  # in this pass
        self.current: Pass | None = None

    def begin_group(self, units: int, device: torch.device) -> None:
        """Make room for the gradients of ``units`` units, keeping the memory of earlier groups."""
        if len(self._memory) < units or self._memory.device != device:
            self.free()  # before the next is taken
            self._memory = torch.empty(units, self.size, device=device)
        self._gradients = self._memory[:units]
        self._started.clear()

    def free(self) -> None:
        """Give the memory back."""
        self._memory = self._gradients = torch.empty(0)

    @contextmanager
    def recording(self, units: torch.Tensor, width: int) -> Iterator[None]:
        """Take what the sites write in the pass of rows of ``units`` [B], ``width`` tokens each."""
        every = torch.arange(len(self._gradients), device=units.device)
        self.current = Pass(units, width, torch.equal(units, every))
        self._written.clear()
        try:
            yield
            missing = [name for name in self._columns if name not in self._written]
            if missing:
                raise ConfigError(
                    f"{missing[0]} trains, but the backward pass reached no layer that holds it "
                    f"({len(missing)} of {len(self._columns)} like this); if gradient checkpointing "
                    "is on, the inputs of the blocks must require gradients"
                )
        finally:
            self.current = None

    def add_products(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add Σₜ left[b, t]ᵀ·right[b, t], for ``left`` [B, T, m] and ``right`` [B, T, n]."""
        target, again = self._target(name)
        if self._pass.one_row_each and left.dtype is torch.float32:
            target.baddbmm_(left.mT, right, beta=float(again))
        else:
            self._scatter(target, torch.bmm(left.mT, right), again)

    def add(self, name: str, values: torch.Tensor) -> None:
        """Add ``values`` [B, ...], one of the parameter's shape for each row."""
        target, again = self._target(name)
        self._scatter(target, values, again)

    def add_clipped(self, clip: float, total: torch.Tensor) -> torch.Tensor:
        """Add the clipped gradients of the group to ``total`` [P]; return their norms [U]."""
        return add_clipped(self._gradients, clip, total)

    @property
    def _pass(self) -> Pass:
        if self.current is None:
            raise ConfigError(
                "a gradient came outside of a pass: what runs through an engine's model with "
                "gradients must run through `clipped_sum_into`"
            )
        return self.current

    def _target(self, name: str) -> tuple[torch.Tensor, bool]:
        """Return where the parameter's gradients [U, ...] stand, and whether they have begun."""
        again = name in self._started
        self._started.add(name)
        self._written.add(name)
        columns = self._gradients[:, self._columns[name]]
        return columns.view(len(columns), *self._shapes[name]), again

    def _scatter(self, target: torch.Tensor, values: torch.Tensor, again: bool) -> None:
        if self._pass.one_row_each:
            target.add_(values) if again else target.copy_(values)
            return
        if not again:
            target.zero_()
        target.index_add_(0, self._pass.units, values.float())
