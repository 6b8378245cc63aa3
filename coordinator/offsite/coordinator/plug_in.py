"""The adapter in the full model, for as long as it is looked at.

Only the slots' own tensors are set aside meanwhile, never a second model. They are kept in fp32,
through which bf16 and fp16 pass unchanged, so the model is bit for bit what it was afterwards.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from offsite.coordinator.gate import GateScore
from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.blocks import slot_blocks
from offsite.emulator.progress import Report, silent
from offsite.emulator.questions import Question
from offsite.emulator.scoring import score_questions

Progress = Callable[[str], AbstractContextManager[Report]]
"""Shows a piece of work under a label for as long as it lasts; `Terminal.progress` is one."""


def unseen(label: str) -> AbstractContextManager[Report]:
    """The progress of work that nobody watches."""
    return nullcontext(silent)


@contextmanager
def plugged_in(
    model: PreTrainedModel, adapter: Adapter, tensors: Mapping[str, Tensor]
) -> Iterator[PreTrainedModel]:
    """The model (full or emulator) with the adapter's values; restored when the block is left.

    Raises:
        PeerError: naming the tensor that does not fit; the model is unchanged.
    """
    adapter.attach(model)
    try:
        originals = adapter.extract(model)
        try:
            adapter.load(model, tensors)
            yield model
        finally:
            adapter.load(model, originals)
    finally:
        adapter.detach(model)


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

    def baseline(self) -> GateScore:
        return self._score("scoring the full model on the gate")

    def score(self, adapter: Mapping[str, Tensor]) -> GateScore:
        with plugged_in(self.model, self.adapter, adapter):
            return self._score("scoring the plug-in on the gate")

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
