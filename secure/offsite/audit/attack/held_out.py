"""Which rows are kept out of tuning so that the attack has something to compare with.

Rule: drawn at random and before tuning. The intervals and the test against chance rest on members
and held-out rows being exchangeable; the last rows of a file, or a newer file, are not.
"""

from offsite.audit.attack.entropy import generator
from offsite.secure.errors import ConfigError

_DOMAIN = b"offsite/attack/held-out/1"


def draw_held_out(units: int, held_out: int, entropy: bytes) -> frozenset[int]:
    """The places of the units to hold out, among ``units``.

    Args:
        entropy: 32 bytes of the operating system's, kept by the data owner: whoever knows them
            knows which rows were not learnt.
    """
    if not 0 < held_out < units:
        raise ConfigError(
            f"expected to hold out at least 1 and fewer than all of {units} rows, found {held_out}"
        )
    chosen = generator(_DOMAIN, entropy).choice(units, held_out, replace=False)
    return frozenset(int(place) for place in chosen)
