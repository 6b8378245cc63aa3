"""The adapter in the full model, for as long as it is looked at (see also `adapters.plugged`)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.coordinator.gate import GateScore
from offsite.coordinator.plug_in_forms import Corrector, Form, forms_of
from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.blocks import slot_blocks
from offsite.emulator.progress import Progress, unseen
from offsite.emulator.questions import Question
from offsite.emulator.scoring import score_questions


@contextmanager
def merged_in(
    model: PreTrainedModel, adapter: Adapter, tensors: Mapping[str, Tensor]
) -> Iterator[PreTrainedModel]:
    """The full model with the adapter in its own weights, as plain as before; then restored.

    For a LoRA this is the merged form, for whole blocks the same as `plugged_in`.

    Raises:
        PeerError: naming the tensor that does not fit; the model is unchanged.
    """
    blocks = slot_blocks(model, adapter.layer_map).values()
    parameters = [p for _, block in blocks for p in block.parameters()]
    originals = [parameter.detach().clone() for parameter in parameters]
    adapter.plug_in(model, tensors)
    try:
        yield model
    finally:
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.detach().copy_(original)


@dataclass(frozen=True, slots=True)
class ModelGate:
    """A `Gate` that scores the full model on questions, as lm-evaluation-harness does.

    A question with a score that is not finite, or whose scores are all equal, counts as wrong
    (`scoring`): an adapter that breaks the model cannot pass on what is left of it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: Adapter
    questions: Sequence[Question]
    batch_tokens: int
    progress: Progress = unseen
    corrector: Corrector | None = None

    def baseline(self) -> GateScore:
        return self._score("scoring the full model on the gate")

    def score(self, adapter: Mapping[str, Tensor]) -> GateScore:
        """The better of the forms that it may take; of equal ones that which came."""
        found = [self._score_form(form) for form in forms_of(self.corrector, adapter)]
        return max(found, key=lambda score: score.acc)

    def _score_form(self, form: Form) -> GateScore:
        what = "corrected plug-in" if form.is_corrected else "plug-in"
        with plugged_in(self.model, self.adapter, form.tensors):
            score = self._score(f"scoring the {what} on the gate")
        return replace(score, is_corrected=form.is_corrected)

    def _score(self, label: str) -> GateScore:
        with self.progress(label) as report:
            found = score_questions(
                self.model,
                self.tokenizer,
                self.questions,
                batch_tokens=self.batch_tokens,
                report=report,
            )
        return GateScore(found.acc, found.acc_stderr)
