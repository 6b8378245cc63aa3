"""The owner's full model with what belongs to it."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.measuring_inputs import ROW_TOKENS, MeasuringInputs, read_inputs
from offsite.emulator.base_model import (
    fingerprint,
    load_base_model,
    load_tokenizer,
    read_base_config,
)


@dataclass(frozen=True, slots=True, eq=False)
class OwnersModel:
    """The full model, frozen; its fingerprint is that of the stored weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @classmethod
    def load(cls, folder: Path) -> "OwnersModel":
        model = load_base_model(folder)
        return cls(model, load_tokenizer(folder), fingerprint(model))


def read_owners_inputs(config: CoordinatorConfig) -> MeasuringInputs:
    """What the settings name beside the model; before its weights, which may take minutes to load.

    Raises:
        ConfigError: as `read_inputs`; or the model has no config or tokenizer.
    """
    folder = config.model.path
    model = read_base_config(folder)
    positions = getattr(model, "max_position_embeddings", None) or ROW_TOKENS[0]
    return read_inputs(config, load_tokenizer(folder), str(model.model_type), int(positions))
