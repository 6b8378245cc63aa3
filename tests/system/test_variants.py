"""Two edges tune different emulators of one release, and their updates meet in one average."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from flwr.clientapp import ClientApp
from tests.edge_client.releases import artefacts
from tests.loopback import serving
from tests.tiny import write_completions
from tests.varied import SIGNER, tiny_varied

from offsite.coordinator.adapter_files import AdapterFiles
from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import (
    Campaign,
    CampaignSettings,
    CoordinatorKeys,
    Member,
    Release,
    SecureParts,
)
from offsite.coordinator.campaign_record import CampaignRecord
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.secure_sums.settings import SumSettings
from offsite.coordinator.service.artefacts import ArtefactService
from offsite.coordinator.tables.campaigns import CampaignTable
from offsite.coordinator.tables.database import Database
from offsite.coordinator.tables.decisions import DecisionTable
from offsite.coordinator.tables.results import ResultTable
from offsite.edge_client import client_app
from offsite.edge_client.client_app import Listener, _binding, build_client_app
from offsite.edge_client.data import read_data
from offsite.edge_client.emulator_choice import Chooser
from offsite.edge_client.fetch import Source, fetch_release
from offsite.edge_client.outcome import TuningMetrics, TuningOutcome
from offsite.edge_client.secure_rounds import SecureRounds, Trust
from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.base_model import load_base_model
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.rounds.plan import ComputeDtype, RoundPlan, TuningSettings
from offsite.secure import envelope
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.directory import Directory, DirectoryEntry, Role, Status, sign_directory
from offsite.secure.identity import IdentityKey
from offsite.secure.names import node_id

AUTHORITY = IdentityKey.from_seed(b"a" * 32)
CHOICES = {"anna": "small", "bert": "packed", "carl": "main"}
ROWS = {"anna": 8, "bert": 16, "carl": 24}
TUNING = TuningSettings(
    learning_rate=1e-2,
    local_steps=6,
    batch_examples=4,
    validation_share=0.0,
    dtype=ComputeDtype.FLOAT32,
)


@dataclass
class Fleet:
    """Edges that fetched what they chose, and what each of them tuned."""

    folder: Path
    bundles: dict[str, Bundle]
    tuned: dict[str, TuningMetrics]

    def app(self, name: str) -> ClientApp:
        def note(plan: RoundPlan, metrics: TuningMetrics) -> None:
            self.tuned[name] = metrics

        rows = write_completions(self.folder / f"{name}.jsonl", ROWS[name])
        return build_client_app(
            self.bundles[name],
            read_data(rows),
            self.rounds(name),
            self.folder / name / "rounds",
            listener=Listener(tuned=note),
        )

    def rounds(self, name: str) -> SecureRounds:
        trust = Trust(
            SIGNER.public,
            AUTHORITY.public,
            lambda: DIRECTORY,
            lambda _: None,
            PolicyFloor(least_cohort=3),
        )
        return SecureRounds(name, key_of(name), trust, self.folder / name / "secure", time.time)


def key_of(name: str) -> IdentityKey:
    return IdentityKey.from_seed(name.encode().ljust(32, b"."))


def _entry(name: str, role: Role) -> DirectoryEntry:
    key = SIGNER if role is Role.COORDINATOR else key_of(name)
    return DirectoryEntry(name, key.public, role, Status.ACTIVE, 0.0)


DIRECTORY = Directory(
    1, (_entry("aaa", Role.COORDINATOR), *(_entry(name, Role.CLIENT) for name in sorted(CHOICES)))
)


def remember_deltas(patch: pytest.MonkeyPatch) -> dict[int, dict[str, torch.Tensor]]:
    """What each edge encodes, by the number of its rows."""
    deltas: dict[int, dict[str, torch.Tensor]] = {}
    real = client_app.tune

    def tune(*arguments: Any, **options: Any) -> TuningOutcome:
        found = real(*arguments, **options)
        deltas[found.metrics.examples] = found.delta
        return found

    patch.setattr(client_app, "tune", tune)
    return deltas


def run_round(folder: Path, release: Bundle, fleet: Fleet) -> dict[str, torch.Tensor]:
    """One round of a campaign on the main manifest; returns the adapter after it."""
    settings = CampaignSettings(
        TUNING, min_clients=3, min_replies=3, rounds=1, sums=SumSettings(full_weight=100)
    )
    parts = Release(release.digest, release.adapter_schema, release.load_adapter())
    database = Database(folder / "coordinator.sqlite")
    table = CampaignTable(database)
    campaign = Campaign(
        record=CampaignRecord(settings, parts, table, AdapterFiles(folder)),
        keys=CoordinatorKeys(SIGNER, AUTHORITY.public),
        grid=LocalGrid({node_id(name): fleet.app(name) for name in CHOICES}),
        members=lambda: {node_id(n): Member(n, key_of(n).public) for n in CHOICES},
        secure=SecureParts(
            lambda: envelope.to_bytes(sign_directory(DIRECTORY, AUTHORITY)),
            DecisionTable(database),
            ResultTable(database),
            folder / "evidence",
        ),
        gate=None,
    )
    return dict(run_campaign(campaign).adapter)


@pytest.mark.parametrize("kind", list(AdapterKind), ids=lambda kind: kind.value)
def test_updates_from_different_emulators_meet_in_one_average(
    kind: AdapterKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas = remember_deltas(monkeypatch)
    varied = tiny_varied(tmp_path / "model", AdapterSpec(kind, rank=2, alpha=4))
    varied.release(tmp_path / "release")
    # (1) Each edge fetches the emulator that it was told, over the real service.
    bundles = {}
    with serving(artefacts(ArtefactService(tmp_path / "release"))) as loopback:
        for name, choice in CHOICES.items():
            with loopback.channel(name) as channel:
                source = Source(channel, SIGNER.public, time.time())
                chooser = Chooser(choice, lambda _: None)
                folder = tmp_path / name / "bundle"
                bundles[name] = fetch_release(source, folder, choose=chooser)
    assert len({bundle.digest for bundle in bundles.values()}) == 3
    release = open_bundle(tmp_path / "release", SIGNER.public, time.time())
    assert {bundle.release_digest for bundle in bundles.values()} == {release.digest}
    # (2) A round: plans for the main manifest, a secure sum, FedAvg.
    fleet = Fleet(tmp_path, bundles, {})
    adapter = run_round(tmp_path, release, fleet)
    assert {name: metrics.examples for name, metrics in fleet.tuned.items()} == ROWS
    losses = {round(metrics.first_loss, 6) for metrics in fleet.tuned.values()}
    assert len(losses) == 3  # three emulators, not one
    # (3) The average of what all of them changed, of the same names and shapes as ever.
    assert adapter.keys() == release.adapter_schema.keys()
    first, share = (
        release.load_adapter(),
        {n: rows / sum(ROWS.values()) for n, rows in ROWS.items()},
    )
    for key, value in first.items():
        mean = sum(share[name] * (value + deltas[ROWS[name]][key]) for name in CHOICES)
        torch.testing.assert_close(adapter[key], mean, rtol=0, atol=1e-6)
    assert any(not torch.equal(adapter[key], first[key]) for key in first)
    # (4) It fits the full model.
    base = load_base_model(varied.model)
    make_adapter(varied.spec, release.manifest.layer_map).plug_in(base, adapter)


def test_a_checkpoint_of_another_emulator_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its values were tuned on the other one; a run is of one emulator."""
    tiny_varied(tmp_path / "model").release(tmp_path / "release")
    plan, ready = Mock(digest=b"p" * 32), Mock(sha256="00")
    bindings = set()
    for name in CHOICES.values():
        bundle = open_bundle(tmp_path / "release", SIGNER.public, time.time(), emulator=name)
        bindings.add(_binding(plan, bundle, ready))
    assert len(bindings) == 3
