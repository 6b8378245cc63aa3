"""Tuning on every family of models: the loss is that of the whole model, and it goes down."""

import pytest
import torch
from tests.emulator.conftest import BLOCKS, FAMILIES
from tests.emulator.training.samples import make_examples
from transformers import AutoModelForCausalLM

from offsite.edge_client.task import Task
from offsite.edge_client.tuning import tune
from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.instantiate import attention_implementation
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.training.batches import micro_batches
from offsite.emulator.training.loss import summed_loss

SETTINGS = TuningSettings(
    learning_rate=5e-3, local_steps=8, batch_examples=8, micro_batch_tokens=120
)
EXAMPLES = make_examples(24)


@pytest.mark.parametrize("kind", list(AdapterKind), ids=lambda kind: kind.value)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_tuned(family: str, kind: AdapterKind) -> None:
    torch.manual_seed(7)
    config = FAMILIES[family]()
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention_implementation(config)
    )
    for batch in micro_batches(EXAMPLES[:8], 120):
        model.eval()
        logits = model(input_ids=batch.ids).logits[batch.rows, batch.columns]
        wanted = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        torch.testing.assert_close(summed_loss(model, batch), wanted)
    layer_map = LayerMap.of(Placement(1, 1), BLOCKS, range(1, BLOCKS - 1))
    adapter = make_adapter(AdapterSpec(kind, rank=4, alpha=16), layer_map)
    adapter.attach(model)
    base = adapter.extract(model)
    metrics = tune(model, adapter.trainable(model), base, EXAMPLES, Task(SETTINGS)).metrics
    assert metrics.validation_before is not None and metrics.validation_after is not None
    assert metrics.validation_after < metrics.validation_before
