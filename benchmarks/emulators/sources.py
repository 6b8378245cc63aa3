"""Which code a record comes from: digests of the sources that decide a stage's outcome.

Records that another version of them made stay in the ledger and are not found again.
"""

import hashlib
from functools import cache
from pathlib import Path

import offsite.edge_client
import offsite.emulator

EMULATOR = Path(str(offsite.emulator.__file__)).parent
EDGE = Path(str(offsite.edge_client.__file__)).parent

BUILDING = (
    "methods",
    "packing",
    "block_call.py",
    "blocks.py",
    "build.py",
    "factored.py",
    "harmoniser.py",
    "linear.py",
)
DISTILLING = ("training", "distil.py")
HEALING = ("training", "leak/heal.py")
TUNING = ("training", "adapters")
CORRECTING = ("correction.py",)


def building(*, distils: bool) -> str:
    """Of what makes an emulator."""
    return _digest(EMULATOR, (*BUILDING, *(DISTILLING if distils else ())))


def healing() -> str:
    """Of the attack."""
    return _digest(EMULATOR, HEALING)


def tuning() -> str:
    """Of the edge's loop and what it stands on."""
    return _digest(EMULATOR, TUNING) + _digest(EDGE, ("tuning.py",))


def correcting() -> str:
    """Of what happens to a LoRA at plug-in."""
    return _digest(EMULATOR, CORRECTING)


@cache
def _digest(root: Path, names: tuple[str, ...]) -> str:
    """Of modules and of all that packages hold, by their paths; the first twelve digits."""
    digest = hashlib.sha256()
    for path in sorted({file for name in names for file in _files(root / name)}):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _files(path: Path) -> list[Path]:
    found = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert found, f"no sources in {path}"
    return found
