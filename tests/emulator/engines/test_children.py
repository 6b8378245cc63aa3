"""Children of ours: they fall over and are started again, and never outlive whoever started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from offsite.emulator.engines.flower.children import (
    BoundedLog,
    Child,
    environment,
    executable,
    free_port,
)
from offsite.secure.errors import MachineError

SERVES = "import http.server, sys; http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()"
PARENT = """
import sys, time
from pathlib import Path
from offsite.emulator.engines.flower.children import Child
with Child(Path(sys.argv[1]), lambda port: ["python", "-c", sys.argv[2], str(port)]) as child:
    child.wait_until_it_listens()
    print(child.pid, flush=True)
    time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def becomes(true: Callable[[], bool]) -> bool:
    """Looks until it is so; a minute at most, so that a defect fails and does not hang."""
    until = time.monotonic() + 60
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def gone(pid: int) -> bool:
    """Whether a process ends."""
    return becomes(lambda: not is_alive(pid))


def child(folder: Path) -> Child:
    return Child(folder, lambda port: ["python", "-c", SERVES, str(port)])


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is of Linux")
def test_a_child_dies_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "child"), SERVES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    assert gone(pid)


def test_a_child_that_is_killed_is_started_again_on_the_same_port(tmp_path: Path) -> None:
    with child(tmp_path / "child") as started:
        started.wait_until_it_listens()
        first, port = started.pid, started.port
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert gone(first) and becomes(lambda: started.pid != first)
        started.wait_until_it_listens()
        assert (started.port, started.starts) == (port, 2)
        second = started.pid
    assert second is not None and gone(second)


def test_what_must_happen_before_a_start_is_tried_until_it_works(tmp_path: Path) -> None:
    tries = []

    def prepare() -> None:
        tries.append(None)
        if len(tries) < 2:
            raise MachineError("not yet")

    with Child(
        tmp_path / "child", lambda port: ["python", "-c", SERVES, str(port)], prepare
    ) as started:
        started.wait_until_it_listens()
    assert (len(tries), started.starts) == (2, 1)


def test_a_child_reports_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    with child(tmp_path / "child") as started:
        started.wait_until_it_listens()
        seen = dict(
            entry.split("=", 1)
            for entry in Path(f"/proc/{started.pid}/environ").read_text().split("\0")
            if "=" in entry
        )
    assert seen["FLWR_TELEMETRY_ENABLED"] == "0"
    assert seen["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert seen["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert seen["FLWR_HOME"] == str(tmp_path / "child" / "home")
    assert "https_proxy" not in seen


def test_commands_are_those_of_this_environment(tmp_path: Path) -> None:
    assert Path(executable("flower-superlink")).parent == Path(sys.executable).parent
    assert environment(tmp_path)["PATH"].startswith(str(Path(sys.executable).parent))
    with pytest.raises(MachineError, match="found none"):
        executable("flower-nothing")


def test_a_log_is_bounded_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "child.log"
    with BoundedLog(path, most_bytes=100) as log:
        for number in range(40):
            log.write(b"line %3d\n" % number)
    kept = path.read_bytes()
    assert kept.endswith(b"line  39\n") and len(kept) <= 100
    assert len(path.with_name("child.log.1").read_bytes()) <= 100
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_free_port_is_of_loopback() -> None:
    assert 0 < free_port() < 1 << 16
