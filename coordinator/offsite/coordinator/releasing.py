"""A release: its emulators built and measured, judged by the leak budget, signed and published.

(1) what cannot be built is refused; the full model is measured
(2) the emulator and its variants are built, packed and measured, one after another
(3) the report is written, whatever it says
(4) the budget decides: past it nothing is signed and the earlier release stays
(5) the bundle is written, signed, verified and published
(6) the campaign of the release before is given up

Notable: variants stay in memory until all are judged, since nothing may be signed before that;
they share embedding and head with the full model. The full model's middle is given up on the way
where it is not needed again (`building.Keep`).
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rich.console import Group, RenderableType

from offsite.coordinator.building import Keep, build
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import sections_of
from offsite.coordinator.feasible import check_feasible, naming
from offsite.coordinator.measuring import Yardstick, budget_of
from offsite.coordinator.measuring_inputs import MeasuringInputs
from offsite.coordinator.owners_model import OwnersModel
from offsite.coordinator.publishing import Made, give_up_campaign, publish
from offsite.coordinator.release import built_json
from offsite.coordinator.report_tables import render_measured
from offsite.coordinator.workspace import Workspace
from offsite.emulator.bundle.manifest import MAIN
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.report import describe, render
from offsite.emulator.bundle.stated import stated_manifest
from offsite.emulator.durable import write_atomic
from offsite.emulator.settings import to_tables
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import PolicyError


@dataclass(frozen=True, slots=True)
class Published:
    """A release that was signed, for a person and for a program."""

    shown: RenderableType
    document: Mapping[str, object]


def make_release(
    workspace: Workspace, owner: OwnersModel, inputs: MeasuringInputs, terminal: Terminal
) -> Published:
    """Builds, measures, judges and publishes; the full model is used up.

    A release that is refused is shown here, for what stands in the error is not all of it.

    Raises:
        PolicyError: a leak budget is broken; the report is written, nothing was signed.
        ConfigError: this model cannot be made into such a release.
    """
    config = workspace.config
    # (1) What can be built, and what everything is measured with.
    check_feasible(config, sections_of(config.emulator), owner.model)
    yardstick = Yardstick.of(config, inputs, owner.model, terminal.progress)
    # (2) The emulators.
    made = _make_all(config, owner, inputs, yardstick, terminal)
    # (3) The report.
    version = next_version(workspace)
    budget = budget_of(config.leak)
    broken = {
        name: lines for name, one in made.items() if (lines := budget.broken_by(one.measured.leak))
    }
    document = _document(config, owner, version, made, broken)
    path = _report_path(workspace.state.reports, version, is_refused=bool(broken))
    write_atomic(path, json.dumps(document, indent=2).encode())
    tables = render_measured({name: one.measured for name, one in made.items()}, budget)
    # (4) The budget.
    if broken:
        terminal.result(tables, document)
        raise PolicyError(
            f"the leak budget is broken, nothing was signed: {_lines(broken)}; see {path}"
        )
    # (5) The bundle.
    publish(workspace, owner, version, made, terminal)
    # (6) The campaign before.
    give_up_campaign(workspace, terminal)
    signer = workspace.keys.coordinator.public
    described = describe(
        open_bundle(workspace.state.bundle, signer, time.time()), time.time(), signer
    )
    return Published(Group(tables, render(described)), {**described, "report": str(path)})


def _report_path(folder: Path, version: int, *, is_refused: bool) -> Path:
    """Of a release that is refused, a name that no attempt before it has: its figures stay."""
    if not is_refused:
        return folder / f"{version}-leak.json"
    paths = (folder / f"{version}-leak-refused-{attempt}.json" for attempt in count(1))
    return next(path for path in paths if not path.exists())


def next_version(workspace: Workspace) -> int:
    """One more than the release before; edges refuse to go back."""
    stated = stated_manifest(workspace.state.bundle)
    return 1 if stated is None else stated.facts.release_version + 1


def _make_all(
    config: CoordinatorConfig,
    owner: OwnersModel,
    inputs: MeasuringInputs,
    yardstick: Yardstick,
    terminal: Terminal,
) -> dict[str, Made]:
    sections = sections_of(config.emulator)
    last = list(sections)[-1]
    has_plug_in = bool(inputs.task)
    made = {}
    for name, section in sections.items():
        if len(sections) > 1:
            terminal.note(f"emulator {name}")
        is_done_with_model = name == last and not has_plug_in and not section.distil_steps
        keep = Keep.NOTHING if is_done_with_model else Keep.EVERYTHING
        seed = config.campaign.seed
        with naming(name):
            emulator = build(section, owner.model, inputs, seed, terminal.progress, keep)
            packed = yardstick.pack(emulator, section.packing)
            measured = yardstick.whole(packed, owner.model if has_plug_in else None)
        made[name] = Made(section, emulator, measured)
        if made[name].middle_share >= 1:
            terminal.note(
                f"warning: emulator {name}: nothing of the middle was removed, only packed if at "
                "all; whoever has it has the full model"
            )
    return made


def _document(
    config: CoordinatorConfig,
    owner: OwnersModel,
    version: int,
    made: Mapping[str, Made],
    broken: Mapping[str, Sequence[str]],
) -> dict[str, object]:
    return {
        "release_version": version,
        "refused": bool(broken),
        "broken": {name: list(lines) for name, lines in broken.items()},
        "leak_budget": dict(budget_of(config.leak).to_json()),
        "base_model": config.model.name,
        "base_fingerprint": owner.fingerprint,
        "emulators": {
            name: {"built": built_json(one.section, config.campaign.seed), **one.measured.to_json()}
            for name, one in made.items()
        },
        "settings": to_tables(config),
    }


def _lines(broken: Mapping[str, Sequence[str]]) -> str:
    """Every broken figure; which emulator's, if it is not the main one's."""
    return "; ".join(
        line if name == MAIN else f"variant {name}: {line}"
        for name, lines in broken.items()
        for line in lines
    )
