"""A tiny model with its tokenizer, an emulator of it, and what both are put through."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.tiny import SENTENCES, save_llama
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.emulator.base_model import load_base_model, load_tokenizer
from offsite.emulator.build import Emulator, build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.perplexity import measure_perplexity
from offsite.emulator.questions import Question
from offsite.emulator.training.batches import text_batches


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """A random model that was trained a little, so that it knows the sentences."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    text: tuple[torch.Tensor, ...]
    questions: tuple[Question, ...]

    def emulator(self, ratio: float = 0.5, method: MethodName = MethodName.WIDTH_PRUNE) -> Emulator:
        return build_emulator(self.base, Placement(1, 1), method, ratio, self.text[:1])


def perplexity(model: PreTrainedModel, text: Sequence[torch.Tensor]) -> float:
    """On token batches (B, T) of text."""
    return measure_perplexity(model, [b for rows in text for b in text_batches(rows, 0)]).value


def make_setting(folder: Path, *, trained: bool = True) -> Setting:
    save_llama(folder)
    base, tokenizer = load_base_model(folder), load_tokenizer(folder)
    stream = [i for s in SENTENCES * 8 for i in tokenizer.encode(s + " ")]
    rows = torch.tensor(stream[: len(stream) // 24 * 24]).view(-1, 24)
    if trained:
        _learn(base, rows)
    text = (rows[:4], rows[4:8])
    return Setting(base, tokenizer, text, _questions())


def _learn(model: PreTrainedModel, rows: torch.Tensor) -> None:
    model.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(60):
        chosen = rows[torch.arange(8) + step % 3]
        model(input_ids=chosen, labels=chosen).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.requires_grad_(False)
    model.eval()


def _questions() -> tuple[Question, ...]:
    """How each sentence goes on, against how the others do."""
    words = [sentence.split() for sentence in SENTENCES]
    questions = []
    for gold, sentence in enumerate(words):
        for cut in range(2, len(sentence) - 2):
            choices = tuple(" ".join(other[cut : cut + 2] or other[-2:]) for other in words)
            if len(set(choices)) == len(choices):
                questions.append(Question(" ".join(sentence[:cut]), choices, gold))
    return tuple(questions)
