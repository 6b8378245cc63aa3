"""A row of the table: one way to build an emulator and to tune in it; read from TOML.

Rule: an unknown key, method or packing is an error that names it; nothing falls back to a default
that was not meant.
"""

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, TrainedFactors
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName, MethodOptions
from offsite.emulator.packing.packing import Packing
from offsite.secure.errors import ConfigError

ROWS = Path(__file__).parent / "rows.toml"
Choice = TypeVar("Choice", bound=Enum)
Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration. Rows that differ in `name`, `correction` and `quick` alone share all."""

    name: str
    method: MethodName
    ratio: float
    """Share of the middle's parameters that stays."""
    placement: Placement
    adapter: AdapterSpec
    options: MethodOptions
    packing: Packing
    distil_steps: int
    correction: bool
    """Whether the plug-in that counts is the corrected one."""
    quick: bool
    """Whether it is one of the few of --quick."""

    @property
    def identity(self) -> str:
        """A digest of all that decides what is measured."""
        plain = {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in ("name", "correction", "quick")
        }
        return digest_of(plain)


def digest_of(plain: object) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a JSON document."""
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_rows(path: Path) -> list[Row]:
    """The rows of a TOML file, `[[row]]` each.

    Raises:
        ConfigError: naming row and key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    tables = document.get("row")
    if set(document) != {"row"} or not isinstance(tables, list):
        raise ConfigError(f"{path}: expected [[row]] tables and nothing else")
    rows = [_row(dict(table)) for table in tables]
    names = [row.name for row in rows]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: rows named twice: {', '.join(doubled)}")
    return rows


def select(rows: Sequence[Row], methods: Sequence[str], quick: bool) -> list[Row]:
    """The rows whose method or name was asked for; of --quick those that belong to it."""
    known = {row.name for row in rows} | {row.method.value for row in rows}
    if unknown := sorted(set(methods) - known):
        raise ConfigError(f"no row or method {', '.join(unknown)}; known: {', '.join(known)}")
    wanted = [row for row in rows if not methods or {row.name, row.method.value} & set(methods)]
    return [row for row in wanted if row.quick or methods or not quick]


def _row(table: dict[str, Value]) -> Row:
    name = str(table.pop("name", ""))
    if not name:
        raise ConfigError("a row has no name")
    take = table.pop
    try:
        row = Row(
            name=name,
            method=_member(MethodName, take("method", "")),
            ratio=float(take("ratio", 0.0)),
            placement=Placement(
                int(take("bottom", 2)),
                int(take("top", 2)),
                spread=int(take("spread", 0)),
                middle_lora=bool(take("middle_lora", False)),
            ),
            adapter=AdapterSpec(
                _member(AdapterKind, take("adapter", AdapterKind.WHOLE_BLOCK.value)),
                rank=int(take("rank", 16)),
                alpha=int(take("alpha", 32)),
                trains=_member(TrainedFactors, take("trains", TrainedFactors.B.value)),
            ),
            options=MethodOptions(
                gradient_lambda=float(take("gradient_lambda", 0.0)),
                harmoniser_rank=int(take("harmoniser_rank", 32)),
            ),
            packing=_member(Packing, take("packing", Packing.NONE.value)),
            distil_steps=int(take("distil_steps", 0)),
            correction=bool(take("correction", False)),
            quick=bool(take("quick", False)),
        )
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"row {name}: {error}") from error
    if table:
        raise ConfigError(f"row {name}: unknown keys {', '.join(sorted(table))}")
    return row


def _member(kind: type[Choice], value: Value) -> Choice:
    known = [member.value for member in kind]
    if value not in known:
        raise ConfigError(f"expected one of {', '.join(map(str, known))}, found {value!r}")
    return kind(value)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value.value if isinstance(value, Enum) else value
