"""How many connections the server takes, by the descriptors that this process may hold.

A connection costs a descriptor before it is known whose it is. Whoever opens many of them fills the
server's share and shuts others out for a while, but never takes the descriptors that database,
spool and round loop need: more than half are left to them.
"""

import contextlib
import logging
import resource
from typing import Final

from offsite.secure import limits

CONNECTIONS: Final = 2 * limits.CLIENTS
"""Every client once, and once more while an old connection has not been noticed to be dead."""
DESCRIPTORS: Final = 65_536
"""No more are asked for, also where the hard limit is infinite."""

_log = logging.getLogger(__name__)


def raise_descriptor_limit() -> int:
    """Lifts the soft limit on open files as far as it goes; returns the one in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a ceiling of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def connections_within(descriptors: int) -> int:
    """How many connections may be open at a time; more are closed as they come in."""
    allowed = min(CONNECTIONS, max(descriptors // 2, 1))
    if allowed < limits.CLIENTS:
        _log.warning(
            "only %d connections at a time with %d open files: raise the limit (`ulimit -n`) for "
            "more clients",
            allowed,
            descriptors,
        )
    return allowed
