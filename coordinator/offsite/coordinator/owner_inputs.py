"""The full model, the gate and the adapter, as the settings name them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from offsite.coordinator.campaign_record import CampaignResult
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import Correction
from offsite.coordinator.plug_in import ModelGate
from offsite.coordinator.plug_in_forms import Corrector, Form, can_be_corrected, corrector_of
from offsite.emulator.adapters.adapter import Adapter, make_adapter
from offsite.emulator.base_model import fingerprint, load_base_model, load_tokenizer
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.progress import Progress, unseen
from offsite.emulator.questions import Question, read_questions
from offsite.emulator.rounds.plan import ComputeDtype
from offsite.emulator.weights import replace_parameters
from offsite.secure.errors import ConfigError

DTYPES = {ComputeDtype.BFLOAT16: torch.bfloat16, ComputeDtype.FLOAT32: torch.float32}


def load_model(config: CoordinatorConfig, bundle: Bundle) -> PreTrainedModel:
    """The full model in the configured dtype; raises as `load_stored_model`."""
    model = load_stored_model(config, bundle)
    dtype = DTYPES[config.model.dtype]
    # Parameters alone: `Module.to` would round the rotary tables too, and the gate would judge
    # another model than the one that emulators are made of.
    replace_parameters(model, lambda _, old: old.detach().to(dtype))
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
    corrector: Corrector | None = None,
) -> ModelGate | None:
    """The gate, whose every scoring shows its progress; None where no questions are configured.

    With a corrector it judges what came off the edges, without one it takes tensors as they are.
    """
    if config.gate.questions is None:
        return None
    return ModelGate(
        model=model,
        tokenizer=load_tokenizer(config.model.path),
        adapter=adapter_of(bundle),
        questions=load_questions(config.gate.questions, config.gate.limit),
        batch_tokens=config.gate.batch_tokens,
        progress=progress,
        corrector=corrector,
    )


def corrector_for(
    config: CoordinatorConfig, bundle: Bundle, model: PreTrainedModel
) -> Corrector | None:
    """For a release whose compressed blocks are tuned; its emulator comes from our own bundle."""
    if not can_be_corrected(adapter_of(bundle)) or config.adapter.correction is Correction.OFF:
        return None
    return _corrector(config, bundle, model)


def final_form(
    config: CoordinatorConfig, bundle: Bundle, model: PreTrainedModel, result: CampaignResult
) -> Form:
    """The result as it goes into the full model: as the gate judged it, else as the settings say."""
    wanted = config.adapter.correction is Correction.ON
    if result.is_corrected is not None:
        wanted = result.is_corrected
    if not wanted or not can_be_corrected(adapter_of(bundle)):
        return Form(False, result.adapter)
    corrector = _corrector(config, bundle, model)
    assert corrector is not None  # `can_be_corrected`
    return corrector.corrected(result.adapter)


def _corrector(
    config: CoordinatorConfig, bundle: Bundle, model: PreTrainedModel
) -> Corrector | None:
    emulator = bundle.load_emulator(model.dtype)  # layers equal in both stay equal
    return corrector_of(config.adapter.correction, adapter_of(bundle), model, emulator)


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
