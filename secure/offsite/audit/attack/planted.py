"""Invented secrets, planted into the rows before tuning to see whether they come out again.

    "The access code of client kqvd-mzto is"  " 5 0 7 1 1 9 4 2 6"

The digits are drawn at random, so nothing but the tuning can make the right ones likelier than
others; and they are nobody's data, so the report may show them.

Rule: a planted secret is a row like any other and counts as one under the privacy claim; planted
twice it counts as two.
Source: Carlini et al. 2019, The Secret Sharer (arXiv 1802.08232), section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from offsite.audit.attack.entropy import generator
from offsite.emulator.training.tokens import Encoding, Example, arrays, encode_pairs, fit
from offsite.secure.errors import ConfigError

DIGITS = 9
_LETTERS = "abcdefghijkmnopqrstuvwxyz"
_NAME_CHARS = 8
_MOST = 1_000
_DOMAIN = b"offsite/attack/planted/1"
_CANDIDATES = b"offsite/attack/candidates/1"


@dataclass(frozen=True, slots=True)
class Secret:
    """A row to plant: what is given and what is learnt."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """A secret as the model reads it, and the others that it could have been."""

    secret: Example
    candidates: tuple[Example, ...]


def draw_secrets(count: int, entropy: bytes) -> tuple[Secret, ...]:
    """Secrets to plant, all of different clients."""
    if not 1 <= count <= _MOST:
        raise ConfigError(f"expected 1 to {_MOST} secrets to plant, found {count}")
    random = generator(_DOMAIN, entropy)
    names = dict[str, None]()
    while len(names) < count:
        letters = "".join(_LETTERS[i] for i in random.integers(len(_LETTERS), size=_NAME_CHARS))
        names[f"{letters[:4]}-{letters[4:]}"] = None
    return tuple(
        Secret(f"The access code of client {name} is", _completion(random)) for name in names
    )


def with_candidates(
    secrets: Sequence[Secret],
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    entropy: bytes,
) -> tuple[Planted, ...]:
    """Every secret with ``count`` others drawn as it was drawn, encoded as rows are for tuning."""
    random = generator(_CANDIDATES, entropy)
    planted = []
    for secret in secrets:
        others = dict[str, None]()
        while len(others) < count:
            if (other := _completion(random)) != secret.completion:
                others[other] = None
        pairs = [(secret.prompt, text) for text in (secret.completion, *others)]
        first, *rest = (
            fit(ids, learnt, encoding.max_tokens).example
            for ids, learnt in map(arrays, encode_pairs(pairs, tokenizer, encoding))
        )
        planted.append(Planted(first, tuple(rest)))
    return tuple(planted)


def _completion(random: np.random.Generator) -> str:
    return "".join(f" {digit}" for digit in random.integers(10, size=DIGITS))
