"""Scoring agrees with one forward pass per full sequence, on every family of decoder."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import DynamicCache

from offsite.emulator import scoring
from offsite.emulator.questions import Question, read_questions
from offsite.emulator.scoring import (
    ChoiceScores,
    paired_difference,
    score_choices,
    score_questions,
    summarise,
)

VOCAB = 260
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_SIZES = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "vocab_size": VOCAB}
GEMMA_SIZES = LLAMA_SIZES | {"head_dim": 8}
QUESTIONS = [
    Question("Q: one?\nA:", ("b", "longer answer", "mid", "x y"), 0),
    Question("Q: two?\nA:", ("no", "a much longer answer than that", "q"), 1),
    Question("A question of another length?\nA: ", ("c", "d"), 1),
    Question("Q: six?\nA:", (" spaced", " other"), 0),
    Question("The sky at noon is", ("blue", "green", "red", "black", "white"), 0),
]


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    match family:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**LLAMA_SIZES, **ids))
        case "gpt2":
            gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
            model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **gpt2, **ids))
        case "opt":
            opt = {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
            model = OPTForCausalLM(OPTConfig(vocab_size=VOCAB, **SIZES, **opt, **ids))
        case "bloom":
            bloom = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
            model = BloomForCausalLM(BloomConfig(vocab_size=VOCAB, **bloom, **ids))
        case "gpt_neox":
            sizes = SIZES | {"intermediate_size": 48}
            model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCAB, **sizes, **ids))
        case "gemma":
            model = GemmaForCausalLM(GemmaConfig(**GEMMA_SIZES, **ids))
        case "gemma3-sliding":
            layers = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
            model = Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA_SIZES, **layers, **ids))
        case "mamba":
            mamba = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
            model = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, **mamba, **ids))
        case _:
            raise ValueError(family)
    with torch.no_grad():  # spread the logits, so that a wrong position is seen
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; two ids below 256 are merged pairs, and a BOS on request."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    vocab |= {"Ġb": VOCAB - 2, "er": VOCAB - 1}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "b"), ("e", "r")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


FAMILIES = ["llama", "gpt2", "opt", "bloom", "gpt_neox", "gemma", "gemma3-sliding", "mamba"]


@torch.no_grad()
def oracle(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, question: Question
) -> list[float]:
    """One forward pass per choice over query and choice, summed token by token."""
    bos = "gemma" in model.config.model_type
    gap = "" if question.query.endswith(" ") or question.choices[0].startswith(" ") else " "
    start = len(tokenizer(question.query.rstrip(), add_special_tokens=bos)["input_ids"])
    sums = []
    for choice in question.choices:
        text = question.query + gap + choice
        ids = torch.tensor([tokenizer(text, add_special_tokens=bos)["input_ids"]])
        log_p = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
        sums.append(sum(float(log_p[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])))
    return sums


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_one_pass_per_full_sequence(family: str, batch_tokens: int) -> None:
    model, tokenizer = build(family), byte_tokenizer()
    scores = score_choices(model, tokenizer, QUESTIONS, batch_tokens=batch_tokens)
    for question, score in zip(QUESTIONS, scores, strict=True):
        expected = oracle(model, tokenizer, question)
        assert score.log_likelihoods == pytest.approx(expected, abs=1e-4)
        assert score.gold == question.gold


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mamba"])
def test_decoders_with_a_cache_share_the_query(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[float]:
        raise AssertionError("whole sequences were scored")

    monkeypatch.setattr(scoring, "_score_whole_sequences", refuse)
    score_choices(build(family), byte_tokenizer(), QUESTIONS, batch_tokens=4096)


def test_a_cache_that_cannot_be_repeated_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = build("llama"), byte_tokenizer()
    expected = score_choices(model, tokenizer, QUESTIONS, batch_tokens=256)

    def refuse(self: DynamicCache, indices: torch.Tensor) -> None:
        raise NotImplementedError

    monkeypatch.setattr(DynamicCache, "batch_select_indices", refuse)
    found = score_choices(model, tokenizer, QUESTIONS, batch_tokens=256)
    for a, b in zip(expected, found, strict=True):
        assert a.log_likelihoods == pytest.approx(b.log_likelihoods, abs=1e-4)


@torch.no_grad()
def test_a_question_longer_than_the_model_is_cut_on_the_left() -> None:
    model, tokenizer = build("gpt2"), byte_tokenizer()
    question = Question("x" * 80 + " the end?", ("yes", "not at all"), 0)
    (score,) = score_choices(model, tokenizer, [question], batch_tokens=256)
    for choice, found in zip(question.choices, score.log_likelihoods, strict=True):
        text = f"{question.query} {choice}"
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][-65:]])
        log_p = model(input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
        terms = log_p.gather(-1, ids[0, 1:, None])[-len(choice) - 1 :]
        assert found == pytest.approx(float(terms.sum()), abs=1e-4)


def test_the_mode_of_the_model_is_kept_and_dropout_is_off() -> None:
    model, tokenizer = build("gpt2"), byte_tokenizer()
    expected = score_questions(model, tokenizer, QUESTIONS, batch_tokens=256)
    model.train()
    assert score_questions(model, tokenizer, QUESTIONS, batch_tokens=256) == expected
    assert model.training


def test_progress_reaches_the_total() -> None:
    seen: list[tuple[int, int]] = []
    score_questions(
        build("llama"),
        byte_tokenizer(),
        QUESTIONS,
        batch_tokens=1,
        report=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, len(QUESTIONS)) for i in range(1, len(QUESTIONS) + 1)]


def test_accuracy_by_sum_and_by_characters() -> None:
    scores = [
        ChoiceScores((-4.0, -5.0), (2, 10), 0),  # by sum the first, per character the second
        ChoiceScores((-4.0, -5.0), (2, 10), 1),
        ChoiceScores((-1.0, -9.0), (5, 5), 0),
        ChoiceScores((-1.0, -9.0), (5, 5), 0),
    ]
    accuracy = summarise(scores)
    assert (accuracy.acc, accuracy.acc_norm, accuracy.questions) == (0.75, 0.75, 4)
    assert accuracy.acc_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))


def judged(values: list[float], gold: int) -> bool:
    """Independent of `scoring`: the harness's argmax, but for values that tell nothing."""
    usable = {value for value in values if value - value == 0}
    known = all(value - value == 0 for value in values) and len(usable) > 1
    return known and int(torch.tensor(values, dtype=torch.float64).numpy().argmax()) == gold


@pytest.mark.parametrize("gold", [0, 1, 2])
@pytest.mark.parametrize(
    "values",
    [
        (math.nan, math.nan, math.nan),
        (-math.inf, -math.inf, -math.inf),
        (math.inf, -1.0, -2.0),
        (-1.0, math.nan, -2.0),
        (-1.0, -2.0, -math.inf),
        (-1.0, -1.0, -1.0),
        (-1.0, -1.0, -2.0),
        (-2.0, -1.0, -1.0),
        (-1.0, -2.0, -3.0),
        (-2.0, -2.0, -1.0),
    ],
)
def test_the_first_of_the_best_is_taken_unless_nothing_tells_them_apart(
    values: tuple[float, ...], gold: int
) -> None:
    score = ChoiceScores(values, (4, 4, 4), gold)
    assert score.correct == score.correct_norm == judged(list(values), gold)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_correct_agrees_with_one_pass_per_full_sequence(family: str) -> None:
    model, tokenizer = build(family), byte_tokenizer()
    scores = score_choices(model, tokenizer, QUESTIONS, batch_tokens=64)
    for question, score in zip(QUESTIONS, scores, strict=True):
        assert score.correct == judged(oracle(model, tokenizer, question), question.gold)


def test_a_model_that_computes_nothing_answers_nothing() -> None:
    model = build("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    first = [Question(q.query, q.choices, 0) for q in QUESTIONS]
    found = score_questions(model, byte_tokenizer(), first, batch_tokens=64)
    assert (found.acc, found.acc_norm) == (0.0, 0.0)


def test_paired_difference_is_the_mean_and_error_of_per_question_differences() -> None:
    right, wrong = ChoiceScores((-1.0, -2.0), (1, 1), 0), ChoiceScores((-2.0, -1.0), (1, 1), 0)
    found = paired_difference([right, wrong, wrong, right], [right, right, right, wrong])
    assert found.mean == pytest.approx(0.25)
    spread = torch.tensor([0.0, 1.0, 1.0, -1.0]).std()
    assert found.stderr == pytest.approx(float(spread) / 2)
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([right], [right, wrong])


@pytest.mark.parametrize("name", ["gate.jsonl", "gate.jsonl.gz"])
def test_questions_are_read_from_json_lines(tmp_path: Path, name: str) -> None:
    record = {"query": "Q:", "choices": ["a", "b"], "gold": 1, "id": "ignored"}
    content = (json.dumps(record) + "\n\n").encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read_questions(path) == [Question("Q:", ("a", "b"), 1)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object"),
        ('{"choices": ["a", "b"], "gold": 0}', "query must be a string"),
        ('{"query": " ", "choices": ["a", "b"], "gold": 0}', "query is empty"),
        ('{"query": "q", "choices": "ab", "gold": 0}', "choices must be a list of strings"),
        ('{"query": "q", "choices": ["a", 1], "gold": 0}', "choices must be a list of strings"),
        ('{"query": "q", "choices": ["a"], "gold": 0}', "at least 2 choices"),
        ('{"query": "q", "choices": ["a", ""], "gold": 0}', "a choice is empty"),
        ('{"query": "q", "choices": ["a", "b"], "gold": 2}', "gold is 2, expected 0 to 1"),
        ('{"query": "q", "choices": ["a", "b"], "gold": true}', "gold must be an integer"),
    ],
)
def test_a_malformed_line_is_named_with_its_reason(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "gate.jsonl"
    path.write_text('{"query": "q", "choices": ["a", "b"], "gold": 0}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"line 2.*{reason}"):
        read_questions(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gate.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="at least one question"):
        read_questions(path)
