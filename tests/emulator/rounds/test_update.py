"""An update is what one client signed for one plan, or it is refused by name."""

import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offsite.emulator.rounds import update as updates
from offsite.emulator.rounds.update import UpdateTerms, open_update, seal_update
from offsite.emulator.schema import TensorSpec, tensors_to_bytes
from offsite.secure import envelope as envelopes
from offsite.secure.errors import ConfigError, IntegrityError, PeerError, SignatureError
from offsite.secure.identity import IdentityKey
from offsite.secure.sealing import SealingKey, seal

SEALING = SealingKey.from_seed(b"s" * 32)
CLIENT = IdentityKey.from_seed(b"a" * 32)
PLAN = bytes(range(32))
SCHEMA = {"top.0.w": TensorSpec("F32", (2, 3)), "top.0.b": TensorSpec("F32", (3,))}
TERMS = UpdateTerms(PLAN, "alice", CLIENT.public, SCHEMA, max_examples=100)


def _delta() -> dict[str, Tensor]:
    return {"top.0.w": torch.arange(6.0).reshape(2, 3), "top.0.b": torch.tensor([0.0, -0.0, 1e-30])}


def _seal(delta: dict[str, Tensor] | None = None, **changes: object) -> bytes:
    arguments: dict[str, object] = {
        "num_examples": 7,
        "metrics": {"loss": 1.25},
        "plan_digest": PLAN,
        "client_id": "alice",
        "identity": CLIENT,
        "sealing_public": SEALING.public_bytes,
    }
    return seal_update(delta or _delta(), **(arguments | changes))  # type: ignore[arg-type]


def test_an_update_comes_back_bit_for_bit() -> None:
    update = open_update(_seal(), SEALING, TERMS)
    assert (update.client_id, update.num_examples, update.metrics) == ("alice", 7, {"loss": 1.25})
    assert all(torch.equal(update.delta[name], value) for name, value in _delta().items())
    assert bool(torch.signbit(update.delta["top.0.b"][1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("top.0.b"), "tensor top.0.b: expected F32.*found none"),
        (lambda d: d.update({"top.0.x": torch.ones(1)}), "tensor top.0.x: expected none"),
        (lambda d: d.update({"top.0.b": torch.ones(4)}), r"tensor top.0.b: expected F32\[3\]"),
        (lambda d: d.update({"top.0.b": torch.ones(3).half()}), "tensor top.0.b: .*F16"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    delta = _delta()
    change(delta)
    with pytest.raises(PeerError, match=f"update of alice: {said}"):
        open_update(_seal(delta), SEALING, TERMS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = _delta()
    delta["top.0.b"][1] = value
    with pytest.raises(ConfigError, match=r"diverged: top\.0\.b"):
        _seal(delta)
    monkeypatch.setattr(updates, "_check_own", lambda *_: None)  # a client that does not check
    with pytest.raises(PeerError, match=r"update of alice: tensor top\.0\.b: .*NaN or infinity"):
        open_update(_seal(delta), SEALING, TERMS)


def test_a_replay_from_another_round_is_named() -> None:
    with pytest.raises(PeerError, match="another round or attempt"):
        open_update(_seal(plan_digest=b"o" * 32), SEALING, TERMS)


def test_an_update_of_another_client_is_named() -> None:
    with pytest.raises(PeerError, match="update of alice: it was made by another client"):
        open_update(_seal(client_id="bobby"), SEALING, TERMS)


def test_a_replay_with_a_rewritten_clear_part_does_not_open() -> None:
    data = _seal(plan_digest=b"o" * 32)
    with pytest.raises(IntegrityError, match="does not open"):
        open_update(data[:8] + PLAN + data[40:], SEALING, TERMS)


def test_a_signature_of_another_key_is_refused() -> None:
    forged = _seal(identity=IdentityKey.from_seed(b"m" * 32))
    with pytest.raises(SignatureError):
        open_update(forged, SEALING, TERMS)


def test_an_update_sealed_to_another_coordinator_does_not_open() -> None:
    other = SealingKey.from_seed(b"o" * 32)
    with pytest.raises(IntegrityError, match="does not open"):
        open_update(_seal(sealing_public=other.public_bytes), SEALING, TERMS)


@pytest.mark.parametrize("examples", [101, 10**9])
def test_more_examples_than_allowed_are_refused(examples: int) -> None:
    with pytest.raises(PeerError, match=f"an integer from 1 to 100, found {examples}"):
        open_update(_seal(num_examples=examples), SEALING, TERMS)


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_refused(position: int, bit: int) -> None:
    data = bytearray(SEALED)
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(PeerError):
        open_update(bytes(data), SEALING, TERMS)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_any_cut_is_refused(length: int) -> None:
    with pytest.raises(PeerError):
        open_update(SEALED[: length % len(SEALED)], SEALING, TERMS)


SEALED = _seal()


def _with_header(change: Callable[[dict[str, object]], object], tensors: bytes | None = None):
    """A client that signs what it likes."""
    plain = tensors_to_bytes(_delta())
    header: dict[str, object] = {
        "client_id": "alice",
        "metrics": {},
        "num_examples": 7,
        "plan_sha256": PLAN.hex(),
        "tensors_bytes": len(plain),
        "tensors_sha256": __import__("hashlib").sha256(plain).hexdigest(),
    }
    change(header)
    signed = envelopes.to_bytes(
        envelopes.sign(updates.UPDATE_TYPE, json.dumps(header).encode(), CLIENT)
    )
    context = updates._context(PLAN, "alice")
    body = len(signed).to_bytes(4, "big") + signed + (plain if tensors is None else tensors)
    return context + seal(SEALING.public_bytes, body, context)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h.update(num_examples=0), "expected an integer from 1 to 100"),
        (lambda h: h.update(num_examples=2.5), "expected an integer from 1 to 100"),
        (lambda h: h.update(num_examples=True), "expected an integer from 1 to 100"),
        (lambda h: h.update(client_id="bob"), "names client 'bob'"),
        (lambda h: h.update(plan_sha256="00" * 32), "names plan"),
        (lambda h: h.update(metrics=[]), "metrics"),
        (lambda h: h.update(metrics={"loss": float("nan")}), "strict JSON, found the number NaN"),
        (lambda h: h.update(metrics={"loss": 10**400}), "loss: expected a number .*found 1000"),
        (lambda h: h.update(metrics={"loss": "low"}), "loss: expected a number .*found 'low'"),
        (lambda h: h.update(metrics={str(i): 1 for i in range(65)}), "an object of at most 64"),
        (lambda h: h.update(metrics={"\x1b[2J": 1}), "printable characters"),
        (lambda h: h.update(more=1), "unknown field 'more'"),
        (lambda h: h.pop("metrics"), "the field 'metrics', found none"),
        (lambda h: h.update(tensors_bytes=1), "bytes of tensors"),
        (lambda h: h.update(tensors_sha256="00" * 32), "not those that were signed"),
    ],
)
def test_a_signed_header_that_does_not_fit_is_refused(
    change: Callable[[dict[str, object]], object], said: str
) -> None:
    with pytest.raises(PeerError, match=f"update of alice: .*{said}"):
        open_update(_with_header(change), SEALING, TERMS)


def test_a_header_that_names_a_field_twice_is_refused() -> None:
    """Two readers could disagree about which of them was signed for."""
    plain = tensors_to_bytes(_delta())
    twice = b'{"client_id":"alice","client_id":"alice"}'
    signed = envelopes.to_bytes(envelopes.sign(updates.UPDATE_TYPE, twice, CLIENT))
    context = updates._context(PLAN, "alice")
    body = len(signed).to_bytes(4, "big") + signed + plain
    data = context + seal(SEALING.public_bytes, body, context)
    with pytest.raises(PeerError, match="a key that occurs twice"):
        open_update(data, SEALING, TERMS)


def test_tensors_swapped_behind_the_signature_are_refused() -> None:
    other = tensors_to_bytes({name: value + 1 for name, value in _delta().items()})
    with pytest.raises(IntegrityError, match="not those that were signed"):
        open_update(_with_header(lambda _: None, tensors=other), SEALING, TERMS)


@pytest.mark.parametrize("change", [{"num_examples": 0}, {"metrics": {"loss": float("nan")}}])
def test_a_client_does_not_seal_what_would_be_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        _seal(**change)
