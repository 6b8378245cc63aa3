"""Which tensors a pass takes, and what the buffer makes of them."""

import pytest
import torch
from torch import nn

from offsite.emulator.privacy.per_example.flat_buffer import FlatBuffer, Pass
from offsite.secure.errors import ConfigError

ROWS, TOKENS = 3, 5
BATCH = torch.arange(ROWS * TOKENS * 2.0).view(ROWS, TOKENS, 2)


def a_pass() -> Pass:
    return Pass(torch.arange(ROWS), TOKENS, one_row_each=True)


@pytest.mark.parametrize(
    "tensor",
    [BATCH, BATCH.view(ROWS * TOKENS, 2), BATCH[:, :, None], BATCH[:, None]],
    ids=["rows and tokens", "flat", "heads", "heads before tokens"],
)
def test_rows_are_told_apart(tensor: torch.Tensor) -> None:
    assert torch.equal(a_pass().by_row(tensor, "site").flatten(1), BATCH.flatten(1))


@pytest.mark.parametrize(
    "shape",
    [(TOKENS, ROWS, 2), (1, TOKENS, 2), (ROWS, 4, 2), (1, 7, 2), (ROWS, 2), (14, 2), (15,), (3, 5)],
    ids=str,
)
def test_other_sizes_are_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"the site is given .* 3 rows of 5 tokens"):
        a_pass().by_row(torch.zeros(shape), "the site")


@pytest.fixture
def buffer() -> FlatBuffer:
    buffer = FlatBuffer({"a": nn.Parameter(torch.zeros(2, 2)), "b": nn.Parameter(torch.zeros(2))})
    buffer.begin_group(3, torch.device("cpu"))
    buffer._gradients.fill_(torch.nan)  # what an earlier group left
    return buffer


@pytest.mark.parametrize("units", [[0, 1, 2], [2, 0, 1], [0, 0, 2]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_a_unit_are_added(units: list[int], dtype: torch.dtype, buffer: FlatBuffer) -> None:
    """Over two passes, with what is written twice in one; small integers, so exactly."""
    left, right = BATCH.to(dtype), BATCH.flip(2).to(dtype)
    wanted = torch.zeros(3, 6)
    for row, unit in enumerate(units):
        product = BATCH[row].T @ BATCH[row].flip(1)
        wanted[unit] += 3 * torch.cat([product.flatten(), BATCH[row, 0]])
    with buffer.recording(torch.tensor(units), TOKENS):
        buffer.add_products("a", left, right)
        buffer.add_products("a", left, right)
        buffer.add("b", left[:, 0])
    with buffer.recording(torch.tensor(units), TOKENS):
        buffer.add_products("a", left, right)
        buffer.add("b", 2 * left[:, 0])
    torch.testing.assert_close(buffer._gradients, wanted, rtol=1e-2, atol=0)
    if dtype is torch.float32:
        assert torch.equal(buffer._gradients, wanted)


def test_a_parameter_that_was_not_written_is_named(buffer: FlatBuffer) -> None:
    with (
        pytest.raises(ConfigError, match=r"^b trains.*1 of 2"),
        buffer.recording(torch.arange(3), TOKENS),
    ):
        buffer.add_products("a", BATCH, BATCH)


def test_a_gradient_outside_of_a_pass_is_an_error(buffer: FlatBuffer) -> None:
    with pytest.raises(ConfigError, match="outside of a pass"):
        buffer.add("b", BATCH[:, 0])


def test_memory_is_kept_from_group_to_group_and_given_back(buffer: FlatBuffer) -> None:
    place = buffer._memory.data_ptr()
    buffer.begin_group(2, torch.device("cpu"))
    assert buffer._memory.data_ptr() == place and len(buffer._gradients) == 2
    buffer.free()
    assert buffer._memory.numel() == 0
