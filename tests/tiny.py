"""A tiny model with a real tokenizer, as a folder on disk, and questions to go with it."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SENTENCES = (
    "The sun is a star that gives light and heat to the earth.",
    "Water freezes to ice when it is cold and boils to steam when it is hot.",
    "Plants take in carbon dioxide and give off oxygen.",
    "A magnet attracts iron but does not attract wood.",
    "Sound travels through air, water and solid matter as a wave.",
)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_tokenizer(folder: Path, vocab: int = 384) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on the sentences and saves it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return fast


def save_llama(
    folder: Path, *, hidden: int = 32, blocks: int = 6, vocab: int = 384, seed: int = 0
) -> Path:
    """A random Llama of `blocks` blocks with its tokenizer in `folder`."""
    save_tokenizer(folder, min(vocab, 384))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    """One JSON document a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_questions(path: Path, count: int = 12) -> Path:
    """Multiple-choice questions for a gate."""
    choices = ["a star", "a stone", "a plant", "a wave"]
    rows = [
        {"query": f"Question {i}: what is the sun?\nAnswer:", "choices": choices, "gold": i % 4}
        for i in range(count)
    ]
    return write_jsonl(path, rows)


def write_completions(path: Path, count: int = 24, offset: int = 0) -> Path:
    """Prompts with completions."""
    rows = [
        {
            "prompt": f"Question {i + offset}: say something.\nAnswer:",
            "completion": f" {SENTENCES[(i + offset) % len(SENTENCES)]}",
        }
        for i in range(count)
    ]
    return write_jsonl(path, rows)


def write_text(path: Path, count: int = 64) -> Path:
    """Public text for calibration."""
    return write_jsonl(path, ({"text": SENTENCES[i % len(SENTENCES)]} for i in range(count)))
