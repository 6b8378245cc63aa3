"""Child processes of the demonstration: each line they write is shown under their name."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

BIN = Path(sys.executable).parent
POLL_S = 0.2


class Child:
    """One running command; its output goes to the screen and to a log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, threads: int) -> None:
        self.name = name
        self._log = log
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(threads),
        )
        self._reader = threading.Thread(target=self._show, daemon=True)
        self._reader.start()

    def _show(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("a", encoding="utf-8") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                print(f"[{self.name}] {line.rstrip()}", flush=True)

    @property
    def running(self) -> bool:
        """True until the process has ended.

        Raises:
            SystemExit: it failed; names its log.
        """
        status = self._process.poll()
        if status:
            self._reader.join()
            raise SystemExit(f"{self.name} ended with exit code {status}; see {self._log}")
        return status is None

    def stop(self) -> None:
        """Ends the process if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=30)


def wait_for_all(children: Sequence[Child]) -> None:
    """Waits until every child has ended; the first that fails ends the waiting."""
    pause = threading.Event()
    while [child for child in children if child.running]:
        pause.wait(POLL_S)


def environment(threads: int) -> Mapping[str, str]:
    """The environment of a child: `threads` for arithmetic, no telemetry, no hub."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def command(name: str, *arguments: str) -> list[str]:
    """A console script of this environment with its arguments."""
    return [str(BIN / name), *arguments]


def output(arguments: Sequence[str], threads: int) -> str:
    """Runs a command to its end; its notes go to the screen, its result is returned."""
    done = subprocess.run(
        arguments, env=environment(threads), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[:2])} ended with exit code {done.returncode}")
    return done.stdout


def free_port() -> int:
    """A loopback port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
