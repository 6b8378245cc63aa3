"""What is tried: every combination of the `[search]` settings, as an `[emulator]` section each.

Two sections that build the same emulator have the same key, whatever they say of things that do not
matter to their method; the key is what names a measurement in the database.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import EmulatorSection
from offsite.emulator.adapters.adapter import AdapterKind
from offsite.emulator.methods.method import MethodName
from offsite.emulator.packing.packing import Packing
from offsite.emulator.settings import Plain, render_line
from offsite.emulator.strict_json import canonical_json

KEEP_EVERY_BLOCK = frozenset(
    {MethodName.WIDTH_PRUNE, MethodName.ACTIVATION_SVD, MethodName.GRADIENT}
)
"""Methods whose compressed blocks can be tuned by LoRA too."""


def candidates(config: CoordinatorConfig) -> tuple[EmulatorSection, ...]:
    """In the order in which they are measured, each emulator once."""
    tried = config.search
    found: dict[str, EmulatorSection] = {}
    for ratio, method, placement, packing in product(
        tried.ratios, tried.methods, tried.placements, tried.packings
    ):
        section = replace(
            config.emulator,
            method=method,
            ratio=ratio,
            bottom=placement.bottom,
            top=placement.top,
            spread=placement.spread,
            middle_lora=placement.middle_lora,
            packing=packing,
            variants=(),
        )
        if _can_be(section, config.adapter.kind):
            found.setdefault(key_of(section), section)
    return tuple(found.values())


def bound_of(section: EmulatorSection) -> EmulatorSection:
    """The full model with its adapter in the same slots: what ratio 1 keeps is everything."""
    return replace(
        section,
        method=MethodName.UNIFORM_DROP,
        ratio=1.0,
        packing=Packing.NONE,
        distil_steps=0,
        variants=(),
    )


def settings_of(section: EmulatorSection) -> Mapping[str, Plain]:
    """The keys of `[emulator]` that make the emulator what it is."""
    settings: dict[str, Plain] = {
        "method": section.method.value,
        "ratio": section.ratio,
        "bottom": section.bottom,
        "top": section.top,
        "spread": section.spread,
        "middle_lora": section.middle_lora,
        "packing": section.packing.value,
        "distil_steps": section.distil_steps,
    }
    if section.method is MethodName.GRADIENT:
        settings["gradient_lambda"] = section.gradient_lambda
    if section.method is MethodName.HARMONISE:
        settings["harmoniser_rank"] = section.harmoniser_rank
    if section.distil_steps:
        settings["distil_tokens_per_step"] = section.distil_tokens_per_step
    return settings


def key_of(section: EmulatorSection) -> str:
    """Canonical JSON of `settings_of`."""
    return canonical_json(dict(settings_of(section))).decode()


def label_of(section: EmulatorSection) -> str:
    """A few characters for a table: method, ratio, bottom+top, and what else is not the rule."""
    slots = f"{section.bottom}+{section.top}" + (f"+{section.spread}s" if section.spread else "")
    extras = [
        "middle" if section.middle_lora else "",
        section.packing.value if section.packing is not Packing.NONE else "",
        f"distilled {section.distil_steps}" if section.distil_steps else "",
    ]
    return " ".join(filter(None, (section.method.value, f"{section.ratio:g}", slots, *extras)))


def snippet_of(section: EmulatorSection) -> str:
    """What to write into `coordinator.toml` to get this emulator."""
    lines = (render_line(key, value) for key, value in settings_of(section).items())
    return "\n".join(("[emulator]", *lines))


def _can_be(section: EmulatorSection, kind: AdapterKind) -> bool:
    """LoRA on compressed blocks needs a LoRA, and every block to be there."""
    if not section.middle_lora:
        return True
    return kind is AdapterKind.LORA and section.method in KEEP_EVERY_BLOCK
