"""Every header that NumPy writes is understood as NumPy understands it."""

import math

import numpy as np
import pytest
from flwr.app import Array

from offsite.emulator.rounds.numpy_arrays import NUMPY_DTYPES, numpy_values
from offsite.secure.errors import PeerError


@pytest.mark.parametrize("dtype", sorted(NUMPY_DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 4), (1, 2, 3, 4)])
def test_every_header_that_numpy_writes_is_read_as_numpy_reads_it(
    dtype: str, shape: tuple[int, ...]
) -> None:
    values = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
    for array in (Array(values), Array(np.asfortranarray(values))):
        found = numpy_values("x", array)
        assert found.dtype == values.dtype and np.array_equal(found, array.numpy())


@pytest.mark.parametrize("values", [np.zeros(2, ">f4"), np.zeros(2, complex), np.array(["a"])])
def test_other_dtypes_are_refused(values: np.ndarray) -> None:
    with pytest.raises(PeerError, match="array x: dtype"):
        numpy_values("x", Array(values))
