"""One campaign, three engines: the same two edges, data and seeds give the same adapter.

`local` calls the edges' real ClientApps in this process; `grpc` and `flower` are the real commands as
processes, the latter with a real SuperLink and two real SuperNodes. Bit for bit on `local` and
`grpc`; on `flower` within the tolerance of fp32 sums, though nothing there is computed otherwise.
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.system.programs import Owner, free_address, join, started
from torch import Tensor

from offsite.coordinator.authority import Authority
from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import Campaign, CoordinatorKeys, SecureParts
from offsite.coordinator.commands.serve import members_of
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.owner_inputs import corrector_for, gate_of, load_model
from offsite.coordinator.release import current_release
from offsite.coordinator.workspace import Workspace, open_workspace
from offsite.coordinator.workspace_campaign import record_of
from offsite.edge_client.client_app import Machine, build_client_app
from offsite.edge_client.data import read_data
from offsite.edge_client.secure_rounds import SecureRounds, Trust
from offsite.edge_client.state import EdgeState
from offsite.emulator.bundle.reader import open_bundle
from offsite.secure import envelope
from offsite.secure.names import node_id

NAMES = ("a", "b")
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Enrolled:
    """An owner and two edges that have joined and fetched; nothing was tuned yet."""

    folder: Path
    owner: Owner
    tokens: Mapping[str, str]
    data: Path

    def copy(self, to: Path) -> "Enrolled":
        shutil.copytree(self.folder, to)
        return Enrolled(to, Owner(to / "owner", self.owner.address), self.tokens, self.data)

    def join(self, name: str) -> tuple[str | Path, ...]:
        return join(self.tokens[name], self.data / f"{name}.jsonl", self.folder / name)


@pytest.fixture(scope="module")
def enrolled(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    folder = tmp_path_factory.mktemp("enrolled")
    shutil.copytree(released / "state", folder / "owner")
    owner = Owner(folder / "owner", free_address())
    made = Enrolled(folder, owner, {name: owner.token(name) for name in NAMES}, released)
    with started(*owner.serve()) as coordinator:
        coordinator.read_until("serving release")
        for name in NAMES:
            with started(*made.join(name), "--inspect-only") as edge:
                assert edge.end() == 0, edge.text
    return made


@pytest.fixture(scope="module")
def on_grpc(enrolled: Enrolled, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    place = enrolled.copy(tmp_path_factory.mktemp("grpc") / "place")
    serve_and_join(place, "grpc")
    return adapter_of(place)


def test_local_gives_the_adapter_of_grpc_bit_for_bit(
    enrolled: Enrolled, on_grpc: dict[str, Tensor], tmp_path: Path
) -> None:
    place = enrolled.copy(tmp_path / "place")
    with open_workspace(place.owner.state, exclusive=True) as workspace, ExitStack() as edges:
        found = run_campaign(local_campaign(place, workspace, edges)).adapter
    assert found.keys() == on_grpc.keys()
    assert all(torch.equal(found[name], value) for name, value in on_grpc.items())


def test_flower_gives_the_adapter_of_grpc(
    enrolled: Enrolled, on_grpc: dict[str, Tensor], tmp_path: Path
) -> None:
    place = enrolled.copy(tmp_path / "place")
    said = serve_and_join(place, "flower")
    assert "the rounds travel by Flower" in said
    found = adapter_of(place)
    assert found.keys() == on_grpc.keys()
    for name, value in on_grpc.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=TOLERANCE)


def serve_and_join(place: Enrolled, engine: str) -> str:
    """The commands as processes; returns what the first edge said."""
    with (
        started(*place.owner.serve(), "--engine", engine) as coordinator,
        started(*place.join("a")) as first,
        started(*place.join("b")) as second,
    ):
        assert first.end() == 0, first.text
        assert second.end() == 0, second.text
        assert coordinator.end() == 0, coordinator.text
    return first.text


def adapter_of(place: Enrolled) -> dict[str, Tensor]:
    """The result of the campaign that has ended there."""
    with open_workspace(place.owner.state, exclusive=True) as workspace:
        record = record_of(workspace, current_release(workspace))
        row = record.store.current()
        assert row is not None
        assert len([r for r in record.store.rounds(row.campaign_id) if r.metrics]) == 2
        return dict(record.result(row).adapter)


def local_campaign(place: Enrolled, workspace: Workspace, edges: ExitStack) -> Campaign:
    """The same campaign on the `local` engine, with the edges' own folders, keys and data."""
    keys, authority = workspace.keys, Authority(workspace.keys, workspace.store)
    bundle, config = current_release(workspace), workspace.config
    record, model = record_of(workspace, bundle), load_model(config, bundle)
    apps = {node_id(name): edges.enter_context(edge_app(place, name)) for name in NAMES}
    return Campaign(
        record=record,
        keys=CoordinatorKeys(keys.coordinator, keys.authority.public),
        grid=LocalGrid(apps, record.open(time.time()).campaign_id, folder=place.folder / "rounds"),
        members=lambda: members_of(authority),
        secure=SecureParts(
            directory=lambda: envelope.to_bytes(authority.signed_directory()),
            decisions=workspace.store.decisions,
            results=workspace.store.results,
            evidence=workspace.state.evidence,
        ),
        gate=gate_of(config, bundle, model, corrector=corrector_for(config, bundle, model)),
    )


@contextmanager
def edge_app(place: Enrolled, name: str) -> Iterator[object]:
    """What `edge-client join` builds."""
    now = time.time()
    with EdgeState.open(place.folder / name) as state:
        directory = state.directory(now)
        coordinator_key = directory.coordinator().identity_key
        trust = Trust(
            coordinator_key,
            state.membership().directory_key,
            directory=lambda: state.directory(time.time()),
            keep_directory=state.save_directory,
            policy=state.policy(),
        )
        rounds = SecureRounds(name, state.identity_key(), trust, state.sums, time.time)
        data = read_data(place.data / f"{name}.jsonl", None)
        bundle = open_bundle(state.bundle, coordinator_key, now)
        yield build_client_app(bundle, data, rounds, state.rounds, machine=Machine(threads=1))
