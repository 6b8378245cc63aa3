"""Which clients may be asked at all, by what they state of themselves.

A statement is a client's own word: it is compared, shown to the owner, and believed; nobody can
check it. What an edge states is its owner's choice, and a private edge never states a count
(`edge_client.facts`). Who does not state what is wanted is not asked, and is told so.
"""

import re
from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024
_VERSION: Final = re.compile(r"\d{1,6}(\.\d{1,6}){0,5}")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a client stated last; None and "": nothing."""

    version: str = ""
    free_memory_bytes: int | None = None
    examples: int | None = None


@dataclass(frozen=True, slots=True)
class Eligibility:
    """What a client must state; 0 and "": anything, or nothing."""

    least_examples: int = 0
    least_memory_mib: int = 0
    least_version: str = ""

    @property
    def asks_nothing(self) -> bool:
        return self == Eligibility()

    def why_not(self, facts: Facts) -> str:
        """Why a client that states this is not asked; "" if it is."""
        reasons = []
        if self.least_version and version_of(facts.version) < version_of(self.least_version):
            reasons.append(
                f"version {self.least_version} is wanted, {facts.version or 'none'} stated"
            )
        memory_mib = None if facts.free_memory_bytes is None else facts.free_memory_bytes // MIB
        for name, least, stated in (
            ("examples", self.least_examples, facts.examples),
            ("MiB of memory", self.least_memory_mib, memory_mib),
        ):
            if least and (stated is None or stated < least):
                said = "nothing" if stated is None else str(stated)
                reasons.append(f"{least} {name} are wanted, {said} stated")
        return "; ".join(reasons)


def is_version(text: str) -> bool:
    """Whether it is numbers with dots between them."""
    return _VERSION.fullmatch(text) is not None


def version_of(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with, trailing zeros left out; () where there is none."""
    found = _VERSION.match(text)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
