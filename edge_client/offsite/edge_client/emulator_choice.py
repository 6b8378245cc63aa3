"""Which emulator of a release an edge tunes: the one it is told, or the largest that fits.

Notable: an automatic choice is made once per release, before its model is loaded. A session that
begins again in the same process finds less memory free, for its model may still be there; asked
again it would choose a smaller one.

Rule: what is told must exist; nothing is taken in the place of an unknown name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from offsite.edge_client.machine_memory import free_bytes
from offsite.emulator.bundle.bundle import SignedManifest
from offsite.emulator.bundle.manifest import MAIN, Manifest
from offsite.emulator.bundle.variants import variant_entry

AUTO = "auto"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Choice:
    """An emulator of a release, and why it was taken."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    tuning_bytes: int


def choose(wanted: str, main: Manifest, free: int | None) -> Choice:
    """The emulator to tune, `free` bytes of memory being available (None: not known).

    Raises:
        ConfigError: the release has no emulator of that name; it lists the names.
    """
    if wanted != AUTO:
        if wanted != MAIN:
            variant_entry(main, wanted)
        return Choice(wanted, "as told")
    candidates = sorted(_candidates(main), key=lambda candidate: -candidate.tuning_bytes)
    if free is None:
        return Choice(MAIN, "this system does not say how much memory is free")
    fitting = [candidate for candidate in candidates if candidate.tuning_bytes <= free]
    if not fitting:
        smallest = candidates[-1]
        return Choice(smallest.name, f"none fits, this is the smallest: {_sizes(smallest, free)}")
    return Choice(fitting[0].name, f"the largest that fits: {_sizes(fitting[0], free)}")


def _candidates(main: Manifest) -> Iterator[_Candidate]:
    yield _Candidate(MAIN, main.tuning_bytes)
    for entry in main.variants:
        yield _Candidate(entry.name, entry.tuning_bytes)


def _sizes(candidate: _Candidate, free: int) -> str:
    return (
        f"tuning it takes about {candidate.tuning_bytes // _MIB} MiB of memory,"
        f" {free // _MIB} MiB are free"
    )


class Chooser:
    """Chooses for every release once, and says what and why where there was a choice."""

    def __init__(
        self,
        wanted: str,
        say: Callable[[str], None],
        free: Callable[[], int | None] = free_bytes,
    ) -> None:
        self._wanted, self._say, self._free = wanted, say, free
        self._chosen: dict[bytes, str] = {}

    def __call__(self, release: SignedManifest) -> str:
        """The name of the emulator; raises as `choose`."""
        if release.digest not in self._chosen:
            choice = choose(self._wanted, release.manifest, self._free())
            self._chosen = {release.digest: choice.name}
            if release.manifest.variants:
                self._say(f"emulator {choice.name}: {choice.why}")
        return self._chosen[release.digest]
