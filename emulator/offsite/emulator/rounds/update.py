"""The update of one client: signed by it, sealed to the coordinator, bound to one plan.

    sealed update = "OFFSUPD1" | plan digest (32) | length of the client id (1) | client id | seal
    seal          = X-Wing HPKE of the plaintext, its context the bytes before it
    plaintext     = length of the envelope (4, big-endian) | signed header | safetensors

The signed header names the client and the plan, counts the examples and holds the digest of the
tensors, so the signature covers everything without a second copy of it. What stands in clear only
serves to say what is wrong (a replay, another client); the seal and the signature bind the same.

The tensors are the difference to the plan's adapter, fp32. Opening checks, in this order: the
clear part, the seal, the signature, the header, the digest, the tensors' names, dtypes and shapes,
and that every number is finite. Nothing of an update that fails is used.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from offsite.emulator.schema import TensorSpec, tensors_from_bytes, tensors_to_bytes
from offsite.emulator.strict_json import Fields, JsonObject, check_text, parse_json
from offsite.secure import envelope as envelopes
from offsite.secure.errors import ConfigError, IntegrityError, PeerError
from offsite.secure.identity import IdentityKey, IdentityPublicKey
from offsite.secure.limits import KIB, ROUND_MESSAGE_BYTES
from offsite.secure.names import check_client_id
from offsite.secure.sealing import SealingKey, open_sealed, seal

UPDATE_TYPE = "application/vnd.offsite.update"
HEADER_BYTES = 64 * KIB
METRICS = 64
METRIC_NAME_CHARS = 64
MAX_METRIC = 1e15
MAX_EXAMPLES = 10**9
"""Most examples that one client may claim; the coordinator may set less."""
MAX_CHANGE = 1e4
"""Largest change of a weight that is believed; sums and squares of such stay finite in fp32."""

_MAGIC = b"OFFSUPD1"
_DIGEST_BYTES = 32
_LENGTH_BYTES = 4
_TEXT_CHARS = 64


@dataclass(frozen=True, slots=True)
class Update:
    """A client's update after every check."""

    client_id: str
    delta: dict[str, Tensor]
    """Tuned adapter minus the plan's adapter, fp32, by adapter name."""
    num_examples: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class UpdateTerms:
    """What an update must fit: the plan, the client that owes it and the adapter's schema."""

    plan_digest: bytes
    client_id: str
    client_key: IdentityPublicKey
    schema: Mapping[str, TensorSpec]
    max_examples: int = MAX_EXAMPLES


def seal_update(
    delta: Mapping[str, Tensor],
    *,
    num_examples: int,
    metrics: Mapping[str, float],
    plan_digest: bytes,
    client_id: str,
    identity: IdentityKey,
    sealing_public: bytes,
) -> bytes:
    """Sign the update with `identity` and seal it to the key of the plan.

    Raises:
        ConfigError: a tensor or a metric is not finite, or there are no examples.
    """
    _check_own(delta, num_examples, metrics)
    tensors = tensors_to_bytes(dict(delta))
    header = {
        "client_id": client_id,
        "metrics": dict(metrics),
        "num_examples": num_examples,
        "plan_sha256": plan_digest.hex(),
        "tensors_bytes": len(tensors),
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
    }
    payload = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    signed = envelopes.to_bytes(envelopes.sign(UPDATE_TYPE, payload, identity))
    plaintext = len(signed).to_bytes(_LENGTH_BYTES, "big") + signed + tensors
    context = _context(plan_digest, client_id)
    return context + seal(sealing_public, plaintext, context)


def open_update(data: bytes, key: SealingKey, terms: UpdateTerms) -> Update:
    """The update in `data`, after every check of the module's docstring.

    Raises:
        PeerError: naming what is wrong.
    """
    # (1) For this round and from this client, by what stands in clear.
    context = _check_clear_part(data, terms)
    # (2) Sealed to us for exactly that.
    plaintext = open_sealed(key, data[len(context) :], context)
    # (3) Signed by the client's identity key.
    signed, tensors = _split(plaintext, terms.client_id)
    payload = envelopes.verify(
        envelopes.from_bytes(signed, HEADER_BYTES), UPDATE_TYPE, terms.client_key
    )
    # (4) The header says the same, and its numbers are possible.
    header = _read_header(payload, terms)
    # (5) The tensors are those signed, fit the schema, and are finite.
    _check_digest(tensors, header, terms.client_id)
    delta = _read_tensors(tensors, terms)
    return Update(terms.client_id, delta, header.num_examples, header.metrics)


@dataclass(frozen=True, slots=True)
class _Header:
    num_examples: int
    metrics: dict[str, float]
    tensors_bytes: int
    tensors_sha256: bytes


def _check_own(
    delta: Mapping[str, Tensor], num_examples: int, metrics: Mapping[str, float]
) -> None:
    if not 1 <= num_examples <= MAX_EXAMPLES:
        raise ConfigError(f"num_examples: expected 1 to {MAX_EXAMPLES}, found {num_examples}")
    if not all(abs(value) <= MAX_METRIC for value in metrics.values()) or len(metrics) > METRICS:
        raise ConfigError(f"metrics: expected at most {METRICS} finite numbers, found {metrics}")
    for name, tensor in delta.items():
        if not bool(tensor.isfinite().all()):
            raise ConfigError(f"tuning diverged: {name} holds NaN or infinity; lower learning_rate")


def _context(plan_digest: bytes, client_id: str) -> bytes:
    name = check_client_id(client_id).encode("ascii")
    return b"".join((_MAGIC, plan_digest, bytes([len(name)]), name))


def _check_clear_part(data: bytes, terms: UpdateTerms) -> bytes:
    expected = _context(terms.plan_digest, terms.client_id)
    found = data[: len(expected)]
    if found == expected:
        return expected
    if found[: len(_MAGIC)] != _MAGIC or len(found) < len(expected):
        _refuse(terms.client_id, "not a sealed update")
    end = len(_MAGIC) + _DIGEST_BYTES
    digest = found[len(_MAGIC) : end]
    if digest != terms.plan_digest:
        _refuse(
            terms.client_id,
            f"expected an update for plan {terms.plan_digest.hex()[:16]}, found one for plan "
            f"{digest.hex()[:16]}: it belongs to another round or attempt",
        )
    _refuse(terms.client_id, "it was made by another client")


def _split(plaintext: bytes, client_id: str) -> tuple[bytes, bytes]:
    end = _LENGTH_BYTES + int.from_bytes(plaintext[:_LENGTH_BYTES], "big")
    if not _LENGTH_BYTES < end <= min(len(plaintext), 2 * HEADER_BYTES):
        _refuse(client_id, "its signed header is cut or too long")
    return plaintext[_LENGTH_BYTES:end], plaintext[end:]


def _read_header(payload: bytes, terms: UpdateTerms) -> _Header:
    what = f"update of {terms.client_id}: its signed header"
    fields = Fields(parse_json(payload, what, HEADER_BYTES), what)
    client_id, plan = fields.text("client_id", _TEXT_CHARS), fields.sha256("plan_sha256")
    if client_id != terms.client_id:
        _refuse(terms.client_id, f"its signed header names client {client_id!r}")
    if plan != terms.plan_digest:
        _refuse(terms.client_id, f"its signed header names plan {plan.hex()[:16]}")
    header = _Header(
        num_examples=fields.integer("num_examples", 1, terms.max_examples),
        metrics=_metrics(fields.object("metrics", METRICS), what),
        tensors_bytes=fields.integer("tensors_bytes", 0, ROUND_MESSAGE_BYTES),
        tensors_sha256=fields.sha256("tensors_sha256"),
    )
    fields.close()
    return header


def _metrics(values: JsonObject, what: str) -> dict[str, float]:
    for name in values:
        check_text(name, f"{what}: metric", METRIC_NAME_CHARS)
    fields = Fields(values, f"{what}: metrics")
    return {name: fields.number(name, -MAX_METRIC, MAX_METRIC) for name in values}


def _check_digest(tensors: bytes, header: _Header, client_id: str) -> None:
    if len(tensors) != header.tensors_bytes:
        _refuse(client_id, f"expected {header.tensors_bytes} bytes of tensors, got {len(tensors)}")
    if hashlib.sha256(tensors).digest() != header.tensors_sha256:
        raise IntegrityError(f"update of {client_id}: the tensors are not those that were signed")


def _read_tensors(data: bytes, terms: UpdateTerms) -> dict[str, Tensor]:
    try:
        delta = tensors_from_bytes(data, terms.schema)
        for name, tensor in delta.items():
            if tensor.numel() and float(tensor.abs().max()) > MAX_CHANGE:
                raise PeerError(f"tensor {name}: changes by more than {MAX_CHANGE:g}")
        return delta
    except PeerError as error:
        raise type(error)(f"update of {terms.client_id}: {error}") from error


def _refuse(client_id: str, reason: str) -> NoReturn:
    raise PeerError(f"update of {client_id}: {reason}")
