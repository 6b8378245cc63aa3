"""An update as a vector and back; both sides name its schema alike."""

import torch

from offsite.emulator.rounds.exchange import Action, most_reply_bytes
from offsite.emulator.rounds.vector import from_vector, schema_digest, to_vector, value_count
from offsite.emulator.schema import TensorSpec

SCHEMA = {
    "top.0.w": TensorSpec("F32", (2, 3)),
    "bottom.0.b": TensorSpec("F32", (4,)),
    "none": TensorSpec("F32", (0, 2)),
}


def test_tensors_come_back_under_their_names_whatever_their_order() -> None:
    update = {
        "bottom.0.b": torch.arange(4.0),
        "none": torch.zeros(0, 2),
        "top.0.w": torch.arange(12.0).reshape(3, 4)[:, :2].T,  # not contiguous
    }
    vector = to_vector(update, SCHEMA)
    assert vector.shape == (value_count(SCHEMA),) == (10,)
    back = from_vector(vector, SCHEMA)
    assert list(back) == list(SCHEMA)
    assert all(torch.equal(back[name], value) for name, value in update.items())


def test_a_schema_is_named_by_its_names_and_shapes_and_not_by_their_order() -> None:
    assert schema_digest(SCHEMA) == schema_digest(dict(reversed(SCHEMA.items())))
    others = [
        SCHEMA | {"top.0.w": TensorSpec("F32", (3, 2))},
        {name: spec for name, spec in SCHEMA.items() if name != "none"},
        {("x" if name == "none" else name): spec for name, spec in SCHEMA.items()},
    ]
    assert len({schema_digest(schema) for schema in [SCHEMA, *others]}) == 4


def test_only_a_masked_vector_may_be_as_large_as_an_adapter() -> None:
    large = 100_000_000
    for action in Action:
        allowed = most_reply_bytes(action.message_type, large)
        assert (allowed > 4 * large) == (action is Action.MASK)
    assert most_reply_bytes("train", large) < 8 << 20
