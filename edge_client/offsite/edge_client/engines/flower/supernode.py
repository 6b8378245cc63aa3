"""A stock SuperNode as a child of this edge, and the tasks that it has for us.

It speaks to our shim alone. Before each start its key is told to the coordinator, so that a SuperLink
that has lost its memory knows the node again. It installs nothing and starts no process
(`--isolation process`): what it calls a ClientApp process is this one.
"""

import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import grpc

from offsite.edge_client.channel import translated
from offsite.edge_client.engines.flower.node_key import NAME, node_key_pem
from offsite.edge_client.engines.flower.shim import Shim
from offsite.edge_client.state import EdgeState
from offsite.emulator.durable import private_folder, write_atomic
from offsite.emulator.engines.flower.children import START_S, Child
from offsite.emulator.engines.flower.loopback_tls import HOST, LoopbackTls, make_loopback_tls
from offsite.secure import limits
from offsite.secure.errors import TransportError
from offsite.v1 import fleet_pb2 as pb
from offsite.v1.fleet_pb2_grpc import FleetServiceStub

if TYPE_CHECKING:
    from offsite.emulator.engines.flower.internals import ClientTask, Loopback, TaskSource

SECRET_BYTES: Final = 32


class SuperNode:
    """The child with its shim and its files; a context manager."""

    def __init__(self, state: EdgeState, channel: grpc.Channel) -> None:
        folder = state.root / "flower"
        private_folder(folder)
        self._state, self._channel, self._folder = state, channel, folder
        self._tls: LoopbackTls = make_loopback_tls(folder, time.time())
        self._secret_path = folder / "executor.secret"
        write_atomic(self._secret_path, secrets.token_bytes(SECRET_BYTES))
        self.shim = Shim(channel, self._tls.server_context())
        self.child = Child(folder / "supernode", self._command, self._tell_key)
        self._source: tuple[int, TaskSource] | None = None

    def __enter__(self) -> Self:
        self.shim.__enter__()
        self.child.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.child.__exit__()
        self.shim.__exit__(kind, error, trace)
        self._forget_source()

    def next_task(self) -> "ClientTask | None":
        """A message that waits, if there is one; none while the SuperNode is not up."""
        from offsite.emulator.engines.flower.internals import ClientTask

        try:
            claim = self._tasks().acquire()
        except TransportError:
            return None
        return None if claim is None else ClientTask(self._loopback(), claim)

    def _tasks(self) -> "TaskSource":
        from offsite.emulator.engines.flower.internals import TaskKind, TaskSource

        port = self.child.port
        if self._source is None or self._source[0] != port:
            self._forget_source()
            secret = self._secret_path.read_bytes()
            self._source = port, TaskSource(self._loopback(), secret, TaskKind.CLIENT)
        return self._source[1]

    def _forget_source(self) -> None:
        if self._source is not None:
            self._source[1].close()
            self._source = None

    def _loopback(self) -> "Loopback":
        from offsite.emulator.engines.flower.internals import Loopback

        return Loopback(f"{HOST}:{self.child.port}")

    def _tell_key(self) -> None:
        request = pb.RegisterNodeRequest(public_key_pem=node_key_pem(self._state))
        with translated():
            # The first call may have to wait for the SuperLink to come up.
            FleetServiceStub(self._channel).RegisterNode(
                request, timeout=START_S + limits.CALL_DEADLINE_S
            )

    def _command(self, port: int) -> list[str]:
        key: Path = self._state.keys / NAME
        return [
            "flower-supernode",
            *("--superlink", f"{HOST}:{self.shim.port}"),
            *("--root-certificates", str(self._tls.root.resolve())),
            *("--auth-supernode-private-key", str(key.resolve())),
            *("--host", HOST, "--port", str(port)),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", str(self._secret_path.resolve())),
        ]
