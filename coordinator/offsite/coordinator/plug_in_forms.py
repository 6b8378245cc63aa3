"""A tuned LoRA as it goes into the full model: as it came, or corrected.

Only LoRA on compressed blocks (`emulator.middle_lora`) can be corrected: what was tuned beside an
emulator's weight belongs beside another one in the full model, and the owner holds both
(`offsite.emulator.correction`). Whether it helps is found on the gate, each round; without a gate
`auto` leaves the adapter as it came.

Rule: what is evaluated and exported is the form in which the gate judged the round, whatever the
setting says by then; the setting decides only what no gate has judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from offsite.coordinator.config_release import Correction
from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.correction import corrected


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """An adapter's tensors for the full model."""

    is_corrected: bool
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Corrector:
    """Both models of an adapter on compressed blocks, and what the settings say."""

    setting: Correction
    adapter: LoraAdapter
    base_model: nn.Module
    emulator_model: nn.Module

    def forms(self, tensors: Mapping[str, Tensor]) -> tuple[Form, ...]:
        """What a gate has to choose from."""
        plain = (Form(False, tensors),) if self.setting is not Correction.ON else ()
        better = (self.corrected(tensors),) if self.setting is not Correction.OFF else ()
        return (*plain, *better)

    def corrected(self, tensors: Mapping[str, Tensor]) -> Form:
        made = corrected(tensors, self.adapter, self.base_model, self.emulator_model)
        return Form(True, made)


def corrector_of(
    setting: Correction, adapter: Adapter, base_model: nn.Module, emulator_model: nn.Module
) -> Corrector | None:
    """None where nothing is to be corrected."""
    if not isinstance(adapter, LoraAdapter) or not can_be_corrected(adapter):
        return None
    return Corrector(setting, adapter, base_model, emulator_model)


def can_be_corrected(adapter: Adapter) -> bool:
    """Whether it is a LoRA that reaches into compressed blocks."""
    slots = adapter.layer_map.slots
    return isinstance(adapter, LoraAdapter) and any(slot.is_middle for slot in slots)


def forms_of(corrector: Corrector | None, tensors: Mapping[str, Tensor]) -> tuple[Form, ...]:
    """The forms; without a corrector the tensors as they came."""
    return (Form(False, tensors),) if corrector is None else corrector.forms(tensors)
