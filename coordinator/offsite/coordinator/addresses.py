"""HOST:PORT as the owner writes it: to bind, and to be reached at.

Rule: an address that binds every interface (`0.0.0.0`, `[::]`) or leaves the port to the system
names no place, so it never gets into a join token.
"""

import re

from offsite.secure.errors import ConfigError
from offsite.secure.token import ADDRESS_CHARS

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?):(\d{1,5})")
_ANYWHERE = re.compile(r"0+(?:\.0+){0,3}|\[[0:.]+\]")


def is_address(text: str) -> bool:
    """Whether `text` is HOST:PORT; IPv6 in brackets, port 0 for any free one."""
    found = _ADDRESS.fullmatch(text) if len(text) <= ADDRESS_CHARS else None
    return found is not None and int(found.group(2)) < 1 << 16


def check_reachable(address: str) -> str:
    """Returns an address that an edge can dial.

    Raises:
        ConfigError: it is no HOST:PORT, or names every interface or any port.
    """
    if not is_address(address):
        raise ConfigError(
            f"expected an address like coordinator.example:7443, found {address[:80]!r}"
        )
    host, _, port = address.rpartition(":")
    if int(port) == 0 or _ANYWHERE.fullmatch(host):
        raise ConfigError(
            f"edges cannot dial {address}: set server.advertise (or give --address) to the host "
            "and port at which they reach this coordinator"
        )
    return address
