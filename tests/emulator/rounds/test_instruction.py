"""What stands in the messages of a round, and what is refused there."""

import time
from collections.abc import Callable

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict

from offsite.emulator.rounds.flower_internals import message_with_metadata
from offsite.emulator.rounds.instruction import (
    adapter_digest,
    adapter_to_record,
    read_instruction,
    read_terms,
)
from offsite.emulator.rounds.plan import RoundPlan, TuningSettings, sign_plan
from offsite.emulator.schema import TensorSpec
from offsite.secure import envelope as envelopes
from offsite.secure.errors import IntegrityError, PeerError
from offsite.secure.identity import IdentityKey

KEY = IdentityKey.from_seed(b"c" * 32)
SCHEMA = {"top.0.w": TensorSpec("F32", (2, 2)), "top.0.b": TensorSpec("F32", (0,))}
ADAPTER = {"top.0.w": torch.tensor([[1.0, -0.0], [2.5, 3.0]]), "top.0.b": torch.zeros(0)}


def _message(body: RecordDict | Error) -> Message:
    metadata = Metadata(1, "m", 1, 2, "", "1.1", time.time(), 60.0, "train")
    return message_with_metadata(metadata, body)


def _content(arrays: ArrayRecord | None = None) -> RecordDict:
    plan = RoundPlan(1, 1, 1, 1, "ab" * 32, adapter_digest(ADAPTER), TuningSettings(), 100.0, 5)
    signed = envelopes.to_bytes(sign_plan(plan, KEY))
    config = ConfigRecord({"plan": signed, "server-round": 1})
    return RecordDict({"arrays": arrays or adapter_to_record(ADAPTER), "config": config})


def test_an_instruction_is_read_bit_for_bit() -> None:
    signed, adapter = read_instruction(_message(_content()), KEY.public, SCHEMA, 50.0)
    assert signed.plan.round == 1
    assert all(torch.equal(adapter[name], value) for name, value in ADAPTER.items())
    assert bool(torch.signbit(adapter["top.0.w"][0, 1]))
    adapter["top.0.w"] += 1  # it is the caller's


def test_an_adapter_that_the_plan_does_not_name_is_refused() -> None:
    other = adapter_to_record({**ADAPTER, "top.0.w": ADAPTER["top.0.w"] + 1})
    with pytest.raises(IntegrityError, match="not the one that the plan names"):
        read_instruction(_message(_content(other)), KEY.public, SCHEMA, 50.0)


def _without(record: ArrayRecord) -> None:
    del record["top.0.b"]


def _with_more(record: ArrayRecord) -> None:
    record["top.9.w"] = record["top.0.w"]


def _half(record: ArrayRecord) -> None:
    record["top.0.w"] = Array(ADAPTER["top.0.w"].half().numpy())


def _flat(record: ArrayRecord) -> None:
    record["top.0.w"] = Array(ADAPTER["top.0.w"].flatten().numpy())


def _opaque(record: ArrayRecord) -> None:
    record["top.0.w"] = Array("float32", (2, 2), "other", b"x" * 16)


def _lying(record: ArrayRecord) -> None:
    record["top.0.w"] = Array("float32", (2, 2), "numpy.ndarray", record["top.0.b"].data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without, "tensor top.0.b is missing"),
        (_with_more, "tensor 'top.9.w' is unknown"),
        (_half, "tensor top.0.w: expected float32, found 'float16'"),
        (_flat, r"tensor top.0.w: expected \(2, 2\), found \(4,\)"),
        (_opaque, "tensor top.0.w: expected float32"),
        (_lying, "top.0.w: shape"),
    ],
)
def test_an_adapter_that_does_not_fit_is_named(
    change: Callable[[ArrayRecord], None], said: str
) -> None:
    record = adapter_to_record(ADAPTER)
    change(record)
    with pytest.raises(PeerError, match=said):
        read_instruction(_message(_content(record)), KEY.public, SCHEMA, 50.0)


@pytest.mark.parametrize("missing", ["arrays", "config"])
def test_an_instruction_without_its_parts_is_refused(missing: str) -> None:
    content = _content()
    del content[missing]
    with pytest.raises(PeerError, match="expected a config and arrays"):
        read_instruction(_message(content), KEY.public, SCHEMA, 50.0)


def test_an_instruction_without_a_plan_is_refused() -> None:
    content = _content()
    content["config"] = ConfigRecord({"plan": "text"})
    with pytest.raises(PeerError, match="expected a signed plan"):
        read_instruction(_message(content), KEY.public, SCHEMA, 50.0)


def test_an_instruction_that_holds_an_error_is_refused() -> None:
    with pytest.raises(PeerError, match="holds an error"):
        read_instruction(_message(Error(1, "no")), KEY.public, SCHEMA, 50.0)


def test_the_digest_tells_names_shapes_and_bytes_apart() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    assert adapter_digest(base) == adapter_digest(dict(reversed(base.items())))
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(2)},
        {"c": torch.zeros(2, 3), "b": torch.ones(2)},
        {"a": -torch.zeros(2, 3), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3)},
    ]
    assert len({adapter_digest(tensors) for tensors in [base, *others]}) == 5


def test_the_terms_of_the_sum_stand_beside_the_plan() -> None:
    content = _content()
    content["config"]["terms"] = b"terms"  # type: ignore[call-overload]
    assert read_terms(_message(content)) == b"terms"


@pytest.mark.parametrize("terms", [None, "text"])
def test_an_instruction_without_terms_gets_no_update(terms: str | None) -> None:
    content = _content()
    if terms is not None:
        content["config"]["terms"] = terms  # type: ignore[call-overload]
    with pytest.raises(PeerError, match="signed terms of a secure sum"):
        read_terms(_message(content))
