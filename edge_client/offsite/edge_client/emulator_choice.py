"""Which emulator of a release an edge tunes: the one it is told, or the first that fits.

The main emulator comes first, then the variants in their owner's order. Memory decides what fits, not
what is better: an emulator that shares blocks is strongly compressed and takes more than the main one.

Notable: an automatic choice is made once per release and process, before its model is loaded. A
session that begins again in the same process finds less memory free, for its model may still be
there; asked again it would choose a smaller one. A process that begins anew, after a kill perhaps,
keeps the emulator of this release that lies in the state folder, whole or in part: always if a
round that was begun with it can go on, else as long as it fits. So a little more memory, or a little
less, neither fetches a release twice nor throws a checkpoint away.

Rule: what is told must exist; nothing is taken in the place of an unknown name.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from offsite.edge_client.machine_memory import free_bytes
from offsite.emulator.bundle.bundle import SignedManifest
from offsite.emulator.bundle.manifest import MAIN, Manifest
from offsite.emulator.bundle.stated import stated_emulator, stated_manifest
from offsite.emulator.bundle.variants import variant_entry
from offsite.secure.errors import OffsiteError

AUTO = "auto"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Choice:
    """An emulator of a release, and why it was taken."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Kept:
    """The emulator of a release that lies on this machine's disk."""

    name: str
    is_begun: bool
    """Whether a round that was begun with it can go on."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    tuning_bytes: int


def choose(wanted: str, main: Manifest, free: int | None, kept: Kept | None = None) -> Choice:
    """The emulator to tune, `free` bytes of memory being available (None: not known).

    `kept` is what is here of this very release.

    Raises:
        ConfigError: the release has no emulator of that name; it lists the names.
    """
    if wanted != AUTO:
        if wanted != MAIN:
            variant_entry(main, wanted)
        return Choice(wanted, "as told")
    candidates = list(_candidates(main))
    here = next((c for c in candidates if kept is not None and c.name == kept.name), None)
    if here is not None and kept is not None:
        if kept.is_begun:
            return Choice(here.name, "a round that was begun with it goes on")
        if free is None or here.tuning_bytes <= free:
            return Choice(here.name, "it is here already and fits")
    if free is None:
        return Choice(MAIN, "this system does not say how much memory is free")
    fitting = [candidate for candidate in candidates if candidate.tuning_bytes <= free]
    if not fitting:
        smallest = min(candidates, key=lambda candidate: candidate.tuning_bytes)
        return Choice(smallest.name, f"none fits, this is the smallest: {_sizes(smallest, free)}")
    return Choice(fitting[0].name, f"the first that fits: {_sizes(fitting[0], free)}")


def _candidates(main: Manifest) -> Iterator[_Candidate]:
    yield _Candidate(MAIN, main.tuning_bytes)
    for entry in main.variants:
        yield _Candidate(entry.name, entry.tuning_bytes)


def _sizes(candidate: _Candidate, free: int) -> str:
    return (
        f"tuning it takes about {candidate.tuning_bytes // _MIB} MiB of memory,"
        f" {free // _MIB} MiB are free"
    )


def kept_in(bundle: Path, rounds: Path, release: SignedManifest) -> Kept | None:
    """What an edge's folders hold of a release: installed, or on the way."""
    from offsite.edge_client.client_app import CHECKPOINT_NAME

    is_begun = any(rounds.glob(f"*/{CHECKPOINT_NAME}"))
    for folder, may_go_on in (
        (bundle, is_begun),
        (bundle.with_name(f"{bundle.name}.incoming"), False),
    ):
        try:
            manifest = stated_manifest(folder)
        except OffsiteError:  # damaged: whoever fetches says so, and fetches it anew
            continue
        if manifest and hashlib.sha256(manifest.to_bytes()).digest() == release.digest:
            return Kept(stated_emulator(folder), may_go_on)
    return None


def _nothing_kept(release: SignedManifest) -> Kept | None:
    return None


class Chooser:
    """Chooses for every release once, and says what and why where there was a choice."""

    def __init__(
        self,
        wanted: str,
        say: Callable[[str], None],
        free: Callable[[], int | None] = free_bytes,
        kept: Callable[[SignedManifest], Kept | None] = _nothing_kept,
    ) -> None:
        self._wanted, self._say, self._free, self._kept = wanted, say, free, kept
        self._chosen: dict[bytes, str] = {}

    def __call__(self, release: SignedManifest) -> str:
        """The name of the emulator; raises as `choose`."""
        if release.digest not in self._chosen:
            choice = choose(self._wanted, release.manifest, self._free(), self._kept(release))
            self._chosen = {release.digest: choice.name}
            if release.manifest.variants:
                self._say(f"emulator {choice.name}: {choice.why}")
        return self._chosen[release.digest]
