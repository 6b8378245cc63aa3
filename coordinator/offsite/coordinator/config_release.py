"""The settings that shape a release: `[emulator]`, `[adapter]`, `[leak]` and `[search]`.

Rule: a budget that could not be judged, because its measurement is not asked for, is refused here
and not after hours of building.
"""

import enum
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from offsite.coordinator.config_problems import Problems
from offsite.emulator.adapters.adapter import MAX_ALPHA, MAX_RANK, AdapterKind, TrainedFactors
from offsite.emulator.bundle.manifest import MAIN, MAX_VARIANTS, VARIANT_NAMES, is_variant_name
from offsite.emulator.methods.method import MethodName
from offsite.emulator.packing.packing import Packing

MAX_RELEASE_DAYS = 3650
MAX_STEPS = 10**7
MAX_TOKENS = 2**31
MIN_STEP_TOKENS = 32
"""A step sees whole rows, of which the shortest has so many."""
MAX_SHARE = 10.0
"""A tuned emulator can be better than the full model."""

METHODS = ", ".join(name.value for name in MethodName)
PACKINGS = "none, int8 or nf4"


class Correction(enum.Enum):
    """Whether a LoRA on compressed blocks is corrected at plug-in (`emulator.correction`)."""

    AUTO = "auto"
    OFF = "off"
    ON = "on"


@dataclass(frozen=True, slots=True)
class VariantSection:
    """A smaller emulator of the same release, for edges with less memory."""

    name: Annotated[str, f"what edges call it: {VARIANT_NAMES}"]
    method: Annotated[MethodName, f"one of {METHODS}"]
    ratio: Annotated[float, "share of the middle's parameters kept, in (0, 1]"]
    packing: Annotated[Packing, f"how the middle is stored: {PACKINGS}"] = Packing.NONE

    def __post_init__(self) -> None:
        problems = Problems()
        problems.unless(
            is_variant_name(self.name),
            f"name: expected {VARIANT_NAMES}, found {self.name[:80]!a}",
        )
        problems.no_ratio("ratio", self.ratio)
        problems.report()


@dataclass(frozen=True, slots=True)
class EmulatorSection:
    """How the emulator is built from the model."""

    method: Annotated[MethodName, f"one of {METHODS}"] = MethodName.WIDTH_PRUNE
    ratio: Annotated[float, "share of the middle's parameters kept, in (0, 1]"] = 0.62
    bottom: Annotated[int, "adapter slots at the bottom, in blocks"] = 2
    top: Annotated[int, "adapter slots at the top, in blocks"] = 2
    spread: Annotated[int, "adapter slots at even distances between them, in blocks"] = 0
    middle_lora: Annotated[
        bool, "LoRA on the attention of the compressed blocks too (adapter.kind lora)"
    ] = False
    gradient_lambda: Annotated[
        float, "gradient: what lowering the emulator's own skill counts against its gradients"
    ] = 0.0
    harmoniser_rank: Annotated[int, "harmonise: rank of the map in the place of dropped blocks"] = (
        32
    )
    packing: Annotated[Packing, f"how the middle is stored and shipped: {PACKINGS}"] = Packing.NONE
    distil_steps: Annotated[
        int, "steps of distillation on leak.text; it raises what a thief keeps too (0: none)"
    ] = 0
    distil_tokens_per_step: Annotated[int, "tokens that each of them sees"] = 4096
    calibration: Annotated[
        Path | None, "public text for calibration (.txt or .jsonl, may be .gz)"
    ] = None
    calibration_tokens: Annotated[int, "tokens read from it"] = 16_384
    release_days: Annotated[int, "days until the release expires"] = 90
    variants: Annotated[
        tuple[VariantSection, ...], "Smaller emulators for edges with less memory, a table for each"
    ] = ()

    def __post_init__(self) -> None:
        found = Problems()
        found.no_ratio("ratio", self.ratio)
        found.no_placement(self.bottom, self.top, self.spread)
        found.unless(
            0 <= self.gradient_lambda < math.inf,
            f"gradient_lambda: expected 0 or more, found {self.gradient_lambda}",
        )
        found.outside("harmoniser_rank", self.harmoniser_rank, 1, MAX_RANK)
        found.outside("distil_steps", self.distil_steps, 0, MAX_STEPS)
        found.outside(
            "distil_tokens_per_step", self.distil_tokens_per_step, MIN_STEP_TOKENS, MAX_TOKENS
        )
        found.outside("calibration_tokens", self.calibration_tokens, 1, MAX_TOKENS)
        found.outside("release_days", self.release_days, 1, MAX_RELEASE_DAYS)
        names = [variant.name for variant in self.variants]
        found.outside("variants", len(names), 0, MAX_VARIANTS)
        found.unless(len(set(names)) == len(names), "variants: expected every name once")
        found.report()


def sections_of(section: EmulatorSection) -> dict[str, EmulatorSection]:
    """The main emulator and its variants by name, each as a section of its own."""
    variants = {variant.name: _variant(section, variant) for variant in section.variants}
    return {MAIN: section, **variants}


def _variant(section: EmulatorSection, variant: VariantSection) -> EmulatorSection:
    return replace(
        section,
        method=variant.method,
        ratio=variant.ratio,
        packing=variant.packing,
        variants=(),
    )


@dataclass(frozen=True, slots=True)
class AdapterSection:
    """What data owners tune."""

    kind: Annotated[AdapterKind, "whole_block or lora"] = AdapterKind.WHOLE_BLOCK
    rank: Annotated[int, "rank of LoRA"] = 16
    alpha: Annotated[int, "scale of LoRA (alpha / rank multiplies its output)"] = 32
    trains: Annotated[
        TrainedFactors,
        "of LoRA's product B·A: b (A stays as drawn, so that sums are exact and noise is not "
        "multiplied) or ab (averages of A and B are biased)",
    ] = TrainedFactors.B
    correction: Annotated[
        Correction,
        "emulator.middle_lora: correct the LoRA for what compression changed, at plug-in: on, off, "
        "or auto (the gate takes the better)",
    ] = Correction.AUTO

    def __post_init__(self) -> None:
        problems = Problems()
        problems.outside("rank", self.rank, 1, MAX_RANK)
        problems.outside("alpha", self.alpha, 1, MAX_ALPHA)
        problems.report()


@dataclass(frozen=True, slots=True)
class LeakSection:
    """What a thief of the emulator could do, measured before it is signed, and how much may be."""

    text: Annotated[
        Path | None, "public text for healing and perplexity (empty: emulator.calibration)"
    ] = None
    text_tokens: Annotated[int, "tokens of it on which perplexity is measured"] = 16_384
    task: Annotated[
        Path | None, "public questions like the task, JSONL, to tune on (empty: not measured)"
    ] = None
    questions: Annotated[int, "use only so many questions of the gate (0: all)"] = 500
    tune_steps: Annotated[int, "steps of tuning on leak.task, each as [tuning] says"] = 200
    heal_steps: Annotated[int, "steps of healing, the attack with public text (0: none)"] = 100
    heal_tokens_per_step: Annotated[int, "tokens that each of them sees"] = 2048
    heal_rank: Annotated[int, "rank of the LoRA that heals"] = 32
    heal_learning_rate: Annotated[float, "of healing"] = 1e-3
    max_zero_shot: Annotated[
        float | None, "budget: share of the full model's skill in the emulator (empty: any)"
    ] = None
    max_tuned: Annotated[float | None, "budget: the same after tuning on leak.task"] = None
    max_healed: Annotated[float | None, "budget: the same after healing"] = None
    max_kept: Annotated[
        float | None, "budget: what one keeps who never returns the adapter, of the plug-in's skill"
    ] = None
    max_verbatim: Annotated[
        float | None, "budget: share of the full model's weights shipped as they are, packed or not"
    ] = None

    def __post_init__(self) -> None:
        found = Problems()
        found.outside("text_tokens", self.text_tokens, 1, MAX_TOKENS)
        found.unless(self.questions >= 0, f"questions: expected 0 or more, found {self.questions}")
        found.outside("tune_steps", self.tune_steps, 1, MAX_STEPS)
        found.outside("heal_steps", self.heal_steps, 0, MAX_STEPS)
        found.outside(
            "heal_tokens_per_step", self.heal_tokens_per_step, MIN_STEP_TOKENS, MAX_TOKENS
        )
        found.outside("heal_rank", self.heal_rank, 1, MAX_RANK)
        found.unless(
            0 < self.heal_learning_rate <= 1,
            f"heal_learning_rate: expected above 0 and up to 1, found {self.heal_learning_rate}",
        )
        for name in ("max_zero_shot", "max_tuned", "max_healed", "max_kept", "max_verbatim"):
            if (limit := getattr(self, name)) is not None:
                found.outside(name, limit, 0, MAX_SHARE)
        for name in ("max_tuned", "max_kept"):
            found.unless(
                getattr(self, name) is None or self.task is not None,
                f"{name}: cannot be judged without leak.task; name the file or take the limit out",
            )
        found.unless(
            self.max_healed is None or self.heal_steps > 0,
            "max_healed: cannot be judged with heal_steps 0; set both or neither",
        )
        found.report()


@dataclass(frozen=True, slots=True)
class PlacementSection:
    """Where the adapter sits, as `[emulator]` says it."""

    bottom: Annotated[int, "as emulator.bottom"]
    top: Annotated[int, "as emulator.top"]
    spread: Annotated[int, "as emulator.spread"] = 0
    middle_lora: Annotated[bool, "as emulator.middle_lora"] = False

    def __post_init__(self) -> None:
        problems = Problems()
        problems.no_placement(self.bottom, self.top, self.spread)
        problems.report()


@dataclass(frozen=True, slots=True)
class SearchSection:
    """What `emulate --auto` tries; the leak it may have is the budget of [leak]."""

    methods: Annotated[tuple[MethodName, ...], f"any of {METHODS}"] = (
        MethodName.UNIFORM_DROP,
        MethodName.WIDTH_PRUNE,
        MethodName.ACTIVATION_SVD,
        MethodName.GRADIENT,
        MethodName.HARMONISE,
    )
    ratios: Annotated[tuple[float, ...], "shares of the middle's parameters kept"] = (
        0.3,
        0.45,
        0.6,
    )
    packings: Annotated[tuple[Packing, ...], f"any of {PACKINGS}"] = (Packing.NONE, Packing.NF4)
    max_bundle_bytes: Annotated[int, "bytes of weights that a release may ship (0: any)"] = 0
    compute_s: Annotated[float, "seconds of measuring, earlier runs of this search included"] = (
        3600.0
    )
    try_again: Annotated[bool, "measure again what failed or ended the program before"] = False
    placements: Annotated[tuple[PlacementSection, ...], "Placements to try, a table for each"] = (
        PlacementSection(2, 2),
        PlacementSection(0, 4),
    )

    def __post_init__(self) -> None:
        found = Problems()
        for name in ("methods", "ratios", "packings", "placements"):
            tried = getattr(self, name)
            found.unless(len(tried) > 0, f"{name}: expected at least one")
            found.unless(len(set(tried)) == len(tried), f"{name}: expected each of them once")
        for ratio in self.ratios:
            found.no_ratio("ratios", ratio)
        found.unless(
            self.max_bundle_bytes >= 0,
            f"max_bundle_bytes: expected 0 or more, found {self.max_bundle_bytes}",
        )
        found.not_positive("compute_s", self.compute_s)
        found.report()
