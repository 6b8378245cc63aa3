"""The two adapters: tuned as an edge tunes, without privacy and with it."""

from collections.abc import Mapping
from fractions import Fraction
from itertools import chain

import torch

from benchmarks.attack.scene import Scale, Scene
from offsite.edge_client.privacy.private_tuning import PrivateRun, tune_privately
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import Callbacks, tune
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.progress import Report
from offsite.emulator.rounds.plan import ComputeDtype, TuningSettings
from offsite.secure.privacy.calibration import noise_for
from offsite.secure.privacy.logical_batch import StepTerms
from offsite.secure.privacy.mechanisms import PoissonGaussian
from offsite.secure.privacy.units import Unit

MICRO_BATCH_TOKENS = 640
BY_HEART_RATE, PRIVATE_RATE = 1e-3, 2e-4
CLIP_NORM = 1.0

Tensors = dict[str, torch.Tensor]


class Unclaimed:
    """Stands for a ledger that allows every step."""

    name = b"benchmark"

    def claim(self, steps: int, parent: Mapping[str, torch.Tensor]) -> int:
        return steps

    def commit(self, steps: int, result: Mapping[str, torch.Tensor]) -> None:
        pass


def by_heart(scene: Scene, scale: Scale, report: Report) -> Tensors:
    """Overfitted on purpose."""
    examples = list(chain.from_iterable(scene.units.of_unit))
    task = Task(_settings(scale, BY_HEART_RATE))
    with plugged_in(scene.model, scene.adapter, scene.before) as model:
        parameters = scene.adapter.trainable(model)
        outcome = tune(
            model, parameters, scene.before, examples, task, callbacks=Callbacks(progress=report)
        )
    return _after(scene, outcome.delta)


def private(scene: Scene, scale: Scale, noise: float, report: Report) -> Tensors:
    """By as many private steps, with so much noise."""
    units = scene.units
    mechanism = PoissonGaussian(noise, _sampling(scale, units.count), scale.steps, Unit.RECORD)
    with plugged_in(scene.model, scene.adapter, scene.before) as model:
        run = PrivateRun(
            PerExampleEngine,
            model,
            scene.adapter.trainable(model),
            scene.before,
            units,
            Task(_settings(scale, PRIVATE_RATE)),
            scale.steps,
            StepTerms.of(mechanism, units.count, CLIP_NORM),
        )
        outcome = tune_privately(run, Unclaimed(), callbacks=Callbacks(progress=report))
    return _after(scene, outcome.delta)


def noise_of(scene: Scene, scale: Scale, epsilon: float, delta: float) -> float:
    """The least noise with which all steps cost at most epsilon."""
    sampling = _sampling(scale, scene.units.count)
    return noise_for(epsilon, delta, sampling, scale.steps, Unit.RECORD)


def _sampling(scale: Scale, units: int) -> Fraction:
    return Fraction(scale.batch, units)


def _settings(scale: Scale, rate: float) -> TuningSettings:
    return TuningSettings(
        learning_rate=rate,
        local_steps=scale.steps,
        batch_examples=scale.batch,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        validation_share=0.0,
        dtype=ComputeDtype.FLOAT32,
    )


def _after(scene: Scene, delta: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: value + delta[name] for name, value in scene.before.items()}
