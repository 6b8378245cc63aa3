"""The description of a release as rich tables: made from the JSON document and nothing else.

Text from a bundle is printed as plain text, never as markup. What an edge cannot check, first of all
the figures of leak and fidelity, stands under a title that says so. What the owner did not measure is
shown as `not measured`, with the reason the owner gives.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from offsite.emulator.bundle.checks import Outcome
from offsite.emulator.strict_json import JsonObject, JsonValue

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

NOT_MEASURED = "not measured"
CLAIMED = "claimed by the owner, not checked"
_PLAIN_NUMBERS = frozenset({"version", "seed", "block", "base_block"})


def sections(description: JsonObject) -> "list[RenderableType]":
    """Every table that the description has something for, in order."""
    parts: list[RenderableType] = []
    for title in ("release", "emulator", "adapter"):
        if section := _object(description.get(title)):
            parts.append(_pairs(title, _rows(section)))
    if variants := _objects(description.get("variants")):
        parts.append(_grid("emulators of this release", variants))
    parts += _provenance(_object(description.get("provenance")))
    if statistics := _object(description.get("statistics")):
        parts += _statistics(statistics)
    if hostile := _objects(description.get("hostile_checks")):
        parts.append(_hostile(hostile))
    parts.append(_pairs("checks of form and origin", _check_rows(description.get("checks"))))
    return parts


def _provenance(provenance: JsonObject) -> "list[RenderableType]":
    """A table for each report of the owner, and one for what stands beside them."""
    parts: list[RenderableType] = []
    loose = {key: value for key, value in provenance.items() if not isinstance(value, Mapping)}
    if loose:
        parts.append(_pairs(CLAIMED, _rows(loose)))
    budget = {
        _title(figure): f" (limit {_cell('', limit)})"
        for figure, limit in _object(provenance.get("leak_budget")).items()
        if limit is not None
    }
    for key, value in provenance.items():
        shown_with_leak = key == "leak_budget" and "leak" in provenance
        if isinstance(value, Mapping) and not shown_with_leak:
            limits = budget if key == "leak" else {}
            rows = [(name, cell + limits.get(name, "")) for name, cell in _rows(value)]
            parts.append(_pairs(f"{_title(key)} ({CLAIMED})", rows))
    return parts


def _statistics(statistics: JsonObject) -> "list[RenderableType]":
    from rich.text import Text

    values, read = statistics["values"], statistics["values_read"]
    how = f"measured: {_cell('', read)} of {_cell('', values)} values"
    if values != read:
        how += f", in rows drawn from seed {statistics['rows_drawn_from_seed']}"
    parts: list[RenderableType] = [Text(how)]
    if unmeasured := _cell("", statistics["unmeasured"]):
        parts.append(Text(f"not measured: {unmeasured}"))
    kinds = [_plain_kind(kind) for kind in _objects(statistics["kinds"])]
    parts.append(_grid("weights by kind (lowest, median, highest)", kinds))
    parts.append(_grid("blocks, against the median of each kind", _objects(statistics["blocks"])))
    outside = [_plain_shapes(tensor) for tensor in _objects(statistics["outside"])]
    parts.append(_grid("outside the blocks", outside))
    if harmonisers := _objects(statistics["harmonisers"]):
        parts.append(_grid("harmonisers", harmonisers))
    return parts


def _plain_shapes(row: JsonObject) -> JsonObject:
    """Shapes as `576 x 1536`."""
    shown = dict(row)
    if "shapes" in shown:
        shown["shapes"] = ", ".join(_shape(shape) for shape in _items(shown["shapes"]))
    if "shape" in shown:
        shown["shape"] = _shape(shown["shape"])
    return shown


def _plain_kind(kind: JsonObject) -> JsonObject:
    """Without what every kind has: the word `weight`, and no packing."""
    shown = {**_plain_shapes(kind), "kind": str(kind["kind"]).removesuffix(".weight")}
    if shown["packing"] == "none":
        shown["packing"] = ""
    return shown


def _shape(shape: JsonValue) -> str:
    return " x ".join(str(axis) for axis in _items(shape))


def _hostile(checks: Sequence[JsonObject]) -> "Table":
    rows = [
        {
            "check": check["name"],
            "outcome": check["outcome"],
            "figure": check["figure"],
            "sane up to": check["limit"],
            "found": check["detail"],
        }
        for check in checks
    ]
    return _grid("checks against a hostile release (docs/hostile-release.md)", rows)


def _check_rows(checks: JsonValue) -> list[tuple[str, str]]:
    rows = []
    for check in _objects(checks):
        detail = f": {check['detail']}" if check["outcome"] != Outcome.PASSED.value else ""
        rows.append((str(check["name"]), f"{check['outcome']}{detail}"))
    return rows


def _rows(section: JsonObject, above: str = "") -> list[tuple[str, str]]:
    """One row for each value, nested ones named by their path; figures keep their error."""
    rows = []
    for key, value in section.items():
        name = f"{above}{_title(key)}"
        if isinstance(value, Mapping) and not _is_figure(value) and value:
            rows += _rows(value, f"{name}, ")
        elif grid := _objects(value):
            rows += [(name, _line(entry)) for entry in grid]
        else:
            rows.append((name, _cell(key, value)))
    return rows


def _line(entry: JsonObject) -> str:
    return ", ".join(f"{_title(key)} {_cell(key, value)}" for key, value in entry.items())


def _is_figure(value: JsonObject) -> bool:
    """A number with its error or with the reason why there is none; or a low-to-high range."""
    keys = value.keys()
    return ("value" in keys and keys <= {"value", "stderr", "reason"}) or {"low", "high"} <= keys


def _cell(key: str, value: JsonValue) -> str:
    if isinstance(value, Mapping):
        return _figure(value) if _is_figure(value) else _line(value)
    match value:
        case None:
            return NOT_MEASURED
        case str() | bool():
            return str(value)
        case int() if key not in _PLAIN_NUMBERS:
            size = f" ({value / 2**20:,.1f} MiB)" if key.endswith("bytes") else ""
            return f"{value:,}{size}"
        case float():
            return f"{value:.4g}"
        case Sequence():
            return ", ".join(_cell("", item) for item in value)
    return str(value)


def _figure(figure: JsonObject) -> str:
    if "low" in figure:
        return " ".join(
            _cell("", figure[key]) for key in ("low", "median", "high") if key in figure
        )
    if figure["value"] is None:
        reason = str(figure.get("reason") or "").removeprefix(f"{NOT_MEASURED}: ")
        return f"{NOT_MEASURED}: {reason}" if reason else NOT_MEASURED
    error = figure.get("stderr")
    return _cell("", figure["value"]) + ("" if error is None else f" ± {_cell('', error)}")


def _title(key: str) -> str:
    return key.replace("_", " ")


def _object(value: JsonValue) -> JsonObject:
    return value if isinstance(value, Mapping) else {}


def _items(value: JsonValue) -> Sequence[JsonValue]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _objects(value: JsonValue) -> list[JsonObject]:
    return [item for item in _items(value) if isinstance(item, Mapping)]


def _pairs(title: str, rows: Iterable[tuple[str, str]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False, min_width=len(title))
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _grid(title: str, rows: Sequence[JsonObject]) -> "Table":
    """A row for each object, a column for each key that any of them has a value for."""
    from rich.table import Table
    from rich.text import Text

    keys = [key for row in rows for key in row]
    used = [key for key in dict.fromkeys(keys) if any(_shown(row.get(key)) for row in rows)]
    table = Table(title=title, title_justify="left", min_width=len(title))
    for key in used:
        table.add_column(Text(_title(key)))
    for row in rows:
        cells = [_cell(key, row[key]) if _shown(row.get(key)) else "-" for key in used]
        table.add_row(*map(Text, cells))
    return table


def _shown(value: JsonValue) -> bool:
    return value is not None and value not in ("", [], {})
