"""Tensors enter the process only through a checked header, and come out as they went in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from offsite.emulator.schema import (
    TensorSpec,
    check_file_finite,
    check_schema,
    iter_checked,
    load_checked,
    read_header,
    schema_from_json,
    schema_to_json,
    spec_of,
    tensors_from_bytes,
    tensors_to_bytes,
)
from offsite.secure import limits
from offsite.secure.errors import IntegrityError, OffsiteError, PeerError


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "block.0.weight": torch.randn(3, 5),
        "block.0.half": torch.randn(7).to(torch.bfloat16),
        "counts": torch.arange(6, dtype=torch.int64).reshape(2, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
        "transposed": torch.randn(4, 2).T,
        "empty": torch.empty(0, 3),
    }


def schema_of(tensors: dict[str, torch.Tensor]) -> dict[str, TensorSpec]:
    return {name: spec_of(tensor) for name, tensor in tensors.items()}


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_round_trip_and_agree_with_safetensors(tmp_path: Path) -> None:
    tensors = some_tensors()
    data = tensors_to_bytes(tensors)
    (tmp_path / "x.safetensors").write_bytes(data)
    for loaded in (
        tensors_from_bytes(data, schema_of(tensors)),
        load_checked(tmp_path / "x.safetensors", schema_of(tensors)),
        safetensors_load(data),
    ):
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
        assert all(loaded[name].dtype == tensors[name].dtype for name in tensors)
    assert read_header(tmp_path / "x.safetensors") == schema_of(tensors)


def test_files_of_safetensors_are_read() -> None:
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    loaded = tensors_from_bytes(safetensors_save(tensors), schema_of(tensors))
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_encoding_does_not_depend_on_the_order() -> None:
    tensors = some_tensors()
    assert tensors_to_bytes(tensors) == tensors_to_bytes(dict(reversed(tensors.items())))


def test_a_part_is_read_alone(tmp_path: Path) -> None:
    tensors = some_tensors()
    (tmp_path / "x").write_bytes(tensors_to_bytes(tensors))
    found = dict(iter_checked(tmp_path / "x", schema_of(tensors), {"scalar"}))
    assert list(found) == ["scalar"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda schema: schema.pop("counts"), "counts: expected none"),
        (lambda schema: schema.update(more=TensorSpec("F32", (1,))), "more: expected F32"),
        (lambda schema: schema.update(counts=TensorSpec("I64", (3, 2))), r"counts.*\[3, 2\]"),
        (lambda schema: schema.update(counts=TensorSpec("F64", (2, 3))), "counts.*F64"),
    ],
)
def test_the_first_wrong_tensor_is_named(change: object, named: str) -> None:
    expected = schema_of(some_tensors())
    assert callable(change)
    change(expected)
    with pytest.raises(IntegrityError, match=named):
        tensors_from_bytes(tensors_to_bytes(some_tensors()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(
    dtype: torch.dtype, value: float, tmp_path: Path
) -> None:
    good = torch.full((200_000,), torch.finfo(dtype).max, dtype=dtype)  # more than one chunk
    bad = good.clone()
    bad[-1] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensors_to_bytes({"good": good}))
    check_file_finite(path)
    path.write_bytes(tensors_to_bytes({"fine": good, "bad": bad}))
    with pytest.raises(IntegrityError, match=r"tensor bad: .*NaN"):
        check_file_finite(path)
    with pytest.raises(IntegrityError, match=r"tensor bad: .*NaN"):
        load_checked(path, {"fine": spec_of(good), "bad": spec_of(bad)})


HOSTILE = {
    "no header": b"",
    "only a length": (16).to_bytes(8, "little"),
    "header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "not JSON": file_of(b"{{{{"),
    "not UTF-8": file_of(b'{"\xff":1}'),
    "an array": file_of([]),
    "deep nesting": file_of(b"[" * 100_000),
    "NaN": file_of(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"1234"),
    "huge number": file_of(b'{"a":' + b"9" * 5000 + b"}"),
    "duplicate tensor": file_of(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"1",
    ),
    "unknown dtype": file_of({"a": entry("Q4", [1], 0, 1)}, b"1"),
    "unknown key": file_of({"a": {**entry("U8", [1], 0, 1), "more": 1}}, b"1"),
    "missing key": file_of({"a": {"dtype": "U8", "shape": [1]}}, b"1"),
    "negative axis": file_of({"a": entry("U8", [-1], 0, 1)}, b"1"),
    "axis no integer": file_of({"a": {**entry("U8", [1], 0, 1), "shape": [1.0]}}, b"1"),
    "axis a truth value": file_of({"a": {**entry("U8", [1], 0, 1), "shape": [True]}}, b"1"),
    "too many axes": file_of({"a": entry("U8", [1] * 9, 0, 1)}, b"1"),
    "overflowing shape": file_of({"a": entry("F32", [1 << 40, 1 << 40], 0, 4)}, b"1234"),
    "shape larger than its bytes": file_of({"a": entry("F32", [2], 0, 4)}, b"1234"),
    "three offsets": file_of({"a": {**entry("U8", [1], 0, 1), "data_offsets": [0, 1, 1]}}, b"1"),
    "overlap": file_of({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"123"),
    "gap": file_of({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"123"),
    "bytes before": file_of({"a": entry("U8", [1], 1, 2)}, b"12"),
    "bytes after": file_of({"a": entry("U8", [1], 0, 1)}, b"12"),
    "cut": file_of({"a": entry("U8", [2], 0, 2)}, b"1"),
    "strange name": file_of({"../a": entry("U8", [1], 0, 1)}, b"1"),
    "empty name": file_of({"": entry("U8", [1], 0, 1)}, b"1"),
    "metadata no strings": file_of({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(PeerError):
        read_header(path)


def test_a_long_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((limits.SAFETENSORS_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(1 << 40)  # sparse
    with pytest.raises(PeerError, match="expected a header of 2 to"):
        read_header(path)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_header_gives_our_error_or_a_valid_file(position: int, bit: int) -> None:
    tensors = some_tensors()
    data = bytearray(tensors_to_bytes(tensors))
    data[position % len(data)] ^= 1 << bit
    try:
        found = tensors_from_bytes(bytes(data), schema_of(tensors))
    except OffsiteError:
        return
    assert schema_of(found) == schema_of(tensors)


def test_a_schema_round_trips_as_json() -> None:
    schema = schema_of(some_tensors())
    assert schema_from_json(json.loads(json.dumps(schema_to_json(schema))), "test") == schema
    check_schema(schema, schema)


def test_sizes_of_a_spec() -> None:
    spec = TensorSpec("BF16", (3, 5))
    assert (spec.elements, spec.num_bytes, spec.is_float) == (15, 30, True)
    assert not TensorSpec("I8", (2,)).is_float


def test_the_loaded_tensor_owns_its_memory() -> None:
    data = tensors_to_bytes({"a": torch.zeros(4)})
    loaded = tensors_from_bytes(data, {"a": TensorSpec("F32", (4,))})["a"]
    loaded += 1
    assert np.frombuffer(data[-16:], np.float32).sum() == 0
