"""The first values of an adapter: those that leave a model as it is.

Rule: the model is plain again afterwards, whatever happens meanwhile.
"""

from torch import Tensor
from transformers import PreTrainedModel

from offsite.emulator.adapters.adapter import Adapter


def untouched(adapter: Adapter, model: PreTrainedModel) -> dict[str, Tensor]:
    """The values, fp32, by their names on the wire; attaches to the model and detaches again."""
    try:
        adapter.attach(model)
        return adapter.extract(model)
    finally:
        adapter.detach(model)
