"""Time in turns, and memory in processes of their own."""

import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.dp.setups import ADAPTERS, Setup, Size, random_batch
from benchmarks.dp.ways import CLIP, NON_PRIVATE, WAYS, Accumulate
from benchmarks.transport.saying import memory_mb
from offsite.emulator.privacy.backends.backend import flat_size
from offsite.emulator.training.batches import MicroBatch
from offsite.secure.privacy.logical_batch import LogicalBatch, StepTerms
from offsite.secure.privacy.randomness.poisson import PoissonSampler
from offsite.secure.privacy.randomness.source import NoiseSource

WARM_UP = 1
BATCHES_OF_A_STEP = 2


@dataclass(frozen=True, slots=True)
class Time:
    """Of one batch, by one way."""

    batch_s: float
    ratio: float
    quartiles: tuple[float, float]
    rounds: int


def times(setup: Setup, size: Size, ways: Sequence[str], deadline_s: float) -> dict[str, Time]:
    """Take turns until the deadline (of `time.monotonic`), three rounds at least."""
    batch, rounds = random_batch(size), list[dict[str, float]]()
    total = torch.zeros(flat_size(setup.parameters))
    while len(rounds) < WARM_UP + 3 or time.monotonic() < deadline_s:
        # Every round begins with another way, so that none is always after the same one.
        shift = len(rounds) % len(ways)
        turns = [*ways[shift:], *ways[:shift]]
        took = {}
        for way in turns:
            with WAYS[way](setup) as accumulate:
                start = time.process_time()
                accumulate(batch, total)
                took[way] = time.process_time() - start
        rounds.append(took)
    return {way: _time(way, rounds[WARM_UP:]) for way in ways}


def _time(way: str, rounds: Sequence[dict[str, float]]) -> Time:
    ratios = [took[way] / took[NON_PRIVATE] for took in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Time(statistics.median(took[way] for took in rounds), middle, (low, high), len(rounds))


@dataclass(frozen=True, slots=True)
class OnceAStep:
    """What a step takes beside the gradients of its batches."""

    noise_s: float
    adamw_s: float


def once_a_step(setup: Setup) -> OnceAStep:
    """The noise of a private step, and the step of the optimiser, which both kinds take."""
    values = flat_size(setup.parameters)
    noise, adamw = [], []
    optimiser = torch.optim.AdamW(setup.parameters.values(), lr=0.0, fused=True)
    for _ in range(3):
        start = time.process_time()
        gradient = _noised(values, 1, lambda total: None)
        noise.append(time.process_time() - start)
        _set_gradients(setup, gradient)
        start = time.process_time()
        optimiser.step()
        adamw.append(time.process_time() - start)
    optimiser.zero_grad()
    return OnceAStep(statistics.median(noise), statistics.median(adamw))


def peak_mb(adapter: str, size: Size, way: str) -> float:
    """The peak of a process of its own above the loaded model; NaN when it failed."""
    context = get_context("fork")  # imports are done; nothing else is
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, adapter, size, way))
    process.start()
    theirs.close()
    try:
        peak = float(ours.recv())
    except EOFError:
        peak = float("nan")
    process.join()
    return peak


def _child(pipe: Connection, adapter: str, size: Size, way: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    setup = ADAPTERS[adapter](size)
    _forget_peak()
    before_mb = memory_mb("VmRSS")
    _two_steps(setup, size, way)
    pipe.send(memory_mb("VmHWM") - before_mb)
    pipe.close()
    os._exit(0)


def _forget_peak() -> None:
    """Making the model took more than the model."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _two_steps(setup: Setup, size: Size, way: str) -> None:
    optimiser = torch.optim.AdamW(setup.parameters.values(), lr=1e-6, fused=True)
    for _ in range(2):
        with WAYS[way](setup) as accumulate:
            _gradients_of_a_step(
                setup, random_batch(size), accumulate, is_private=way != NON_PRIVATE
            )
            optimiser.step()
            optimiser.zero_grad()


def _gradients_of_a_step(
    setup: Setup, batch: MicroBatch, accumulate: Accumulate, *, is_private: bool
) -> None:
    def add(total: torch.Tensor) -> None:
        for _ in range(BATCHES_OF_A_STEP):
            accumulate(batch, total)

    if is_private:
        rows = BATCHES_OF_A_STEP * len(batch.ids)
        _set_gradients(setup, _noised(flat_size(setup.parameters), rows, add))
    else:
        add(torch.zeros(0))


def _noised(values: int, rows: int, add: Callable[[torch.Tensor], object]) -> NDArray[np.float32]:
    """The gradient of a private step, as the product makes it of what `add` adds."""
    terms = StepTerms(PoissonSampler(rows, Fraction(1)), CLIP, 1.0)
    batch = LogicalBatch(terms, values, 1)
    drawn = batch.begin(NoiseSource(os.urandom(32), b"benchmark"))

    def clipped_sum(total: NDArray[np.float32]) -> NDArray[np.float32]:
        add(torch.from_numpy(total))
        return np.zeros(len(drawn), np.float32)

    batch.add(drawn, clipped_sum)
    gradient = np.empty(values, np.float32)
    batch.finish(gradient)
    return gradient


def _set_gradients(setup: Setup, gradient: NDArray[np.float32]) -> None:
    flat, start = torch.from_numpy(gradient), 0
    for parameter in setup.parameters.values():
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
