"""Which attention kernel a micro-batch uses.

On a CPU torch's fused attention is made for long sequences: its bf16 backward takes 9 ms where the
plain formula takes 3 ms for 9 rows of 58 tokens with 9 heads of 64 (one thread of an AVX-512
machine), and is 1.5 times as fast as it from about 256 tokens on. Examples of questions and answers
are short, and there a step is a fifth faster with the plain formula.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

SHORT_TOKENS = 160
"""Longest row for which the plain formula wins on a CPU."""


def attention_for(ids: torch.Tensor) -> AbstractContextManager[None]:
    """Return the context for forward and backward of token ids [B, T].

    The backward pass must be inside too: gradient checkpointing runs the forward pass again there.
    """
    if ids.device.type == "cpu" and ids.shape[1] <= SHORT_TOKENS:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
