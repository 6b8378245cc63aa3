"""The attack on an adapter that is about to be returned, on one screen.

    (1) losses of members, held-out rows and planted secrets, with the adapter as it was received
        and as it was tuned: all that an attacker with the base model has to compare
    (2) from the losses: membership inference and exposure
    (3) from these and what the owner allows: the verdict

Notable: (1) needs the model, (2) and (3) nothing but its numbers, so whoever has the evidence can do
them again (`evidence`). The model is the one that the data owner has, the emulator with its slots. The
model's owner has the full one, and what that gains is not measured here.

The numbers are private: what they say about single rows was not paid for with epsilon. They stay
with the data owner, and of the verdict nothing leaves but by its decision.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from offsite.audit.attack.analysis import Attack, Measured, analyse
from offsite.audit.attack.entropy import generator
from offsite.audit.attack.forward import Unit, measure_losses
from offsite.audit.attack.losses import Losses, Pair
from offsite.audit.attack.planted import Planted
from offsite.audit.attack.settings import AttackSettings
from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.progress import Progress, unseen
from offsite.secure.errors import ConfigError

_DOMAIN = b"offsite/attack/rows/1"


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A model, and its adapter as it was received and as it would be returned."""

    model: PreTrainedModel
    adapter: Adapter
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What was tuned on, what was held out, and the secrets among the former."""

    members: Sequence[Unit]
    held_out: Sequence[Unit]
    planted: Sequence[Planted] = ()


def attack_adapter(
    target: Target,
    rows: Rows,
    settings: AttackSettings,
    entropy: bytes,
    *,
    micro_batch_tokens: int = 4096,
    progress: Progress = unseen,
) -> Attack:
    """Attacks an adapter with the rows that it was tuned on; the model is left as it was.

    Args:
        entropy: 32 bytes; which rows calibrate and which are measured follows from them.

    Raises:
        ConfigError: too few rows, or secrets with unlike numbers of candidates.
        PeerError: the adapter does not fit the model.

    Guarantees: an overfitted adapter exceeds a small allowance, an untouched one shows nothing
    beyond chance (`test_an_overfitted_adapter_is_held_back`,
    `test_an_untouched_adapter_shows_nothing_beyond_chance`).
    """
    measured = measure(target, rows, settings, entropy, micro_batch_tokens, progress)
    return analyse(measured, settings, entropy)


def measure(
    target: Target,
    rows: Rows,
    settings: AttackSettings,
    entropy: bytes,
    micro_batch_tokens: int,
    progress: Progress = unseen,
) -> Measured:
    """Step (1)."""
    sizes = {len(secret.candidates) for secret in rows.planted}
    if len(sizes) > 1 or 0 in sizes:
        raise ConfigError("expected as many candidates for every planted secret, and at least one")
    random = generator(_DOMAIN, entropy)
    members, held_out = (
        _some(units, settings.most_rows, random) for units in (rows.members, rows.held_out)
    )
    secrets = [
        (example,) for plant in rows.planted for example in (plant.secret, *plant.candidates)
    ]
    units = [*members, *held_out, *secrets]
    losses = list[Losses]()
    for label, tensors in (("received", target.before), ("tuned", target.after)):
        with (
            plugged_in(target.model, target.adapter, tensors) as model,
            progress(f"losses with the adapter as it was {label}") as report,
        ):
            losses.append(measure_losses(model, units, micro_batch_tokens, report))
    everything, first = Pair(*losses), len(members) + len(held_out)
    size = len(rows.planted[0].candidates) + 1 if rows.planted else 0
    return Measured(
        everything.take(np.arange(len(members))),
        everything.take(np.arange(len(members), first)),
        tuple(
            everything.take(np.arange(start, start + size))
            for start in range(first, len(units), size or 1)
        ),
        adapter_sha256(target.before),
        adapter_sha256(target.after),
    )


def _some(units: Sequence[Unit], most: int, random: np.random.Generator) -> list[Unit]:
    chosen = sorted(random.permutation(len(units))[:most])
    return [units[place] for place in chosen]


def adapter_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of an adapter's names, shapes and fp32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().float().cpu().contiguous().numpy()
        head = f"{name}|{','.join(map(str, values.shape))}".encode()
        digest.update(len(head).to_bytes(4, "big") + head)
        digest.update(values.astype("<f4").tobytes())
    return digest.hexdigest()
