"""A command of Flower as a child of ours: started, watched, started again, ended.

    starting ──> running ──> ended ──> (a pause that grows) ──> starting
                    └── stop: SIGTERM, then SIGKILL

Rules it enforces:

* a child does not outlive this process, however that ends (`bound`); the thread that starts it
  lives as long as the child, for the kernel watches that thread;
* a child reports to nobody: telemetry and the update check are off, it installs nothing, and no
  proxy stands between it and loopback;
* what it says goes to a file of bounded size that its owner alone can read.
"""

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Self

from offsite.emulator.durable import FILE_MODE, machine_errors, private_folder
from offsite.secure.errors import MachineError, OffsiteError, TransportError

LOG_BYTES: Final = 16 << 20
"""Of what a child says; a full file is kept as `.1` until the next is full."""
START_S: Final = 120.0
"""How long a child may take to listen: it imports much."""
STOP_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_LIVED_S: Final = 60.0
"""A child that lived so long was well: the next pause is the first one again."""
_LOOK_S: Final = 0.05
_PROXIES: Final = (
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)

_log = logging.getLogger(__name__)

Command = Callable[[int], Sequence[str]]
"""Name and arguments of a child that is to listen on a port of loopback."""


def no_preparation() -> None:
    """For a child that needs none."""


class Child:
    """One supervised command; a context manager that ends it."""

    def __init__(
        self, folder: Path, command: Command, prepare: Callable[[], None] = no_preparation
    ) -> None:
        """`prepare` is called before each start, and again after a pause if it raises."""
        self.folder = folder
        self.starts = 0
        self._command, self._prepare = command, prepare
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"child-{folder.name}")

    def __enter__(self) -> Self:
        private_folder(self.folder)
        private_folder(self.folder / "home")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._end()
        self._thread.join()

    @property
    def port(self) -> int:
        """Where it listens; kept over restarts, unless somebody else took it."""
        return self._port

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        with self._lock:
            return None if self._process is None else self._process.pid

    def restart(self) -> None:
        """Ends the process; the next one is started at once."""
        self._end()

    def wait_until_it_listens(self, within_s: float = START_S) -> None:
        """Raises TransportError if nothing listens in time, or this is being closed."""
        until = time.monotonic() + within_s
        while time.monotonic() < until and not self._closing.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), timeout=_LOOK_S * 20),
            ):
                return
            time.sleep(_LOOK_S)
        raise TransportError(
            f"{self.folder.name} does not listen after {within_s:.0f} s; {self._log_path} says why"
        )

    # ---- the watching thread

    def _watch(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._closing.is_set():
            started = time.monotonic()
            try:
                self._prepare()
                self._run()
            except OffsiteError as error:
                _log.warning("%s: not started: %s", self.folder.name, error)
            if self._closing.is_set():
                return
            lived_s = time.monotonic() - started
            pause_s = _FIRST_PAUSE_S if lived_s > _LIVED_S else pause_s
            _log.warning("%s ended; started again in %.1f s", self.folder.name, pause_s)
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if not is_free(self._port):
                self._port = free_port()

    def _run(self) -> None:
        name, *arguments = self._command(self._port)
        bound = (sys.executable, "-m", "offsite.emulator.engines.flower.bound", str(os.getpid()))
        with self._lock:
            if self._closing.is_set():
                return
            self._process = subprocess.Popen(
                [*bound, executable(name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment(self.folder / "home"),
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
            self.starts += 1
        assert self._process.stdout is not None
        with self._process.stdout as said, BoundedLog(self._log_path) as log:
            for line in said:
                log.write(line)
        self._process.wait()

    def _end(self) -> None:
        with self._lock:
            process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()

    @property
    def _log_path(self) -> Path:
        return self.folder.with_suffix(".log")


class BoundedLog:
    """A file that only its owner reads, and that grows to `most_bytes` and no further, twice."""

    def __init__(self, path: Path, most_bytes: int = LOG_BYTES) -> None:
        self._path, self._most = path, most_bytes
        self._file = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: bytes) -> None:
        """A full disk loses lines and nothing else."""
        with contextlib.suppress(OSError):
            if self._file.tell() + len(line) > self._most:
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._opened()
            self._file.write(line)
            self._file.flush()

    def _opened(self) -> IO[bytes]:
        with machine_errors(self._path):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)
            os.fchmod(descriptor, FILE_MODE)
            return os.fdopen(descriptor, "ab")


def environment(home: Path) -> Mapping[str, str]:
    """What a child of Flower sees."""
    inherited = {name: value for name, value in os.environ.items() if name not in _PROXIES}
    return inherited | {
        "FLWR_HOME": str(home.resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_PROXY": "*",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "PYTHONUNBUFFERED": "1",
    }


def executable(name: str) -> str:
    """A console command of the environment that this process runs in.

    Raises:
        MachineError: it is not installed there.
    """
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=str(beside))
    if found is None:
        raise MachineError(f"expected {name} in {beside}, found none: install `flwr` again")
    return found


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a child could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
