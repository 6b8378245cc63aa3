"""A hostile tokenizer costs an error, never the process or its memory."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from offsite.emulator.bundle import tokenizer_files
from offsite.emulator.bundle.tokenizer_files import (
    check_tokenizer,
    encode_tokenizer,
    load_tokenizer,
)
from offsite.secure.errors import ConfigError, PeerError

Write = Callable[..., Path]
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
QUOTES = {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}
RUNS = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}

PADDING = {
    "strategy": {"Fixed": 1000},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<s>",
}


@pytest.fixture
def write(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Write:
    files = encode_tokenizer(tokenizer)

    def write(**changes: object) -> Path:
        backend = json.loads(files["tokenizer.json"]) | changes
        (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
        (tmp_path / "tokenizer_config.json").write_bytes(files["tokenizer_config.json"])
        return tmp_path

    return write


def _sequence(*steps: object) -> dict[str, object]:
    return {"type": "Sequence", "normalizers": list(steps)}


def _replace(content: str, **pattern: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    "change",
    [
        # Panics when it is read, and when it is first used.
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AA=="}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}},
        {"model": {"type": "WordPiece"}},
        {"model": None},
        {"truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 0}},
        {"padding": PADDING},
    ],
    ids=lambda change: str(change)[:48],
)
@pytest.mark.parametrize("read", [check_tokenizer, load_tokenizer])
def test_a_tokenizer_that_fails_or_panics_is_refused(
    read: Callable[[Path], object], change: dict[str, object], write: Write
) -> None:
    with pytest.raises(PeerError, match=r"tokenizer\.json"):
        read(write(**change))


class Panic(BaseException):
    """What pyo3 makes of a panic is no `Exception` either."""


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (Panic, PeerError),
        (RuntimeError, PeerError),
        (KeyboardInterrupt, KeyboardInterrupt),
        (SystemExit, SystemExit),
        (MemoryError, MemoryError),
    ],
)
def test_only_what_is_the_files_fault_becomes_an_error_of_the_peer(
    raised: type[BaseException],
    expected: type[BaseException],
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write()

    def fail(*_: object) -> object:
        raise raised("panicked")

    monkeypatch.setattr(tokenizer_files, "_build", fail)
    with pytest.raises(expected):
        load_tokenizer(folder)
    monkeypatch.setattr(tokenizers, "Tokenizer", type("Broken", (), {"from_str": fail}))
    with pytest.raises(expected):
        check_tokenizer(folder)


@pytest.mark.parametrize(
    "normalizer",
    [
        _replace("a" * 16, String="a"),
        _replace("a" * 10, Regex="."),
        _sequence(*[_replace("aa", String="a")] * 5),
        _sequence(_sequence(_replace("aaaaa", String="a")), _replace("aaaaa", Regex="a")),
        {"type": "Prepend", "prepend": "a" * 9},
    ],
    ids=lambda value: str(value)[:48],
)
def test_a_normaliser_that_makes_long_text_is_refused(
    normalizer: dict[str, object], write: Write
) -> None:
    with pytest.raises(PeerError, match=r"expected (at most 8 characters|text at most 16 times)"):
        check_tokenizer(write(normalizer=normalizer))


def test_the_owner_learns_before_the_edges_do(tokenizer: PreTrainedTokenizerFast) -> None:
    original = copy.deepcopy(tokenizer)
    original.backend_tokenizer.normalizer = tokenizers.normalizers.Replace("a", "a" * 16)
    with pytest.raises(ConfigError, match="edges would refuse this tokenizer"):
        encode_tokenizer(original)


def test_the_same_as_pre_tokeniser_is_refused(write: Write) -> None:
    step = {"type": "Sequence", "pretokenizers": [_replace("a" * 16, String="a")]}
    with pytest.raises(PeerError, match="expected at most 8 characters"):
        check_tokenizer(write(pre_tokenizer=step))


@pytest.mark.parametrize(
    "normalizer",
    [
        SPACES,
        _sequence(SPACES, QUOTES, RUNS),
        _sequence({"type": "Prepend", "prepend": "▁"}, SPACES),
        {"type": "NFC"},
        None,
    ],
    ids=lambda value: str(value)[:48],
)
def test_what_families_need_passes(normalizer: dict[str, object] | None, write: Write) -> None:
    load_tokenizer(write(normalizer=normalizer))
