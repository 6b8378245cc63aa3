"""Starts a command that ends with the process that asked for it, even if that is killed.

    python -m offsite.emulator.engines.flower.bound PARENT_PID COMMAND [ARGUMENT ...]

The kernel sends the command SIGKILL when the thread that started it ends (PR_SET_PDEATHSIG, kept
across exec; Linux alone). Done here and not between fork and exec of the parent, which has threads.
Elsewhere than on Linux a command outlives a parent that was killed; one that stops takes it along.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
GONE = 75
"""The exit code if the parent ended before the kernel was asked."""


def main(arguments: list[str]) -> None:
    """Becomes the command."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(GONE)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
