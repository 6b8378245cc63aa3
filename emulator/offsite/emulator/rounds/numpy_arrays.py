"""NumPy arrays inside Flower messages: their `.npy` header, read without evaluating anything.

Flower keeps an array as the bytes that `numpy.save` writes. NumPy's reader evaluates the header as
a Python literal, which costs memory on hostile input and is not safe on threads in Python 3.11
("AST constructor recursion depth mismatch"). Here it is matched, in the one form that NumPy writes
for plain dtypes, and must agree with what the message declares.
"""

import math
import re
from typing import Literal

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from offsite.secure.errors import PeerError

NPY_HEADER_BYTES = 1_024
NUMPY_STYPE = "numpy.ndarray"
NUMPY_DTYPES = frozenset(
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    ]
)
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>[\s\S]{2})\{'descr': '(?P<dtype>[<|][a-z][0-9]{1,2})', "
    rb"'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>|[0-9]{1,18},|[0-9]{1,18}(?:, [0-9]{1,18})+)\), \} *\n"
)
"""A header as `numpy.save` writes it. NumPy's own reader evaluates it as a Python literal."""


def check_numpy_array(where: str, array: Array) -> None:
    """Check that dtype, shape and length of an `.npy` array's bytes are those declared.

    Raises:
        PeerError: naming the array and what differs.
    """
    shape, _, offset = _npy_header(where, array)
    if shape != array.shape:
        raise PeerError(f"round message: array {where}: shape {array.shape}, data {shape}")
    expected = math.prod(shape) * np.dtype(array.dtype).itemsize
    if len(array.data) - offset != expected:
        found = len(array.data) - offset
        raise PeerError(f"round message: array {where}: expected {expected} bytes, found {found}")


def numpy_values(where: str, array: Array) -> NDArray[np.generic]:
    """The values of an array after `check_numpy_array`, read-only and without a copy."""
    check_numpy_array(where, array)
    shape, order, offset = _npy_header(where, array)
    values = np.frombuffer(array.data, dtype=array.dtype, offset=offset)
    return values.reshape(shape, order=order)


def _npy_header(where: str, array: Array) -> tuple[tuple[int, ...], Literal["C", "F"], int]:
    """Shape, order and where the data begin, of `.npy` version 1.0 as NumPy writes it."""
    if array.dtype not in NUMPY_DTYPES:
        raise PeerError(f"round message: array {where}: dtype {array.dtype!r} is not allowed")
    header = NPY_HEADER.match(array.data[:NPY_HEADER_BYTES])
    if header is None or len(header[0]) != 10 + int.from_bytes(header["length"], "little"):
        raise PeerError(f"round message: array {where}: unreadable NumPy header")
    if header["dtype"].decode() != np.dtype(array.dtype).str:
        raise PeerError(
            f"round message: array {where}: dtype {array.dtype}, data {header['dtype'].decode()}"
        )
    shape = tuple(int(size) for size in header["shape"].replace(b" ", b"").split(b",") if size)
    return shape, "F" if header["fortran"] == b"True" else "C", len(header[0])
