"""A signal ends a command in order, and in time whatever it is doing."""

import signal
import subprocess
import sys

from offsite.emulator.stopping import INTERRUPTED

STUBBORN = """
import sys, threading
from offsite.emulator.stopping import end_on_signals
end_on_signals(float(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    try:
        print("waiting", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
sys.exit(7)
"""
"""Ends with 7 at its n-th interrupt; a signal is to be sent once it waits."""


def _started(stop_s: float, interrupts: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", STUBBORN, str(stop_s), str(interrupts)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _interrupt(program: "subprocess.Popen[str]", number: signal.Signals) -> None:
    assert program.stdout is not None
    assert program.stdout.readline() == "waiting\n"
    program.send_signal(number)


def test_a_command_that_ends_by_itself_chooses_its_exit_code() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with _started(600.0, 1) as program:
            _interrupt(program, number)
            assert program.wait(60) == 7


def test_a_command_that_does_not_end_is_ended_in_time() -> None:
    with _started(0.2, 9) as program:
        _interrupt(program, signal.SIGTERM)
        _, err = program.communicate(timeout=60)
    assert program.returncode == INTERRUPTED
    assert "what was finished is kept" in err


def test_a_second_signal_interrupts_again() -> None:
    with _started(600.0, 2) as program:
        for _ in range(2):
            _interrupt(program, signal.SIGTERM)
        assert program.wait(60) == 7
