"""What this edge states of itself, so that a campaign can ask only edges that fit its policy.

The version of its software is always stated. The memory that was free when it started and the number
of its usable rows are stated only if its owner says so (`edge-client join --tell`); the choice is
kept in the state folder. Where the owner set a limit of privacy no count is ever stated: how many
rows there are is something that the limit is there to hide.

The coordinator believes what it is told and cannot check it.
"""

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from offsite.edge_client.machine_memory import free_bytes
from offsite.emulator.durable import write_atomic
from offsite.secure.errors import ConfigError
from offsite.v1 import rounds_pb2 as pb

NAME: Final = "told.json"
NOTHING: Final = "nothing"


class Fact(enum.StrEnum):
    """What may be stated beside the version."""

    MEMORY = "memory"
    EXAMPLES = "examples"


Choice = frozenset[Fact]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is stated; None: not."""

    version: str = ""
    free_memory_bytes: int | None = None
    examples: int | None = None

    def to_message(self) -> pb.EdgeFacts:
        return pb.EdgeFacts(
            version=self.version,
            free_memory_bytes=self.free_memory_bytes,
            examples=self.examples,
        )


def parse_choice(text: str) -> Choice:
    """`nothing`, or names separated by commas. Raises ConfigError."""
    if text == NOTHING:
        return frozenset()
    names = text.split(",")
    unknown = [name for name in names if name not in tuple(Fact)]
    if unknown:
        raise ConfigError(
            f"--tell: expected {NOTHING}, or {' and '.join(Fact)} separated by a comma, found "
            f"{text[:80]!a}"
        )
    return frozenset(map(Fact, names))


def settled_choice(root: Path, given: str | None, *, is_private: bool) -> Choice:
    """What may be stated from now on: what the owner says now, or said before.

    Raises:
        ConfigError: a count is to be stated beside a limit of privacy; or the file is damaged.
    """
    choice = _read(root) if given is None else parse_choice(given)
    if is_private and Fact.EXAMPLES in choice:
        raise ConfigError(
            f"--tell: expected {NOTHING} or {Fact.MEMORY} beside a limit of privacy, found "
            f"{Fact.EXAMPLES}: the number of rows is what it hides; give --tell {NOTHING}"
        )
    if given is not None:
        write_atomic(root / NAME, json.dumps(sorted(choice)).encode() + b"\n")
    return choice


def facts_of(choice: Choice, rows: int) -> Facts:
    """What this edge states, by its owner's choice."""
    return Facts(
        version("offsite"),
        free_bytes() if Fact.MEMORY in choice else None,
        rows if Fact.EXAMPLES in choice else None,
    )


def described(choice: Choice) -> str:
    """For the owner."""
    if not choice:
        return "the coordinator is told the version of this software, and nothing of memory or rows"
    told: Iterable[str] = (
        {Fact.MEMORY: "how much memory is free", Fact.EXAMPLES: "how many rows there are"}[fact]
        for fact in sorted(choice)
    )
    return f"the coordinator is told {' and '.join(told)}"


def _read(root: Path) -> Choice:
    try:
        return frozenset(map(Fact, json.loads((root / NAME).read_bytes())))
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{root / NAME} is damaged; give --tell again: {error}") from error
