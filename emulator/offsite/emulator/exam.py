"""What the full model and its emulators are all put through: the same text, the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.emulator.perplexity import Perplexity, measure_perplexity
from offsite.emulator.progress import Progress, unseen
from offsite.emulator.questions import Question
from offsite.emulator.scoring import ChoiceScores, score_choices
from offsite.emulator.training.batches import text_batches


@dataclass(frozen=True, slots=True, eq=False)
class Exam:
    """Token batches (B, T) of public text and questions; either may be empty.

    ``batch_tokens`` bounds the tokens of one forward pass.
    """

    text: Sequence[torch.Tensor]
    questions: Sequence[Question]
    tokenizer: PreTrainedTokenizerBase
    batch_tokens: int
    progress: Progress = unseen

    def perplexity(self, model: PreTrainedModel, whose: str) -> Perplexity | None:
        """On the text; None without any."""
        if not self.text:
            return None
        batches = [batch for rows in self.text for batch in text_batches(rows, self.batch_tokens)]
        with self.progress(f"perplexity of {whose}") as report:
            return measure_perplexity(model, batches, report)

    def scores(self, model: PreTrainedModel, whose: str) -> tuple[ChoiceScores, ...]:
        """Of every question; none without questions."""
        if not self.questions:
            return ()
        with self.progress(f"scoring {whose}") as report:
            return tuple(
                score_choices(
                    model,
                    self.tokenizer,
                    self.questions,
                    batch_tokens=self.batch_tokens,
                    report=report,
                )
            )
