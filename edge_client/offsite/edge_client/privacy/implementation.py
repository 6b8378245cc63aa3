"""With what a private step is carried out: digests of code, model, adapter and settings, for the ledger."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

import offsite.edge_client.privacy
import offsite.emulator.privacy
import offsite.secure.privacy
from offsite.edge_client.privacy.campaign_budget import config_digest
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.strict_json import canonical_json
from offsite.secure.privacy.ledger.bodies import (
    Implementation,
    LossScope,
    NoiseType,
    RandomSource,
    Sampler,
)

ENGINE: Final = "per_example"
_PACKAGES: Final = (offsite.secure.privacy, offsite.emulator.privacy, offsite.edge_client.privacy)


def implementation_of(bundle: Bundle, settings: TuningSettings) -> Implementation:
    """The implementation of a release's private steps by this program."""
    return Implementation(
        engine=ENGINE,
        code=code_digest(),
        model=bundle.digest,
        adapter=hashlib.sha256(canonical_json(bundle.manifest.adapter.to_json())).digest(),
        config=config_digest(settings),
        loss_scope=LossScope.PER_UNIT,
        sampler=Sampler.POISSON,
        random_source=RandomSource.CHACHA20,
        noise_type=NoiseType.FLOAT64_ON_A_GRID,
    )


@cache
def code_digest() -> bytes:
    """SHA-256 over the sources of everything that decides privacy, by their paths."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            name = f"{package.__name__}/{path.relative_to(root).as_posix()}\n"
            digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()
