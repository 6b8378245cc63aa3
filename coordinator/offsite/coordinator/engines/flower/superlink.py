"""A stock SuperLink as a child of the coordinator, on loopback.

Its port serves nodes, operators and apps alike and asks operators for nothing but its CA. So it binds
127.0.0.1, edges reach the node's calls alone and through our own port (`tunnel`), and its executor
secret is in a file of mode 0600. It starts no process and installs nothing (`--isolation process`):
the one ServerApp is this coordinator. Any user of this machine can still speak to its control
interface; see `docs/engines.md`.
"""

import http.client
import queue
import secrets
import ssl
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from offsite.emulator.durable import private_folder, write_atomic
from offsite.emulator.engines.flower.children import Child
from offsite.emulator.engines.flower.fleet_wire import (
    CONTENT_TYPE_CHARS,
    FleetAnswer,
    FleetCall,
    check_body_bytes,
)
from offsite.emulator.engines.flower.loopback_tls import HOST, LoopbackTls, make_loopback_tls

if TYPE_CHECKING:
    from offsite.emulator.engines.flower.internals import Loopback

SECRET_BYTES: Final = 32
CALL_S: Final = 60.0
IDLE_S: Final = 2.0
"""A connection that was idle for longer is not used again: the SuperLink closes it after five."""
UNREACHABLE: Final = FleetAnswer(503, "text/plain", b"")
"""What a SuperNode understands as: try again."""


class SuperLink:
    """The child with its files; a context manager."""

    def __init__(self, folder: Path) -> None:
        """`folder` keeps its database, so a SuperLink that fell over goes on with the same run."""
        self.folder = folder
        private_folder(folder)
        self._tls = make_loopback_tls(folder, time.time())
        self._secret_path = folder / "executor.secret"
        write_atomic(self._secret_path, secrets.token_bytes(SECRET_BYTES))
        self.child = Child(folder / "superlink", self._command)
        self._caller = _Caller(self.child, self._tls)

    def __enter__(self) -> Self:
        self.child.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.child.__exit__()
        self._caller.close()

    @property
    def secret(self) -> bytes:
        """That executors prove themselves with."""
        return self._secret_path.read_bytes()

    @property
    def loopback(self) -> "Loopback":
        """Where it listens, once it does.

        Raises:
            TransportError: it does not come up.
        """
        from offsite.emulator.engines.flower.internals import Loopback

        self.child.wait_until_it_listens()
        return Loopback(f"{HOST}:{self.child.port}", self._tls.root_pem)

    def call(self, call: FleetCall) -> FleetAnswer:
        """A node's call; blocks. A SuperLink that cannot be reached answers 503."""
        return self._caller.call(call)

    def _command(self, port: int) -> list[str]:
        return [
            "flower-superlink",
            *("--host", HOST, "--port", str(port)),
            *("--ssl-ca-certfile", str(self._tls.root.resolve())),
            *("--ssl-certfile", str(self._tls.certificate.resolve())),
            *("--ssl-keyfile", str(self._tls.key.resolve())),
            *("--database", str((self.folder / "superlink.sqlite").resolve())),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", str(self._secret_path.resolve())),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        ]


class _Caller:
    """Calls over connections that are kept for a moment. Safe to use from any thread."""

    def __init__(self, child: Child, tls: LoopbackTls) -> None:
        self._child = child
        self._context: ssl.SSLContext = tls.client_context()
        self._idle: queue.LifoQueue[tuple[float, int, http.client.HTTPSConnection]]
        self._idle = queue.LifoQueue()

    def call(self, call: FleetCall) -> FleetAnswer:
        connection, port = self._connection()
        try:
            connection.request("POST", call.path, call.body, dict(call.headers))
            response = connection.getresponse()
            check_body_bytes(int(response.headers.get("content-length") or 0))
            content_type = response.headers.get("content-type", "")[:CONTENT_TYPE_CHARS]
            answer = FleetAnswer(response.status, content_type, response.read())
        except (OSError, http.client.HTTPException):
            connection.close()
            return UNREACHABLE
        except BaseException:
            connection.close()
            raise
        self._idle.put((time.monotonic(), port, connection))
        return answer

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait()[2].close()

    def _connection(self) -> tuple[http.client.HTTPSConnection, int]:
        port = self._child.port
        while True:
            try:
                since, known_port, connection = self._idle.get_nowait()
            except queue.Empty:
                made = http.client.HTTPSConnection(
                    HOST, port, timeout=CALL_S, context=self._context
                )
                return made, port
            if known_port == port and time.monotonic() - since < IDLE_S:
                return connection, port
            connection.close()
