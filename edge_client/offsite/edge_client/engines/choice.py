"""The engine that the coordinator named, and a worker for it."""

import enum

from offsite.edge_client.resume import WORKER_RETRIES, Persistence
from offsite.edge_client.state import EdgeState
from offsite.edge_client.worker import App, CampaignEnd, Edge, run_worker
from offsite.secure import limits
from offsite.secure.errors import PeerError
from offsite.v1 import fleet_pb2 as pb
from offsite.v1.fleet_pb2_grpc import FleetServiceStub


class Engine(enum.Enum):
    """What carries the rounds."""

    GRPC = enum.auto()
    FLOWER = enum.auto()


def run_rounds(edge: Edge, client_app: App, state: EdgeState) -> CampaignEnd | None:
    """Works until the campaign ends, on the engine that the coordinator has; None as `run_worker`.

    Raises:
        TransportError, IdentityError, PeerError: as `run_worker`.
    """
    if ask_engine(edge) is Engine.GRPC:
        return run_worker(edge, client_app)
    from offsite.edge_client.engines.flower.rounds import run_flower_rounds

    edge.ears.say("the rounds travel by Flower: a SuperNode is started on this machine")
    return run_flower_rounds(edge, client_app, state)


def ask_engine(edge: Edge) -> Engine:
    """What the coordinator says.

    Raises:
        PeerError: an engine that this edge does not have.
    """
    stub = FleetServiceStub(edge.channel)
    request, persistence = pb.GetEngineRequest(), Persistence(WORKER_RETRIES)
    answer = persistence.run(lambda: stub.GetEngine(request, timeout=limits.CALL_DEADLINE_S))
    match answer.engine:
        case pb.ENGINE_GRPC:
            return Engine.GRPC
        case pb.ENGINE_FLOWER:
            return Engine.FLOWER
        case other:
            raise PeerError(
                f"expected the engine grpc or flower, found number {other}: update this edge"
            )
