"""A crowd in a real model: canaries are examples, and the training step's own engine clips them.

An attacker who sees every release also knows the parameters of every step, so it computes each
canary's clipped gradient there (by batch of one, whatever engine is audited) and looks for it in
the release. Gradients of examples resemble one another, so what it reads is the least-squares fit
of the release by all of them, which takes the others' shares out:

    x = (G Gᵀ + r I)⁻¹ G release       G [K, P] the canaries' clipped gradients, r a small ridge

That costs power: examples are weaker canaries than gradients of one's own choice. What counts here
is that everything from the example to the release is the product's.

Axes: ``K`` canaries, ``P`` values of all parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from offsite.audit.empirical.mechanism import Doubles, Problem, Terms
from offsite.audit.empirical.product import Clipping, clip_rows
from offsite.audit.empirical.scores import alternating_sign
from offsite.emulator.privacy.backends.backend import Backend, flat_size
from offsite.emulator.privacy.backends.one_by_one import OneByOne
from offsite.emulator.training.batches import micro_batches
from offsite.emulator.training.tokens import Example
from offsite.secure.errors import ConfigError
from offsite.secure.privacy.logical_batch import Norms
from offsite.secure.privacy.randomness.gaussian import Values
from offsite.secure.privacy.randomness.poisson import Units

RIDGE: Final = 1e-3
"""Of the mean squared norm of a canary."""
_NO_CLIP: Final = 1e30


class ModelProblem:
    """A model in training. Canaries that are in come first among the units, then the others.

    Args:
        canaries: one example each, in or out.
        others: what else is trained on.
        learning_rate: of plain SGD on the mean of a release.
    """

    def __init__(
        self,
        terms: Terms,
        included: NDArray[np.bool_],
        model: PreTrainedModel,
        parameters: Mapping[str, nn.Parameter],
        canaries: Sequence[Example],
        others: Sequence[Example],
        learning_rate: float,
    ) -> None:
        if len(canaries) != len(included):
            raise ConfigError(
                f"audit: expected an example for each of {len(included)} canaries, found "
                f"{len(canaries)}"
            )
        self.values = flat_size(parameters)
        self._canaries = canaries
        self._examples = [canaries[i] for i in np.flatnonzero(included).tolist()]
        self._examples += others
        self.units = len(self._examples)
        self._clip_norm = terms.clip_norm
        self._model, self._parameters = model, parameters
        self._rate = learning_rate / (float(terms.sampling) * max(1, self.units))
        self._step = 0

    def examples(self, units: Units) -> list[Example]:
        return [self._examples[unit] for unit in units]

    def gradients(self, units: Units) -> Doubles:
        return self._gradients(self.examples(units), _NO_CLIP)

    def advance(self, release: Doubles) -> None:
        change, start = torch.from_numpy(self._rate * release), 0
        with torch.no_grad():
            for parameter in self._parameters.values():
                part = change[start : start + parameter.numel()]
                parameter.sub_(part.view_as(parameter).to(parameter))
                start += parameter.numel()
        self._step += 1

    def along_canaries(self, release: Doubles) -> Doubles:
        gradients = self._gradients(self._canaries, self._clip_norm)
        products = gradients @ gradients.T
        ridge = RIDGE * float(np.trace(products)) / len(products)
        fitted = products + ridge * np.eye(len(products))
        found = np.asarray(np.linalg.solve(fitted, gradients @ release), np.float64)
        # An example's gradient has the sign that it has; the scores take away one that alternates.
        return alternating_sign(self._step) * found

    def _gradients(self, examples: Sequence[Example], clip_norm: float) -> Doubles:
        """[U, P]: sums of one example each."""
        rows = torch.zeros(len(examples), self.values)
        unit = torch.zeros(1, dtype=torch.int64)
        with OneByOne(self._model, self._parameters) as backend:
            for row, example in zip(rows, examples, strict=True):
                (batch,) = micro_batches([example], 1)
                backend.clipped_sum_into(batch, unit, clip_norm, row)
        return np.asarray(rows.numpy(), np.float64)


def engine_clipping(backend: Backend, micro_batch_tokens: int) -> Clipping:
    """Clipping by an engine of the product, on micro-batches as the training loop makes them.

    Problems without examples, the duels, have their rows clipped. The backend is in the model for a
    step alone: the audit's own gradients between steps are plain autograd's.
    """

    def clip(problem: Problem, units: Units, clip_norm: float, total: Values) -> Norms:
        if not isinstance(problem, ModelProblem):
            return clip_rows(problem, units, clip_norm, total)
        lengths = np.array([len(example.ids) for example in problem.examples(units)])
        order = np.argsort(-lengths, kind="stable")
        flat = torch.from_numpy(total)
        batches = micro_batches(problem.examples(units[order]), micro_batch_tokens)
        with backend:
            norms = [
                backend.clipped_sum_into(batch, torch.arange(len(batch.ids)), clip_norm, flat)
                for batch in batches
            ]
        found = np.empty(len(units), np.float32)
        found[order] = torch.cat(norms).numpy()
        return found

    return clip
