"""Flower symbols outside its public app layer that an executor of our own needs.

Beside `rounds/flower_internals.py`, which carries messages on engines of ours, this is the only file
of its kind; both have a contract test (`tests/emulator/rounds/test_flower_internals.py`, and
`tests/emulator/engines/test_flower_contract.py` for this one) that a new Flower must pass first.

An executor is what Flower calls the process that does a task. Flower starts one for each message,
installs what the message's run brings along and executes it. Ours lives as long as its role, and
does the task with installed code:

    acquire ─> token ─> heartbeat ─> input ─> (a ServerApp's grid | a ClientApp's message) ─> output

Notable: nothing of Flower here may end this process. Flower's own clients send SIGINT to the process
in which a call is answered with 401, or in which a heartbeat is refused; so ours have interceptors
and heartbeats of their own. Whatever fails is one of our errors: `TransportError` for what did not
arrive, `ExpiredError` for a task that Flower no longer knows.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self, TypeVar

import httpx
from flwr.app import Context, Message
from flwr.common.constant import TIMESTAMP_HEADER, SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TASK_TOKEN_HEADER,
    TaskType,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from offsite.secure.errors import ExpiredError, PeerError, TransportError

HEARTBEAT_S: Final = 15.0
"""Flower gives a task up after a minute of silence."""
PATIENCE_S: Final = 90.0
"""How long a call is tried again; a SuperLink that fell over is back by then."""
_TRY_AGAIN_S: Final = 0.5
_BUSY: Final = frozenset({502, 503, 504})
_OVER: Final = frozenset({401, 403, 404})

PUBLIC_KEY_HEADER: Final = FLEET_HTTP_PUBLIC_KEY_HEADER
SIGNED_HEADERS: Final = (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    TIMESTAMP_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
"""What a SuperNode proves itself with: its key, the time, and its signature over the time."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Loopback:
    """Where a child of ours listens; `root_pem` is its CA, None for plain HTTP."""

    address: str
    root_pem: bytes | None = None


class TaskKind(Enum):
    """Which tasks an executor does."""

    SERVER = TaskType.SERVER_APP
    CLIENT = TaskType.CLIENT_APP


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that this executor does now."""

    token: str
    run_id: int


@dataclass(frozen=True, slots=True)
class ClientInput:
    """What a ClientApp is called with; `fab_sha256` names the code that the run would bring along."""

    message: Message
    context: Context
    fab_sha256: str


class TaskSource:
    """Asks a SuperLink or SuperNode for tasks, with the secret that both of us read from a file."""

    def __init__(self, loopback: Loopback, secret: bytes, kind: TaskKind) -> None:
        self._kind = kind
        signing = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        self._client = _runtime_client(loopback, signing, _Headers("SuperExec"), patience_s=0.0)

    def acquire(self) -> Claim | None:
        """The oldest task that waits, if any; nobody else gets it.

        Raises:
            TransportError: no answer.
        """
        request = AcquireTaskRequest(supported_task_types=[self._kind.value])
        with _translated():
            answer = self._client.AcquireTask(request)
        if not answer.HasField("task") or not answer.token:
            return None
        return Claim(answer.token, answer.task.run_id)

    def close(self) -> None:
        self._client.close()


class _Task:
    """A claimed task: its client, and heartbeats while it is done."""

    def __init__(self, loopback: Loopback, claim: Claim, component: str) -> None:
        self.claim = claim
        headers = _Headers(component, {TASK_TOKEN_HEADER: claim.token})
        self._client = _runtime_client(loopback, headers)
        self._beat_client = _runtime_client(loopback, headers, patience_s=0.0)
        self._stopped = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="flower-heartbeat", daemon=True)
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether Flower said that it no longer knows this task."""
        return self._lost.is_set()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._client.close()
        self._beat_client.close()

    def _beat(self) -> None:
        while not self._stopped.is_set():
            # A beat that does not arrive does not matter; one that is refused does.
            with contextlib.suppress(TransportError):
                try:
                    with _translated():
                        known = self._beat_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
                except PeerError:
                    self._lost.set()
                else:
                    if not known.success:
                        self._lost.set()
            self._stopped.wait(HEARTBEAT_S)


class ClientTask(_Task):
    """A message for a ClientApp, and its reply; a context manager."""

    def __init__(self, loopback: Loopback, claim: Claim) -> None:
        super().__init__(loopback, claim, "flwr-clientapp")
        self._context: Context | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pull(self) -> ClientInput:
        """Message and context; from now on `Message(...)` can be made in this process.

        Raises:
            TransportError, ExpiredError: it did not come.
        """
        with _translated():
            message, context, _, fab = pull_task_input(self._client)
        self._context = context
        return ClientInput(message, context, fab.hash_str)

    def push(self, reply: Message) -> None:
        """Gives the reply to the SuperNode, and ends the task.

        Raises:
            TransportError, ExpiredError: it was not taken.
        """
        assert self._context is not None, "pull() comes first"
        with _translated():
            push_message(self._client, reply, self._context)
            push_task_output(self._client, self._context, SubStatus.COMPLETED, "")


class RunGrid(HttpGrid):
    """Flower's grid of a run whose ServerApp we are, on a client of ours."""

    def __init__(self, client: RuntimeHttpClient, token: str) -> None:
        super().__init__(token=token)
        self._client = client


class ServerTask(_Task):
    """A run whose ServerApp is this process."""

    def __init__(self, loopback: Loopback, claim: Claim) -> None:
        super().__init__(loopback, claim, "flwr-serverapp")
        self._grid = RunGrid(self._client, claim.token)

    def start(self) -> None:
        """Raises TransportError or ExpiredError if the run did not begin."""
        with _translated():
            found = self._client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = found.task_id
        TaskIdentity.run_id = found.run.run_id
        TaskIdentity.node_id = found.context.node_id
        self._grid.set_run(run_from_proto(found.run))

    @property
    def run_id(self) -> int:
        return int(self.claim.run_id)

    def nodes(self) -> dict[bytes, int]:
        """The nodes that are online: number by public key (PEM)."""
        with _translated():
            return {node.public_key: node.node_id for node in self._grid.get_nodes()}

    def push(self, message: Message) -> str | None:
        """The message's id, or None if the node is gone."""
        with _translated():
            return next(iter(self._grid.push_messages([message])), None) or None

    def pull(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there; each comes once."""
        with _translated():
            return list(self._grid.pull_messages(list(message_ids)))

    def finish(self) -> None:
        """Ends the run, if it still is there to be ended."""
        done = PushTaskOutputRequest(sub_status=SubStatus.COMPLETED)
        with contextlib.suppress(TransportError, PeerError), _translated():
            self._client.PushTaskOutput(done)


class Control:
    """What an operator of a SuperLink does: nodes and runs."""

    def __init__(self, loopback: Loopback) -> None:
        self._client = ControlHttpClient.from_server_address(
            loopback.address,
            loopback.root_pem is None,
            loopback.root_pem,
            interceptors=[],
            retry_invoker=_Patience(PATIENCE_S),  # type: ignore[arg-type]  # has its method
        )

    def register_node(self, public_key_pem: bytes, name: str) -> None:
        """Lets a node in; one that is known already stays.

        Raises:
            TransportError: no answer.
            PeerError: the SuperLink does not take the key.
        """
        request = RegisterNodeRequest(public_key=public_key_pem, name=name)
        try:
            with _translated():
                self._client.RegisterNode(request)
        except PeerError as error:
            if not _is_known_key(error.__cause__):
                raise

    def start_run(self, fab: bytes, fab_sha256: str) -> int:
        """A new run of the app in `fab`; returns its number."""
        request = StartRunRequest(fab=Fab(hash_str=fab_sha256, content=fab))
        with _translated():
            run_id = int(self._client.StartRun(request).run_id)
        if not run_id:
            raise TransportError("the SuperLink did not start a run; its log says why")
        return run_id

    def stop_run(self, run_id: int) -> None:
        """Ends a run, if it still is there to be ended."""
        with contextlib.suppress(TransportError, PeerError), _translated():
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def close(self) -> None:
        self._client.close()


def read_secret(path: str) -> bytes:
    """The secret that a SuperLink or SuperNode reads from the same file."""
    secret = load_superexec_auth_secret(secret_file=path)
    assert secret, "written by us"
    return bytes(secret)


class _Headers:
    """An interceptor that adds headers, and nothing else."""

    def __init__(self, component: str, more: dict[str, str] | None = None) -> None:
        metadata = RuntimeVersionMetadata.from_local_component(component).as_metadata()
        self._headers = dict(metadata) | (more or {})

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self._headers)
        return call_next(context)


class _Patience:
    """Calls again what did not arrive, for a while: stands where Flower has its `RetryInvoker`."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s

    def invoke(
        self, target: Callable[..., _Result], *arguments: object, **named: object
    ) -> _Result:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return target(*arguments, **named)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if not _is_passing(error) or time.monotonic() >= until:
                    raise
            time.sleep(_TRY_AGAIN_S)


def _is_passing(error: httpx.HTTPError) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _BUSY
    return True


def _runtime_client(
    loopback: Loopback, *interceptors: object, patience_s: float = PATIENCE_S
) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        loopback.address,
        loopback.root_pem is None,
        loopback.root_pem,
        interceptors=interceptors,  # type: ignore[arg-type]  # each has `intercept`
        retry_invoker=_Patience(patience_s),  # type: ignore[arg-type]  # has its method
    )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raises what Flower's clients report as an error of ours."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in _OVER:
            raise ExpiredError(f"Flower no longer knows this task (HTTP {status})") from error
        if status in _BUSY:
            raise TransportError(f"Flower cannot answer now (HTTP {status})") from error
        raise PeerError(f"Flower refused a call (HTTP {status})") from error
    except httpx.HTTPError as error:
        raise TransportError(f"no answer from Flower: {type(error).__name__}") from error
    except (RuntimeError, ValueError) as error:  # of Flower's own helpers
        raise TransportError(f"Flower's answer cannot be used: {error}") from error


def _is_known_key(error: BaseException | None) -> bool:
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    found = FlowerError.from_json(error.response.text)
    return found is not None and found.code == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE
