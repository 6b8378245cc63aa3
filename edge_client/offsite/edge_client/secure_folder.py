"""What an edge keeps of a secure sum while it lasts: one folder, erased when the next one begins.

    secure/taken    the newest attempt that an update was given to, and under which terms
    secure/<digest of the terms>/
        terms       the signed terms
        entropy     32 random bytes, from which every secret of the sum follows
        words       the encoded update, not masked
        directory   the signed directory that names the members
        journal     what was received and sent, step by step
        uploaded    the roster that the update was given to      } the latch: written and synced
        revealed    the survivors that shares were revealed for  } before anything leaves

The folder is of mode 0700. Whoever reads it while the sum lasts reads the update in clear, as he
could read the data next to it; it is erased when the next sum begins or the campaign ends.

Rule: an attempt at a round is taken part in under one set of terms, and attempts only go forward.
Otherwise a coordinator would have the same update tuned again, for a second sum with one member
more or less, whose difference is that member's update.
"""

import json
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

_NAME = re.compile(r"[0-9a-f]{64}")
_TAKEN = "taken"

Turn = tuple[int, int, int]
"""Campaign, round and attempt: their order is that of time."""


def erase_sums(root: Path) -> None:
    """Erases the folder of every sum: they are over."""
    with machine_errors(root):
        for folder in root.iterdir() if root.is_dir() else ():
            if _NAME.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def check_turn(root: Path, turn: Turn, terms_digest: bytes) -> None:
    """Raises PolicyError unless an update may be tuned for this attempt under these terms."""
    taken = _taken(root)
    if taken is None:
        return
    last, digest = taken
    if (turn == last and terms_digest == digest) or turn > last:
        return
    raise PolicyError(
        f"expected an attempt after campaign {last[0]}, round {last[1]}, attempt {last[2]}, or its "
        f"very terms, found campaign {turn[0]}, round {turn[1]}, attempt {turn[2]}: this edge gives "
        "one update to one sum"
    )


def last_turn(root: Path) -> Turn | None:
    """The newest attempt that an update was given to. Raises PolicyError where it is not known."""
    taken = _taken(root)
    return None if taken is None else taken[0]


def _taken(root: Path) -> tuple[Turn, bytes] | None:
    path = root / _TAKEN
    if not path.is_file():
        return None
    try:
        taken = json.loads(path.read_bytes())
        campaign, round_, attempt = map(int, taken["turn"])
        return (campaign, round_, attempt), bytes.fromhex(taken["terms"])
    except (ValueError, KeyError, TypeError):
        raise PolicyError(
            f"{path} is damaged, and says which sums this edge took part in: restore it from a "
            "backup, or join again under a new name"
        ) from None


def take_turn(root: Path, turn: Turn, terms_digest: bytes) -> None:
    """Remembers, before anything of an update is stored, which attempt it is for."""
    with machine_errors(root):
        root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    fields = {"turn": list(turn), "terms": terms_digest.hex()}
    write_atomic(root / _TAKEN, json.dumps(fields).encode())


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
        erase_sums(root)
        with machine_errors(folder.path):
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
