"""From the full model to an emulator: compressed and distilled, not packed yet.

Notable: whoever measures it packs it (`measuring.Yardstick.pack`), for what is verbatim is counted
before that. The full model gives up its middle while it is compressed (`Keep.NOTHING`) where nobody
needs it afterwards. It has to stay for distillation, whose teacher it is; for scoring the plug-in
of an adapter that was tuned on `leak.task`; and for variants and searches, which build again.
"""

from enum import Enum

from transformers import PreTrainedModel

from offsite.coordinator.config_release import EmulatorSection
from offsite.coordinator.measuring_inputs import MeasuringInputs, needs_calibration, options_of
from offsite.emulator.build import Emulator, build_emulator
from offsite.emulator.distil import DistilRecipe, distil
from offsite.emulator.layer_map import Placement
from offsite.emulator.progress import Progress
from offsite.secure.errors import ConfigError


class Keep(Enum):
    """What happens to the full model's middle."""

    EVERYTHING = "everything"
    NOTHING = "nothing"


def build(
    section: EmulatorSection,
    base_model: PreTrainedModel,
    inputs: MeasuringInputs,
    seed: int,
    progress: Progress,
    keep: Keep = Keep.EVERYTHING,
) -> Emulator:
    """The emulator that a section describes, before it is packed.

    Raises:
        ConfigError: this model cannot be made into such an emulator.
    """
    with progress(f"compressing the middle ({section.method.value} {section.ratio:g})") as report:
        emulator = build_emulator(
            base_model,
            placement_of(section),
            section.method,
            section.ratio,
            inputs.calibration if needs_calibration(section) else (),
            report,
            options=options_of(section),
            consume=keep is Keep.NOTHING,
        )
    if section.distil_steps:
        _distil(section, base_model, emulator, inputs, seed, progress)
    return emulator


def placement_of(section: EmulatorSection) -> Placement:
    """Where its slots are."""
    return Placement(section.bottom, section.top, section.spread, section.middle_lora)


def _distil(
    section: EmulatorSection,
    base_model: PreTrainedModel,
    emulator: Emulator,
    inputs: MeasuringInputs,
    seed: int,
    progress: Progress,
) -> None:
    if not inputs.text.learnt:
        raise ConfigError("leak.text: distillation learns from public text; name a file of it")
    recipe = DistilRecipe(
        steps=section.distil_steps, tokens_per_step=section.distil_tokens_per_step, seed=seed
    )
    with progress("distilling the emulator") as report:
        distil(base_model, emulator, inputs.text.learnt, recipe, report)
