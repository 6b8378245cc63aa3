"""The tokenizer of the tests of tuning."""

from pathlib import Path

import pytest
from tests.tiny import save_tokenizer
from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return save_tokenizer(folder)
