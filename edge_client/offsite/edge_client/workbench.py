"""What stays warm between the rounds of a release: the emulator and the encoded examples.

Notable: loading a model and encoding the data can take longer than a round, so each is done once
for the settings in use (dtype, longest example) and kept. One model is held at a time.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from offsite.edge_client.data import Data, DataReport
from offsite.edge_client.tokens import encode
from offsite.emulator.adapters.adapter import Adapter, make_adapter
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.progress import Report
from offsite.emulator.rounds.plan import ComputeDtype
from offsite.emulator.training.tokens import Encoding, Example, digest

_DTYPES = {ComputeDtype.BFLOAT16: torch.bfloat16, ComputeDtype.FLOAT32: torch.float32}


@dataclass(frozen=True, slots=True)
class Examples:
    """The data owner's examples, their digest, and what became of the rows."""

    examples: tuple[Example, ...]
    sha256: str
    report: DataReport
    rows: tuple[int, ...]
    """For each example, the place of its row in the data."""


class Warm:
    """What of a release stays in memory, loaded when first asked for: tokenizer, one emulator.

    The clients of a simulation share one; whoever tunes sets the adapter's values first.
    """

    def __init__(self, bundle: Bundle, device: torch.device, status: Callable[[str], None]) -> None:
        self.bundle, self.device, self.status = bundle, device, status
        self.adapter = make_adapter(bundle.manifest.adapter, bundle.manifest.layer_map)
        self._model: tuple[ComputeDtype, PreTrainedModel] | None = None
        self._tokenizer: PreTrainedTokenizerFast | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the emulator is in memory."""
        return self._model is not None

    def model(self, dtype: ComputeDtype) -> PreTrainedModel:
        """The emulator with the adapter attached."""
        if self._model is None or self._model[0] is not dtype:
            self._model = None  # free the other one first
            self._model = dtype, self._load(dtype)
        model = self._model[1]
        self.adapter.attach(model)  # whoever looked at other values in it took the adapter off
        return model

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The release's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = self.bundle.tokenizer()
        return self._tokenizer

    def _load(self, dtype: ComputeDtype) -> PreTrainedModel:
        self.status("loading the emulator")
        model = self.bundle.load_emulator(_DTYPES[dtype]).to(self.device)
        assert isinstance(model, PreTrainedModel)
        return model


class Workbench:
    """The emulator of a verified bundle and the owner's data, made ready on demand."""

    def __init__(
        self,
        bundle: Bundle,
        data: Data,
        device: torch.device,
        status: Callable[[str], None],
        progress: Report,
        warm: Warm | None = None,
    ) -> None:
        """`warm`: shared with others of this process; None: an own one."""
        self.bundle, self.data, self.device = bundle, data, device
        self.status, self.progress = status, progress
        self.warm = warm or Warm(bundle, device, status)
        self._examples: tuple[int, Examples] | None = None

    @property
    def adapter(self) -> Adapter:
        """The adapter of the release, without values."""
        return self.warm.adapter

    @property
    def is_warm(self) -> bool:
        """Whether the emulator is in memory."""
        return self.warm.is_loaded

    def model(
        self, dtype: ComputeDtype, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[PreTrainedModel, dict[str, nn.Parameter]]:
        """Return the emulator with an adapter in it, and the adapter's parameters.

        Raises:
            PeerError: the adapter does not fit, or is not finite.
        """
        model = self.warm.model(dtype)
        self.adapter.load(model, tensors)
        return model, self.adapter.trainable(model)

    def examples(self, max_tokens: int) -> Examples:
        """Return the examples, none longer than ``max_tokens``.

        Raises:
            ConfigError: no row is usable with this model.
        """
        if self._examples is None or self._examples[0] != max_tokens:
            self._examples = max_tokens, self._encode(max_tokens)
        return self._examples[1]

    def encoding(self, max_tokens: int) -> Encoding:
        """How rows become examples of at most ``max_tokens``, or as many as the model takes."""
        model_type = str(self.bundle.config.get("model_type", ""))
        return Encoding.for_model(model_type, min(max_tokens, self._positions()))

    def _positions(self) -> int:
        """The most tokens that the model's configuration admits."""
        limits = [self.bundle.config.get(key) for key in ("max_position_embeddings", "n_positions")]
        return min((limit for limit in limits if isinstance(limit, int)), default=sys.maxsize)

    def _encode(self, max_tokens: int) -> Examples:
        self.status("encoding the data")
        encoding = self.encoding(max_tokens)
        encoded = encode(self.data, self.warm.tokenizer(), encoding, self.progress)
        return Examples(encoded.examples, digest(encoded.examples), encoded.report, encoded.rows)
