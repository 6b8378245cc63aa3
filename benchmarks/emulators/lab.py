"""What all rows share in one process, made when it is first needed: model, texts, questions."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from examples.inputs.wheels import MODEL
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from benchmarks.emulators.ledger import Ledger
from benchmarks.emulators.questions import OWNER_TEXT, THIEF_TEXT, TaskFiles, asked
from benchmarks.emulators.scores import MAX_TOKENS, Asked, Score, score
from benchmarks.emulators.settings import Settings
from offsite.emulator.base_model import fingerprint, load_base_model, load_tokenizer
from offsite.emulator.calibration import calibration_batches
from offsite.emulator.leak.heal import HealRecipe
from offsite.emulator.questions import read_questions
from offsite.emulator.training.tokens import Encoding, Example, question_examples
from offsite.emulator.verbatim import Fingerprints, fingerprint_weights

RECORDS = "records.jsonl"


@dataclass(frozen=True)
class Lab:
    """Inputs, results and settings of a benchmark."""

    inputs: Path
    out: Path
    settings: Settings
    tasks: tuple[str, ...]
    seeds: int

    @cached_property
    def ledger(self) -> Ledger:
        """The records of all processes."""
        return Ledger(self.out / RECORDS)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The full model, in the dtype in which it is stored."""
        disable_progress_bar()  # type: ignore[no-untyped-call]
        return load_base_model(self.inputs / MODEL)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the full model."""
        return load_tokenizer(self.inputs / MODEL)

    @cached_property
    def fingerprint(self) -> str:
        """Of the full model; records begin with it."""
        return fingerprint(self.model)

    @cached_property
    def fingerprints(self) -> dict[str, Fingerprints]:
        """Of every row and column of the full model's weights."""
        return fingerprint_weights(self.model)

    @cached_property
    def calibration(self) -> tuple[torch.Tensor, ...]:
        """Public text that the owner builds with."""
        return self._text(OWNER_TEXT, 4, 512, self.settings.calibration_tokens)

    def distillation(self, steps: int) -> tuple[torch.Tensor, ...]:
        """Public text of the owner, as much as so many steps see."""
        settings = self.settings
        tokens = steps * settings.distil_tokens
        return self._text(OWNER_TEXT, 4, settings.distil_row_tokens, tokens)

    @cached_property
    def healing(self) -> tuple[torch.Tensor, ...]:
        """Public text of the thief, none of it the owner's."""
        settings = self.settings
        tokens = settings.heal_steps * settings.heal_tokens
        return self._text(THIEF_TEXT, 4, settings.heal_row_tokens, tokens)

    @property
    def attack(self) -> HealRecipe:
        """What the thief does with it."""
        settings = self.settings
        return HealRecipe(
            steps=settings.heal_steps,
            tokens_per_step=settings.heal_tokens,
            rank=settings.heal_rank,
            learning_rate=settings.heal_rate,
            micro_batch_tokens=settings.heal_tokens,
        )

    def _text(self, name: str, rows: int, width: int, tokens: int) -> tuple[torch.Tensor, ...]:
        return calibration_batches(
            [self.inputs / name],
            self.tokenizer,
            total_tokens=tokens,
            row_tokens=width,
            batch_rows=rows,
        )

    @lru_cache(maxsize=4)  # noqa: B019 - a lab lives as long as its process
    def training(self, task: str) -> tuple[Example, ...]:
        """What the data owners tune on."""
        questions = read_questions(TaskFiles.of(self.inputs, task).train)
        return tuple(question_examples(questions, self.tokenizer, Encoding(MAX_TOKENS)))

    @lru_cache(maxsize=16)  # noqa: B019
    def test(self, task: str, seed: int) -> Asked:
        """The test questions of a seed."""
        file, count = TaskFiles.of(self.inputs, task).test, self.settings.test_questions
        questions = asked(file, seed, count)
        return Asked.of(questions, self.tokenizer, self.settings.text_questions)

    @lru_cache(maxsize=4)  # noqa: B019
    def choosing(self, task: str) -> Asked:
        """The questions that learning rates are chosen on, the same for all rows."""
        file, count = TaskFiles.of(self.inputs, task).choose, self.settings.choosing_questions
        return Asked.of(asked(file, 0, count), self.tokenizer, 1)

    def score(self, model: PreTrainedModel, questions: Asked) -> Score:
        """A model on questions."""
        return score(model, self.tokenizer, questions, self.settings.scoring_tokens)
