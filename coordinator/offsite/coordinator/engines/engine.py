"""The engine that the settings name: `grpc`, our own durable service, or `flower` behind it.

    engine     grid           what an edge calls                          survives a restart of `serve`
    grpc       `GrpcGrid`     RoundService                                every message
    flower     `FlowerGrid`   its own SuperNode, by FleetService.Tunnel   closed rounds

Campaign, strategy, secure sums and ClientApp are the same on both, and on `LocalGrid` in one process.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.serverapp import Grid

from offsite.coordinator.config import EngineName
from offsite.coordinator.engines.flower.grid import FlowerGrid
from offsite.coordinator.engines.flower.node_keys import NodeKeys
from offsite.coordinator.engines.flower.runs import FlowerRuns
from offsite.coordinator.engines.flower.superlink import SuperLink
from offsite.coordinator.engines.flower.tunnel import Bell, FleetTunnel
from offsite.coordinator.grid import GrpcGrid
from offsite.coordinator.mailbox import Mailbox
from offsite.coordinator.workspace import Workspace
from offsite.emulator.engines.flower.children import BoundedLog
from offsite.emulator.rounds.exchange import Action, most_reply_bytes
from offsite.emulator.rounds.flower_internals import quieten


@dataclass(frozen=True, slots=True)
class Engine:
    """What carries the messages of a campaign."""

    grid: Callable[[int], Grid]
    """For the campaign of a number."""
    tunnel: FleetTunnel | None = None
    """What SuperNodes reach the SuperLink by; None where there are none."""


@contextmanager
def opened_engine(workspace: Workspace, mailbox: Mailbox, values: int) -> Iterator[Engine]:
    """The engine for updates of `values` values, until the block ends."""
    if workspace.config.server.engine is EngineName.GRPC:
        yield Engine(lambda campaign_id: _grpc_grid(workspace, mailbox, campaign_id, values))
        return
    with _flower(workspace, values) as engine:
        yield engine


def _grpc_grid(workspace: Workspace, mailbox: Mailbox, campaign_id: int, values: int) -> GrpcGrid:
    """Takes no larger reply than the step that it answers can have."""
    return GrpcGrid(
        mailbox,
        workspace.store,
        campaign_id,
        most_reply_bytes=lambda message: most_reply_bytes(message.metadata.message_type, values),
    )


@contextmanager
def _flower(workspace: Workspace, values: int) -> Iterator[Engine]:
    quieten()
    superlink = SuperLink(workspace.state.root / "flower")
    keys, runs, bell = NodeKeys(superlink.folder / "nodes"), FlowerRuns(superlink), Bell()

    with BoundedLog(superlink.folder / "tunnel.log") as audit, superlink:
        largest = most_reply_bytes(Action.MASK.message_type, values)
        tunnel = FleetTunnel(superlink.call, runs.register, keys, bell, audit, largest)
        grid = FlowerGrid(runs, keys, bell.ring)
        try:
            yield Engine(lambda _: grid, tunnel)
        finally:
            grid.finish()
            tunnel.close()
