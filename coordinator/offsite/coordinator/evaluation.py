"""The table that says whether it was worth it, on questions that served no other purpose.

    full zero-shot       the owner's model, untouched
    emulator zero-shot   what the data owners were sent
    emulator tuned       what they could use for themselves; it should stay behind the plug-in
    plug-in              the full model with the tuned adapter

The four are scored on the same questions, so differences are paired: their standard error is that
of the mean difference per question, which is much smaller than that of two accuracies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum

from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.progress import Report, silent
from offsite.emulator.questions import Question
from offsite.emulator.scoring import (
    Accuracy,
    ChoiceScores,
    PairedDifference,
    paired_difference,
    score_choices,
    summarise,
)

GATE_CAPTION = (
    "these questions are the gate, which chose the round: expect a little less on new ones"
)


class Questions(Enum):
    """What the questions were used for before."""

    UNSEEN = "unseen"
    GATE = "gate"


ROWS = ("full_zero_shot", "emulator_zero_shot", "emulator_tuned", "plug_in")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracies by row, and what the plug-in gains (`acc`, paired)."""

    rows: Mapping[str, Accuracy]
    over_full: PairedDifference
    over_emulator_tuned: PairedDifference

    def to_json(self) -> dict[str, object]:
        """A dict of plain JSON values."""
        return {
            **{name: asdict(accuracy) for name, accuracy in self.rows.items()},
            "plug_in_minus_full": asdict(self.over_full),
            "plug_in_minus_emulator_tuned": asdict(self.over_emulator_tuned),
        }

    def to_table(self, asked: Questions = Questions.UNSEEN) -> Table:
        """For a terminal."""
        questions = self.over_full.questions
        caption = self._caption() + (f"; {GATE_CAPTION}" if asked is Questions.GATE else "")
        table = Table(title=f"{questions} questions", caption=caption)
        table.add_column("model")
        table.add_column("acc", justify="right")
        table.add_column("acc_norm", justify="right")
        for name, found in self.rows.items():
            table.add_row(
                name.replace("_", " "),
                f"{found.acc:.4f} ± {found.acc_stderr:.4f}",
                f"{found.acc_norm:.4f} ± {found.acc_norm_stderr:.4f}",
            )
        return table

    def _caption(self) -> str:
        return (
            f"plug-in minus full {_signed(self.over_full)}, "
            f"minus tuned emulator {_signed(self.over_emulator_tuned)} (paired, acc)"
        )


def evaluate(
    full: PreTrainedModel,
    emulator: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    questions: Sequence[Question],
    *,
    in_full: Mapping[str, Tensor] | None = None,
    batch_tokens: int,
    report: Report = silent,
) -> Evaluation:
    """Score the four rows; both models are left as they were.

    Args:
        emulator: as released, with the initial adapter in it.
        tensors: the tuned adapter.
        in_full: its form for the full model, where that is another one (`plug_in_forms`).
        batch_tokens: bounds the memory of one forward pass (`scoring.score_choices`).
        report: called with the questions done and their total, over all four rows.
    """
    total = len(ROWS) * len(questions)

    def score(model: PreTrainedModel, row: int) -> list[ChoiceScores]:
        before = row * len(questions)
        return score_choices(
            model,
            tokenizer,
            questions,
            batch_tokens=batch_tokens,
            report=lambda done, _: report(before + done, total),
        )

    found = [score(full, 0), score(emulator, 1)]
    with plugged_in(emulator, adapter, tensors):
        found.append(score(emulator, 2))
    with plugged_in(full, adapter, tensors if in_full is None else in_full):
        found.append(score(full, 3))
    rows = {name: summarise(scores) for name, scores in zip(ROWS, found, strict=True)}
    plug_in = found[-1]
    return Evaluation(
        rows, paired_difference(found[0], plug_in), paired_difference(found[2], plug_in)
    )


def _signed(difference: PairedDifference) -> str:
    return f"{difference.mean:+.4f} ± {difference.stderr:.4f}"
