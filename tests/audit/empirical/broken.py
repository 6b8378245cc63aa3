"""DP-SGD from interchangeable parts, and the five ways to break it that the audit must find."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from offsite.audit.empirical.mechanism import Doubles, Mechanism, MechanismFactory, Problem, Terms
from offsite.secure.privacy.randomness.gaussian import noise_into
from offsite.secure.privacy.randomness.poisson import PoissonSampler
from offsite.secure.privacy.randomness.uniform import UniformStream

Entropy = Callable[[int], bytes]


def clipped_sum(gradients: Doubles, clip_norm: float) -> Doubles:
    norms = np.linalg.norm(gradients, axis=1)
    return np.asarray(np.minimum(1.0, clip_norm / np.maximum(norms, clip_norm)) @ gradients)


def plain_sum(gradients: Doubles, clip_norm: float) -> Doubles:
    """Clipping off."""
    return np.asarray(gradients.sum(axis=0))


def clipped_batch(gradients: Doubles, clip_norm: float) -> Doubles:
    """The batch is clipped, not the example."""
    total = gradients.sum(axis=0)
    return np.asarray(total * min(1.0, clip_norm / max(float(np.linalg.norm(total)), 1e-30)))


@dataclass(frozen=True)
class Parts:
    """What can be exchanged in a step."""

    total: Callable[[Doubles, float], Doubles] = clipped_sum
    noise_share: float = 1.0
    same_noise_each_step: bool = False
    same_noise_each_run: bool = False

    def factory(self, seed: int) -> MechanismFactory:
        entropy = random.Random(seed).randbytes
        fixed = entropy(32)

        def start(terms: Terms, problem: Problem) -> Mechanism:
            first = fixed if self.same_noise_each_run else entropy(32)
            return Run(self, terms, random.Random(first).randbytes, entropy)

        return start


@dataclass
class Run:
    """One run of DP-SGD of such parts."""

    parts: Parts
    terms: Terms
    noise_entropy: Entropy
    sampling_entropy: Entropy
    step_key: bytes = b""

    def release(self, problem: Problem) -> Doubles:
        sampler = PoissonSampler(problem.units, self.terms.sampling)
        drawn = sampler.draw(UniformStream(self.sampling_entropy(32)))
        total = np.zeros(problem.values)
        if len(drawn):
            total += self.parts.total(problem.gradients(drawn), self.terms.clip_norm)
        return total + self._noise(problem.values)

    def _noise(self, values: int) -> Doubles:
        if not self.step_key or not self.parts.same_noise_each_step:
            self.step_key = self.noise_entropy(32)
        noise = np.zeros(values)
        scale = self.parts.noise_share * self.terms.noise_multiplier * self.terms.clip_norm
        if scale > 0:
            noise_into(noise, scale, UniformStream(self.step_key))
        return noise


RIGHT = Parts()
BROKEN = {
    "no noise": replace(RIGHT, noise_share=0.0),
    "half the noise": replace(RIGHT, noise_share=0.5),
    "clipping off": replace(RIGHT, total=plain_sum),
    "clips the batch": replace(RIGHT, total=clipped_batch),
    "a seed repeated in every step": replace(RIGHT, same_noise_each_step=True),
    "a seed repeated in every run": replace(RIGHT, same_noise_each_run=True),
}

TERMS = Terms(noise_multiplier=2.0, sampling=Fraction(1, 4), steps=16)
