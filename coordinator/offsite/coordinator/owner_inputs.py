"""The full model, the gate and the adapter, as the settings name them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.plug_in import ModelGate, Progress, unseen
from offsite.emulator.adapters.adapter import Adapter, make_adapter
from offsite.emulator.base_model import fingerprint, load_base_model, load_tokenizer
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.questions import Question, read_questions
from offsite.emulator.rounds.plan import ComputeDtype
from offsite.secure.errors import ConfigError

DTYPES = {ComputeDtype.BFLOAT16: torch.bfloat16, ComputeDtype.FLOAT32: torch.float32}


def load_model(config: CoordinatorConfig, bundle: Bundle) -> PreTrainedModel:
    """The full model in the configured dtype; raises as `load_stored_model`."""
    model = load_stored_model(config, bundle)
    nn.Module.to(model, DTYPES[config.model.dtype])
    return model


def load_stored_model(config: CoordinatorConfig, bundle: Bundle) -> PreTrainedModel:
    """The full model in the dtype it is stored in, without a rounding.

    Raises:
        ConfigError: it is not the model that the release was made of.
    """
    model = load_base_model(config.model.path)
    expected = bundle.manifest.facts.base_fingerprint
    if (found := fingerprint(model)) != expected:
        raise ConfigError(
            f"{config.model.path}: expected the model that the release was made of "
            f"({expected[:16]}), found another one ({found[:16]}); set model.path or run "
            "`coordinator emulate` again"
        )
    return model


def adapter_of(bundle: Bundle) -> Adapter:
    """The adapter of a release, without values."""
    return make_adapter(bundle.manifest.adapter, bundle.manifest.layer_map)


def gate_of(
    config: CoordinatorConfig,
    bundle: Bundle,
    model: PreTrainedModel,
    progress: Progress = unseen,
) -> ModelGate | None:
    """The gate, whose every scoring shows its progress; None where no questions are configured."""
    if config.gate.questions is None:
        return None
    return ModelGate(
        model=model,
        tokenizer=load_tokenizer(config.model.path),
        adapter=adapter_of(bundle),
        questions=load_questions(config.gate.questions, config.gate.limit),
        batch_tokens=config.gate.batch_tokens,
        progress=progress,
    )


def load_questions(path: Path, limit: int) -> Sequence[Question]:
    """The first `limit` questions of a file, all for 0.

    Raises:
        ConfigError: it is missing or malformed; names line and reason.
    """
    try:
        questions = read_questions(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return questions[:limit] if limit else questions
