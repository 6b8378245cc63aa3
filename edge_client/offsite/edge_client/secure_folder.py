"""What an edge keeps of a secure sum while it lasts: one folder, erased when the next one begins.

    secure/<digest of the terms>/
        terms       the signed terms
        entropy     32 random bytes, from which every secret of the sum follows
        words       the encoded update, not masked
        directory   the signed directory that names the members
        journal     what was received and sent, step by step
        uploaded    the roster that the update was given to      } the latch: written and synced
        revealed    the survivors that shares were revealed for  } before anything leaves

The folder is of mode 0700. Whoever reads it while the sum lasts reads the update in clear, as he
could read the data next to it; nothing in it outlives the sum.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offsite.emulator.durable import FOLDER_MODE, machine_errors, write_atomic
from offsite.secure.aggregation.journal import (
    Entry,
    journal_from_bytes,
    journal_to_bytes,
)
from offsite.secure.aggregation.keystream import Words
from offsite.secure.errors import PeerError, PolicyError

FOLDER = "secure"
_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SecureFolder:
    """The folder of one sum."""

    path: Path

    @classmethod
    def of(cls, root: Path, terms_digest: bytes) -> "SecureFolder":
        """Where the sum with these terms lies, whether it is there or not."""
        return cls(root / terms_digest.hex())

    @classmethod
    def begin(
        cls, root: Path, terms_digest: bytes, terms: bytes, entropy: bytes, words: Words
    ) -> "SecureFolder":
        """A new sum; the folders of others are erased, for they are over."""
        folder = cls.of(root, terms_digest)
        with machine_errors(folder.path):
            for other in root.iterdir() if root.is_dir() else ():
                if _NAME.fullmatch(other.name) and other != folder.path:
                    shutil.rmtree(other, ignore_errors=True)
            folder.path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        write_atomic(folder.path / "entropy", entropy)
        write_atomic(folder.path / "words", words.astype("<u4", copy=False).tobytes())
        write_atomic(folder.path / "terms", terms)  # last: now it counts
        return folder

    @property
    def is_there(self) -> bool:
        return (self.path / "terms").is_file()

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            PeerError: nothing of this sum is here.
        """
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise PeerError(
                "expected a step of a sum that this edge takes part in, found one of another: it "
                "was over, or this edge has lost its state"
            ) from None

    def words(self) -> Words:
        """The encoded update; a new array."""
        return np.frombuffer(self.read("words"), "<u4").astype(np.uint32)

    def write_directory(self, signed: bytes) -> None:
        write_atomic(self.path / "directory", signed)

    def journal(self) -> list[Entry]:
        """The steps that were taken; none before the first."""
        path = self.path / "journal"
        return journal_from_bytes(path.read_bytes()) if path.is_file() else []

    def write_journal(self, entries: list[Entry]) -> None:
        """On the disk when this returns, which is before anything is sent."""
        write_atomic(self.path / "journal", journal_to_bytes(entries))

    # The latch (`offsite.secure.aggregation.member.Latch`).

    def close_for_upload(self, roster: bytes) -> None:
        """See `Latch`: the same update never enters two sums."""
        self._close("uploaded", roster)

    def close_for_reveal(self, survivors: bytes) -> None:
        """See `Latch`: shares are revealed for one set of survivors."""
        self._close("revealed", survivors)

    def _close(self, name: str, value: bytes) -> None:
        path = self.path / name
        if path.is_file():
            if path.read_bytes() != value:
                raise PolicyError(
                    f"this update was {name} for another set of members already; it is not given "
                    "away a second time"
                )
            return
        write_atomic(path, value)
