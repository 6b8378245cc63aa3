"""`coordinator simulate`: many clients of a divided data set, on this machine, in simulated time.

(1) the release, the settings and the gate questions of the state folder; nothing of it is changed
(2) the data, divided among clients
(3) the full model for the gate, one emulator for all clients
(4) one campaign for each strategy, with the same clients and the same weather
(5) the table, the lines, the picture, and which strategy did best
"""

import enum
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from offsite.coordinator.campaign_parts import CampaignSettings
from offsite.coordinator.commands.simulate import SimulateFlags
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_strategy import StrategyName
from offsite.coordinator.keys import load_keys
from offsite.coordinator.owner_inputs import corrector_for, gate_of, load_model
from offsite.coordinator.state import StateFolder
from offsite.coordinator.workspace_campaign import settings_of
from offsite.edge_client.data import Data, read_data
from offsite.edge_client.workbench import Warm
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.bundle.stated import stated_manifest
from offsite.emulator.durable import FOLDER_MODE, machine_errors, write_atomic
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.emulator.rounds.flower_internals import quieten
from offsite.emulator.settings import load_settings, to_tables
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError
from offsite.simulation.campaigns import POLL_S, Scene, simulate_campaign
from offsite.simulation.clients import Fleet
from offsite.simulation.figures import RunFigures, comparison
from offsite.simulation.grouping import groups_of
from offsite.simulation.judging import Baseline
from offsite.simulation.lora_ways import check_way
from offsite.simulation.partition import PartitionKind, Parts, dirichlet, iid
from offsite.simulation.plot import write_plot
from offsite.simulation.request import Division, Request, SumKind
from offsite.simulation.shown import render
from offsite.simulation.stacks import AUTO
from offsite.simulation.weather import Weather

Word = TypeVar("Word", bound=enum.Enum)
LINES = "rounds.jsonl"
RESULT = "simulation.json"


def simulate(
    root: Path, overrides: Sequence[str], flags: SimulateFlags, terminal: Terminal
) -> None:
    """Simulates, and shows what came of it.

    Raises:
        ConfigError: no release, no gate questions, or what is asked for does not fit together.
    """
    quieten()
    request = request_of(flags)
    # (1) The release, the settings, the gate.
    with StateFolder.open(root, exclusive=False) as state:
        bundle = _release(state)
        config = load_settings(
            CoordinatorConfig, state.config, [*_settings(request, flags), *overrides]
        )
    configs = dict(_by_strategy(config, request))
    way = request.lora or config.strategy.lora_aggregation
    # (2) The clients.
    data = read_data(request.data)
    for line in data.report.lines():
        terminal.note(line)
    parts, described = _divided(data, request)
    terminal.note(described)
    fleet = Fleet.of(data, parts, request.seed)
    # (3) The models.
    warm = Warm(bundle, _device(), terminal.note)
    names = [c.strategy.name for c in configs.values()]
    check_way(way, request.ranks, warm.adapter, names, config.campaign.cohorts)
    _check_sums(way, request)
    scene = Scene(
        request, bundle, fleet, warm, _baseline(config, bundle, terminal), terminal.note, way
    )
    folder = flags.out or root / "simulations" / time.strftime("%Y%m%d-%H%M%S")
    _make_new(folder)
    # (4) The campaigns.
    runs = []
    for name, settings in configs.items():
        terminal.note(
            f"simulating {name}: {settings.campaign.rounds} rounds of {request.asked} clients"
        )
        runs.append(simulate_campaign(scene, settings_of_simulation(settings), folder / name))
        _append(folder / LINES, runs[-1], terminal)
    # (5) What came of it.
    document = _document(request, config, runs, described)
    write_atomic(folder / RESULT, json.dumps(document, indent=2, default=str).encode())
    if flags.plot is not None:
        write_plot(flags.plot, runs, f"{request.division.clients} clients, {described}")
    terminal.note(f"written to {folder}")
    terminal.result(render(runs), document)


def settings_of_simulation(config: CoordinatorConfig) -> CampaignSettings:
    """The campaign's settings; waits without an event take a minute of simulated time each."""
    strategy = replace(config.strategy, lora_aggregation=LoraAggregation.AVERAGE)
    return replace(settings_of(replace(config, strategy=strategy)), poll_s=POLL_S)


def _settings(request: Request, flags: SimulateFlags) -> list[str]:
    """What a simulation sets of the campaign; what its user sets comes after it."""
    rounds = [f"campaign.rounds={flags.rounds}"] if flags.rounds else []
    return [
        *rounds,
        f"campaign.min_clients={request.asked}",
        f"campaign.cohorts={request.fewest_cohorts}",
        f"campaign.seed={request.seed}",
        f"policy.sample_clients={request.sample}",
    ]


def _by_strategy(
    config: CoordinatorConfig, request: Request
) -> Iterator[tuple[str, CoordinatorConfig]]:
    """The settings with each strategy; checked like any others."""
    for name in request.strategies or (config.strategy.name,):
        section = config.strategy
        if name is not section.name:  # the rate that is set is that of another one
            section = replace(section, name=name, server_learning_rate=None)
        yield name.value, replace(config, strategy=section)


def _release(state: StateFolder) -> Bundle:
    """Verified as of the moment it was made; a simulation begins at that time."""
    stated = stated_manifest(state.bundle) if state.bundle.exists() else None
    if stated is None:
        raise ConfigError(f"no release in {state.root}; run `coordinator emulate` first")
    key = load_keys(state).coordinator.public
    return open_bundle(state.bundle, key, stated.facts.created_unix_s)


def _divided(data: Data, request: Request) -> tuple[Parts, str]:
    division, rows = request.division, len(data.rows)
    if division.kind is PartitionKind.IID:
        parts, how = iid(rows, division.clients, request.seed), "divided evenly"
    else:
        what, groups = groups_of(request.data, data, division.by)
        parts = dirichlet(groups, division.clients, division.alpha, request.seed)
        how = f"Dirichlet {division.alpha:g} by {what} ({len(set(groups))} groups)"
    sizes = sorted(len(part) for part in parts)
    return parts, f"{rows} rows, {how}: {sizes[0]} to {sizes[-1]} rows each"


def _baseline(config: CoordinatorConfig, bundle: Bundle, terminal: Terminal) -> Baseline:
    if config.gate.questions is None:
        raise ConfigError(
            "a simulation compares gates: set gate.questions, or give --set gate.questions=FILE"
        )
    model = load_model(config, bundle)
    corrector = corrector_for(config, bundle, model)
    gate = gate_of(config, bundle, model, terminal.progress, corrector)
    assert gate is not None  # there are questions
    return Baseline(gate)


def _check_sums(way: LoraAggregation, request: Request) -> None:
    """What the settings ask for needs visible sums, too."""
    if way is not LoraAggregation.AVERAGE and request.sums is SumKind.SECURE:
        raise ConfigError(
            f"strategy.lora_aggregation: {way.value} needs --sums visible: a secure sum shows no "
            "single update"
        )


def _make_new(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--out: expected a new or an empty folder, {folder} holds something")
    with machine_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)


def _append(path: Path, run: RunFigures, terminal: Terminal) -> None:
    """Lines are there as soon as a campaign is over."""
    with machine_errors(path), path.open("a", encoding="utf-8") as file:
        for line in run.lines():
            file.write(json.dumps(line) + "\n")
    gate = (
        "no round"
        if run.best_gate is None
        else f"gate {run.best_gate:.4f} in round {run.best_round}"
    )
    terminal.note(
        f"{run.strategy}: {'failed, ' if run.is_failed else ''}{gate}, {run.real_s:.0f} s"
    )


def _document(
    request: Request, config: CoordinatorConfig, runs: Sequence[RunFigures], described: str
) -> dict[str, object]:
    return {
        "data": described,
        "clients": request.division.clients,
        "asked": request.asked,
        "dropout": request.weather.dropout,
        "stragglers": request.weather.stragglers,
        "sums": request.sums.value,
        "stack": request.stack,
        "seed": request.seed,
        "strategies": [run.summary() for run in runs],
        "rounds": [line for run in runs for line in run.lines()],
        "comparison": comparison(runs),
        "settings": to_tables(config),
    }


def _device() -> torch.device:
    """As an edge chooses."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def request_of(flags: SimulateFlags) -> Request:
    """What the command line asked for.

    Raises:
        ConfigError: a word that is not known, or a number out of its range.
    """
    return Request(
        data=flags.data,
        division=Division(
            flags.clients,
            _known(PartitionKind, "--partition", flags.partition),
            flags.alpha,
            flags.by,
        ),
        sample=flags.sample,
        strategies=tuple(_known(StrategyName, "--strategy", w) for w in _words(flags.strategies)),
        weather=Weather(flags.dropout, flags.stragglers, flags.seed),
        step_s=flags.step_s,
        epsilon=flags.epsilon,
        delta=flags.delta,
        sums=_known(SumKind, "--sums", flags.sums),
        lora=_known(LoraAggregation, "--lora", flags.lora) if flags.lora else None,
        ranks=tuple(_number("--ranks", word) for word in _words(flags.ranks)),
        stack=AUTO if flags.stack == "auto" else _number("--stack", flags.stack),
        seed=flags.seed,
    )


def _words(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(",") if word.strip()]


def _known(kind: type[Word], flag: str, text: str) -> Word:
    try:
        return kind(text.strip().lower())
    except ValueError:
        names = ", ".join(str(member.value) for member in kind)
        raise ConfigError(f"{flag}: expected one of {names}, found {text[:40]!a}") from None


def _number(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{flag}: expected whole numbers, found {text[:40]!a}") from None
