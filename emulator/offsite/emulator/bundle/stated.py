"""What the release in a folder says of itself, before anything of it is verified.

For a status line and for the next version number, never for a decision about trust: that is what
`reader.open_bundle` is for. Damage has one treatment: it is an IntegrityError, by whoever reads.
"""

from pathlib import Path

from offsite.emulator.bundle.files import ENVELOPE_BYTES
from offsite.emulator.bundle.manifest import MAIN, MANIFEST_NAME, Manifest
from offsite.emulator.bundle.variants import VARIANTS
from offsite.emulator.durable import unreadable
from offsite.secure.envelope import from_bytes
from offsite.secure.errors import IntegrityError, PeerError


def stated_emulator(folder: Path) -> str:
    """The emulator in an edge's folder of a release: `main`, or the name of its one variant."""
    try:
        variants = [path.name for path in (folder / VARIANTS).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return MAIN
    return variants[0] if len(variants) == 1 else MAIN


def stated_manifest(folder: Path) -> Manifest | None:
    """The manifest in a bundle folder, its signature unverified; None if there is none.

    Raises:
        IntegrityError: there is one, and it is damaged.
        MachineError: it cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(ENVELOPE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        return Manifest.from_bytes(from_bytes(data).payload)
    except PeerError as error:
        raise IntegrityError(f"{folder}: the release there is damaged: {error}") from error
