"""The adapter as plain `peft` loads it: `PeftModel.from_pretrained(base, folder)`.

A LoRA is exported exactly, with both factors, whichever of them trained. Whole blocks are exported in their low-rank form; what that loses is
measured on the owner's gate and written into the folder. Every layer may have a rank of its own
(`rank_pattern`), and alpha equals the rank, so the factors are added as they are.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from offsite.coordinator.export.low_rank import (
    Factors,
    LowRank,
    LowRankOptions,
    kept_share,
    low_rank_form,
)
from offsite.coordinator.export.tuned import Tuned, describe, new_folder
from offsite.coordinator.gate import Gate
from offsite.emulator.adapters.adapter import AdapterKind
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.schema import tensors_to_bytes
from offsite.secure.errors import ConfigError

KEY_PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class PeftExport:
    """What was written, and how much of the gain it holds."""

    sha256: str
    """Of the weights file."""
    largest_rank: int
    kept_energy: float
    kept_share: float | None
    """Of the gain on the gate; None without a gate or without a gain. 1 for a LoRA."""
    gate: Mapping[str, float] | None
    """`acc` of the full model, the plug-in and the low-rank form."""
    dropped: tuple[str, ...]


def export_peft(
    destination: Path,
    tuned: Tuned,
    options: LowRankOptions | None = None,
    gate: Gate | None = None,
) -> PeftExport:
    """Write `adapter_config.json` and `adapter_model.safetensors` into a new folder.

    Args:
        options: for whole blocks; a LoRA has its rank.
        gate: measures the kept share of the gain, for whole blocks.

    Raises:
        ConfigError: the adapter does not differ from the full model.
    """
    with new_folder(destination) as folder:
        if tuned.adapter.spec.kind is AdapterKind.LORA:
            return _export_lora(folder, tuned)
        form = low_rank_form(tuned.model, tuned.adapter, tuned.tensors, options or LowRankOptions())
        if not form.factors:
            raise ConfigError("the adapter is untouched: there is no change to export")
        return _export_low_rank(folder, tuned, form, gate)


def _export_lora(folder: Path, tuned: Tuned) -> PeftExport:
    adapter = tuned.adapter
    assert isinstance(adapter, LoraAdapter)  # of this kind
    factors = adapter.peft_tensors(tuned.model, tuned.tensors)
    tensors = {KEY_PREFIX + path: values for path, values in factors.items()}
    sha256 = _write(folder, tuned, adapter.peft_config(tuned.model), tensors)
    describe(folder, tuned, "LoRA adapter for peft", {"kept_share_of_gain": 1.0})
    return PeftExport(sha256, adapter.spec.rank, 1.0, 1.0, None, ())


def _export_low_rank(folder: Path, tuned: Tuned, form: LowRank, gate: Gate | None) -> PeftExport:
    tensors = {}
    for factors in form.factors.values():
        tensors[f"{KEY_PREFIX}{factors.path}.lora_A.weight"] = factors.a
        tensors[f"{KEY_PREFIX}{factors.path}.lora_B.weight"] = factors.b
    sha256 = _write(folder, tuned, _config(tuned, list(form.factors.values())), tensors)
    scores = None if gate is None else _scores(gate, tuned, form)
    exported = PeftExport(
        sha256=sha256,
        largest_rank=max(factors.rank for factors in form.factors.values()),
        kept_energy=form.kept_energy,
        kept_share=None if scores is None else kept_share(*scores.values()),
        gate=scores,
        dropped=form.dropped,
    )
    details = {
        "kept_share_of_gain": exported.kept_share,
        "kept_share_of_squared_change": exported.kept_energy,
        "largest_rank": exported.largest_rank,
        "gate_acc": exported.gate,
        "dropped_tensors": list(exported.dropped),
    }
    describe(folder, tuned, "Low-rank form of tuned blocks, for peft", details)
    return exported


def _config(tuned: Tuned, factors: list[Factors]) -> LoraConfig:
    first = tuned.model.get_submodule(factors[0].path)
    ranks = {factor.path: factor.rank for factor in factors}
    largest = max(ranks.values())
    smaller = {path: rank for path, rank in ranks.items() if rank != largest}
    return LoraConfig(
        r=largest,
        lora_alpha=largest,
        rank_pattern=smaller,
        alpha_pattern=dict(smaller),
        target_modules=list(ranks),
        fan_in_fan_out=isinstance(first, Conv1D),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _write(folder: Path, tuned: Tuned, config: LoraConfig, tensors: Mapping[str, Tensor]) -> str:
    config.base_model_name_or_path = tuned.base_name
    config.inference_mode = True
    config.save_pretrained(str(folder))
    data = tensors_to_bytes(tensors)
    (folder / WEIGHTS).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _scores(gate: Gate, tuned: Tuned, form: LowRank) -> dict[str, float]:
    """In the order of `kept_share`'s arguments."""
    return {
        "full": gate.baseline().acc,
        "plug_in": gate.score(tuned.tensors).acc,
        "low_rank": gate.score(form.tensors).acc,
    }
