"""Which kernel a batch takes."""

import pytest
import torch

from offsite.emulator.training.attention import attention_kernel


@pytest.mark.parametrize(
    ("dtype", "tokens", "plain"),
    [(torch.bfloat16, 160, True), (torch.bfloat16, 161, False), (torch.float32, 8, False)],
)
def test_short_rows_in_bf16_take_the_plain_formula(
    dtype: torch.dtype, tokens: int, plain: bool
) -> None:
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with attention_kernel(ids, dtype):
        assert torch.backends.cuda.flash_sdp_enabled() is not plain
    assert torch.backends.cuda.flash_sdp_enabled()
