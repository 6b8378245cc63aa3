"""The real commands as processes, on a tiny model: what an owner and data owners would type."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
DEADLINE_S = 240


class Program:
    """A running command whose lines can be waited for."""

    def __init__(self, *arguments: str | Path) -> None:
        command = [str(BIN / arguments[0]), *map(str, arguments[1:])]
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
        )

    def read_until(self, text: str) -> str:
        """Blocks until a line holds `text`; fails if the command ends before."""
        for line in self._lines():
            if text in line:
                return line
        raise AssertionError(f"{text!r} never came:\n{''.join(self.lines)}")

    def end(self) -> int:
        """Reads to the end and returns the exit code."""
        for _ in self._lines():
            pass
        return self._process.wait(DEADLINE_S)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it without a chance to clean up, like a power cut."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(DEADLINE_S)

    @property
    def text(self) -> str:
        """Everything that was read."""
        return "".join(self.lines)

    def _lines(self) -> Iterator[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            yield line


@contextmanager
def started(*arguments: str | Path) -> Iterator[Program]:
    """A program that does not outlive the block."""
    program = Program(*arguments)
    try:
        yield program
    finally:
        program.kill()


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """A command that is run to its end."""
    command = [str(BIN / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def result(*arguments: str | Path) -> dict[str, object]:
    """The JSON document that a successful command prints."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def free_address() -> str:
    """A loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@dataclass(frozen=True, slots=True)
class Owner:
    """A model owner's state folder and address."""

    state: Path
    address: str

    def token(self, name: str) -> str:
        """A join token."""
        invite = ("coordinator", "invite", name, "--state", self.state, "--address", self.address)
        return str(result(*invite)["token"])

    def serve(self, *settings: str) -> tuple[str | Path, ...]:
        """The command that serves, with settings for this test."""
        flags = [word for s in settings for word in ("--set", s)]
        listen = ("--set", f"server.listen={self.address}")
        return ("coordinator", "serve", "--state", self.state, *listen, *flags)


def join(token: str, data: Path, state: Path) -> tuple[str | Path, ...]:
    """The command of a data owner that agrees to sums of two."""
    policy = ("--least-cohort", "2")
    return (
        "edge-client",
        "join",
        token,
        "--data",
        data,
        "--state",
        state,
        "--threads",
        "1",
        *policy,
    )
