"""Rows as tokens: what is learnt, how it agrees with scoring, what is cut and what is counted."""

from collections.abc import Sequence

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from offsite.edge_client.data import (
    ChatMessage,
    ChatRow,
    Data,
    DataReport,
    Layout,
    PairRow,
    Row,
    TextRow,
)
from offsite.edge_client.data_formats import Format
from offsite.edge_client.tokens import Encoded, encode
from offsite.emulator.questions import Question
from offsite.emulator.scoring import score_choices
from offsite.emulator.training.tokens import Encoding, digest
from offsite.secure.errors import ConfigError


def data_of(*rows: Row) -> Data:
    layouts = {TextRow: Layout.TEXT, PairRow: Layout.PAIR, ChatRow: Layout.CHAT}
    report = DataReport(
        "a.jsonl", Format.JSONL, layouts[type(rows[0])], len(rows), len(rows), 0, ()
    )
    return Data(rows, report)


def pairs(*texts: tuple[str, str]) -> Data:
    return data_of(*(PairRow(line, *pair) for line, pair in enumerate(texts, start=1)))


def learnt_text(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, index: int = 0) -> str:
    example = encoded.examples[index]
    return str(tokenizer.decode(example.ids[example.learnt]))


def fed_by_scoring(tokenizer: PreTrainedTokenizerBase, question: Question) -> list[list[int]]:
    """The tokens of query and choice, without the last, which are never fed, of each choice."""
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, n_positions=256, vocab_size=len(tokenizer))
    model = GPT2LMHeadModel(config)
    fed: list[torch.Tensor] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    score_choices(model, tokenizer, [question], batch_tokens=1000)
    query, choices = fed[0][0].tolist(), fed[1].tolist()
    return [query + choice for choice in choices]


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Question: what is the sun?\nAnswer:", "a star that gives light"),
        ("Question: what is the sun?\nAnswer:", " a star that gives light"),
        ("Question: what is the sun?\nAnswer: ", "a star that gives light"),
        ("Question: what is the sun?\nAnswer:\n\n", "a star that gives light"),
        ("The su", "n is hot"),
    ],
)
def test_a_prompt_and_its_completion_are_encoded_as_scoring_encodes_them(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> None:
    (example,) = encode(pairs((prompt, completion)), tokenizer, Encoding(200)).examples
    fed = fed_by_scoring(tokenizer, Question(prompt, (completion, completion), 0))[0]
    assert example.ids[:-1].tolist() == fed
    query = len(tokenizer(prompt.rstrip())["input_ids"])
    assert example.learnt.tolist() == [i >= query for i in range(len(example.ids))]


def test_special_tokens_are_those_of_scoring() -> None:
    assert Encoding.for_model("gemma2", 10).special_tokens
    assert not Encoding.for_model("llama", 10).special_tokens


def test_every_token_of_a_text_but_the_first_is_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = encode(data_of(TextRow(1, "The sun is hot.")), tokenizer, Encoding(99)).examples
    assert not example.learnt[0]
    assert example.learnt[1:].all()


def test_a_long_prompt_loses_its_left(tokenizer: PreTrainedTokenizerBase) -> None:
    data = pairs(("The sun is a star. " * 10 + "Water is", "wet"), ("short", "one"))
    whole = encode(data, tokenizer, Encoding(1000)).examples[0]
    encoded = encode(data, tokenizer, Encoding(12))
    assert encoded.examples[0].ids.tolist() == whole.ids[-12:].tolist()
    assert learnt_text(tokenizer, encoded) == " wet"
    assert (encoded.report.truncated_rows, encoded.report.rows_kept) == (1, 2)
    assert "1 rows are longer than the limit and were cut" in encoded.report.lines()


def test_a_long_completion_keeps_its_start(tokenizer: PreTrainedTokenizerBase) -> None:
    data = pairs(("Water is", "wet and cold " * 10))
    whole = encode(data, tokenizer, Encoding(1000)).examples[0]
    first = int(whole.learnt.argmax())
    (example,) = encode(data, tokenizer, Encoding(8)).examples
    assert example.ids.tolist() == whole.ids[first - 1 : first + 7].tolist()
    assert example.learnt.tolist() == [False] + [True] * 7


def test_a_long_text_is_split_and_each_token_is_learnt_once(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    data = data_of(TextRow(1, "The sun is a star that gives light. " * 9), TextRow(2, "Ice is"))
    whole = encode(data, tokenizer, Encoding(1000))
    encoded = encode(data, tokenizer, Encoding(10))
    pieces = encoded.examples[:-1]
    learnt = [token for piece in pieces for token in piece.ids[piece.learnt].tolist()]
    assert learnt == whole.examples[0].ids[1:].tolist()
    assert max(len(piece.ids) for piece in pieces) == 10
    report = encoded.report
    assert (report.split_rows, report.rows_kept, report.examples) == (1, 2, len(pieces) + 1)
    assert encoded.rows == (0,) * len(pieces) + (1,)


def test_a_row_with_nothing_to_learn_is_reported(tokenizer: PreTrainedTokenizerBase) -> None:
    data = data_of(TextRow(1, "The sun"), TextRow(5, "T"))
    encoded = encode(data, tokenizer, Encoding(99))
    assert (encoded.report.rows_kept, encoded.report.rows_unusable) == (1, 1)
    assert encoded.report.problems[0].line == 5
    with pytest.raises(
        ConfigError, match=r"none that is usable \(line 5: nothing is left to learn"
    ):
        encode(data_of(TextRow(5, "T")), tokenizer, Encoding(99))


def test_the_digest_tells_examples_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    def digest_of(*texts: tuple[str, str]) -> str:
        return digest(encode(pairs(*texts), tokenizer, Encoding(99)).examples)

    known = {
        digest_of(("a", "b c")),
        digest_of(("a b", "c")),
        digest_of(("a", "b d")),
        digest_of(("a", "b c"), ("a", "b c")),
    }
    assert len(known) == 4
    assert digest_of(("a", "b c")) in known


# Conversations.

CHAT = [
    ("system", "Be brief."),
    ("user", "What is the sun?"),
    ("assistant", "A star."),
    ("user", "And ice?"),
    ("assistant", "Cold water."),
]
LOOP = "{% for m in messages %}<|{{ m.role }}|>"
END = "<|end|>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
MARKED = (
    LOOP + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}" + END + PROMPT
)
DROPS_THOUGHTS = (
    LOOP + "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] }}"
    "{% endif %}" + END + PROMPT
)
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + LOOP
    + "{{ m.content }}"
    + END
    + PROMPT
)


def chat(turns: Sequence[tuple[str, str]], line: int = 1) -> ChatRow:
    return ChatRow(line, tuple(ChatMessage(*turn) for turn in turns))


@pytest.fixture
def templated(
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> PreTrainedTokenizerBase:
    monkeypatch.setattr(tokenizer, "chat_template", request.param)
    return tokenizer


@pytest.mark.parametrize(
    "templated",
    [LOOP + "{{ m.content }}" + END + PROMPT, DROPS_THOUGHTS],
    indirect=True,
)
def test_only_the_turns_of_the_assistant_are_learnt(templated: PreTrainedTokenizerBase) -> None:
    encoded = encode(data_of(chat(CHAT)), templated, Encoding(999))
    assert learnt_text(templated, encoded) == "A star.<|end|>Cold water.<|end|>"
    text = templated.decode(encoded.examples[0].ids)
    assert text.startswith("<|system|>Be brief.<|end|><|user|>What is the sun?<|end|><|assistant|>")


@pytest.mark.parametrize("templated", [MARKED], indirect=True)
def test_a_template_with_generation_markers_has_its_way(
    templated: PreTrainedTokenizerBase,
) -> None:
    encoded = encode(data_of(chat(CHAT)), templated, Encoding(999))
    assert learnt_text(templated, encoded) == "A star.Cold water."


@pytest.mark.parametrize(
    "templated",
    [
        LOOP + "{{ m.content }}" + END + PROMPT.replace("<|assistant|>", "<|assistant|><think>"),
        LOOP + "{{ m.content }}" + END + PROMPT.replace("{% endif %}", "{% else %}!{% endif %}"),
    ],
    indirect=True,
)
def test_a_generation_prompt_that_is_not_in_the_conversation_does_no_harm(
    templated: PreTrainedTokenizerBase,
) -> None:
    encoded = encode(data_of(chat(CHAT[:3])), templated, Encoding(999))
    assert learnt_text(templated, encoded).startswith("A star.<|end|>")


@pytest.mark.parametrize("templated", [LOOP + "{{ m.content }}" + END], indirect=True)
def test_without_a_generation_prompt_the_header_is_learnt_too(
    templated: PreTrainedTokenizerBase,
) -> None:
    encoded = encode(data_of(chat(CHAT[1:3])), templated, Encoding(999))
    assert learnt_text(templated, encoded) == "<|assistant|>A star.<|end|>"


@pytest.mark.parametrize("templated", [DROPS_THOUGHTS], indirect=True)
def test_a_turn_that_the_template_rewrites_is_not_learnt(
    templated: PreTrainedTokenizerBase,
) -> None:
    turns = [(role, text.replace("A star", "A guess</think>A star")) for role, text in CHAT]
    encoded = encode(data_of(chat(turns)), templated, Encoding(999))
    assert learnt_text(templated, encoded) == "Cold water.<|end|>"


@pytest.mark.parametrize(
    "templated",
    [
        LOOP + "{% if 'Be brief' in m.content %}{{ " + fault + " }}{% endif %}{{ m.content }}" + END
        for fault in ("1 / 0", "1 + 'a'", "[1][9].x", "'a' * 10 ** 20", "(0.1).as_integer_ratio(1)")
    ],
    indirect=True,
)
def test_whatever_a_template_raises_makes_the_row_unusable_and_no_more(
    templated: PreTrainedTokenizerBase,
) -> None:
    """A template that fails on a word would otherwise tell its author who wrote the word."""
    encoded = encode(data_of(chat(CHAT, 3), chat(CHAT[1:], 4)), templated, Encoding(999))
    (problem,) = encoded.report.problems
    assert problem.line == 3
    assert problem.reason.startswith("the chat template refuses the messages: ")


@pytest.mark.parametrize("templated", [REFUSES_SYSTEM], indirect=True)
def test_messages_that_the_template_refuses_are_reported(
    templated: PreTrainedTokenizerBase,
) -> None:
    encoded = encode(data_of(chat(CHAT, 3), chat(CHAT[1:], 4)), templated, Encoding(999))
    (problem,) = encoded.report.problems
    assert problem.line == 3
    assert problem.reason == "the chat template refuses the messages: no system role"
    assert learnt_text(templated, encoded) == "A star.<|end|>Cold water.<|end|>"


@pytest.mark.parametrize("templated", [LOOP + "{{ m.content }}" + END + PROMPT], indirect=True)
def test_a_long_conversation_keeps_its_last_answer(templated: PreTrainedTokenizerBase) -> None:
    turns = [*CHAT, ("user", "This is not answered, and so it is not read either.")]
    encoded = encode(data_of(chat(turns)), templated, Encoding(16))
    assert learnt_text(templated, encoded).endswith("Cold water.<|end|>")
    assert templated.decode(encoded.examples[0].ids).endswith("Cold water.<|end|>")
    assert len(encoded.examples[0].ids) == 16
    assert encoded.report.truncated_rows == 1


@pytest.mark.parametrize("templated", [None], indirect=True)
def test_a_model_without_a_chat_template_is_refused(templated: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="no chat template; expected rows with `prompt`"):
        encode(data_of(chat(CHAT)), templated, Encoding(999))
