"""How long a private step takes here, tried with the data's own rows; nothing of it is kept."""

import time
from collections.abc import Callable

import torch

from offsite.edge_client.data import Data
from offsite.edge_client.privacy.unit_examples import UnitExamples
from offsite.edge_client.workbench import Workbench
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.privacy.backends.backend import flat_size
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.privacy.proof.dropout import without_dropout
from offsite.emulator.progress import silent
from offsite.emulator.rounds.plan import TuningSettings


def seconds_of_a_step(
    bundle: Bundle, data: Data, settings: TuningSettings, tell: Callable[[str], None]
) -> float:
    """Gradients of one batch of the first units, after one to warm up; seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as a round chooses
    workbench = Workbench(bundle, data, device, tell, silent)
    examples = workbench.examples(settings.max_tokens)
    units = UnitExamples.of(data, examples.examples, examples.rows)
    model, parameters = workbench.model(settings.dtype, bundle.load_adapter())
    total = torch.zeros(flat_size(parameters), device=device)
    seconds = 0.0
    with without_dropout(model), PerExampleEngine(model, parameters) as engine:
        for _ in range(2):
            started = time.monotonic()
            drawn = range(min(settings.batch_examples, units.count))
            for part in units.batches(drawn, settings.micro_batch_tokens):
                rows = part.batch.to(device), part.unit_of_row.to(device)
                float(engine.clipped_sum_into(*rows, settings.unit_clip, total).sum())
            seconds = time.monotonic() - started
    return seconds
