"""How near an emulator is to its full model, and how much of it is shipped: the fidelity report.

    sizes        parameters and bytes, tied and shared ones once
    verbatim     parameters shipped as they are, but for packing (`verbatim`)
    hidden       distance of the hidden states by depth, on a few rows of public text
    perplexity   on public text
    accuracy     zero-shot, on the owner's questions

Notable: the full model is measured first and for itself, so it need not be in memory together with
the emulator. `BaseFacts` holds what the comparison needs: fingerprints in the place of weights, and
the states of `HIDDEN_TOKENS` tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.emulator.blocks import find_blocks, parameter_count
from offsite.emulator.build import Emulator
from offsite.emulator.exam import Exam
from offsite.emulator.figures import accuracy_json, rounded
from offsite.emulator.hidden_states import read_states, relative_error
from offsite.emulator.layer_map import LayerMap, first_positions
from offsite.emulator.perplexity import Perplexity, perplexity_json
from offsite.emulator.progress import Progress, unseen
from offsite.emulator.questions import Question
from offsite.emulator.scoring import Accuracy, ChoiceScores, summarise
from offsite.emulator.strict_json import JsonObject, JsonValue
from offsite.emulator.verbatim import (
    Fingerprints,
    Verbatim,
    fingerprint_weights,
    measure_verbatim,
)
from offsite.emulator.weights import named_weights
from offsite.secure.errors import ConfigError

HIDDEN_TOKENS = 1024
"""Tokens whose hidden states are compared."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters and bytes of a model's weights, tied and shared ones once."""

    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class BaseFacts:
    """What is known of the full model when it is gone."""

    sizes: Sizes
    block_parameters: tuple[int, ...]
    fingerprints: dict[str, Fingerprints]
    hidden: tuple[torch.Tensor, ...]
    """States [B, T, H] at every depth, on the CPU; empty without text."""
    perplexity: Perplexity | None
    scores: tuple[ChoiceScores, ...]
    """Of every question, zero-shot."""

    @property
    def accuracy(self) -> Accuracy | None:
        """Zero-shot, None without questions."""
        return summarise(self.scores) if self.scores else None


@dataclass(frozen=True, slots=True)
class DepthError:
    """Relative error of the states that enter a block of the full model, by its index."""

    block: int
    error: float


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The report; ``scores`` are the emulator's, zero-shot, on the questions of the base facts."""

    base: Sizes
    emulator: Sizes
    shipped_bytes: int
    verbatim: Verbatim
    hidden_error: tuple[DepthError, ...]
    base_perplexity: Perplexity | None
    perplexity: Perplexity | None
    base_accuracy: Accuracy | None
    scores: tuple[ChoiceScores, ...]

    @property
    def accuracy(self) -> Accuracy | None:
        """The emulator's, zero-shot; None without questions."""
        return summarise(self.scores) if self.scores else None

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values; what was not measured is null."""
        errors: list[JsonValue] = [
            {"block": found.block, "error": rounded(found.error)} for found in self.hidden_error
        ]
        return {
            **_sizes_json(self.base, self.emulator),
            "base_bytes": self.base.bytes,
            "shipped_bytes": self.shipped_bytes,
            "verbatim": self.verbatim.to_json(),
            "hidden_error": errors,
            "base_perplexity": perplexity_json(self.base_perplexity),
            "emulator_perplexity": perplexity_json(self.perplexity),
            "base_accuracy": accuracy_json(self.base_accuracy),
            "emulator_accuracy": accuracy_json(self.accuracy),
        }


def measure_base(
    base_model: PreTrainedModel,
    text: Sequence[torch.Tensor],
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int,
    progress: Progress = unseen,
) -> BaseFacts:
    """Measure the full model.

    Args:
        text: token batches (B, T) of public text; none leaves hidden states and perplexity out.
        questions: none leaves accuracies out.
        batch_tokens: bounds the tokens of one forward pass.
    """
    exam = Exam(text, questions, tokenizer, batch_tokens, progress)
    blocks = find_blocks(base_model).modules
    return BaseFacts(
        sizes_of(base_model),
        tuple(parameter_count(block) for block in blocks),
        fingerprint_weights(base_model),
        read_states(base_model, _hidden_rows(text)) if text else (),
        exam.perplexity(base_model, "the full model"),
        exam.scores(base_model, "the full model"),
    )


def measure_fidelity(
    base: BaseFacts,
    emulator: Emulator,
    text: Sequence[torch.Tensor],
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int,
    *,
    shipped_bytes: int | None = None,
    verbatim: Verbatim | None = None,
    progress: Progress = unseen,
) -> Fidelity:
    """Measure an emulator, without anything attached, on what the full model was measured on.

    Args:
        shipped_bytes: what the weights take once packed; as they are in memory if not given.
        verbatim: of the emulator before it was packed (`verbatim_of`); as it is if not given.

    Raises:
        ConfigError: text or questions are not those of the base facts.
    """
    if len(questions) != len(base.scores) or bool(text) != bool(base.hidden):
        raise ConfigError(
            "expected the text and the questions on which the full model was measured, found others"
        )
    exam = Exam(text, questions, tokenizer, batch_tokens, progress)
    model, sizes = emulator.model, sizes_of(emulator.model)
    return Fidelity(
        base=base.sizes,
        emulator=sizes,
        shipped_bytes=sizes.bytes if shipped_bytes is None else shipped_bytes,
        verbatim=verbatim_of(base, emulator) if verbatim is None else verbatim,
        hidden_error=_hidden_errors(base, emulator, text),
        base_perplexity=base.perplexity,
        perplexity=exam.perplexity(model, "the emulator"),
        base_accuracy=base.accuracy,
        scores=exam.scores(model, "the emulator"),
    )


def sizes_of(model: PreTrainedModel) -> Sizes:
    """Count a model's weights."""
    weights = named_weights(model).values()
    return Sizes(
        sum(tensor.numel() for tensor in weights), sum(tensor.nbytes for tensor in weights)
    )


def _sizes_json(base: Sizes, emulator: Sizes) -> dict[str, int | float]:
    return {
        "base_parameters": base.parameters,
        "emulator_parameters": emulator.parameters,
        "share_of_parameters": round(emulator.parameters / base.parameters, 4),
    }


def _hidden_rows(text: Sequence[torch.Tensor]) -> torch.Tensor:
    """The first rows (B, T) of equal length, `HIDDEN_TOKENS` in all, but at least one."""
    width = text[0].shape[1]
    equal = takewhile(lambda batch: batch.shape[1] == width, text)
    return torch.cat([*equal])[: max(1, HIDDEN_TOKENS // width)]


def verbatim_of(base: BaseFacts, emulator: Emulator) -> Verbatim:
    """What of the emulator is the full model's; to be asked before it is packed."""
    return measure_verbatim(
        emulator.model,
        emulator.layer_map,
        base.fingerprints,
        base.block_parameters,
        base.sizes.parameters,
    )


def _hidden_errors(
    base: BaseFacts, emulator: Emulator, text: Sequence[torch.Tensor]
) -> tuple[DepthError, ...]:
    """By depth in the full model; a repeated block has no depth of its own there."""
    if not text:
        return ()
    found = read_states(emulator.model, _hidden_rows(text))
    return tuple(
        DepthError(block, relative_error(found[position], base.hidden[block]))
        for position, block in _depths(emulator.layer_map)
    )


def _depths(layer_map: LayerMap) -> list[tuple[int, int]]:
    """Pairs of depths, in the emulator and in the full model, that stand for each other."""
    firsts = first_positions(layer_map.kept)
    pairs = [(i, layer_map.kept[i]) for i, first in enumerate(firsts) if i == first]
    return [*pairs, (len(layer_map.kept), layer_map.base_blocks)]
