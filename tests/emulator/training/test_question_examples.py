"""Questions as what is learnt: the query with its right choice, as scoring encodes them."""

from pathlib import Path

import pytest
from tests.tiny import save_tokenizer
from transformers import PreTrainedTokenizerBase

from offsite.emulator.questions import Question
from offsite.emulator.training.tokens import Encoding, question_examples


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return save_tokenizer(folder)


def test_the_right_choice_is_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    questions = [
        Question("What is the sun?\nAnswer:", ("a stone", "a star"), 1),
        Question("What is ice? ", ("cold water", "a wave"), 0),
    ]
    first, second = question_examples(questions, tokenizer, Encoding(99))
    assert tokenizer.decode(first.ids[first.learnt]) == " a star"
    assert tokenizer.decode(second.ids[second.learnt]) == " cold water"
    assert tokenizer.decode(first.ids) == "What is the sun?\nAnswer: a star"


def test_a_long_query_loses_its_left(tokenizer: PreTrainedTokenizerBase) -> None:
    question = Question("The sun is a star. " * 9, ("yes", "no"), 1)
    (example,) = question_examples([question], tokenizer, Encoding(8))
    assert len(example.ids) == 8
    assert tokenizer.decode(example.ids[example.learnt]) == " no"
