"""An adapter's values in a model, for as long as they are looked at.

Only the slots' own tensors are set aside meanwhile, never a second model. They are kept in fp32,
through which bf16 and fp16 pass unchanged, so the model is bit for bit what it was afterwards.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel

from offsite.emulator.adapters.adapter import Adapter


@contextmanager
def attached(model: PreTrainedModel, adapter: Adapter) -> Iterator[PreTrainedModel]:
    """The model (full or emulator) with the adapter ready to train; restored when left."""
    adapter.attach(model)
    try:
        originals = adapter.extract(model)
        try:
            yield model
        finally:
            adapter.load(model, originals)
    finally:
        adapter.detach(model)


@contextmanager
def plugged_in(
    model: PreTrainedModel, adapter: Adapter, tensors: Mapping[str, Tensor]
) -> Iterator[PreTrainedModel]:
    """The model (full or emulator) with the adapter's values; restored when the block is left.

    Raises:
        PeerError: naming the tensor that does not fit; the model is unchanged.
    """
    with attached(model, adapter):
        adapter.load(model, tensors)
        yield model
