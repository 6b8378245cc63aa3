"""`coordinator emulate --auto`: which emulator to release, by measuring many.

(1) check what can be checked at once
(2) read public text and questions, then load the model and take its fingerprint
(3) explore (`search.explore`); what is known from earlier runs is not measured again
(4) show the table and the settings that were chosen, draw `reports/frontier.svg`
(5) with `--release-best`, release them
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group

from offsite.coordinator.commands.emulate import check_present
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import EmulatorSection, sections_of
from offsite.coordinator.feasible import check_variants
from offsite.coordinator.measuring import limits_of
from offsite.coordinator.measuring_inputs import check_inputs
from offsite.coordinator.owners_model import OwnersModel, read_owners_inputs
from offsite.coordinator.releasing import make_release
from offsite.coordinator.search.candidates import candidates
from offsite.coordinator.search.explore import Outcome, Search, explore
from offsite.coordinator.search.measurer import ModelMeasurer, measured_with
from offsite.coordinator.search.plot import write_plot
from offsite.coordinator.search.shown import outcome_json, render_outcome, shortfall
from offsite.coordinator.workspace import Workspace, open_workspace
from offsite.emulator.bundle.manifest import MAIN
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError, PolicyError

PLOT = "frontier.svg"


@dataclasses.dataclass(frozen=True, slots=True)
class SearchFlags:
    """What the command line adds to the settings."""

    release_best: bool = False
    replace: bool = False


def search_emulator(
    root: Path, overrides: Sequence[str], flags: SearchFlags, terminal: Terminal
) -> None:
    """Measures, shows, and releases nothing unless asked to.

    Raises:
        ConfigError: a setting is wrong, or nothing was measured in full.
        PolicyError: no emulator keeps every limit; says how close the best came.
    """
    with open_workspace(root, overrides, exclusive=True) as workspace:
        # (1) What costs nothing to check.
        config = workspace.config
        tried = candidates(config)
        variants = [s for name, s in sections_of(config.emulator).items() if name != MAIN]
        _check(config, tried, variants if flags.release_best else ())
        if flags.release_best:
            check_present(workspace, flags.replace)
        # (2) What emulators are measured on, and the model.
        inputs = read_owners_inputs(config)
        terminal.note(f"reading the model in {config.model.path}")
        owner = OwnersModel.load(config.model.path)
        if flags.release_best:
            check_variants(config, tried, owner.model)
        # (3) The search.
        search = Search(
            candidates=tried,
            limits=limits_of(config),
            compute_s=config.search.compute_s,
            base_fingerprint=owner.fingerprint,
            measured_with=measured_with(config),
            seed=config.campaign.seed,
            measurer=ModelMeasurer(config, owner.model, inputs, terminal.progress),
            points=workspace.store.points,
            note=terminal.note,
            tries_again=config.search.try_again,
        )
        outcome = explore(search)
        # (4) What came of it.
        plot = workspace.state.reports / PLOT
        is_drawn = write_plot(plot, outcome, config.leak.max_healed)
        document = outcome_json(outcome) | {"plot": str(plot) if is_drawn else None}
        table = render_outcome(outcome)
        if outcome.best is None or not flags.release_best:
            terminal.result(table, document)
            _check_found(outcome)
            return
        # (5) The release.
        terminal.note(f"releasing {outcome.best.label}")
        chosen = _with_emulator(workspace, outcome.best.section)
        published = make_release(chosen, owner, inputs, terminal)
    terminal.result(
        Group(table, published.shown), {"search": document, "release": published.document}
    )


def _check(
    config: CoordinatorConfig,
    tried: Sequence[EmulatorSection],
    variants: Sequence[EmulatorSection],
) -> None:
    """What is measured and what is released, `variants` of the file with it."""
    if config.gate.questions is None or config.leak.task is None:
        raise ConfigError(
            "gate.questions and leak.task: a search judges by questions (the gate) what was tuned "
            "on others (the stand-in for the task); name both files"
        )
    if not tried:
        raise ConfigError("[search]: no combination of these settings can be built")
    check_inputs(config, [*tried, *variants])


def _check_found(outcome: Outcome) -> None:
    """Raises what the command ends with where there is nothing to choose."""
    if outcome.best is not None:
        return
    if outcome.closest is not None:
        raise PolicyError(shortfall(outcome))
    raise ConfigError(f"{shortfall(outcome)}; raise search.compute_s, or see what was refused")


def _with_emulator(workspace: Workspace, section: EmulatorSection) -> Workspace:
    """The same workspace with the settings that were chosen, and the variants of the file."""
    variants = workspace.config.emulator.variants
    emulator = dataclasses.replace(section, variants=variants)
    config = dataclasses.replace(workspace.config, emulator=emulator)
    return dataclasses.replace(workspace, config=config)
