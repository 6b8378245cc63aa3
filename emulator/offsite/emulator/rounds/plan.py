"""The plan of one round: what an edge is asked to do, signed by the coordinator.

The plan names the campaign, the round and the attempt, the release and the adapter by digest, how
to tune and until when. The terms of the secure sum that an update goes into name the plan's digest,
so an update answers one attempt of one round of one campaign and no other.

JSON, exact: an unknown or missing key, a wrong type, a number that is not finite or out of range
is refused. The digest is that of the signed bytes, which are never re-serialised.
"""

import dataclasses
import enum
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from offsite.secure import envelope as envelopes
from offsite.secure.envelope import Envelope
from offsite.secure.errors import ConfigError, ExpiredError, PeerError
from offsite.secure.identity import IdentityKey, IdentityPublicKey
from offsite.secure.limits import MANIFEST_BYTES

PLAN_TYPE = "application/vnd.offsite.round-plan+json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST = 2**63 - 1
MAX_PROXIMAL_MU = 1e6


class ComputeDtype(enum.StrEnum):
    """What the frozen weights are held and multiplied in; what trains is fp32."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """How every edge tunes the adapter in a round."""

    learning_rate: Annotated[float, "peak learning rate of AdamW"] = 1e-4
    weight_decay: Annotated[float, "decoupled weight decay of AdamW"] = 0.0
    local_steps: Annotated[int, "optimiser steps per round; 0: by local_epochs"] = 0
    local_epochs: Annotated[float, "passes over the local data per round"] = 1.0
    batch_examples: Annotated[int, "examples per optimiser step"] = 16
    micro_batch_tokens: Annotated[int, "tokens per forward pass; gradients accumulate"] = 2048
    max_tokens: Annotated[int, "longest example in tokens; longer ones are cut"] = 512
    warmup_share: Annotated[float, "share of the campaign's steps with a rising rate"] = 0.05
    grad_clip: Annotated[float, "largest norm of a step's gradient; 0: not clipped"] = 1.0
    unit_clip: Annotated[float, "largest norm of one unit's gradient on a private edge"] = 1.0
    gradient_checkpointing: Annotated[bool, "recompute activations to save memory"] = False
    validation_share: Annotated[float, "share of the local data held out for early stop"] = 0.05
    patience: Annotated[int, "validations without a gain before a round stops; 0: never"] = 0
    dtype: Annotated[ComputeDtype, "bfloat16 or float32 for the frozen weights"] = (
        ComputeDtype.BFLOAT16
    )

    def __post_init__(self) -> None:
        _in_range(self, "learning_rate", 0.0, 10.0, open_below=True)
        _in_range(self, "weight_decay", 0.0, 10.0)
        _in_range(self, "local_steps", 0, 10**9)
        _in_range(self, "local_epochs", 0.0, 10_000.0, open_below=True)
        _in_range(self, "batch_examples", 1, 10**6)
        _in_range(self, "micro_batch_tokens", 1, 10**8)
        _in_range(self, "max_tokens", 2, 10**7)
        _in_range(self, "warmup_share", 0.0, 1.0)
        _in_range(self, "grad_clip", 0.0, 10.0**6)
        _in_range(self, "unit_clip", 0.0, 10.0**6, open_below=True)
        _in_range(self, "validation_share", 0.0, 0.5)
        _in_range(self, "patience", 0, 10**6)


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """One attempt of one round. Digests are lower-case hexadecimal SHA-256."""

    campaign_id: int
    round: int
    """1 to `total_rounds`."""
    total_rounds: int
    """The learning rate follows a cosine over all of them."""
    attempt: int
    """1, or more when the round is repeated."""
    bundle_sha256: str
    """Of the release manifest's payload."""
    adapter_sha256: str
    """Of the adapter to start from (`instruction.adapter_digest`)."""
    settings: TuningSettings
    deadline_unix_s: float
    seed: int
    proximal_mu: float = 0.0
    """FedProx: the gradient of mu/2 · |w - w0|² is added in every step; 0 for other strategies."""

    def __post_init__(self) -> None:
        _in_range(self, "campaign_id", 1, _LARGEST)
        _in_range(self, "total_rounds", 1, 10**6)
        _in_range(self, "round", 1, self.total_rounds)
        _in_range(self, "attempt", 1, 10**6)
        _in_range(self, "deadline_unix_s", 0.0, 1e11)
        _in_range(self, "seed", 0, _LARGEST)
        _in_range(self, "proximal_mu", 0.0, MAX_PROXIMAL_MU)
        for name in ("bundle_sha256", "adapter_sha256"):
            if not _SHA256.fullmatch(getattr(self, name)):
                raise ConfigError(f"{name}: expected 64 hexadecimal digits")

    def to_json(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces."""
        plain = _plain(self) | {"settings": _plain(self.settings)}
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "RoundPlan":
        """The plan in `data`.

        Raises:
            PeerError: it is not exactly a plan; names the key.
        """
        values = _read_object(data)
        try:
            values["settings"] = _settings(values.get("settings"))
            _check_keys(cls, values)
            return cls(**values)  # type: ignore[arg-type]
        except ConfigError as error:
            raise PeerError(f"round plan: {error}") from error


@dataclass(frozen=True, slots=True)
class SignedPlan:
    """A plan whose signature and deadline were checked, and its digest, which terms name."""

    plan: RoundPlan
    digest: bytes


def sign_plan(plan: RoundPlan, key: IdentityKey) -> Envelope:
    """The plan under the coordinator's signature."""
    return envelopes.sign(PLAN_TYPE, plan.to_json(), key)


def plan_digest(envelope: Envelope) -> bytes:
    """SHA-256 of the signed bytes, 32 bytes."""
    return hashlib.sha256(envelope.payload).digest()


def open_plan(data: bytes, coordinator_key: IdentityPublicKey, now_unix_s: float) -> SignedPlan:
    """The plan in a serialised envelope, after its signature and deadline were checked.

    Raises:
        SignatureError: the coordinator did not sign it.
        ExpiredError: its deadline has passed.
        PeerError: it is malformed.
    """
    if len(data) > MANIFEST_BYTES:
        raise PeerError(f"round plan: expected at most {MANIFEST_BYTES} bytes, found {len(data)}")
    envelope = envelopes.from_bytes(data)
    plan = RoundPlan.from_json(envelopes.verify(envelope, PLAN_TYPE, coordinator_key))
    if now_unix_s > plan.deadline_unix_s:
        late = now_unix_s - plan.deadline_unix_s
        raise ExpiredError(f"round {plan.round}: the deadline passed {late:.0f} s ago")
    return SignedPlan(plan, plan_digest(envelope))


def _plain(values: RoundPlan | TuningSettings) -> dict[str, object]:
    """The fields by name; a whole number in a float's place is written as a float."""
    hints = typing.get_type_hints(type(values))
    plain = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    return {name: float(v) if hints[name] is float else v for name, v in plain.items()}


def _in_range(
    values: object, name: str, low: float, high: float, *, open_below: bool = False
) -> None:
    value = getattr(values, name)
    inside = low <= value <= high and not (open_below and value == low)  # NaN is nowhere
    if not inside:
        bounds = f"{'more than ' if open_below else ''}{low} to {high}"
        raise ConfigError(f"{name}: expected {bounds}, found {value}")


def _read_object(data: bytes) -> dict[str, object]:
    try:
        values = json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise PeerError(f"round plan: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise PeerError("round plan: expected a JSON object")
    return values


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not a number")


def _settings(value: object) -> TuningSettings:
    if not isinstance(value, Mapping):
        raise ConfigError("settings: expected an object")
    values = dict(value)
    if values.get("dtype") not in tuple(ComputeDtype):
        raise ConfigError(f"dtype: expected bfloat16 or float32, found {values.get('dtype')!r}")
    values["dtype"] = ComputeDtype(values["dtype"])
    _check_keys(TuningSettings, values)
    return TuningSettings(**values)


def _check_keys(cls: type, values: Mapping[str, object]) -> None:
    hints = typing.get_type_hints(cls)
    if missing := sorted(hints.keys() - values.keys()):
        raise ConfigError(f"{missing[0]}: missing")
    if unknown := sorted(values.keys() - hints.keys()):
        raise ConfigError(f"{unknown[0]!r:.80}: unknown key")
    for name, wanted in hints.items():
        if type(values[name]) is not wanted:
            raise ConfigError(f"{name}: expected {wanted.__name__}, found {values[name]!r:.80}")
