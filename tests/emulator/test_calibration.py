"""Calibration text to token batches."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from offsite.emulator.calibration import calibration_batches, read_texts
from offsite.secure.errors import ConfigError

END = 3


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"one": 0, "two": 1, "three": 2, "<end>": END, "?": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="?")


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


RECORDS = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in ("one two", "", "three"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_json_lines(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, RECORDS + "\n")
    assert list(read_texts([path, path])) == ["one two", "three"] * 2


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_plain_text_is_parted_at_blank_lines(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, "\n\none\ntwo\n\n \nthree")
    assert list(read_texts([path])) == ["one\ntwo\n", "three"]


def test_documents_are_packed_in_order(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", RECORDS * 3)
    batches = calibration_batches([path], tokenizer, total_tokens=14, row_tokens=4, batch_rows=2)
    assert [batch.tolist() for batch in batches] == [
        [[0, 1, END, 2], [END, 0, 1, END]],
        [[2, END, 0, 1]],
    ]
    assert all(batch.dtype == torch.int64 for batch in batches)


def test_reading_stops_at_the_asked_number_of_tokens(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", RECORDS + "never read\n")
    (batch,) = calibration_batches([path], tokenizer, total_tokens=5, row_tokens=512)
    assert batch.tolist() == [[0, 1, END, 2, END]]


def test_rows_of_gemma_begin_as_its_questions_do(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", RECORDS * 3)
    tokenizer.bos_token = "<start>"
    start = tokenizer.bos_token_id
    batches = calibration_batches(
        [path], tokenizer, total_tokens=15, row_tokens=5, batch_rows=2, model_type="gemma3_text"
    )
    assert [batch.tolist() for batch in batches] == [
        [[start, 0, 1, END, 2], [start, END, 0, 1, END]],
        [[start, 2, END, 0, 1]],
    ]
    assert batches[0].dtype == torch.int64
    for other in ("llama", None):  # whose tokenizer has a BOS too, which scoring does not add
        (batch,) = calibration_batches(
            [path], tokenizer, total_tokens=5, row_tokens=5, model_type=other
        )
        assert batch.tolist() == [[0, 1, END, 2, END]]


def test_without_a_model_type_the_class_of_the_tokenizer_says_so(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    class GemmaTokenizer(PreTrainedTokenizerFast):
        pass

    path = write(tmp_path / "a.jsonl", RECORDS)
    gemma = GemmaTokenizer(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<start>", eos_token="<end>"
    )
    (batch,) = calibration_batches([path], gemma, total_tokens=4, row_tokens=4)
    assert batch.tolist() == [[gemma.bos_token_id, 0, 1, END]]
    with pytest.raises(ConfigError, match="no room for text after BOS"):
        calibration_batches([path], gemma, total_tokens=1)


def test_too_little_text_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", RECORDS)
    with pytest.raises(ConfigError, match=r"a\.jsonl: expected at least 8 tokens of text, found 5"):
        calibration_batches([path], tokenizer, total_tokens=100, row_tokens=8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "one"}\nnot json\n', "line 2: expected JSON"),
        ("a.jsonl", b'{"text": "one"}\n\n{"body": "two"}\n', "line 3: expected an object"),
        ("a.jsonl", b'{"text": 5}\n', "line 1"),
        ("a.jsonl", b"[1]\n", "line 1"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.txt.gz", b"no gzip", "cannot be read"),
        ("a.txt.gz", gzip.compress(b"one two three" * 50, mtime=0)[:-9], "cannot be read"),
        ("a.pdf", b"", r"expected \.jsonl"),
        ("a.gz", b"", r"expected \.jsonl"),
    ],
)
def test_unreadable_text_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        list(read_texts([path]))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_texts([tmp_path / "none.txt"]))
