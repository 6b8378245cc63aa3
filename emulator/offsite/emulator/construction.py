"""What building the modules of a model may cost, before its tensors can be compared with a schema.

Modules are Python objects: even on the meta device each takes kilobytes and a tenth of a
millisecond, and some families make one for every head (StableLM's norms) or expert. A config is a
few bytes, so it could ask for millions of them beside a schema of ten tensors.

Rules: the sizes that a config names fit an axis of some tensor; the number of modules is bounded by
the numbers of blocks and of tensors.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedConfig

from offsite.emulator.schema import TensorSpec
from offsite.secure.errors import PeerError

MODULES = 1000
MODULES_PER_BLOCK = 100
"""Of them most have no tensors: activations, rotary embeddings, containers. Llama has 15."""
MODULES_PER_TENSOR = 4

_HEADS = ("num_attention_heads", "num_key_value_heads")


def check_sizes(config: PreTrainedConfig, schema: Mapping[str, TensorSpec]) -> None:
    """Raises PeerError where the config's sizes cannot be those of the schema's tensors."""
    axes = {size for spec in schema.values() for size in spec.shape}
    hidden = getattr(config, "hidden_size", None)
    if isinstance(hidden, int) and hidden not in axes:
        raise PeerError(f"config: hidden_size {hidden}, which no tensor of the schema has")
    widest = max(axes, default=0)
    for name in _HEADS:
        heads = getattr(config, name, None)
        if isinstance(heads, int) and heads > widest:
            raise PeerError(
                f"config: {name} {heads}, but the tensors of the schema are at most {widest} wide"
            )


@contextmanager
def bounded_modules(blocks: int, tensors: int) -> Iterator[None]:
    """Raises PeerError as soon as this thread makes more modules than such a model can need."""
    limit = MODULES + MODULES_PER_BLOCK * blocks + MODULES_PER_TENSOR * tensors
    thread, made = threading.get_ident(), 0

    def count(_: nn.Module, __: str, ___: object) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > limit:
            raise PeerError(f"more than {limit} modules for {blocks} blocks and {tensors} tensors")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
