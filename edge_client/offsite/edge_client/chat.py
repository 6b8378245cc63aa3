"""Conversations as token ids, with the assistant's turns marked, through the chat template.

Notable decisions:

* A template with generation markers (`{% generation %}`) says itself what the assistant wrote.
* Without them the template is rendered for growing prefixes of the conversation: a turn starts
  where the prefix with the generation prompt ends, and ends where the prefix with the turn ends,
  its end-of-turn token included. So the model learns to stop. A boundary in tokens is the length
  of the prefix encoded by itself, as lm-evaluation-harness does it.
* The template comes from the coordinator, the rows do not: whatever a template raises makes the
  row unusable and is told here only, so that no row can be asked about by failing on it.
* A template may rewrite earlier turns (reasoning that is dropped, for one). Such a turn is not
  learnt; a row where no turn can be found is refused with the reason.
"""

import re
from collections.abc import Iterator, Sequence
from typing import cast

from transformers import BatchEncoding, PreTrainedTokenizerBase

from offsite.edge_client.data import ASSISTANT, ChatMessage
from offsite.secure.errors import ConfigError

REASON_CHARS = 200
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ConfigError` unless the model has a chat template."""
    if not tokenizer.chat_template:
        raise ConfigError(
            "the data has `messages`, but the model's tokenizer has no chat template; expected "
            "rows with `prompt` and `completion`, or with `text`, for this model"
        )


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[ChatMessage]
) -> tuple[list[int], list[bool]]:
    """Return the token ids of a conversation and which of them the assistant wrote.

    Raises:
        ValueError: the template refuses the conversation, or hides where a turn stands.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        if _has_markers(tokenizer):
            ids, learnt = _encode_marked(tokenizer, turns)
        else:
            ids, learnt = _encode_by_prefixes(tokenizer, turns)
    except Exception as error:  # noqa: BLE001 - a template can raise whatever Python can
        raise ValueError(f"the chat template refuses the messages: {_reason(error)}") from None
    if not any(learnt):
        raise ValueError("the chat template shows no turn of the assistant as it was given")
    return ids, learnt


def _reason(error: Exception) -> str:
    """One short line: the text may be the template's own."""
    text = str(error)[:REASON_CHARS] or type(error).__name__
    return "".join(character if character.isprintable() else " " for character in text)


def _has_markers(tokenizer: PreTrainedTokenizerBase) -> bool:
    template = tokenizer.chat_template
    return isinstance(template, str) and _MARKERS.search(template) is not None


def _encode_marked(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]
) -> tuple[list[int], list[bool]]:
    encoded = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert isinstance(encoded, BatchEncoding)
    return list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]


def _encode_by_prefixes(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]
) -> tuple[list[int], list[bool]]:
    whole = _render(tokenizer, turns)
    ids = _token_ids(tokenizer, whole)
    learnt = [False] * len(ids)
    for start, end in _spans(tokenizer, turns, whole):
        first = len(_token_ids(tokenizer, whole[:start]))
        last = len(ids) if end == len(whole) else len(_token_ids(tokenizer, whole[:end]))
        learnt[first:last] = [True] * (min(last, len(ids)) - first)
    return ids, learnt


def _spans(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], whole: str
) -> Iterator[tuple[int, int]]:
    """Yield where in ``whole`` each of the assistant's turns starts and ends, in characters."""
    for index, turn in enumerate(turns):
        if turn["role"] != ASSISTANT:
            continue
        start = _start(tokenizer, turns[:index], whole)
        last = index + 1 == len(turns)
        until = whole if last else _render(tokenizer, turns[: index + 1])
        end = _common_length(until, whole)
        if start is not None and whole.find(turn["content"].strip(), start, end) >= 0:
            yield start, end


def _common_length(a: str, b: str) -> int:
    """Return how many characters both texts begin with."""
    differing = (index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))


def _start(
    tokenizer: PreTrainedTokenizerBase, earlier: list[dict[str, str]], whole: str
) -> int | None:
    """Return where the answer to ``earlier`` starts, or None where the template hides it."""
    if not earlier:
        return 0  # many templates refuse an empty conversation
    prompted = _render(tokenizer, earlier, generation_prompt=True)
    if whole.startswith(prompted):
        return len(prompted)
    plain = _render(tokenizer, earlier)  # some prompts hold more than the conversation will
    if whole.startswith(plain):
        return max(len(plain), _common_length(prompted, whole))
    return None


def _render(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, str]],
    *,
    generation_prompt: bool = False,
) -> str:
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=generation_prompt
    )
    return cast(str, text)


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
