"""What a `tokenizer.json` from the other side may ask for.

Notable: a `Replace` that puts long text where short text was multiplies what a data owner's rows
take, and a chain of them multiplies the products: four that make 16 letters of one take 64 KiB for
a letter. So each may add a few characters only, and together they may make text `MAX_GROWTH` times
as long. What families need is far below: SentencePiece writes "▁" for a blank, XLNet a quote
for two.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from offsite.emulator.strict_json import JsonObject, JsonValue
from offsite.secure.errors import PeerError

MAX_ADDED_CHARS = 8
MAX_GROWTH = 16
_MAX_NESTING = 8


def check_backend(value: JsonValue) -> None:
    """Refuses left-overs of use and steps that make long text of short text.

    Raises:
        PeerError: it names the setting.
    """
    if not isinstance(value, Mapping):
        raise PeerError("tokenizer.json: expected an object")
    for name in ("truncation", "padding"):
        if value.get(name) is not None:
            raise PeerError(f"tokenizer.json: {name}: expected null, as every release has it")
    growth = 1
    for part in ("normalizer", "pre_tokenizer"):
        for step in _steps(value.get(part), _MAX_NESTING):
            growth *= _growth(step)
            if growth > MAX_GROWTH:
                raise PeerError(
                    f"tokenizer.json: {part}: expected text at most {MAX_GROWTH} times as long,"
                    " found more"
                )


def _steps(value: JsonValue, nesting: int) -> Iterator[JsonObject]:
    """Every object with a type, however deep."""
    if not isinstance(value, Mapping | list):
        return
    if nesting == 0:
        raise PeerError(f"tokenizer.json: expected at most {_MAX_NESTING} levels of steps")
    if isinstance(value, Mapping):
        if "type" in value:
            yield value
        items: Sequence[JsonValue] = list(value.values())
    else:
        items = value
    for item in items:
        yield from _steps(item, nesting - 1)


def _growth(step: JsonObject) -> int:
    """How many times as long a step makes text at most; an inserted prefix counts as once."""
    match step:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            _check_added(len(content) - len(pattern), "Replace")
            return max(1, math.ceil(len(content) / max(1, len(pattern))))
        case {"type": "Replace", "content": str(content)}:  # an expression may match one character
            _check_added(len(content) - 1, "Replace")
            return max(1, len(content))
        case {"type": "Prepend", "prepend": str(prepend)}:
            _check_added(len(prepend), "Prepend")
    return 1


def _check_added(chars: int, what: str) -> None:
    if chars > MAX_ADDED_CHARS:
        raise PeerError(
            f"tokenizer.json: {what}: expected at most {MAX_ADDED_CHARS} characters more than the"
            f" text that is replaced, found {chars}"
        )
