"""The owner's full model with what belongs to it."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.measuring_inputs import ROW_TOKENS, MeasuringInputs, read_inputs
from offsite.emulator.base_model import fingerprint, load_base_model, load_tokenizer


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

    def read_inputs(self, config: CoordinatorConfig) -> MeasuringInputs:
        """What the settings name beside the model."""
        model = self.model.config
        positions = getattr(model, "max_position_embeddings", None) or ROW_TOKENS[0]
        return read_inputs(config, self.tokenizer, str(model.model_type), int(positions))
