"""The tokenizer of a release: two JSON files, no code, no class chosen by the other side.

Notable: `tokenizer.json` is the whole tokenizer as the `tokenizers` library defines it, data only;
`tokenizer_config.json` is a form of our own with the few settings that it lacks. An edge always
makes the generic fast tokenizer of transformers from them, directly, so neither a class name nor
an `auto_map` nor a path in a file can matter: such settings are unknown keys and refused. The
writer proves that the copy tokenises like the original.

The library that reads `tokenizer.json` is compiled code that panics on some nonsense, then or when
the tokenizer is used, and a panic is no `Exception`. So reading and a first use are guarded, and
what made it panic is a `PeerError`. Settings that a release never has (truncation, padding) and
normalisers that make long text of short text are refused before the library sees them.

A chat template is a Jinja program. transformers renders it in a sandbox without access to Python;
a hostile one could still burn time. The report says when there is one.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from offsite.emulator.bundle.tokenizer_rules import check_backend
from offsite.emulator.strict_json import (
    Fields,
    JsonObject,
    JsonValue,
    canonical_json,
    check_text,
    parse_json,
)
from offsite.secure.errors import ConfigError, PeerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_TOKENIZER_BYTES = 64 << 20
MAX_TOKENIZER_CONFIG_BYTES = 1 << 20

_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_MAX_TOKEN_CHARS = 256
_MAX_EXTRA_TOKENS = 10_000
_MAX_TEMPLATE_CHARS = 1 << 17
_MAX_LENGTH = 1 << 40
_MODEL_INPUTS = ["input_ids", "attention_mask"]
_PROBES = (
    "Which gas do plants take in?\nAnswer: carbon dioxide",
    "  naïve\tcafé 漢字 🙂 1,234.5e-6 ",
    "",
)


def encode_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> dict[str, bytes]:
    """The files of a tokenizer by name.

    Raises:
        ConfigError: it has no fast implementation, the copy would tokenise otherwise, or edges would
            refuse it.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"expected a tokenizer with a tokenizer.json, found {type(tokenizer).__name__}:"
            " convert it with transformers first"
        )
    # Truncation and padding are left-overs of the last call, not part of the tokenizer.
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend |= {"truncation": None, "padding": None}
    try:
        check_backend(backend)
    except PeerError as error:
        raise ConfigError(f"edges would refuse this tokenizer: {error}") from error
    files = {
        TOKENIZER: canonical_json(backend),
        TOKENIZER_CONFIG: canonical_json(_settings(tokenizer)),
    }
    _check_same(tokenizer, _build(files[TOKENIZER].decode(), _settings(tokenizer)))
    return files


def check_tokenizer(folder: Path) -> JsonObject:
    """Checks both files and returns the settings; raises PeerError."""
    data = (folder / TOKENIZER_CONFIG).read_bytes()
    settings = _check_settings(
        parse_json(data, TOKENIZER_CONFIG, MAX_TOKENIZER_CONFIG_BYTES), TOKENIZER_CONFIG
    )
    _check_backend(folder)
    return settings


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a verified bundle."""
    settings = check_tokenizer(folder)
    with _no_panic():
        tokenizer = _build((folder / TOKENIZER).read_text("utf-8"), settings)
        for probe in _PROBES:
            tokenizer(probe)
    return tokenizer


def _settings(tokenizer: "PreTrainedTokenizerBase") -> dict[str, JsonValue]:
    settings: dict[str, JsonValue] = {
        name: str(token)
        for name in _SPECIAL_TOKENS
        if (token := getattr(tokenizer, name, None)) is not None
    }
    named = set(settings.values())
    extra = [str(token) for token in tokenizer.all_special_tokens if str(token) not in named]
    settings["extra_special_tokens"] = list(extra)
    settings["padding_side"] = tokenizer.padding_side
    if tokenizer.model_max_length <= _MAX_LENGTH:  # else it is "unknown"
        settings["model_max_length"] = int(tokenizer.model_max_length)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None:
        settings["chat_template"] = template
    return settings


def _check_settings(value: JsonValue, what: str) -> JsonObject:
    fields = Fields(value, what)
    for name in _SPECIAL_TOKENS:
        if name in fields:
            fields.text(name, _MAX_TOKEN_CHARS)
    for token in fields.items("extra_special_tokens", _MAX_EXTRA_TOKENS):
        if not isinstance(token, str):
            raise PeerError(f"{what}: extra_special_tokens: expected strings, found {token!a:.64}")
        check_text(token, f"{what}: extra_special_tokens", _MAX_TOKEN_CHARS)
    if (side := fields.text("padding_side", 8)) not in ("left", "right"):
        raise PeerError(f"{what}: padding_side: expected left or right, found {side}")
    if "model_max_length" in fields:
        fields.integer("model_max_length", 1, _MAX_LENGTH)
    if "chat_template" in fields:
        template = fields.value("chat_template")  # has line breaks, so it is not `text`
        if not isinstance(template, str) or len(template) > _MAX_TEMPLATE_CHARS:
            raise PeerError(f"{what}: chat_template: expected a text of {_MAX_TEMPLATE_CHARS}")
    fields.close()
    assert isinstance(value, Mapping)
    return value


def _check_backend(folder: Path) -> None:
    """Refuses a `tokenizer.json` that is none, or that fails when it is used."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise PeerError(f"{TOKENIZER}: expected at most {MAX_TOKENIZER_BYTES} bytes")
    data = path.read_bytes()
    check_backend(parse_json(data, TOKENIZER, MAX_TOKENIZER_BYTES))
    with _no_panic():
        tokenizer = Tokenizer.from_str(data.decode())
        for probe in _PROBES:
            tokenizer.encode(probe)


@contextmanager
def _no_panic() -> Iterator[None]:
    """Whatever the library raises is the file's fault; a panic is a bare BaseException."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit):
        raise
    except BaseException as error:
        raise PeerError(f"{TOKENIZER}: expected a tokenizer, found {error!s:.200}") from error


def _build(backend: str, settings: JsonObject) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(backend),
        model_input_names=_MODEL_INPUTS,
        clean_up_tokenization_spaces=False,
        **settings,
    )


def _check_same(original: "PreTrainedTokenizerBase", copy: "PreTrainedTokenizerFast") -> None:
    specials = "".join(str(token) for token in original.all_special_tokens)
    for probe in (*_PROBES, f"a{specials} b"):
        expected, found = original(probe)["input_ids"], copy(probe)["input_ids"]
        if expected != found:
            raise ConfigError(
                f"the tokenizer's copy differs on {probe!a}: expected {expected}, found {found};"
                " save it with save_pretrained and load it again"
            )
    if len(copy) != len(original):
        raise ConfigError(f"the tokenizer's copy has {len(copy)} tokens, not {len(original)}")
