"""What holds for all tests: programs that they start hear Ctrl-C.

A shell starts what is in the background with SIGINT ignored, children inherit that, and commands of ours
respect it (`offsite.emulator.stopping`): a test that interrupts one would wait for ever.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
