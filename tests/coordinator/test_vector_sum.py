"""Masked vectors are compared, kept and added up piece by piece."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array

from offsite.coordinator.secure_sums.vector_sum import VectorSum
from offsite.emulator.rounds import stored_array
from offsite.emulator.rounds.exchange import MaskedWords
from offsite.emulator.rounds.stored_array import StoredArray
from offsite.secure.errors import MachineError, PeerError

COUNT = 1000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_array, "PIECE_BYTES", 64)
    monkeypatch.setattr("offsite.coordinator.secure_sums.vector_sum.PIECE_BYTES", 96)


def _words(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 32, COUNT, np.uint32)


def _in_memory(words: np.ndarray) -> MaskedWords:
    return MaskedWords(Array("uint32", (COUNT,), "offsite.masked", words.tobytes()))


def _on_disk(path: Path, words: np.ndarray) -> MaskedWords:
    path.write_bytes(b"head" + words.tobytes() + b"tail")
    return MaskedWords(StoredArray("uint32", (COUNT,), "offsite.masked", path, 4, 4 * COUNT))


def test_vectors_are_added_wherever_they_lie_and_taken_out_again(tmp_path: Path) -> None:
    total, seen = VectorSum(tmp_path / "evidence", COUNT), []
    first, second = _words(1), _words(2)
    total.add("anna", _in_memory(first), seen.append)
    total.add("ben", _on_disk(tmp_path / "reply", second), seen.append)
    assert np.array_equal(total.words, first + second)
    assert seen == [sha256(first.tobytes()).digest(), sha256(second.tobytes()).digest()]
    assert (tmp_path / "evidence" / "ben.masked").read_bytes() == second.tobytes()
    total.take_out("anna")
    assert np.array_equal(total.words, second)
    assert (tmp_path / "evidence" / "anna.masked").is_file()


def test_one_that_was_not_signed_changes_nothing(tmp_path: Path) -> None:
    total = VectorSum(tmp_path / "evidence", COUNT)

    def refuse(found: bytes) -> None:
        raise PeerError("expected another vector")

    with pytest.raises(PeerError):
        total.add("anna", _in_memory(_words(1)), refuse)
    assert not total.words.any() and not list((tmp_path / "evidence").iterdir())


def test_one_that_cannot_be_kept_changes_nothing(tmp_path: Path) -> None:
    total = VectorSum(tmp_path / "evidence", COUNT)
    (tmp_path / "evidence").rmdir()
    with pytest.raises(MachineError):
        total.add("anna", _in_memory(_words(1)), lambda found: None)
    assert not total.words.any()
