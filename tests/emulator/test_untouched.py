"""The first values of an adapter, and the model afterwards."""

import pytest
import torch
from tests.emulator.conftest import MakeModel

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.adapters.untouched import untouched
from offsite.emulator.adapters.whole_block import WholeBlockAdapter
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName


@pytest.mark.parametrize("kind", AdapterKind)
def test_the_model_is_plain_again_whatever_happens(
    kind: AdapterKind, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_model("llama", torch.float32)
    emulator = build_emulator(base, Placement(1, 1), MethodName.UNIFORM_DROP, 0.5)
    adapter = make_adapter(AdapterSpec(kind), emulator.layer_map)
    before = list(emulator.model.state_dict())
    assert set(untouched(adapter, emulator.model)) == set(adapter.specs(emulator.model))
    for broken in (LoraAdapter, WholeBlockAdapter):
        monkeypatch.setattr(broken, "extract", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        untouched(adapter, emulator.model)
    assert list(emulator.model.state_dict()) == before
    assert not any(parameter.requires_grad for parameter in emulator.model.parameters())
