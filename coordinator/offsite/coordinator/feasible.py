"""Whether a model can be made into the emulators of a release, before hours go into measuring one.

Notable: a method refuses what it cannot do when it plans, most of it before it looks at any text. So
it is let plan on text that cannot be read: whoever gets as far as that has refused nothing. What a
method finds out on the text, or while it compresses, is not known here.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import overload

import torch
from transformers import PreTrainedModel

from offsite.coordinator.building import placement_of
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import EmulatorSection, sections_of
from offsite.coordinator.measuring_inputs import options_of
from offsite.coordinator.publishing import check_section_travels
from offsite.emulator.blocks import find_blocks
from offsite.emulator.bundle.manifest import MAIN
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.methods.method import make_method
from offsite.emulator.progress import silent
from offsite.secure.errors import ConfigError


class _Read(Exception):
    """The text was asked for."""


class _Unreadable(Sequence[torch.Tensor]):
    """Calibration text that nobody can look at."""

    def __len__(self) -> int:
        return 1

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.Tensor]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        raise _Read


def check_feasible(
    config: CoordinatorConfig,
    sections: Mapping[str, EmulatorSection],
    base_model: PreTrainedModel,
) -> None:
    """That the emulators of a release, by name, can be built and their adapter travels.

    Raises:
        ConfigError: naming every emulator that cannot, and why.
    """
    problems = []
    for name, section in sections.items():
        try:
            with naming(name):
                check_section_travels(config, section, base_model)
                check_plan(section, base_model)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))


def check_variants(
    config: CoordinatorConfig, tried: Sequence[EmulatorSection], base_model: PreTrainedModel
) -> None:
    """That the variants of the file can stand beside one of the emulators that a search tries.

    Raises:
        ConfigError: they cannot stand beside any; says why, of the first.
    """
    errors = []
    for section in {placement_of(section): section for section in tried}.values():
        beside = dataclasses.replace(section, variants=config.emulator.variants)
        variants = {name: s for name, s in sections_of(beside).items() if name != MAIN}
        try:
            check_feasible(config, variants, base_model)
            return
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def check_plan(section: EmulatorSection, base_model: PreTrainedModel) -> None:
    """That the method can do this with this model, as far as it says so without text.

    Raises:
        ConfigError: it cannot.
    """
    count, placement = len(find_blocks(base_model).modules), placement_of(section)
    method = make_method(section.method, options_of(section))
    middle = placement.middle(count)
    try:
        compression = method.plan(base_model, middle, section.ratio, _Unreadable(), silent)
    except _Read:
        return
    LayerMap.of(placement, count, compression.kept)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Says of which emulator of a release a setting is wrong, if it is not the main one."""
    try:
        yield
    except ConfigError as error:
        if name == MAIN:
            raise
        raise ConfigError(f"variant {name}: {error}") from error
