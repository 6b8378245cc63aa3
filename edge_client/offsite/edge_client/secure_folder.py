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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from offsite.emulator.durable import FOLDER_MODE, machine_errors, write_atomic
from offsite.secure.aggregation.journal import (
    Entry,
    journal_from_bytes,
    journal_to_bytes,
)
from offsite.secure.aggregation.keystream import WORD_BYTES, Words
from offsite.secure.errors import IntegrityError, PeerError, PolicyError

_NAME = re.compile(r"[0-9a-f]{64}")
_TAKEN = "taken"

Turn = tuple[int, int, int]
"""Campaign, round and attempt: their order is that of time."""


def erase_sums(root: Path) -> None:
    """Erases the folder of every sum: they are over."""
    for folder in sums_of(root):
        shutil.rmtree(folder, ignore_errors=True)


def sums_of(root: Path) -> list[Path]:
    """The folders of sums that are there."""
    if not root.is_dir():
        return []
    with machine_errors(root):
        return [folder for folder in root.iterdir() if _NAME.fullmatch(folder.name)]


@dataclass(frozen=True, slots=True)
class Taken:
    """The newest attempt that this edge takes part in, or took part in."""

    turn: Turn
    terms_digest: bytes
    has_begun: bool
    """Whether anything may have left for it; before that it can be begun anew."""


def check_turn(root: Path, turn: Turn, terms_digest: bytes) -> None:
    """Raises PolicyError unless an update may be given to this attempt under these terms.

    The very terms of the newest attempt are gone on with, from its folder. Once that is erased they
    are as good as others: the latch went with it, and a second sum would have the same update.
    """
    taken = taken_of(root)
    if taken is None or turn > taken.turn:
        return
    is_same = (turn, terms_digest) == (taken.turn, taken.terms_digest)
    if is_same and (not taken.has_begun or SecureFolder.of(root, terms_digest).is_there):
        return
    last = taken.turn
    raise PolicyError(
        f"expected an attempt after campaign {last[0]}, round {last[1]}, attempt {last[2]}, or its "
        f"very terms while its sum lasts, found campaign {turn[0]}, round {turn[1]}, attempt "
        f"{turn[2]}: this edge gives one update to one sum"
    )


def taken_of(root: Path) -> Taken | None:
    """The newest attempt; None before the first. Raises PolicyError where it is not known."""
    path = root / _TAKEN
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        campaign, round_, attempt = map(int, found["turn"])
        terms_digest = bytes.fromhex(found["terms"])
        return Taken((campaign, round_, attempt), terms_digest, bool(found["has_begun"]))
    except (ValueError, KeyError, TypeError):
        raise PolicyError(
            f"{path} is damaged, and says which sums this edge took part in: restore it from a "
            "backup, or join again under a new name"
        ) from None


def note_begun(root: Path, terms_digest: bytes) -> None:
    """Remembers, before anything leaves, that it may have: also after the sum's folder was erased."""
    taken = taken_of(root)
    if taken is not None and taken.terms_digest == terms_digest and not taken.has_begun:
        _take(root, replace(taken, has_begun=True))


def _take(root: Path, taken: Taken) -> None:
    with machine_errors(root):
        root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    fields = {
        "turn": list(taken.turn),
        "terms": taken.terms_digest.hex(),
        "has_begun": taken.has_begun,
    }
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
        cls, root: Path, turn: Turn, terms_digest: bytes, terms: bytes, entropy: bytes, words: Words
    ) -> "SecureFolder":
        """A new sum; the folders of others are erased, for they are over.

        Raises:
            PolicyError: this attempt had an update already, or a later one had.
        """
        folder = cls.of(root, terms_digest)
        check_turn(root, turn, terms_digest)
        if folder.is_there:
            raise PolicyError("this sum has its update already; it is not given a second one")
        _take(root, Taken(turn, terms_digest, has_begun=False))
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
        data = self.read("words")
        if len(data) % WORD_BYTES:
            raise IntegrityError(f"{self.path / 'words'} was cut; this sum cannot be gone on with")
        return np.frombuffer(data, "<u4").astype(np.uint32)

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
