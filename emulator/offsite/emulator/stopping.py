"""What SIGTERM and SIGINT do to a command: it ends in order, and it ends in time.

    signal ──> KeyboardInterrupt in the main thread ──> what is open is closed ──> exit 130
       └── `STOP_S` later, whatever still runs ──> exit 130, as a power cut would end it

Notable: whoever has more to do than to close what is open (`coordinator serve` lets uploads end)
does it where the interrupt passes by. The second half is there because nothing can interrupt a
long call into a library, and a supervisor that has waited long enough kills anyway: everything
that counts is durable before it is acknowledged, so being cut is always a legal end.

A second signal interrupts again: it ends what the first one was waiting for.
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Final

INTERRUPTED: Final = 130
"""Exit code of a command that a signal ended: 128 and the number of SIGINT, for both signals."""
STOP_S: Final = 9.0
"""Time between a signal and the end, at the latest; supervisors are promised ten seconds."""
_LAST_WORDS: Final = "stopped in the middle of something long: what was finished is kept\n"


def end_on_signals(stop_s: float = STOP_S) -> None:
    """Installs the rule in this process; to be called in the main thread, once."""
    is_first = True

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            _end_after(stop_s)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        # What a shell starts in the background is not to hear Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _end_after(seconds: float) -> None:
    timer = threading.Timer(seconds, _end)
    timer.daemon = True  # whoever is done earlier does not wait for it
    timer.start()


def _end() -> None:
    sys.stderr.write(_LAST_WORDS)
    sys.stderr.flush()
    os._exit(INTERRUPTED)
